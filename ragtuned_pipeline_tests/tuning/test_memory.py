"""How much is computed at once, for the gpu profile's model on cards of several sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ragtuned_pipeline.settings import SettingsError, TuningSettings, load_settings
from ragtuned_pipeline.tuning.memory import Pass, largest_pass, lora_parameters

GIB = 1 << 30


@pytest.fixture(scope="module")
def qwen() -> Any:
    """Qwen2.5-7B-Instruct without its numbers."""
    config = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return Qwen2ForCausalLM(config).bfloat16()


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
    assert largest_pass(qwen, gpu, card * GIB - GIB, gpu.batch_size) == wanted


def test_what_is_asked_for_wins(qwen: Any, gpu: TuningSettings) -> None:
    asked = gpu.model_copy(update={"gradient_checkpointing": True})
    assert largest_pass(qwen, asked, 80 * GIB, asked.batch_size).checkpointing
    assert largest_pass(qwen, gpu, 80 * GIB, most=1) == Pass(1, False)


def test_a_step_is_a_whole_number_of_passes(qwen: Any, gpu: TuningSettings) -> None:
    twelve = gpu.model_copy(update={"batch_size": 12})
    for card in range(24, 200, 8):
        assert 12 % largest_pass(qwen, twelve, card * GIB, 12).rows == 0


def test_a_card_that_is_too_small_is_refused(qwen: Any, gpu: TuningSettings) -> None:
    with pytest.raises(SettingsError, match=r"tuning\.base_model: .* need 18 GiB .* 16 are free"):
        largest_pass(qwen, gpu, 16 * GIB, gpu.batch_size)


def test_float32_holds_at_most_half_as_much(qwen: Any, gpu: TuningSettings) -> None:
    rows = largest_pass(qwen, gpu, 140 * GIB, 16).rows
    with torch.device("meta"):
        wide = Qwen2ForCausalLM(qwen.config).float()
    assert largest_pass(wide, gpu, 140 * GIB, 16).rows <= rows / 2


def test_the_adapter_is_as_large_as_peft_makes_it() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    counted = lora_parameters(model, 8)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    assert counted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
