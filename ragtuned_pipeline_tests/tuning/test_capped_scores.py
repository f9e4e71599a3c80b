"""What plain attention keeps of soft-capped scores, counted and measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning.memory import ModelShape, Pass, memory_need
from ragtuned_pipeline_tests.tuning.tiny_models import SIZES


def kept_bytes(model: Any, tokens: int) -> int:
    """Bytes that a forward pass through the layers keeps for the way back."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(torch.zeros((1, tokens), dtype=torch.long))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def bent(lengths: list[int], sizes: list[int]) -> float:
    """The factor of the square of the length in what grows with the length and its square."""
    (a, b, c), (x, y, z) = lengths, sizes
    return ((z - y) / (c - b) - (y - x) / (b - a)) / (c - a)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_they_are_counted_as_they_are_kept(dtype: str) -> None:
    config = Gemma2Config(**SIZES, head_dim=16, sliding_window=64)
    make: Any = AutoModelForCausalLM.from_config
    model = make(config, attn_implementation="eager", dtype=getattr(torch, dtype))
    settings = TuningSettings(dtype=dtype)
    lengths = [128, 256, 512]
    shape = ModelShape.of(model)

    def planned(checkpointing: bool) -> list[int]:
        one = Pass(1, checkpointing)
        return [memory_need(shape, settings, one, each).activations for each in lengths]

    kept = bent(lengths, [kept_bytes(model, each) for each in lengths])
    assert kept == pytest.approx(bent(lengths, planned(False)), rel=0.01)
    assert kept == pytest.approx(2 * bent(lengths, planned(True)), rel=0.01), "of one layer"
