"""How much is computed at once, for the gpu profile's model on cards of several sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ragtuned_pipeline.settings import SettingsError, TuningSettings, load_settings
from ragtuned_pipeline.tuning import sft
from ragtuned_pipeline.tuning.machine import Machine
from ragtuned_pipeline.tuning.memory import ModelShape, Pass, largest_pass
from ragtuned_pipeline.tuning.ranks import Ranks
from ragtuned_pipeline.tuning.training_plan import RowLengths, plan_training
from ragtuned_pipeline_tests.tuning.qwen import qwen_sizes
from ragtuned_pipeline_tests.tuning.tiny_models import SIZES

GIB = 1 << 30


@pytest.fixture(scope="module")
def qwen() -> Any:
    """Qwen2.5-7B-Instruct without its numbers."""
    with torch.device("meta"):
        return Qwen2ForCausalLM(Qwen2Config(**qwen_sizes("7B"))).bfloat16()


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> TuningSettings:
    made = load_settings(tmp_path_factory.mktemp("home"), "gpu", environment={}).tuning
    return made.model_copy(update={"gradient_checkpointing": False})


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        (141, Pass(8, False)),  # 8 sequences took 107 GiB, see docs/performance.md
        (80, Pass(4, False)),
        (48, Pass(1, False)),
        (40, Pass(1, False)),
        (24, Pass(4, True)),
        (20, Pass(1, True)),
    ],
)
def test_as_many_sequences_as_the_card_holds(
    qwen: Any, gpu: TuningSettings, card: int, wanted: Pass
) -> None:
    assert largest_pass(qwen, gpu, card * GIB - GIB, gpu.batch_size, 2048) == wanted


def test_what_is_asked_for_wins(qwen: Any, gpu: TuningSettings) -> None:
    asked = gpu.model_copy(update={"gradient_checkpointing": True})
    assert largest_pass(qwen, asked, 80 * GIB, asked.batch_size, 2048).checkpointing
    assert largest_pass(qwen, gpu, 80 * GIB, 1, 2048) == Pass(1, False)


def test_a_step_is_a_whole_number_of_passes(qwen: Any, gpu: TuningSettings) -> None:
    twelve = gpu.model_copy(update={"batch_size": 12})
    for card in range(24, 200, 8):
        assert 12 % largest_pass(qwen, twelve, card * GIB, 12, 2048).rows == 0


def test_a_card_that_is_too_small_is_refused(qwen: Any, gpu: TuningSettings) -> None:
    with pytest.raises(SettingsError, match=r"tuning\.base_model: .* need 18 GiB .* 16 are free"):
        largest_pass(qwen, gpu, 16 * GIB, gpu.batch_size, 2048)


def test_float32_holds_at_most_half_as_much(qwen: Any, gpu: TuningSettings) -> None:
    rows = largest_pass(qwen, gpu, 140 * GIB, 16, 2048).rows
    with torch.device("meta"):
        wide = Qwen2ForCausalLM(qwen.config).float()
    assert largest_pass(wide, gpu, 140 * GIB, 16, 2048).rows <= rows / 2


def test_the_adapter_is_as_large_as_peft_makes_it() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    counted = 8 * ModelShape.of(model).lora
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    assert counted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def soft_capped() -> Any:
    """A model as Gemma 2, whose scores PyTorch's kernel for packed rows does not cap."""
    with torch.device("meta"):
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16)).bfloat16()


def a_card(gib: int, patch: pytest.MonkeyPatch) -> Machine:
    """Have PyTorch tell of a GPU of which `gib` GiB are free."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "mem_get_info", lambda: (gib * GIB, gib * GIB))
    patch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    return Machine(f"card of {gib} GiB", True, free_bytes=gib * GIB)


@pytest.mark.parametrize("free", [23, 47, 79, 140])
def test_rows_that_are_not_packed_are_as_many_as_the_card_holds(
    qwen: Any, gpu: TuningSettings, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = gpu.model_copy(update={"packing": False, "batch_size": 16})
    machine = a_card(free, monkeypatch)
    rows = RowLengths(np.array([300, 2000]), np.array([10, 10]), np.array([3, 3]))
    plan = plan_training(rows, ["An answer."], ModelShape.of(qwen), unpacked, machine)
    assert not plan.refusal
    assert plan.memory.fits(free * GIB)
    chosen = sft._one_pass(qwen, unpacked, Ranks(), 2000)
    assert chosen == Pass(plan.rows_at_once, plan.gradient_checkpointing)
    assert chosen.checkpointing is (free == 23)


def test_a_model_that_cannot_be_packed_gets_one_sequence_a_pass(
    soft_capped: Any, qwen: Any, gpu: TuningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = a_card(140, monkeypatch)
    rows = RowLengths(np.array([300] * 64), np.array([10] * 64), np.array([3] * 64))
    plan = plan_training(rows, ["An answer."], ModelShape.of(soft_capped), gpu, machine)
    assert plan.rows_at_once == sft._one_pass(soft_capped, gpu, Ranks(), 300).rows == 1
    wide = gpu.model_copy(update={"dtype": "float32"})
    assert plan_training(rows, [""], ModelShape.of(qwen), wide, machine).rows_at_once == 1
    assert plan_training(rows, [""], ModelShape.of(qwen), gpu, machine).rows_at_once == 8


@pytest.mark.parametrize("free", range(9, 40, 6))
def test_devices_that_share_the_base_hold_as_much_as_is_planned(
    qwen: Any, gpu: TuningSettings, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = gpu.model_copy(update={"parallel": "fsdp", "batch_size": 16})
    machine = Machine("card", True, 4, free_bytes=free * GIB)
    rows = RowLengths(np.array([2000]), np.array([10]), np.array([3]))
    plan = plan_training(rows, [""], ModelShape.of(qwen), spread, machine)
    chosen = largest_pass(qwen, spread, free * GIB, 4, 2048, 4)
    assert chosen == Pass(plan.rows_at_once, plan.gradient_checkpointing)
