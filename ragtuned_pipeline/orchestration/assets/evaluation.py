"""evaluation: what failed, the scorecard, and the report of one corpus and of all."""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.ablation import VARIANTS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET
from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.orchestration.answering import answering_engine, read_note
from ragtuned_pipeline.orchestration.assets.ablation import read_ablation
from ragtuned_pipeline.orchestration.assets.judging import judges
from ragtuned_pipeline.orchestration.assets.promotion import gate_metadata, history_metadata
from ragtuned_pipeline.orchestration.io import markdown_table
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    code_version,
    partitioned_check,
    run_step,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import teacher_model
from ragtuned_pipeline.orchestration.training import facts_learned_before, read_training
from ragtuned_pipeline.settings import Settings

_REASONS_SHOWN, _REASON_CHARACTERS = 50, 1000
_STAGES = (
    "documents",
    "graph",
    "reports",
    "synthesis",
    "generated_queries",
    "queries",
    *(f"answers_{system}" for system in SYSTEMS),
    "judgements",
)


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


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("evaluation"),
    owners=[OWNER],
    kinds={"json"},
    check_specs=[partitioned_check("adapter_passes_gate", "scorecard")],
    deps=[
        "lora_adapter",
        "ablation_win_rates",
        *(f"answers_ablation_{name}" for name in VARIANTS),
    ],
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
    generated_queries_usage: pa.Table,
    judgements_usage: pa.Table,
    judgements: pa.Table,
    grades: pa.Table,
    win_rates: pa.Table,
    probe: pa.Table,
) -> Iterator[Any]:
    """What every system reached on every question set, as scorecard.json.

    The ablation is read where it has been made: only `ragtuned evaluate N --full` makes it.
    """
    from ragtuned_pipeline.evaluation.probe import ability_summary
    from ragtuned_pipeline.evaluation.scorecard import score, teacher_account, write_scorecard
    from ragtuned_pipeline.orchestration.gate import numbers_of
    from ragtuned_pipeline.orchestration.promotions import failed_items, verdict_on
    from ragtuned_pipeline.orchestration.versions import versions

    corpus = context.partition_key
    settings = home.home.settings(corpus)
    notes = {system: read_note(home.home, corpus, system) for system in SYSTEMS}
    teacher: dict[str, Any] = {}
    asked = settings if settings.teacher.engine != "none" else judges(settings)
    if asked.teacher.engine != "none":
        teacher = teacher_account(
            teacher_model(asked),
            teacher_plan,
            pa.concat_tables(
                [
                    graph_usage,
                    reports_usage,
                    synthesis_usage,
                    generated_queries_usage,
                    judgements_usage,
                ]
            ),
            asked.teacher,
        )
    try:
        engine = answering_engine(settings)
    except TeacherStopped as error:
        raise UserError(str(error)) from error
    training = read_training(home.home, corpus, "tuned")
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
        earlier_facts=facts_learned_before(home.home, corpus),
        coverage=coverage,
        left_out=dict(training_plan["left_out"][0].as_py()),
        teacher=teacher,
        grades=grades,
        win_rates=win_rates,
        judge=_judge(settings, judgements, queries, answers),
        ablation=read_ablation(home, corpus, queries, judgements),
        general_ability=ability_summary(probe, settings.evaluation.seed),
        versions=versions(training, training_rows, queries, engine),
        seed=settings.evaluation.seed,
    )
    file = home.home.report(corpus) / "scorecard.json"
    write_scorecard(made, file)
    # What failed before it is read from the store: its stages are all upstream.
    numbers = numbers_of(made, queries, answers, failed_items(home.store, corpus))
    verdict = verdict_on(home.home, corpus, numbers)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(file.read_bytes(), digest_size=16).hexdigest()),
        metadata={"scorecard": dg.MetadataValue.path(str(file)), **_headline_numbers(made)},
        check_results=[
            dg.AssetCheckResult(
                passed=not verdict.reasons,
                check_name="adapter_passes_gate",
                metadata=gate_metadata(verdict),
            )
        ],
    )


def _judge(
    settings: Settings, judgements: pa.Table, queries: pa.Table, answers: pa.Table
) -> dict[str, Any]:
    """Who judged, how it was set, and how far its verdicts can be trusted."""
    from ragtuned_pipeline.evaluation.judging.win_rates import judge_quality

    if settings.judge.engine == "none":
        return {"engine": "none"}
    teacher = judges(settings).teacher
    asked: dict[str, Any] = {}
    if teacher.engine != "none":
        fields = {"temperature", "seed", "structured_output"}
        asked = teacher.model_dump(mode="json", include=fields)
    return {
        "engine": settings.judge.engine,
        "identity": judgements["judge"][0].as_py() if judgements.num_rows else "",
        "settings": settings.judge.model_dump(mode="json", include={"pairs", "queries_per_scope"})
        | asked,
        **judge_quality(judgements, queries, answers, settings.evaluation.seed),
    }


def _headline_numbers(made: Mapping[str, Any]) -> dict[str, float]:
    """One number for each system and question set, so that the UI plots it over time."""
    return {
        f"{system}/{name}": scores[MEASURE_OF_SET[name]]
        for system, sets in made["systems"].items()
        for name, scores in sets.items()
    }


@table_assets(
    outputs={"scores": "The scorecard's numbers, one a row."},
    group="evaluation",
    rooms=["evaluation/scorecard.py"],
    deps=["scorecard"],
)
def score_rows(context: dg.AssetExecutionContext, home: HomeResource) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.scorecard import scores_table

    text = (home.home.report(context.partition_key) / "scorecard.json").read_text(encoding="utf-8")
    yield from run_step(
        context,
        home.store,
        ["scores"],
        "",
        {"scorecard": blake2b(text.encode(), digest_size=16).hexdigest()},
        lambda: ({"scores": scores_table(json.loads(text))}, {}),
    )


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
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    communities: pa.Table,
    qa_pairs: pa.Table,
    coverage: pa.Table,
    training_rows: pa.Table,
    failures: pa.Table,
    judgements: pa.Table,
    grades: pa.Table,
) -> dg.MaterializeResult[Any]:
    """One self-contained page: scores, plots, cases side by side, coverage, failures, method."""
    from ragtuned_pipeline.evaluation.provenance import MemoryTables
    from ragtuned_pipeline.evaluation.reporting.report import LossCurve, ReportInputs, write_report
    from ragtuned_pipeline.orchestration.lineage import trained_by
    from ragtuned_pipeline.orchestration.promotion_history import history
    from ragtuned_pipeline.orchestration.promotions import report_of_promotion
    from ragtuned_pipeline.tuning.plan_words import planned_and_measured

    corpus, folder = context.partition_key, home.home.report(context.partition_key)
    trainings = {
        purpose: read_training(home.home, corpus, purpose) for purpose in ("tuned", "control")
    }
    tuned = trainings["tuned"]
    picture = folder / "graph.svg"
    page = folder / "index.html"
    write_report(
        ReportInputs(
            scorecard=json.loads((folder / "scorecard.json").read_text(encoding="utf-8")),
            queries=queries,
            answers=answers,
            memory=MemoryTables(
                documents=documents,
                text_units=text_units,
                entities=entities,
                relationships=relationships,
                communities=communities,
                qa_pairs=qa_pairs,
                coverage=coverage,
                training_rows=training_rows,
            ),
            failures=failures,
            judgements=judgements,
            grades=grades,
            curves=[
                LossCurve(name, training.result["losses"], training.result["held_out_losses"])
                for name, training in trainings.items()
                if training
            ],
            settings=home.home.settings(corpus).model_dump(mode="json", exclude={"profile"}),
            promotion=report_of_promotion(home.home, corpus),
            trained_by=trained_by(context.instance, corpus, tuned.adapter) if tuned else "",
            graph_svg=picture.read_text(encoding="utf-8") if picture.is_file() else None,
            planned=planned_and_measured(tuned.plan, tuned.result) if tuned else (),
        ),
        page,
    )
    return dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(page.read_bytes(), digest_size=16).hexdigest()),
        metadata={
            "page": dg.MetadataValue.path(str(page)),
            "url": page.as_uri(),
            **history_metadata(history(home.home, corpus)),
        },
    )


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version("evaluation"),
    owners=[OWNER],
    kinds={"html"},
    deps=["report"],
)
def corpora_report(
    context: dg.AssetExecutionContext, home: HomeResource
) -> dg.MaterializeResult[Any]:
    """One page across all corpora of the home that have a scorecard, this one among them."""
    from ragtuned_pipeline.evaluation.reporting.corpora_report import write_corpora_report

    place = home.home
    files = {name: place.report(name) / "scorecard.json" for name in place.names()}
    cards = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }
    page = write_corpora_report(cards, place.folder / "reports")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(page.read_bytes(), digest_size=16).hexdigest()),
        metadata={"page": dg.MetadataValue.path(str(page)), "url": page.as_uri()},
    )
