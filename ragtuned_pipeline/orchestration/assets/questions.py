"""evaluation: the questions that every system is asked."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    UserError,
    failures_check,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import (
    TeacherResource,
    account,
    teacher_key,
    teacher_model,
)
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import failures_table

_MEMORY = ("documents", "text_units", "entities", "relationships", "community_reports")
_PAIRS = ("qa_pairs", "training_rows", "new_wording_queries")


@table_assets(
    outputs={
        "generated_queries": "Local and global questions after the paper, each with its source.",
        "generated_queries_failures": "Questions that could not be made or used.",
        "generated_queries_usage": "What the teacher was asked for them; empty without one.",
    },
    group="evaluation",
    rooms=["evaluation/questions"],
    inputs=[*_MEMORY, *_PAIRS],
    checks={"generated_queries": ["failures_share"]},
)
def generated_questions(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    **tables: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.questions.generated_queries import (
        generate_queries,
        generate_queries_with_teacher,
    )

    settings = home.home.settings(context.partition_key)
    evaluation = settings.evaluation
    memory = {name: tables[name] for name in _MEMORY}
    outputs = ["generated_queries", "generated_queries_failures", "generated_queries_usage"]

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        with teacher.open(context, home.home, settings, "generated_queries") as asked:
            if asked is None:
                made = generate_queries(
                    **memory,
                    qa_pairs=tables["qa_pairs"],
                    training_rows=tables["training_rows"],
                    new_wording=tables["new_wording_queries"],
                    settings=evaluation,
                )
            else:
                made = generate_queries_with_teacher(
                    **memory, teacher=asked, model=teacher_model(settings), settings=evaluation
                )
            usage, shown = account(asked)
        made_tables = (made.queries, failures_table(made.failures), usage)
        return dict(zip(outputs, made_tables, strict=True)), shown | {
            "description": dg.MetadataValue.md(made.description),
            "by_set": _by_set(made.queries),
        }

    def checks(made: Any) -> list[dg.AssetCheckResult]:
        failed = made["generated_queries_failures"].num_rows
        return [
            failures_check(
                "generated_queries",
                failed,
                made["generated_queries"].num_rows + failed,
                settings.checks.max_failed_share,
                made["generated_queries_usage"],
            )
        ]

    numbers = {name: getattr(evaluation, name) for name in ("seed", "local_queries")}
    # A teacher makes its questions from the corpus alone: other training rows change none.
    read = _MEMORY if settings.teacher.engine != "none" else (*_MEMORY, *_PAIRS)
    yield from run_step(
        context,
        home.store,
        outputs,
        settings_key(
            numbers | {"global_queries": evaluation.global_queries}, teacher_key(settings)
        ),
        {name: tables[name] for name in read},
        compute,
        checks,
    )


@table_assets(
    outputs={
        "queries": "The questions every system is asked, in sets, with reference answers.",
        "queries_failures": "Questions that could not be used, each with its reason.",
    },
    group="evaluation",
    rooms=["evaluation/questions", "evaluation/metrics.py"],
    inputs=["qa_pairs", "training_rows", "new_wording_queries", "generated_queries", "documents"],
    checks={"queries": ["no_dangling_ids"]},
)
def questions(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    new_wording_queries: pa.Table,
    generated_queries: pa.Table,
    documents: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.questions.queries import build_queries

    corpus = context.partition_key
    settings = home.home.settings(corpus).evaluation
    gold = home.home.gold(corpus)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        try:
            queries, failures = build_queries(
                qa_pairs,
                training_rows,
                new_wording_queries,
                generated_queries,
                gold,
                documents,
                settings,
            )
        except SettingsError as error:
            raise UserError(str(error)) from error
        return {"queries": queries, "queries_failures": failures_table(failures)}, {
            "by_set": _by_set(queries)
        }

    gold_hash = blake2b(gold.read_bytes()).hexdigest() if gold and gold.is_file() else ""
    yield from run_step(
        context,
        home.store,
        ["queries", "queries_failures"],
        settings_key({"seed": settings.seed, "n": settings.questions_per_set}),
        {
            "qa_pairs": qa_pairs,
            "training_rows": training_rows,
            "new_wording_queries": new_wording_queries,
            "generated_queries": generated_queries,
            "documents": documents,
            "gold": gold_hash,
        },
        compute,
        lambda tables: [
            reference_check(
                "queries",
                [("document_ids", tables["queries"]["document_ids"], documents["id"])],
            )
        ],
    )


def _by_set(queries: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(queries["question_set"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}
