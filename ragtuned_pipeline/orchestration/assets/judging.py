"""evaluation: answers compared by a judge, graded beside the references, and what tuning forgot."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    UserError,
    base_model_key,
    failures_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import (
    ShownTeacher,
    TeacherResource,
    account,
    judging_settings,
    teacher_key,
    teacher_model,
)
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.settings import Settings, SettingsError, TeacherSettings
from ragtuned_pipeline.tables import Failure, failures_table, table

JUDGING = ["evaluation/judging", "evaluation/metrics.py", "evaluation/retrieval.py"]


def judges(settings: Settings) -> Settings:
    """Return the settings with the judge as the teacher; without any where no model judges.

    Raises:
        UserError: a model shall judge and none is named.
    """
    if settings.judge.engine != "teacher":
        return settings.model_copy(update={"teacher": TeacherSettings()})
    try:
        return judging_settings(settings)
    except SettingsError as error:
        raise UserError(str(error)) from error


def judge_key(settings: Settings) -> str:
    """Return what verdicts depend on, for `run_step`."""
    seed = {"seed": settings.evaluation.seed}
    return settings_key(settings.judge, teacher_key(judges(settings)), seed)


def judge_answers(
    queries: pa.Table,
    answers: pa.Table,
    documents: pa.Table,
    settings: Settings,
    asked: ShownTeacher | None,
) -> tuple[pa.Table, list[Failure]]:
    """Return the table judgements of `answers`, and what could not be judged.

    Args:
        settings: of `judges`.
        asked: the judge; None where no model judges.
    """
    from ragtuned_pipeline.evaluation.judging.judge import judge_with_teacher, pairs_to_judge
    from ragtuned_pipeline.evaluation.judging.judge_rules import judge_by_rules

    if settings.judge.engine == "none":
        return table("judgements", []), []
    pairings = pairs_to_judge(queries, answers, settings.judge, settings.evaluation.seed)
    if asked is None:
        return judge_by_rules(pairings, documents), []
    return judge_with_teacher(pairings, asked, teacher_model(settings))


def judged_check(
    asset: str, made: Mapping[str, pa.Table], settings: Settings
) -> dg.AssetCheckResult:
    """The check failures_share of what was judged."""
    usage = made[f"{asset}_usage"]
    return failures_check(
        asset,
        made[f"{asset}_failures"].num_rows,
        sum(usage["calls"].to_pylist()),
        settings.checks.max_failed_share,
        usage,
    )


@table_assets(
    outputs={
        "judgements": "Answers compared in pairs, in both orders, on four dimensions.",
        "grades": "Answers graded beside reference and evidence; empty without an LLM as judge.",
        "judgements_failures": "What the judge gave no verdict on, each with its reason.",
        "judgements_usage": "What the judge was asked; empty where rules judge.",
    },
    group="evaluation",
    rooms=JUDGING,
    inputs=["queries", "answers", "documents"],
    checks={"judgements": ["failures_share"]},
)
def judging(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    queries: pa.Table,
    answers: pa.Table,
    documents: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.judging.grading import grade_with_teacher, queries_to_grade

    settings = judges(home.home.settings(context.partition_key))
    outputs = ["judgements", "grades", "judgements_failures", "judgements_usage"]

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        grades, failures = table("grades", []), list[Failure]()
        with teacher.open(context, home.home, settings, "judgements") as asked:
            judgements, unjudged = judge_answers(queries, answers, documents, settings, asked)
            if asked is not None:
                graded = queries_to_grade(queries, settings.judge, settings.evaluation.seed)
                given = answers.filter(pc.field("query_id").isin(graded["id"].combine_chunks()))
                grades, failures = grade_with_teacher(graded, given, asked, teacher_model(settings))
            usage, shown = account(asked)
        made = (judgements, grades, failures_table([*unjudged, *failures]), usage)
        return dict(zip(outputs, made, strict=True)), shown

    def checks(made: Any) -> list[dg.AssetCheckResult]:
        return [judged_check("judgements", made, settings)]

    yield from run_step(
        context,
        home.store,
        outputs,
        judge_key(settings),
        {
            "queries": queries,
            "answers": answers.drop_columns(["seconds"]),  # of the clock: no verdict rests on it
            "documents": documents,
        },
        compute,
        checks,
    )


@table_assets(
    outputs={"win_rates": "How often each system's answers were preferred, with intervals."},
    group="evaluation",
    rooms=["evaluation/judging/win_rates.py", "evaluation/judging/judge.py"],
    inputs=["judgements", "queries"],
)
def winning(
    context: dg.AssetExecutionContext, home: HomeResource, judgements: pa.Table, queries: pa.Table
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.judging.win_rates import win_rates

    seed = home.home.settings(context.partition_key).evaluation.seed

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        made = win_rates(judgements, queries, seed)
        overall = made.filter(pc.field("dimension") == "overall").to_pylist()
        return {"win_rates": made}, {
            f"{row['system_a']} over {row['system_b']}/{row['scope']}": row["win_rate"]
            for row in overall
            if "tuned" in (row["system_a"], row["system_b"])
        }

    yield from run_step(
        context,
        home.store,
        ["win_rates"],
        settings_key({"seed": seed}),
        {"judgements": judgements, "queries": queries},
        compute,
    )


@table_assets(
    outputs={"probe": "General ability before and after tuning, item by item."},
    group="evaluation",
    rooms=["evaluation/probe"],
    deps=["lora_adapter"],
    kinds={"huggingface"},
)
def general_ability(
    context: dg.AssetExecutionContext, home: HomeResource, teacher: TeacherResource
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.probe import ability_summary, probe

    corpus, settings = context.partition_key, home.home.settings(context.partition_key)
    base_model, seed = settings.tuning.base_model, settings.evaluation.seed
    training = read_training(home.home, corpus, "tuned")
    adapter = home.home.adapters / corpus / training.adapter if training else None

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        try:
            with teacher.alone(context, home.home):
                models = [probe(base_model, each, settings.probe) for each in (None, adapter)]
        except SettingsError as error:
            raise UserError(str(error)) from error
        made = pa.concat_tables(models)
        return {"probe": made}, {
            f"{suite}/{name}": numbers[name]
            for suite, numbers in ability_summary(made, seed).items()
            for name in ("base", "tuned", "change")
        }

    yield from run_step(
        context,
        home.store,
        ["probe"],
        settings_key(settings.probe, base_model_key(settings.tuning)),
        {"adapter": training.adapter if training else ""},
        compute,
    )
