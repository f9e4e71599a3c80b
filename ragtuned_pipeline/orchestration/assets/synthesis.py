"""synthesis: question-answer pairs from the graph, and the rows the model is tuned on."""

import math
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.inference.engine import ChatEngine, system_message
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    UserError,
    base_model_key,
    failures_check,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import TeacherResource, account, teacher_key
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.tables import table


@table_assets(
    outputs={
        "qa_pairs": "Questions and answers, local, global and unanswerable; dropped ones kept.",
        "new_wording_queries": "Questions in forms that neither tuning nor the base has seen.",
        "synthesis_failures": "Items that gave no pair because they could not be processed.",
        "synthesis_usage": "What the teacher was asked for the pairs; empty without one.",
    },
    group="synthesis",
    rooms=["synthesis", "corpus/sentences.py"],
    inputs=[
        "documents",
        "text_units",
        "entities",
        "relationships",
        "communities",
        "community_reports",
    ],
    checks={"qa_pairs": ["no_dangling_ids", "failures_share"]},
)
def pairs(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    communities: pa.Table,
    community_reports: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.synthesis.synthesise import synthesise
    from ragtuned_pipeline.synthesis.synthesise_llm import synthesise_with_teacher

    settings = home.home.settings(context.partition_key)
    memory = documents, text_units, entities, relationships, communities, community_reports

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        replay = table("qa_pairs", [])
        with teacher.open(context, home.home, settings, "qa_pairs") as asked:
            if asked is None:
                made = synthesise(*memory, settings.synthesis)
            else:
                told = system_message(settings.tuning.base_model)
                with teacher.base(context, home.home, settings, asked) as base:
                    made = synthesise_with_teacher(*memory, asked, base, settings.synthesis, told)
                    replay = _replay(made.qa_pairs, base, settings, told)
            usage, shown = account(asked)
            if asked is not None:
                shown["declined"] = made.declined
        tables = {
            "qa_pairs": pa.concat_tables([made.qa_pairs, replay]),
            "new_wording_queries": made.queries_new_wording,
            "synthesis_failures": made.failures,
            "synthesis_usage": usage,
        }
        pairs = tables["qa_pairs"]
        kept = pairs.filter(pairs["kept"])
        return tables, shown | {
            "kept": kept.num_rows,
            "facts": pc.count_distinct(kept["fact_id"]).as_py(),
            "by_kind": _counts(kept, "kind"),
            "by_split": _counts(kept, "split"),
            "dropped_by_reason": _counts(pairs, "drop_reason"),
        }

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        made = tables["qa_pairs"]
        failed = tables["synthesis_failures"].num_rows
        return [
            reference_check(
                "qa_pairs",
                [
                    ("document_ids", made["document_ids"], documents["id"]),
                    ("text_unit_ids", made["text_unit_ids"], text_units["id"]),
                    ("entity_ids", made["entity_ids"], entities["id"]),
                    ("relationship_ids", made["relationship_ids"], relationships["id"]),
                    ("community_ids", made["community_ids"], communities["id"]),
                ],
            ),
            failures_check(
                "qa_pairs",
                failed,
                made.num_rows + failed,
                settings.checks.max_failed_share,
                tables["synthesis_usage"],
            ),
        ]

    yield from run_step(
        context,
        home.store,
        ["qa_pairs", "new_wording_queries", "synthesis_failures", "synthesis_usage"],
        settings_key(settings.synthesis, teacher_key(settings)),
        {
            "documents": documents,
            "text_units": text_units,
            "entities": entities,
            "relationships": relationships,
            "communities": communities,
            "community_reports": community_reports,
        },
        compute,
        checks,
    )


@table_assets(
    outputs={
        "training_rows": "The pairs that fit the time budget, as prompt and completion.",
        "training_plan": "How many tokens are seen, and what the budget left out.",
    },
    group="synthesis",
    rooms=["synthesis/rows.py"],
    inputs=["qa_pairs"],
    checks={"training_rows": ["no_dangling_ids"]},
)
def rows(
    context: dg.AssetExecutionContext, home: HomeResource, qa_pairs: pa.Table
) -> Iterator[Any]:
    from ragtuned_pipeline.synthesis.rows import NothingToTrain, select_training_rows
    from ragtuned_pipeline.tuning.base_models import load_tokenizer, row_counter

    settings = home.home.settings(context.partition_key)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        try:
            count = row_counter(load_tokenizer(settings.tuning.base_model))
            selection = select_training_rows(
                qa_pairs, count, settings.tuning, settings.synthesis.replay_share
            )
        except NothingToTrain as error:
            raise UserError(str(error)) from error
        rows = selection.training_rows
        plan = {
            "tokens": selection.tokens,
            "token_budget": selection.token_budget,
            "left_out": selection.left_out,
        }
        row = plan | {"left_out": sorted(selection.left_out.items())}
        tables = {"training_rows": rows, "training_plan": table("training_plan", [row])}
        return tables, plan | {"by_kind": _counts(rows, "kind")}

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        return [
            reference_check(
                "training_rows", [("id", tables["training_rows"]["id"], qa_pairs["id"])]
            )
        ]

    yield from run_step(
        context,
        home.store,
        ["training_rows", "training_plan"],
        settings_key(
            settings.tuning,
            base_model_key(settings.tuning),
            {"replay_share": settings.synthesis.replay_share},
        ),
        {"qa_pairs": qa_pairs},
        compute,
        checks,
    )


@table_assets(
    outputs={"coverage": "For every sentence: the facts whose answer holds it, or why none does."},
    group="synthesis",
    rooms=["synthesis/coverage.py"],
    inputs=["documents", "text_units", "qa_pairs", "training_rows"],
)
def sentence_coverage(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    documents: pa.Table,
    text_units: pa.Table,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.synthesis.coverage import coverage

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        made = coverage(documents, text_units, qa_pairs, training_rows)
        covered = pc.sum(made["covered"]).as_py() or 0
        return {"coverage": made}, {
            "covered": covered,
            "share": covered / made.num_rows if made.num_rows else 0.0,
            "by_reason": _counts(made, "reason"),
        }

    yield from run_step(
        context,
        home.store,
        ["coverage"],
        "",
        {
            "documents": documents,
            "text_units": text_units,
            "qa_pairs": qa_pairs,
            "training_rows": training_rows,
        },
        compute,
    )


def _replay(
    pairs: pa.Table, base: ChatEngine | None, settings: Settings, told: str | None
) -> pa.Table:
    """Return as many general questions, answered by the base, as the pairs may need."""
    from ragtuned_pipeline.synthesis.replay import replay_pairs

    share = settings.synthesis.replay_share
    if not share or base is None:
        return table("qa_pairs", [])
    trained = pairs.filter(pc.field("kept") & (pc.field("split") == "train")).num_rows
    return replay_pairs(
        base,
        math.ceil(share / (1 - share) * trained),
        settings.synthesis.seed,
        settings.evaluation.max_answer_tokens,
        told,
    )


def _counts(data: pa.Table, column: str) -> dict[str, int]:
    """Rows by value of `column`; nulls left out."""
    counts = pc.value_counts(data[column].combine_chunks().drop_null()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counts, key=str)}
