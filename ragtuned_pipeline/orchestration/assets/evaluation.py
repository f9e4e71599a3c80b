"""evaluation: questions, one asset of answers a system, the shuffled control, scorecard, report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET
from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.orchestration.answering import answer_table, read_note, write_note
from ragtuned_pipeline.orchestration.io import markdown_table
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    base_model_key,
    code_version,
    partitioned_check,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import teacher_model
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
    rooms=["evaluation/queries.py", "evaluation/metrics.py"],
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


_ANSWERING = [f"inference/{name}.py" for name in ("engine", "base_models", "transformers_engine")]


def _answers_asset(system: str) -> dg.AssetsDefinition:
    """The answers of one system; adding a system adds, and runs, one asset."""

    @table_assets(
        outputs={f"answers_{system}": f"What the system {system} answered, and what it cost."},
        group="evaluation",
        rooms=["evaluation/systems", "evaluation/retrieval.py", *_ANSWERING],
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
            settings_key(settings.evaluation, base_model_key(settings.tuning)),
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
        settings_key(settings.evaluation, base_model_key(settings.tuning)),
        {"training_rows": training_rows, "qa_pairs": qa_pairs},
        compute,
    )


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("tuning/sft.py", "tuning/base_models.py"),
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
        control_rows.select(["system", "prompt", "completion", "epochs"]),
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
    rooms=["evaluation/systems", *_ANSWERING],
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
        settings_key(settings.evaluation, base_model_key(settings.tuning)),
        {"control_queries": control_queries, "adapter": training.adapter if training else ""},
        compute,
    )


_REASONS_SHOWN, _REASON_CHARACTERS = 50, 1000
_STAGES = ("documents", "graph", "reports", "synthesis", "queries")


@table_assets(
    outputs={"failures": "Everything that any stage could not process, each with its reason."},
    group="evaluation",
    rooms=[],
    inputs=[f"{stage}_failures" for stage in _STAGES],
)
def all_failures(
    context: dg.AssetExecutionContext, home: HomeResource, **stages: pa.Table
) -> Iterator[Any]:
    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        failures = pa.concat_tables(list(stages.values()))
        counted = pc.value_counts(failures["stage"]).to_pylist()
        return {"failures": failures}, {
            "by_stage": {each["values"]: each["counts"] for each in counted},
            "reasons": dg.MetadataValue.md(_reasons(failures)),
        }

    yield from run_step(context, home.store, ["failures"], "", stages, compute)


def _reasons(failures: pa.Table) -> str:
    """The most frequent reasons, each with an item that it stopped, as a Markdown table."""
    grouped = failures.group_by(["stage", "reason"], use_threads=False).aggregate(
        [("item_id", "count"), ("item_id", "first")]
    )
    ordered = grouped.sort_by([("item_id_count", "descending"), ("stage", "ascending")])
    shown = ordered.select(["item_id_count", "stage", "reason", "item_id_first"])
    named = shown.rename_columns(["items", "stage", "reason", "for example"])
    return markdown_table(named, _REASONS_SHOWN, _REASON_CHARACTERS)


@table_assets(
    outputs={"answers": "The answers of all systems."},
    group="evaluation",
    rooms=[],
    inputs=[f"answers_{system}" for system in SYSTEMS],
    checks={"answers": ["no_dangling_ids"]},
    deps=["queries"],
)
def all_answers(
    context: dg.AssetExecutionContext, home: HomeResource, **systems: pa.Table
) -> Iterator[Any]:
    asked = home.store.read("queries", context.partition_key)["id"]
    yield from run_step(
        context,
        home.store,
        ["answers"],
        "",
        systems,
        lambda: ({"answers": pa.concat_tables(list(systems.values()))}, {}),
        lambda tables: [
            reference_check("answers", [("query_id", tables["answers"]["query_id"], asked)])
        ],
    )


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("evaluation"),
    owners=[OWNER],
    kinds={"json"},
    check_specs=[partitioned_check("adapter_beats_base", "scorecard")],
    deps=["lora_adapter"],
)
def scorecard(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    queries: pa.Table,
    answers: pa.Table,
    control_queries: pa.Table,
    answers_control: pa.Table,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    training_plan: pa.Table,
    coverage: pa.Table,
    teacher_plan: pa.Table,
    graph_usage: pa.Table,
    reports_usage: pa.Table,
    synthesis_usage: pa.Table,
) -> Iterator[Any]:
    """What every system reached on every question set, as scorecard.json."""
    from ragtuned_pipeline.evaluation.scorecard import score, teacher_account, write_scorecard
    from ragtuned_pipeline.orchestration.gate import gate
    from ragtuned_pipeline.orchestration.versions import versions

    corpus = context.partition_key
    settings = home.home.settings(corpus)
    notes = {system: read_note(home.home, corpus, system) for system in SYSTEMS}
    teacher: dict[str, Any] = {}
    if settings.teacher.engine != "none":
        teacher = teacher_account(
            teacher_model(settings),
            teacher_plan,
            pa.concat_tables([graph_usage, reports_usage, synthesis_usage]),
            settings.teacher,
        )
    made = score(
        corpus=corpus,
        queries=queries,
        answers=answers,
        control_queries=control_queries,
        control_answers=answers_control,
        descriptions={name: note.description for name, note in notes.items() if note.description},
        skipped={name: note.skipped for name, note in notes.items() if note.skipped},
        qa_pairs=qa_pairs,
        training_rows=training_rows,
        coverage=coverage,
        left_out=dict(training_plan["left_out"][0].as_py()),
        teacher=teacher,
        versions=versions(read_training(home.home, corpus, "tuned"), training_rows, queries),
        seed=settings.evaluation.seed,
    )
    file = home.home.report(corpus) / "scorecard.json"
    write_scorecard(made, file)
    refusal = gate(made, settings.checks)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(file.read_bytes(), digest_size=16).hexdigest()),
        metadata={"scorecard": dg.MetadataValue.path(str(file)), **_headline_numbers(made)},
        check_results=[
            dg.AssetCheckResult(
                passed=not refusal,
                check_name="adapter_beats_base",
                metadata={"reason": refusal or "passed"},
            )
        ],
    )


def _headline_numbers(made: Mapping[str, Any]) -> dict[str, float]:
    """One number for each system and question set, so that the UI plots it over time."""
    return {
        f"{system}/{name}": scores[MEASURE_OF_SET[name]]
        for system, sets in made["systems"].items()
        for name, scores in sets.items()
    }


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("evaluation"),
    owners=[OWNER],
    kinds={"html"},
    deps=["scorecard", "graph_picture", "lora_adapter", "control_adapter"],
)
def report(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    queries: pa.Table,
    answers: pa.Table,
    documents: pa.Table,
    training_rows: pa.Table,
    coverage: pa.Table,
    failures: pa.Table,
) -> dg.MaterializeResult[Any]:
    """One self-contained page: scores, plots, cases side by side, coverage, failures, method."""
    from ragtuned_pipeline.evaluation.report import LossCurve, ReportInputs, write_report

    corpus, folder = context.partition_key, home.home.report(context.partition_key)
    trainings = {
        purpose: read_training(home.home, corpus, purpose) for purpose in ("tuned", "control")
    }
    picture = folder / "graph.svg"
    page = folder / "index.html"
    write_report(
        ReportInputs(
            scorecard=json.loads((folder / "scorecard.json").read_text(encoding="utf-8")),
            queries=queries,
            answers=answers,
            documents=documents,
            training_rows=training_rows,
            coverage=coverage,
            failures=failures,
            curves=[
                LossCurve(name, training.result["losses"], training.result["held_out_losses"])
                for name, training in trainings.items()
                if training
            ],
            settings=home.home.settings(corpus).model_dump(mode="json", exclude={"profile"}),
            graph_svg=picture.read_text(encoding="utf-8") if picture.is_file() else None,
        ),
        page,
    )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(page.read_bytes(), digest_size=16).hexdigest()),
        metadata={"page": dg.MetadataValue.path(str(page)), "url": page.as_uri()},
    )
