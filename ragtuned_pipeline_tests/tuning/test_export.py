"""Exported weights are those of base and adapter together, to the bit where nothing is rounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER, load_model
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.tuning.export import (
    CannotExport,
    refuse_full_disk,
    stored_dtype,
    write_adapter,
    write_merged,
)
from ragtuned_pipeline_tests.tuning.adapters import random_adapter
from ragtuned_pipeline_tests.tuning.tiny_models import FAMILIES, write_model

Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def exact(adapter: Path) -> tuple[Weights, Weights]:
    """The weights of the base, and those that PEFT merges in float32."""
    base = load_model("embedded", "float32")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    return before, merged.state_dict()


def loaded(folder: Path, dtype: str = "auto") -> Weights:
    weights: Weights = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    return weights


def test_the_embedded_base_stands_beside_an_exported_adapter(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: tuple[Weights, Weights]
) -> None:
    write_adapter(adapter, "embedded", tmp_path)
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(".", dtype="float32").merge_and_unload()
    for name, weight in model.state_dict().items():
        assert weight.equal(exact[1][name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "base_model").chat_template


def test_the_name_of_a_base_on_the_hub_stays(tmp_path: Path) -> None:
    adapter, target = tmp_path / "adapter", tmp_path / "target"
    adapter.mkdir()
    target.mkdir()
    config = {"base_model_name_or_path": "some-org/some-model", "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    write_adapter(adapter, "some-org/some-model", target)
    assert json.loads((target / "adapter_config.json").read_text()) == config
    assert {file.name for file in target.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_merging_in_float32_is_what_peft_merges(
    adapter: Path, tmp_path: Path, exact: tuple[Weights, Weights]
) -> None:
    base, expected = exact
    merged = write_merged("embedded", adapter, tmp_path, "float32")
    weights = loaded(tmp_path)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert weight.equal(expected[name]), name
    assert any(not weight.equal(base[name]) for name, weight in weights.items())
    assert merged.lost == 0
    assert merged.parameters == sum(
        weight.numel() for name, weight in weights.items() if name != "lm_head.weight"
    ), "the head is the embedding"


def test_merged_weights_are_rounded_once(
    adapter: Path, tmp_path: Path, exact: tuple[Weights, Weights]
) -> None:
    base, expected = exact
    merged = write_merged("embedded", adapter, tmp_path, "bfloat16")
    weights = loaded(tmp_path)
    error = change = 0.0
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        assert weight.equal(expected[name].bfloat16()), name
        if not expected[name].equal(base[name]):
            error += float((weight.float() - expected[name]).double().square().sum())
            change += float((expected[name] - base[name]).double().square().sum())
    assert merged.lost == pytest.approx((error / change) ** 0.5, rel=1e-3)
    assert 0.001 < merged.lost < 0.5


def test_merged_weights_come_with_what_asks_them(adapter: Path, tmp_path: Path) -> None:
    write_merged("embedded", adapter, tmp_path, "float32")
    for name in ("chat_template.jinja", "tokenizer.json"):
        given, written = EMBEDDED_FOLDER / name, tmp_path / name
        read = json.loads if name.endswith(".json") else str.strip
        assert read(written.read_text()) == read(given.read_text()), name
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 1
    for file in tmp_path.glob("*.json"):
        assert str(EMBEDDED_FOLDER) not in file.read_text(), f"{file} names a place"


# The two that differ most; the others take seconds each and passed too.
@pytest.mark.parametrize("name", ["qwen2.5", "gemma3"])
def test_merged_models_of_other_families_answer_as_before(name: str, tmp_path: Path) -> None:
    [family] = [each for each in FAMILIES if each.name == name]
    base = str(write_model(family, tmp_path / "base"))
    adapter, target = random_adapter(tmp_path / "adapter", base_model=base), tmp_path / "merged"
    target.mkdir()
    write_merged(base, adapter, target, "float32")
    asked = [chat(question, "Be brief.") for question in ("Who is Ada?", "Where does it stand?")]
    expected, untuned, merged = (
        [reply.text for reply in TransformersEngine(*given).generate(asked, 12)]
        for given in ((base, adapter), (base,), (str(target),))
    )
    assert merged == expected != untuned


def test_the_type_of_stored_weights_is_read_from_the_base() -> None:
    assert stored_dtype("embedded") == "bfloat16"


def test_a_disk_without_room_is_named_with_what_is_needed(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_full_disk(tmp_path, 1)
    with pytest.raises(CannotExport, match=r"need 1048576\.0 GiB .* GiB are free") as full:
        refuse_full_disk(tmp_path, 1 << 50)
    assert str(full.value).startswith(f"{tmp_path}: ")
    free = 10_000_000  # of 10.2 MB that the embedded model has in float32
    disk = SimpleNamespace(total=free, used=0, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _: disk)
    with pytest.raises(CannotExport, match="the weights need"):
        write_merged("embedded", adapter, tmp_path, "float32")
    assert not list(tmp_path.iterdir())
    write_merged("embedded", adapter, tmp_path, "bfloat16")
