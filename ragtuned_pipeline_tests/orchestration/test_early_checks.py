"""What is refused before anything is read, on a machine with a GPU that nvidia-smi tells of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, Qwen2Config

from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.orchestration.early_checks import check_early
from ragtuned_pipeline.settings import Settings, SettingsError, load_settings
from ragtuned_pipeline.tuning.base_models import load_tokenizer
from ragtuned_pipeline_tests.tuning.qwen import qwen_sizes


def gpu_of(gib: int, folder: Path, patch: pytest.MonkeyPatch, used: int = 0) -> None:
    """Have nvidia-smi tell of a GPU of `gib` GiB, of which `used` are in use."""
    said = f"0, GPU-1, NVIDIA H100 80GB HBM3, {(gib - used) << 10}, {gib << 10}"
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{said}'\n")
    script.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=":")
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    patch.setattr(torch.cuda, "is_available", lambda: True)


def seven_billion(folder: Path) -> Settings:
    """The gpu profile's, with a base model of which there are no weights."""
    Qwen2Config(**qwen_sizes("7B")).save_pretrained(folder)
    tokenizer = load_tokenizer("embedded")
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    own = {
        "tuning": {"base_model": str(folder)},
        "teacher": {"engine": "none"},
        "judge": {"engine": "none"},
        "evaluation": {"engine": "transformers"},
    }
    return load_settings(folder, "gpu", own, environment={})


@pytest.fixture
def on_80_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that nothing is wrong with."""
    gpu_of(80, tmp_path, monkeypatch)
    return seven_billion(tmp_path)


def test_a_gpu_that_is_too_small_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_of(16, tmp_path, monkeypatch)
    with pytest.raises(SettingsError, match=r"16\.0 are free; .* tuning\.quantization = nf4"):
        check_early(seven_billion(tmp_path))


def test_a_gpu_that_a_server_fills_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the memory back before a training."""
    gpu_of(80, tmp_path, monkeypatch, used=76)
    check_early(seven_billion(tmp_path))


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_read() -> None:
    asked = Settings.model_validate({"tuning": {"trackers": "trackio"}})
    with pytest.raises(SettingsError, match=r"tuning\.trackers: trackio needs the package trackio"):
        check_early(asked)


def test_answers_that_would_not_end_are_refused_before_anything_is_read(
    tmp_path: Path, on_80_gib: Settings
) -> None:
    GenerationConfig(eos_token_id=5).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"eos_token_id in its generation_config\.json"):
        check_early(on_80_gib)
    (tmp_path / "generation_config.json").unlink()  # then config.json's counts, which has none
    with pytest.raises(SettingsError, match=r"eos_token_id in its generation_config\.json"):
        check_early(on_80_gib)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, on_80_gib: Settings) -> None:
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SettingsError, match=r"tuning\.base_model: there is no tokenizer\.json"):
        identity(str(tmp_path))
    with pytest.raises(SettingsError, match=r"setting tuning\.base_model: "):
        check_early(on_80_gib)


def test_devices_that_are_not_there_are_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Settings.model_validate({"tuning": {"devices": 2, "parallel": "fsdp"}})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match=r'tuning\.parallel: "fsdp" needs CUDA GPUs'):
        check_early(asked)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=r"tuning\.devices: 2 GPUs are asked for and 1 visible"):
        check_early(asked)
