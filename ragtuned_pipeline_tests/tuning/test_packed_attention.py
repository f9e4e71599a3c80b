"""Packed rows do not see each other, and attention within a row is the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ragtuned_pipeline.tuning.packed_attention import can_pack_attention, use_packed_attention
from ragtuned_pipeline_tests.tuning.tiny_models import SIZES

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
TOLERANCE = 2e-2 if CUDA else 1e-5  # relative; bfloat16 on the GPU
ROWS = [[5, 9, 11, 7], [3], [8, 2, 6, 6, 1, 4, 12, 13, 14], [10, 11]]


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the GPU's kernel computes, in plain steps."""
    assert enable_gqa
    assert max_q == int(cu_seq_q.diff().max())
    attended = []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & ((window_size[0] < 0) | (distance <= window_size[0]))
        one = functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, scale=scale, enable_gqa=True
        )
        attended.append(one[0].transpose(0, 1))
    return torch.cat(attended)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(varlen, "varlen_attn", row_by_row)


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mistral() -> Any:
    """A model whose tokens see the last three only."""
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=3))


def made(make: Any) -> Any:
    torch.manual_seed(1)
    model = make()
    for parameter in model.parameters():  # not so small that every row gives the same
        parameter.data.mul_(8)
    return model.to(DEVICE, DTYPE).eval()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def alone(model: Any) -> torch.Tensor:
    with torch.no_grad():
        each = [model(torch.tensor([row], device=DEVICE)).logits[0] for row in ROWS]
    return torch.cat(each)


def batch(padding_free: bool) -> Any:
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    made = collator([{"input_ids": row} for row in ROWS])
    del made["labels"]
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in made.items()}


@pytest.mark.parametrize("make", [llama, mistral])
def test_packed_rows_get_what_each_gets_alone(make: Any) -> None:
    model = made(make)
    wanted = alone(model)
    use_packed_attention(model)
    with torch.no_grad():
        got = model(**batch(padding_free=True)).logits[0]
    assert difference(got, wanted) < TOLERANCE


@pytest.mark.parametrize("make", [llama, mistral])
def test_padded_rows_get_what_each_gets_alone(make: Any) -> None:
    model = made(make)
    wanted = alone(model)
    use_packed_attention(model)
    inputs = batch(padding_free=False)
    with torch.no_grad():
        got = model(**inputs).logits[inputs["attention_mask"].bool()]
    assert difference(got, wanted) < TOLERANCE


def test_gradients_are_those_of_the_rows_alone() -> None:
    model = made(llama)
    weight = model.model.layers[0].self_attn.k_proj.weight
    target = torch.randn(sum(map(len, ROWS)), SIZES["vocab_size"], device=DEVICE, dtype=DTYPE)
    each = [model(torch.tensor([row], device=DEVICE)).logits[0] for row in ROWS]
    (torch.cat(each) * target).sum().backward()
    wanted = weight.grad.clone()
    weight.grad = None
    use_packed_attention(model)
    (model(**batch(padding_free=True)).logits[0] * target).sum().backward()
    assert difference(weight.grad, wanted) < TOLERANCE


def test_one_long_causal_row_is_something_else() -> None:
    """The rows above do see a difference where the boundaries are lost."""
    model = made(llama)
    wanted = alone(model)
    inputs = batch(padding_free=True)
    ends = torch.tensor([0, sum(map(len, ROWS))], dtype=torch.int32, device=DEVICE)
    inputs |= {"cu_seq_lens_q": ends, "max_length_q": int(ends[-1])}
    use_packed_attention(model)
    with torch.no_grad():
        got = model(**inputs).logits[0]
    assert difference(got, wanted) > 10 * TOLERANCE


def test_it_is_for_half_precision_on_a_gpu_only() -> None:
    assert can_pack_attention(made(llama)) is CUDA
    assert not can_pack_attention(made(llama).float())
