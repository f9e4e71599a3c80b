"""promotion: the adapter that answers under the corpus's name."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg

from ragtuned_pipeline.orchestration.home import write_text
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import OWNER, UserError, code_version
from ragtuned_pipeline.orchestration.training import read_training


@dg.multi_asset(
    name="promotion",
    specs=[
        dg.AssetSpec(
            "promoted_adapter",
            description="The adapter that the link `current` points to: the one that answers.",
            group_name="promotion",
            owners=[OWNER],
            kinds={"huggingface"},
            code_version=code_version("orchestration/gate.py", "tuning/adapter_store.py"),
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
    from ragtuned_pipeline.orchestration.gate import gate
    from ragtuned_pipeline.tuning import adapter_store

    corpus, place = context.partition_key, home.home
    training = read_training(place, corpus, "tuned")
    file = place.report(corpus) / "scorecard.json"
    if training is None or not file.is_file():
        raise UserError(f"corpus {corpus!r} has no scorecard yet; run the evaluation first")
    refusal = gate(json.loads(file.read_text(encoding="utf-8")), place.settings(corpus).checks)
    refused = place.adapters / corpus / "refused.json"
    if refusal:
        write_text(refused, json.dumps(refusal))
        context.log.warning(f"not promoted: {refusal}")
        return
    adapter_store.promote(place.adapters, corpus, training.adapter)
    refused.unlink(missing_ok=True)
    yield dg.MaterializeResult(
        asset_key="promoted_adapter",
        data_version=dg.DataVersion(training.adapter),
        metadata={"adapter": dg.MetadataValue.path(str(place.adapters / corpus / "current"))},
    )
