"""evaluation: questions, one asset of answers a system, the shuffled control, scorecard, report."""

from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.orchestration.answering import answer_table, write_note
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    code_version,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.training import (
    read_training,
    train_adapter,
    training_metadata,
)
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import failures_table


@table_assets(
    outputs={
        "queries": "The questions every system is asked, in sets, with reference answers.",
        "queries_failures": "Gold questions that could not be used, each with its reason.",
    },
    group="evaluation",
    rooms=["evaluation/queries.py"],
    inputs=["qa_pairs", "training_rows", "new_wording_queries", "documents"],
    checks={"queries": ["no_dangling_ids"]},
)
def questions(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    new_wording_queries: pa.Table,
    documents: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.queries import build_queries

    corpus = context.partition_key
    settings = home.home.settings(corpus).evaluation
    gold = home.home.gold(corpus)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        try:
            queries, failures = build_queries(
                qa_pairs, training_rows, new_wording_queries, gold, documents, settings
            )
        except SettingsError as error:
            raise UserError(str(error)) from error
        return {"queries": queries, "queries_failures": failures_table(failures)}, {
            "by_set": {
                entry["values"]: entry["counts"]
                for entry in pc.value_counts(queries["question_set"]).to_pylist()
            }
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


def _answers_asset(system: str) -> dg.AssetsDefinition:
    """The answers of one system; adding a system adds, and runs, one asset."""

    @table_assets(
        outputs={f"answers_{system}": f"What the system {system} answered, and what it cost."},
        group="evaluation",
        rooms=["evaluation/systems", "evaluation/retrieval.py", "inference"],
        inputs=["queries", "documents"],
        deps=["lora_adapter"] if system == "tuned" else [],
        kinds={"huggingface"},
    )
    def answers(
        context: dg.AssetExecutionContext,
        home: HomeResource,
        queries: pa.Table,
        documents: pa.Table,
    ) -> Iterator[Any]:
        corpus = context.partition_key
        settings = home.home.settings(corpus)
        training = read_training(home.home, corpus, "tuned") if system == "tuned" else None

        def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
            answered, note = answer_table(
                home.home, corpus, system, queries, documents, settings, training
            )
            write_note(home.home, corpus, system, note)
            return {f"answers_{system}": answered}, asdict(note)

        yield from run_step(
            context,
            home.store,
            [f"answers_{system}"],
            settings_key(settings.evaluation, {"base_model": settings.tuning.base_model}),
            {
                "queries": queries,
                "documents": documents,
                "adapter": training.adapter if training else "",
            },
            compute,
        )

    return answers


answers_assets = [_answers_asset(system) for system in SYSTEMS]


@table_assets(
    outputs={
        "control_rows": "Training rows with the answers of other facts: the shuffled control.",
        "control_queries": "Held-out wordings of the same facts, with their true answers.",
    },
    group="evaluation",
    rooms=["evaluation/control.py"],
    inputs=["training_rows", "qa_pairs"],
)
def control(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    training_rows: pa.Table,
    qa_pairs: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.control import shuffled_control
    from ragtuned_pipeline.tuning.base_models import load_tokenizer, row_counter

    settings = home.home.settings(context.partition_key)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        count = row_counter(load_tokenizer(settings.tuning.base_model))
        made = shuffled_control(training_rows, qa_pairs, count, settings.evaluation)
        return {"control_rows": made.training_rows, "control_queries": made.queries}, {}

    yield from run_step(
        context,
        home.store,
        ["control_rows", "control_queries"],
        settings_key(settings.evaluation, {"base_model": settings.tuning.base_model}),
        {"training_rows": training_rows, "qa_pairs": qa_pairs},
        compute,
    )


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("tuning/sft.py"),
    owners=[OWNER],
    kinds={"pytorch", "huggingface"},
    pool="accelerator",
)
def control_adapter(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    pipes: dg.PipesSubprocessClient,
    control_rows: pa.Table,
) -> dg.MaterializeResult[Any]:
    """An adapter tuned on the shuffled rows: it can score only by what is not knowledge."""
    corpus = context.partition_key
    if not control_rows.num_rows:
        return dg.MaterializeResult(
            data_version=dg.DataVersion("none"),
            metadata={"skipped": "too few facts to shuffle answers among them"},
        )
    training, kept = train_adapter(
        context,
        home.home,
        pipes,
        "control",
        control_rows.select(["system", "prompt", "completion"]),
        None,
        home.home.settings(corpus).tuning,
    )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(training.adapter),
        metadata=training_metadata(home.home, corpus, training, kept),
    )


@table_assets(
    outputs={"answers_control": "What the control adapter answered."},
    group="evaluation",
    rooms=["evaluation/systems", "inference"],
    inputs=["control_queries", "documents"],
    deps=["control_adapter"],
    kinds={"huggingface"},
)
def control_answers(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    control_queries: pa.Table,
    documents: pa.Table,
) -> Iterator[Any]:
    corpus = context.partition_key
    settings = home.home.settings(corpus)
    training = read_training(home.home, corpus, "control") if control_queries.num_rows else None

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        answered, _ = answer_table(
            home.home, corpus, "tuned", control_queries, documents, settings, training
        )
        return {"answers_control": answered}, {}

    yield from run_step(
        context,
        home.store,
        ["answers_control"],
        settings_key(settings.evaluation, {"base_model": settings.tuning.base_model}),
        {"control_queries": control_queries, "adapter": training.adapter if training else ""},
        compute,
    )
