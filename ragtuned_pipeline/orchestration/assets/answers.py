"""evaluation: what each system answers, one asset a system, and the shuffled control."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.orchestration.answering import (
    Given,
    answer_table,
    answering_key,
    is_asked,
    write_note,
)
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    UserError,
    base_model_key,
    code_behind,
    code_version,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import TeacherResource
from ragtuned_pipeline.orchestration.training import (
    TRAINING_CODE,
    Training,
    read_training,
    train_adapter,
    training_result,
)
from ragtuned_pipeline.settings import Settings, SettingsError
from ragtuned_pipeline.tables import failures_table

TUNED_CODE = code_behind("evaluation/systems/tuned.py")


def asset_answers(
    context: dg.AssetExecutionContext,
    home: Home,
    teacher: TeacherResource,
    system: str,
    queries: pa.Table,
    tables: Mapping[str, pa.Table],
    settings: Settings,
    training: Training | None,
    step: str,
) -> Given:
    """Return the answers of a system in a step; arguments as of `answer_table`.

    Raises:
        UserError: what it needs cannot be loaded or reached.
    """
    adapter = home.adapters / context.partition_key / training.adapter if training else None
    try:
        return answer_table(
            home,
            context.partition_key,
            system,
            queries,
            tables,
            settings,
            adapter,
            step,
            partial(teacher.answering, context, home, settings),
        )
    except (SettingsError, TeacherStopped) as error:
        raise UserError(str(error)) from error


def _answers_asset(system: str) -> dg.AssetsDefinition:
    """The answers of one system; adding a system adds, and runs, one asset."""
    spec = SYSTEMS[system]
    outputs = [f"answers_{system}", f"answers_{system}_failures"]

    @table_assets(
        outputs={
            f"answers_{system}": f"What the system {system} answered, and what it cost.",
            f"answers_{system}_failures": "What failed on the way to its answers.",
        },
        group="evaluation",
        rooms=code_behind(f"evaluation/systems/{system}.py"),
        inputs=["queries", "documents", *spec.tables],
        deps=["lora_adapter"] if spec.uses_adapter else [],
        kinds={"huggingface"},
    )
    def answers(
        context: dg.AssetExecutionContext,
        home: HomeResource,
        teacher: TeacherResource,
        queries: pa.Table,
        **tables: pa.Table,
    ) -> Iterator[Any]:
        corpus = context.partition_key
        settings = home.home.settings(corpus)
        training = read_training(home.home, corpus, "tuned") if spec.uses_adapter else None

        def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
            given = asset_answers(
                context,
                home.home,
                teacher,
                system,
                queries,
                tables,
                settings,
                training,
                outputs[0],
            )
            write_note(home.home, corpus, system, given.note)
            made = (given.answers, failures_table(given.failures))
            return dict(zip(outputs, made, strict=True)), {
                **asdict(given.note),
                "replies": given.replies,
                "replies_anew": given.replies_anew,
            }

        yield from run_step(
            context,
            home.store,
            outputs,
            settings_key(
                answering_key(settings),
                base_model_key(settings.tuning),
                {"asked": is_asked(system, settings)},
            ),
            {"queries": queries, **tables, "adapter": training.adapter if training else ""},
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
        settings_key(
            settings.evaluation.model_dump(
                mode="json", include={"seed", "control_facts", "questions_per_set"}
            ),
            base_model_key(settings.tuning),
        ),
        {"training_rows": training_rows, "qa_pairs": qa_pairs},
        compute,
    )


@dg.asset(
    group_name="evaluation",
    partitions_def=corpora,
    code_version=code_version(*TRAINING_CODE),
    owners=[OWNER],
    kinds={"pytorch", "huggingface"},
    pool="accelerator",
)
def control_adapter(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    pipes: dg.PipesSubprocessClient,
    control_rows: pa.Table,
) -> dg.MaterializeResult[Any]:
    """An adapter tuned on the shuffled rows: it can score only by what is not knowledge."""
    if not control_rows.num_rows:
        return dg.MaterializeResult(
            data_version=dg.DataVersion("none"),
            metadata={"skipped": "too few facts to shuffle answers among them"},
        )
    tuning = home.home.settings(context.partition_key).tuning
    gpu = teacher.alone(context, home.home)
    made = train_adapter(context, home.home, pipes, "control", control_rows, None, tuning, gpu)
    return training_result(context, home.home, *made)


@table_assets(
    outputs={"answers_control": "What the control adapter answered."},
    group="evaluation",
    rooms=TUNED_CODE,
    inputs=["control_queries", "documents"],
    deps=["control_adapter"],
    kinds={"huggingface"},
)
def control_answers(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    control_queries: pa.Table,
    documents: pa.Table,
) -> Iterator[Any]:
    corpus = context.partition_key
    settings = home.home.settings(corpus)
    training = read_training(home.home, corpus, "control") if control_queries.num_rows else None

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        given = asset_answers(
            context,
            home.home,
            teacher,
            "tuned",
            control_queries,
            {"documents": documents},
            settings,
            training,
            "answers_control",
        )
        return {"answers_control": given.answers}, {}

    yield from run_step(
        context,
        home.store,
        ["answers_control"],
        settings_key(answering_key(settings), base_model_key(settings.tuning)),
        {"control_queries": control_queries, "adapter": training.adapter if training else ""},
        compute,
    )


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
