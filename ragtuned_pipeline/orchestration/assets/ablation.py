"""ablation: adapters tuned on parts of the rows, which share everything upstream."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.evaluation.ablation import VARIANTS
from ragtuned_pipeline.orchestration.answering import answering_key
from ragtuned_pipeline.orchestration.assets.answers import TUNED_CODE, asset_answers
from ragtuned_pipeline.orchestration.assets.judging import (
    JUDGING,
    judge_answers,
    judge_key,
    judged_check,
    judges,
)
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    base_model_key,
    code_version,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import TeacherResource, account
from ragtuned_pipeline.orchestration.training import (
    TRAINING_CODE,
    read_training,
    train_adapter,
    training_result,
)
from ragtuned_pipeline.settings import Settings, SettingsError
from ragtuned_pipeline.tables import failures_table, table

_ROWS = [f"ablation_rows_{name}" for name in VARIANTS]
_ANSWERS = [f"answers_ablation_{name}" for name in VARIANTS]


def _variant_assets(name: str) -> list[dg.AssetsDefinition]:
    """The rows, the adapter and the answers of one variant."""

    @table_assets(
        outputs={f"ablation_rows_{name}": f"What the variant {name} is tuned on."},
        group="ablation",
        rooms=["evaluation/ablation.py", "synthesis/rows.py"],
        inputs=["qa_pairs"],
    )
    def rows(
        context: dg.AssetExecutionContext, home: HomeResource, qa_pairs: pa.Table
    ) -> Iterator[Any]:
        from ragtuned_pipeline.evaluation.ablation import (
            check_variants,
            variant_rows,
            variant_tuning,
        )
        from ragtuned_pipeline.synthesis.rows import NothingToTrain
        from ragtuned_pipeline.tuning.base_models import load_tokenizer, row_counter

        settings = home.home.settings(context.partition_key)
        asked = name in settings.ablation.variants
        tuning = variant_tuning(name, settings.tuning, settings.ablation)
        replay = settings.synthesis.replay_share

        def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
            output = f"ablation_rows_{name}"
            if not asked:
                return {output: table("training_rows", [])}, {
                    "skipped": "not among ablation.variants"
                }
            try:
                check_variants(settings.ablation)
                count = row_counter(load_tokenizer(tuning.base_model))
                made = variant_rows(name, qa_pairs, count, tuning, replay)
            except SettingsError as error:
                raise UserError(str(error)) from error
            except NothingToTrain as error:
                return {output: table("training_rows", [])}, {"skipped": str(error)}
            return {output: made.training_rows}, {"tokens": made.tokens}

        yield from run_step(
            context,
            home.store,
            [f"ablation_rows_{name}"],
            settings_key(tuning, base_model_key(tuning), {"asked": asked, "replay_share": replay}),
            {"qa_pairs": qa_pairs},
            compute,
        )

    @dg.asset(
        name=f"ablation_adapter_{name}",
        description=f"The adapter of the variant {name}, tuned for as many tokens as the others.",
        group_name="ablation",
        partitions_def=corpora,
        code_version=code_version(*TRAINING_CODE),
        owners=[OWNER],
        kinds={"pytorch", "huggingface"},
        pool="accelerator",
        ins={"rows": dg.AssetIn(f"ablation_rows_{name}", dagster_type=dg.Any)},
    )
    def adapter(
        context: dg.AssetExecutionContext,
        home: HomeResource,
        teacher: TeacherResource,
        pipes: dg.PipesSubprocessClient,
        rows: pa.Table,
    ) -> dg.MaterializeResult[Any]:
        from ragtuned_pipeline.evaluation.ablation import variant_tuning

        if not rows.num_rows:
            return dg.MaterializeResult(
                data_version=dg.DataVersion("none"), metadata={"skipped": "no rows"}
            )
        settings = home.home.settings(context.partition_key)
        tuning = variant_tuning(name, settings.tuning, settings.ablation)
        gpu = teacher.alone(context, home.home)
        made = train_adapter(context, home.home, pipes, _purpose(name), rows, None, tuning, gpu)
        return training_result(context, home.home, *made)

    @table_assets(
        outputs={f"answers_ablation_{name}": f"What the adapter of the variant {name} answered."},
        group="ablation",
        rooms=TUNED_CODE,
        inputs=["ablation_queries", f"ablation_rows_{name}", "documents"],
        deps=[f"ablation_adapter_{name}"],
        kinds={"huggingface"},
    )
    def answers(
        context: dg.AssetExecutionContext,
        home: HomeResource,
        teacher: TeacherResource,
        ablation_queries: pa.Table,
        documents: pa.Table,
        **rows: pa.Table,
    ) -> Iterator[Any]:
        settings = home.home.settings(context.partition_key)
        [own] = rows.values()
        known = read_training(home.home, context.partition_key, _purpose(name))
        training = known if own.num_rows else None

        def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
            output = f"answers_ablation_{name}"
            if training is None:
                return {output: table("answers", [])}, {"skipped": "not tuned"}
            answered = asset_answers(
                context,
                home.home,
                teacher,
                "tuned",
                ablation_queries,
                {"documents": documents},
                settings,
                training,
                output,
            ).answers
            system = pa.array([name] * answered.num_rows, pa.string())
            place = answered.schema.get_field_index("system")
            return {output: answered.set_column(place, "system", system)}, {}

        yield from run_step(
            context,
            home.store,
            [f"answers_ablation_{name}"],
            settings_key(answering_key(settings), base_model_key(settings.tuning)),
            {"queries": ablation_queries, "adapter": training.adapter if training else ""},
            compute,
        )

    return [rows, adapter, answers]


variant_assets = [asset for name in VARIANTS for asset in _variant_assets(name)]


@table_assets(
    outputs={"ablation_queries": "What every variant is asked: nothing that any was tuned on."},
    group="ablation",
    rooms=["evaluation/ablation.py"],
    inputs=["queries", *_ROWS],
)
def ablation_questions(
    context: dg.AssetExecutionContext, home: HomeResource, queries: pa.Table, **rows: pa.Table
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.ablation import variant_queries

    yield from run_step(
        context,
        home.store,
        ["ablation_queries"],
        "",
        {"queries": queries, **rows},
        lambda: ({"ablation_queries": variant_queries(queries, rows.values())}, {}),
    )


@table_assets(
    outputs={
        "ablation_judgements": "The variants' answers compared in pairs, in both orders.",
        "ablation_win_rates": "How often each variant's answers were preferred, with intervals.",
        "ablation_judgements_failures": "What the judge gave no verdict on.",
        "ablation_judgements_usage": "What the judge was asked; empty where rules judge.",
    },
    group="ablation",
    rooms=[*JUDGING, "evaluation/ablation.py"],
    inputs=["ablation_queries", "documents", *_ANSWERS],
    deps=["judgements"],  # a spent budget stops here, after the systems have been judged
    checks={"ablation_judgements": ["failures_share"]},
)
def ablation_judging(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    ablation_queries: pa.Table,
    documents: pa.Table,
    **variants: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.evaluation.judging.win_rates import win_rates

    own = judges(home.home.settings(context.partition_key))
    # Every two variants are compared: none of them is "the" tuned model.
    settings = own.model_copy(update={"judge": own.judge.model_copy(update={"pairs": "all"})})
    answers = pa.concat_tables([variants[name] for name in _ANSWERS])
    outputs = [
        "ablation_judgements",
        "ablation_win_rates",
        "ablation_judgements_failures",
        "ablation_judgements_usage",
    ]

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        with teacher.open(context, home.home, settings, outputs[0]) as asked:
            judged, failures = judge_answers(ablation_queries, answers, documents, settings, asked)
            usage, shown = account(asked)
        rates = win_rates(judged, ablation_queries, settings.evaluation.seed)
        made = (judged, rates, failures_table(failures), usage)
        return dict(zip(outputs, made, strict=True)), shown

    def checks(made: Any) -> list[dg.AssetCheckResult]:
        return [judged_check(outputs[0], made, settings)]

    yield from run_step(
        context,
        home.store,
        outputs,
        judge_key(settings),
        {
            "queries": ablation_queries,
            "answers": answers.drop_columns(["seconds"]),
            "documents": documents,
        },
        compute,
        checks,
    )


def _purpose(name: str) -> str:
    """The name under which a variant's training is remembered."""
    return f"ablation_{name}"


def idle_steps(settings: Settings) -> list[str]:
    """Return the steps of the variants that the setting ablation.variants leaves out."""
    made = ("ablation_rows", "ablation_adapter", "answers_ablation")
    left_out = [name for name in VARIANTS if name not in settings.ablation.variants]
    return [f"{each}_{name}" for each in made for name in left_out]


def read_ablation(
    home: HomeResource, corpus: str, queries: pa.Table, judgements: pa.Table
) -> dict[str, Any]:
    """Return the scorecard's "ablation" from the tables that are there.

    Empty where no ablation was made, or where it was asked other questions, tuned with other
    settings or on another base, or compared by another judge than the corpus has now: figures of
    two states are not set side by side.

    Args:
        judgements: of the systems.
    """
    from ragtuned_pipeline.evaluation.ablation import ablation_scores, variant_queries

    store, settings = home.store, home.home.settings(corpus)
    if not all(store.exists(name, corpus) for name in (*_ROWS, *_ANSWERS, "ablation_win_rates")):
        return {}
    rows = {name: store.read(f"ablation_rows_{name}", corpus) for name in VARIANTS}
    asked = variant_queries(queries, rows.values())
    answers = {name: store.read(f"answers_ablation_{name}", corpus) for name in VARIANTS}
    answers = {name: given for name, given in answers.items() if given.num_rows}
    every = set(asked["id"].to_pylist())
    current = (
        set(given["query_id"].to_pylist()) == every and _is_current(home, corpus, name, settings)
        for name, given in answers.items()
    )
    compared = store.read("ablation_judgements", corpus)
    if not answers or not all(current) or _judge(compared) != _judge(judgements):
        return {}
    scored = ablation_scores(
        asked,
        pa.concat_tables(list(answers.values())),
        {name: rows[name] for name in answers},
        settings.evaluation.seed,
    )
    rates = store.read("ablation_win_rates", corpus)
    return {"variants": scored, "win_rates": rates.to_pylist()}


def _is_current(home: HomeResource, corpus: str, name: str, settings: Settings) -> bool:
    """Whether a variant's adapter was tuned as the settings say now."""
    from ragtuned_pipeline.evaluation.ablation import variant_tuning

    training = read_training(home.home, corpus, _purpose(name))
    tuning = variant_tuning(name, settings.tuning, settings.ablation)
    return (
        training is not None
        and training.settings == tuning.model_dump(mode="json")
        and training.base_model == base_model_key(tuning)["base_model"]
    )


def _judge(judgements: pa.Table) -> set[str]:
    return set(judgements["judge"].unique().to_pylist())
