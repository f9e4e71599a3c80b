"""promotion: the adapter that answers under the corpus's name."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.orchestration.io import markdown_table
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import OWNER, UserError, code_version
from ragtuned_pipeline.tuning import adapter_store

if TYPE_CHECKING:
    from ragtuned_pipeline.orchestration.gate import Verdict
    from ragtuned_pipeline.orchestration.promotion_history import Entry

_CHARACTERS = 100  # of a cell


@dg.multi_asset(
    name="promotion",
    specs=[
        dg.AssetSpec(
            "promoted_adapter",
            description="The adapter that the link `current` points to: the one that answers.",
            group_name="promotion",
            owners=[OWNER],
            kinds={"huggingface"},
            code_version=code_version(
                "orchestration/gate.py",
                "orchestration/promotions.py",
                "orchestration/promotion_history.py",
                "tuning/adapter_store.py",
            ),
            deps=["lora_adapter", "scorecard"],
            partitions_def=corpora,
            skippable=True,
        )
    ],
    partitions_def=corpora,
)
def promotion(
    context: dg.AssetExecutionContext, home: HomeResource
) -> Iterator[dg.MaterializeResult[Any]]:
    """Promote the trained adapter if it passes the gate, also when started by hand."""
    from ragtuned_pipeline.orchestration.promotion_history import PromotionError
    from ragtuned_pipeline.orchestration.promotions import promote_trained

    corpus, place = context.partition_key, home.home
    try:
        outcome = promote_trained(place, corpus, context.run.run_id)
    except PromotionError as error:
        raise UserError(str(error)) from error
    if outcome.what in {"refused", "set aside"}:
        context.log.warning(outcome.sentence)
        return
    context.log.info("; ".join([outcome.sentence, *outcome.verdict.remarks]))
    yield dg.MaterializeResult(
        asset_key="promoted_adapter",
        data_version=dg.DataVersion(outcome.adapter),
        metadata={
            "adapter": dg.MetadataValue.path(
                str(adapter_store.current_link(place.adapters, corpus))
            ),
            **gate_metadata(outcome.verdict),
            **history_metadata(outcome.history),
        },
    )


def gate_metadata(verdict: "Verdict") -> dict[str, Any]:
    """Every compared number as a table, and each as a number that the UI plots over time."""
    rows = [
        {
            "number": each.number.replace("_", " "),
            "this adapter": f"{each.value:.3f}",
            "compared with": f"{each.against}, {each.other:.3f}",
            "questions of both": "" if each.questions is None else str(each.questions),
            "worse by": f"{each.worse:.3f}",
            "by chance": "" if each.chance is None else f"{each.chance:.4f}",
            "allowed": f"{each.allowed:.3f} ({each.setting})",
            "verdict": "passed" if each.passed else "refused",
        }
        for each in verdict.compared
    ]
    plotted: dict[str, Any] = {}
    for each in verdict.compared:
        plotted[each.number] = each.value
        plotted[f"{each.number}, {each.against}"] = each.other
        if each.questions is not None:
            plotted[f"{each.number}, {each.against}, questions of both"] = each.questions
    return {
        "reasons": "; ".join(verdict.reasons) or "passed",
        "remarks": "; ".join(verdict.remarks) or "none",
        "compared": dg.MetadataValue.md(
            markdown_table(pa.Table.from_pylist(rows), len(rows), _CHARACTERS) if rows else "none"
        ),
        **plotted,
    }


def history_metadata(entries: Sequence["Entry"]) -> dict[str, Any]:
    """How long the corpus's history of promotions is, and which adapter answered before."""
    from ragtuned_pipeline.orchestration.promotion_history import earlier

    return {"history": len(entries), "previous_adapter": next(iter(earlier(entries)), "none")}
