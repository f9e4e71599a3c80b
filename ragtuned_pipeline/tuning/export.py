"""An adapter for other programs: as a folder for the Hugging Face hub, or merged into its base.

Neither tells where it was made: no path of this machine is in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.base_models import (
    EMBEDDED_FOLDER,
    load_config,
    load_model,
    load_tokenizer,
)
from ragtuned_pipeline.settings import EMBEDDED_MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED_COPY = "base_model"  # folder in an exported adapter's own
_SHARD_SIZE = "5GB"
_GIB = 1 << 30


class CannotExport(RuntimeError):
    """Something cannot be exported so; the message says why and what to change."""


@dataclass(frozen=True)
class Merged:
    """What merging came to.

    Attributes:
        parameters: of the model.
        dtype: of the weights that were written.
        lost: what rounding to `dtype` took: the length of the rounding error of all merged weights,
            as a share of the length of the adapter's change to them; 0 where nothing was rounded.
    """

    parameters: int
    dtype: str
    lost: float


def write_adapter(adapter: Path, base_model: str, target: Path) -> None:
    """Copy an adapter as PEFT loads it, with the name of its base where that is on the hub.

    The embedded base model, which no hub has, is put beside it: `base_model` in the configuration
    is that folder.

    Args:
        adapter: a stored one's folder.
        base_model: the setting that it was tuned with.
        target: an empty folder.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if base_model == EMBEDDED_MODEL:
        config["base_model_name_or_path"] = EMBEDDED_COPY
        shutil.copytree(EMBEDDED_FOLDER, target / EMBEDDED_COPY)
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shutil.copyfile(adapter / "adapter_model.safetensors", target / "adapter_model.safetensors")


def stored_dtype(base_model: str) -> str:
    """Return the type that the base model's weights are stored in; "float32" where it says none.

    Raises:
        SettingsError: its configuration cannot be loaded.
    """
    dtype = load_config(base_model).dtype
    return str(dtype).removeprefix("torch.") if dtype is not None else "float32"


def write_merged(
    base_model: str,
    adapter: Path,
    target: Path,
    dtype: str,
    tell: Callable[[str], None] = lambda _line: None,
) -> Merged:
    """Write base and adapter as one model that transformers loads alone.

    Each weight is merged in float32, one after the other, and rounded to `dtype` once: the whole
    model is in memory in `dtype` only.

    Args:
        base_model: the setting that the adapter was tuned with.
        adapter: its folder.
        target: an empty folder.
        dtype: "float32", "bfloat16" or "float16".
        tell: gets a line on what begins and may take minutes.

    Raises:
        SettingsError: the base model cannot be loaded.
        CannotExport: the disk has no room for it.
    """
    from peft import PeftModel

    base: Any = load_model(base_model, dtype)
    size = base.get_memory_footprint()
    refuse_full_disk(target.parent, size)
    tell(f"merging adapter {adapter.name} into {base_model} ({size / _GIB:.1f} GiB, {dtype})")
    tuned = PeftModel.from_pretrained(base, str(adapter))
    lost = _merge(tuned)
    model: PreTrainedModel = tuned.unload()  # the base again, now with the merged weights
    model.save_pretrained(str(target), max_shard_size=_SHARD_SIZE)
    load_tokenizer(base_model).save_pretrained(str(target))
    return Merged(model.num_parameters(), dtype, lost)


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Raise CannotExport unless so many bytes are free in `folder`, which the message names."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CannotExport(
            f"{folder}: the weights need {needed / _GIB:.1f} GiB there, and "
            f"{free / _GIB:.1f} GiB are free; make room, or choose another --output"
        )


def _merge(tuned: Any) -> float:
    """Add the adapter's change to each weight that it changes; return `Merged.lost`."""
    import torch
    from peft.tuners.lora import LoraLayer

    error = change = 0.0
    with torch.inference_mode():
        layers: list[Any] = [each for each in tuned.modules() if isinstance(each, LoraLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            delta = layer.get_delta_weight(layer.active_adapters[0]).float()
            exact = weight.float() + delta
            weight.data = exact.to(weight.dtype)
            error += float((weight.float() - exact).square().sum(dtype=torch.float64))
            change += float(delta.square().sum(dtype=torch.float64))
    return (error / change) ** 0.5 if change else 0.0
