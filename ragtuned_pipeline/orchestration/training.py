"""One training as a step: start the trainer process, keep its adapter, remember what made it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import fingerprint, write_parquet
from ragtuned_pipeline.orchestration.steps import (
    UserError,
    base_model_key,
    code_version,
    settings_key,
)
from ragtuned_pipeline.orchestration.trainer_pods import trainers_are_pods
from ragtuned_pipeline.settings import RetuningSettings, SettingsError, TuningSettings
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline.tuning.row_order import in_order
from ragtuned_pipeline.tuning.sft import NOT_LEARNED_FROM
from ragtuned_pipeline.tuning.trainer import KEEP_FREED_MEMORY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pyarrow as pa

    from ragtuned_pipeline.tuning.training_plan import TrainingPlan

TRAINING_CODE = (
    "inference/base_models.py",
    "inference/chat_template.py",
    "inference/engine.py",
    *(
        f"tuning/{name}.py"
        for name in (
            "sft",
            "answer_trainer",
            "base_models",
            "early_stopping",
            "epochs",
            "memory",
            "packed_attention",
            "quantization",
            "ranks",
            "row_order",
            "watcher",
        )
    ),
)


@dataclass(frozen=True)
class Training:
    """What is remembered of a finished training, as <home>/adapters/<corpus>/<purpose>.json.

    `result` is the trainer's TrainResult; `base_model` the identity of the base's weights.
    `started_from` is the adapter that it went on from, "" where it started from scratch, and
    `start` says why. `plan` is what was planned before it started, as
    training_plan.TrainingPlan; empty where an earlier version trained it.
    """

    fingerprint: str
    adapter: str  # content hash, the name of the adapter's folder
    base_model: str
    settings: dict[str, Any]
    result: dict[str, Any]
    started_from: str = ""
    start: str = ""
    plan: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retuning:
    """What decides whether a training goes on from the promoted adapter.

    `stated` are the corpus's `warm_start.statements`.
    """

    settings: RetuningSettings
    stated: pa.Table


def training_file(home: Home, corpus: str, purpose: str) -> Path:
    return home.adapters / corpus / f"{purpose}.json"


def read_training(home: Home, corpus: str, purpose: str) -> Training | None:
    """Return the last finished training for `purpose` ("tuned" or "control"), if there is one."""
    file = training_file(home, corpus, purpose)
    if not file.is_file():
        return None
    return Training(**json.loads(file.read_text(encoding="utf-8")))


def _write_training(home: Home, corpus: str, purpose: str, training: Training) -> None:
    text = json.dumps(asdict(training), indent=1, sort_keys=True)
    write_text(training_file(home, corpus, purpose), text)


def facts_learned_before(home: Home, corpus: str) -> set[str] | None:
    """Return the facts of the tuned adapter that the one promoted before it had learned too.

    None where none was promoted when it was tuned, or its rows are not known.
    """
    from ragtuned_pipeline.tuning.warm_start import earlier_facts

    training = read_training(home, corpus, "tuned")
    learned = _learned(home, corpus, training.adapter) if training else None
    return earlier_facts(learned) if learned else None


def train_adapter(
    context: dg.AssetExecutionContext,
    home: Home,
    pipes: dg.PipesSubprocessClient,
    purpose: str,
    rows: pa.Table,
    held_out: pa.Table | None,
    settings: TuningSettings,
    gpu: AbstractContextManager[None],
    retuning: Retuning | None = None,
) -> tuple[Training, bool]:
    """Train on `rows` unless that was done already; return the training and whether it was.

    It was where rows, base and what tuning reads of the settings are those of the last training
    (with early stopping the held-out rows too, which decide what is kept), in whatever order the
    rows stand and whatever adapter was promoted since. A training that was
    killed is resumed: its folder is named by everything it depends on, the adapter that it goes on
    from included.

    Args:
        rows: table training_rows.
        held_out: other wordings, for a loss: system, prompt, completion.
        gpu: entered while there is something to train (TeacherResource.alone).
        retuning: None for an adapter that is never promoted: it starts from scratch.

    Raises:
        UserError: the plan or the trainer refused (no GPU, too little memory, no base model, no
            rows); the reason is the message.
    """
    from ragtuned_pipeline.tuning import adapter_store
    from ragtuned_pipeline.tuning.warm_start import learned_rows, rows_file

    corpus = context.partition_key
    base = base_model_key(settings)["base_model"]
    if held_out:
        held_out = held_out.sort_by([(name, "ascending") for name in held_out.column_names])
    watched = content_hash(held_out) if held_out else ""
    made_of = {"rows": content_hash(_told(rows, settings)), "base": base}
    key = _fingerprint(
        settings, made_of | ({"held_out": watched} if settings.early_stopping else {})
    )
    known = read_training(home, corpus, purpose)
    if known and known.fingerprint == key and _stands(home, corpus, known, retuning):
        context.log.info("the rows and settings have not changed: the adapter is kept")
        kept = replace(known, settings=settings.model_dump(mode="json"))
        if kept != known:
            _write_training(home, corpus, purpose, kept)
        return kept, True
    start = _start(home, corpus, rows, settings, retuning) if retuning else _Start(rows)
    if start.reason:
        context.log.info(start.reason)
    told = _told(start.rows, settings)
    parts = {
        "rows": content_hash(told),
        "held_out": watched,
        "base": base,
        "start": start.adapter,
    }
    name = _fingerprint(settings, parts)
    folder = home.training(corpus, name)
    job = {
        "training_rows": str(_put(told, folder / "training_rows.parquet")),
        "held_out": str(_put(held_out, folder / "held_out.parquet")) if held_out else None,
        "settings": settings.model_dump(mode="json"),
        "output": str(folder),
        "start_from": str(home.adapters / corpus / start.adapter) if start.adapter else None,
        "logs": str(home.training_logs(corpus) / f"{purpose}-{name[:12]}"),
    }
    # The folder is named by everything that the adapter depends on: one that was trained and could
    # not be stored, as on a full disk, is not trained again.
    with gpu:  # the plan looks at what its memory has free
        plan = _planned(context, start.rows, settings)
        if not (folder / "result.json").is_file():
            if plan.refusal:
                raise UserError(plan.refusal)
            _run_trainer(context, pipes, job)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    adapter = adapter_store.store(folder / "adapter", home.adapters, corpus, settings.base_model)
    if retuning:
        learned = learned_rows(rows, retuning.stated, start.earlier, goes_on=bool(start.adapter))
        _put(learned, rows_file(home.adapters, corpus, adapter))
    training = Training(
        key,
        adapter,
        base,
        settings.model_dump(mode="json"),
        result,
        started_from=start.adapter,
        start=start.reason,
        plan=asdict(plan) | {"warnings": list(plan.warnings)},
    )
    _write_training(home, corpus, purpose, training)
    shutil.rmtree(folder)
    return training, False


@dataclass(frozen=True)
class _Start:
    """Where a training starts.

    Attributes:
        rows: what it is tuned on, as training_rows.
        adapter: that it goes on from; "" for none.
        reason: a sentence for people; "" where there was no choice.
        earlier: what the promoted adapter has learned, where that is known.
    """

    rows: pa.Table
    adapter: str = ""
    reason: str = ""
    earlier: pa.Table | None = None


def _start(
    home: Home, corpus: str, rows: pa.Table, settings: TuningSettings, retuning: Retuning
) -> _Start:
    from ragtuned_pipeline.tuning import adapter_store
    from ragtuned_pipeline.tuning.warm_start import StartFromScratch, check_shape, warm_rows

    promoted = adapter_store.promoted(home.adapters, corpus)
    earlier = _learned(home, corpus, promoted) if promoted else None
    try:
        if retuning.settings.start == "scratch":
            raise StartFromScratch('the setting retuning.start is "scratch"')
        if promoted is None:
            raise StartFromScratch("no adapter is promoted to go on from")
        check_shape(adapter_store.current(home.adapters, corpus, settings.base_model), settings)
        if earlier is None:
            raise StartFromScratch(f"which rows the adapter {promoted} has learned is not known")
        chosen = warm_rows(
            rows,
            earlier,
            retuning.stated,
            retuning.settings.replay_share,
            settings.seed,
            promoted,
        )
    except (StartFromScratch, adapter_store.AdapterError) as reason:
        return _Start(rows, reason=f"tuned from scratch: {reason}", earlier=earlier)
    told = (
        f"tuned from the adapter {promoted} on {chosen.new} rows that are new or changed and on "
        f"{chosen.replayed} of the {rows.num_rows - chosen.new} earlier ones"
    )
    return _Start(chosen.rows, promoted, told, earlier)


def _learned(home: Home, corpus: str, adapter: str) -> pa.Table | None:
    from ragtuned_pipeline.tuning.warm_start import rows_file

    file = rows_file(home.adapters, corpus, adapter)
    return pq.ParquetFile(file).read() if file.is_file() else None


def _fingerprint(settings: TuningSettings, parts: Mapping[str, str]) -> str:
    read = settings.model_dump(mode="json", exclude=set(NOT_LEARNED_FROM))
    return fingerprint(code_version(*TRAINING_CODE), settings_key(read), parts)


def _told(rows: pa.Table, settings: TuningSettings) -> pa.Table:
    """What the trainer is told, the same whatever the order in which the rows were made."""
    seen = pc.min_element_wise(rows["epochs"], settings.epochs)
    told = rows.select(["system", "prompt", "completion"]).append_column("epochs", seen)
    return in_order(told)


def _stands(home: Home, corpus: str, known: Training, retuning: Retuning | None) -> bool:
    """Whether the adapter is there, and started in a way that the settings allow now."""
    warm = retuning is not None and retuning.settings.start == "warm"
    return (home.adapters / corpus / known.adapter).is_dir() and (warm or not known.started_from)


def _put(rows: pa.Table, path: Path) -> Path:
    write_parquet(rows, UPath(path))
    return path


def _planned(
    context: dg.AssetExecutionContext, rows: pa.Table, settings: TuningSettings
) -> TrainingPlan:
    """Return the plan of the training, and tell it in the run's log.

    Raises:
        UserError: the base model cannot be loaded, or has fewer devices than are asked for.
    """
    from ragtuned_pipeline.tuning.base_models import load_tokenizer
    from ragtuned_pipeline.tuning.machine import Machine, this_machine
    from ragtuned_pipeline.tuning.plan_words import plan_lines
    from ragtuned_pipeline.tuning.training_plan import base_shape, plan_rows

    try:
        machine = (
            Machine("pod of the trainer", True, settings.devices or 1)
            if trainers_are_pods()
            else this_machine(settings)
        )
        tokenizer, shape = load_tokenizer(settings.base_model), base_shape(settings.base_model)
        plan = plan_rows(rows, tokenizer, shape, settings, machine)
    except SettingsError as error:
        raise UserError(str(error)) from error
    context.log.info("planned: " + "; ".join(f"{what}: {how}" for what, how in plan_lines(plan)))
    for warning in plan.warnings:
        context.log.warning(warning)
    return plan


def _run_trainer(
    context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient, job: dict[str, Any]
) -> None:
    """Raises UserError where the trainer refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # of Pipes' own, in this pinned release
        invocation = pipes.run(
            command=[sys.executable, "-m", "ragtuned_pipeline.orchestration.trainer_process"],
            context=context,
            extras={"job": job},
            env=KEEP_FREED_MEMORY,
        )
    for message in invocation.get_custom_messages():
        raise UserError(str(message["refused"]))


def training_result(
    context: dg.AssetExecutionContext, home: Home, training: Training, kept: bool
) -> dg.MaterializeResult[Any]:
    """Return the result of an adapter's asset, with the numbers and the loss curve of its training.

    Args:
        training, kept: of `train_adapter`.
    """
    result = training.result
    place = home.adapters / context.partition_key / training.adapter
    numbers = {name: result[name] for name in _NUMBERS if result[name] is not None}
    last = {
        f"final_{name}": result[curve][-1][1] for name, curve in _CURVES.items() if result[curve]
    }
    metadata = {
        "adapter": dg.MetadataValue.path(str(place)),
        "base_model": training.base_model,
        "unchanged": kept,
        **({"start": training.start} if training.start else {}),
        "overlong_rows": result["overlong"],
        **numbers,
        **last,
        "plan": dg.MetadataValue.md(_plan_table(training)),
        "loss_curve": dg.MetadataValue.md(_loss_plot(result)),
    }
    return dg.MaterializeResult(data_version=dg.DataVersion(training.adapter), metadata=metadata)


# Of a TrainResult, as metadata: Dagster draws numbers over time.
_NUMBERS = (
    "rows",
    "processes",
    "steps",
    "stopped_at_step",
    "kept_step",
    "tokens",
    "seconds",
    "tokens_per_second",
    "mfu",
    "peak_memory_gib",
    "trainable_parameters",
    "best_held_out_loss",
)
_CURVES = {
    "loss": "losses",
    "accuracy": "accuracies",
    "held_out_loss": "held_out_losses",
    "held_out_accuracy": "held_out_accuracies",
}


def _plan_table(training: Training) -> str:
    """What was planned beside what it was, as a Markdown table."""
    from ragtuned_pipeline.tuning.plan_words import planned_and_measured

    rows = planned_and_measured(training.plan, training.result)
    head = ["| | planned | measured |", "|---|---|---|"]
    warnings = [f"\n{warning}" for warning in training.plan.get("warnings", ())]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows), *warnings])


def _loss_plot(result: dict[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True)
    for axes, shown in panels:
        for name, label in ((shown, "training rows"), (f"held_out_{shown}", "held-out wordings")):
            if result[_CURVES[name]]:
                axes.plot(*zip(*result[_CURVES[name]], strict=True), label=label)
        axes.set(xlabel="step", ylabel=shown)
        axes.legend()
        if shown == "loss":
            axes.set(yscale="log")
        else:
            axes.set(ylim=(0, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return f"![loss and accuracy by step](data:image/png;base64,{picture})"
