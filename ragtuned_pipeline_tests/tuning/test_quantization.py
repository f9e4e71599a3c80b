"""Training through a base in 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning import quantization
from ragtuned_pipeline.tuning.memory import linear_layers
from ragtuned_pipeline.tuning.quantization import check_quantization, load_quantized
from ragtuned_pipeline.tuning.sft import train
from ragtuned_pipeline_tests.tuning.conftest import FRAMES, rows, write_rows

NF4 = TuningSettings(rank=8, alpha=16, epochs=3, batch_size=16, quantization="nf4")


def test_linear_layers_are_in_four_bits_and_the_rest_is_not() -> None:
    pytest.importorskip("bitsandbytes")
    model = load_quantized("embedded")
    layers = linear_layers(model)
    assert layers
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
    embedding = model.get_input_embeddings()
    assert embedding.weight.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in model.parameters())


def test_it_learns_and_its_adapter_is_one_of_the_base_itself(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    given = write_rows(rows(FRAMES[:4]), tmp_path / "rows.parquet")
    result = train(given, None, NF4, tmp_path / "nf4", lambda _line: None)
    assert result.losses[-1][1] < result.losses[0][1]
    plain = NF4.model_copy(update={"quantization": "none", "epochs": 1})
    whole = train(given, None, plain, tmp_path / "plain", lambda _line: None)
    one, other = (
        load_file(Path(each.adapter) / "adapter_model.safetensors") for each in (result, whole)
    )
    assert {name: w.shape for name, w in one.items()} == {n: w.shape for n, w in other.items()}
    # What 4 bits round is little of the loss, and none would be no 4 bits.
    assert 0 < abs(result.losses[0][1] - whole.losses[0][1]) < 0.1 * whole.losses[0][1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"tuning\.quantization: .* package bitsandbytes"):
        check_quantization(NF4)


def test_it_is_not_spread_over_gpus() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(SettingsError, match=r'"nf4" is not used with tuning\.parallel = "fsdp"'):
        check_quantization(NF4.model_copy(update={"parallel": "fsdp"}))
