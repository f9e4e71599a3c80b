"""One training as a step: start the trainer process, keep its adapter, remember what made it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from upath import UPath

from ragtuned_pipeline.orchestration.home import Home, write_text
from ragtuned_pipeline.orchestration.io import fingerprint, write_parquet
from ragtuned_pipeline.orchestration.steps import (
    UserError,
    base_model_key,
    code_version,
    settings_key,
)
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline.tuning.trainer import KEEP_FREED_MEMORY

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

TRAINING_CODE = tuple(
    f"tuning/{name}.py" for name in ("sft", "base_models", "packed_attention", "memory")
)


@dataclass(frozen=True)
class Training:
    """What is remembered of a finished training, as <home>/adapters/<corpus>/<purpose>.json.

    `result` is the trainer's TrainResult; `base_model` the identity of the base's weights.
    """

    fingerprint: str
    adapter: str  # content hash, the name of the adapter's folder
    base_model: str
    settings: dict[str, Any]
    result: dict[str, Any]


def training_file(home: Home, corpus: str, purpose: str) -> Path:
    return home.adapters / corpus / f"{purpose}.json"


def read_training(home: Home, corpus: str, purpose: str) -> Training | None:
    """Return the last finished training for `purpose` ("tuned" or "control"), if there is one."""
    file = training_file(home, corpus, purpose)
    if not file.is_file():
        return None
    return Training(**json.loads(file.read_text(encoding="utf-8")))


def trained(
    context: dg.AssetExecutionContext,
    home: Home,
    pipes: dg.PipesSubprocessClient,
    purpose: str,
    rows: pa.Table,
    held_out: pa.Table | None,
    settings: TuningSettings,
) -> dg.MaterializeResult[Any]:
    """Return the result of an adapter's asset: tuned on `rows`, a table training_rows.

    The other arguments, and what is raised, are those of `train_adapter`.
    """
    told = rows.select(["system", "prompt", "completion", "epochs"])
    training, kept = train_adapter(context, home, pipes, purpose, told, held_out, settings)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(training.adapter),
        metadata=training_metadata(home, context.partition_key, training, kept),
    )


def train_adapter(
    context: dg.AssetExecutionContext,
    home: Home,
    pipes: dg.PipesSubprocessClient,
    purpose: str,
    rows: pa.Table,
    held_out: pa.Table | None,
    settings: TuningSettings,
) -> tuple[Training, bool]:
    """Train on `rows` unless that was done already; return the training and whether it was.

    A training that was killed is resumed: its folder is named by everything it depends on.

    Args:
        rows: columns system, prompt, completion; `held_out` likewise (other wordings, for a loss).

    Raises:
        UserError: the trainer refused (no GPU, no base model, no rows); its reason is the message.
    """
    from ragtuned_pipeline.tuning import adapter_store

    corpus = context.partition_key
    base = base_model_key(settings)["base_model"]
    key = fingerprint(
        code_version(*TRAINING_CODE),
        settings_key(settings),
        {
            "rows": content_hash(rows),
            "held_out": content_hash(held_out) if held_out else "",
            "base": base,
        },
    )
    known = read_training(home, corpus, purpose)
    if known and known.fingerprint == key and (home.adapters / corpus / known.adapter).is_dir():
        context.log.info("the rows and settings have not changed: the adapter is kept")
        return known, True
    folder = home.training(corpus, key)
    job = {
        "training_rows": str(_put(rows, folder / "training_rows.parquet")),
        "held_out": str(_put(held_out, folder / "held_out.parquet")) if held_out else None,
        "settings": settings.model_dump(mode="json"),
        "output": str(folder),
    }
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
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    adapter = adapter_store.store(folder / "adapter", home.adapters, corpus, settings.base_model)
    training = Training(key, adapter, base, settings.model_dump(mode="json"), result)
    text = json.dumps(asdict(training), indent=1, sort_keys=True)
    write_text(training_file(home, corpus, purpose), text)
    shutil.rmtree(folder)
    return training, False


def _put(rows: pa.Table, path: Path) -> Path:
    write_parquet(rows, UPath(path))
    return path


def training_metadata(home: Home, corpus: str, training: Training, kept: bool) -> dict[str, Any]:
    """The numbers and the loss curve of a training, as Dagster's UI shows them."""
    result = training.result
    losses, held_out = result["losses"], result["held_out_losses"]
    return {
        "adapter": dg.MetadataValue.path(str(home.adapters / corpus / training.adapter)),
        "base_model": training.base_model,
        "unchanged": kept,
        "rows": result["rows"],
        "overlong_rows": result["overlong"],
        "steps": result["steps"],
        "tokens": result["tokens"],
        "seconds": result["seconds"],
        "tokens_per_second": result["tokens_per_second"],
        "trainable_parameters": result["trainable_parameters"],
        "final_loss": losses[-1][1] if losses else 0.0,
        "final_held_out_loss": held_out[-1][1] if held_out else 0.0,
        "loss_curve": dg.MetadataValue.md(_loss_plot(losses, held_out)),
    }


def _loss_plot(losses: list[Any], held_out: list[Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    for curve, label in ((losses, "training rows"), (held_out, "held-out wordings")):
        if curve:
            axes.plot(*zip(*curve, strict=True), label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return f"![loss by step](data:image/png;base64,{picture})"
