"""Attention for packed rows on a CUDA GPU, with what PyTorch itself brings.

Rows packed into one sequence must not see each other. The usual way is a mask of (length x length)
that every layer reads in full; here each row is attended to by itself (PyTorch's varlen_attn, which
is FlashAttention 2, Dao 2023, arXiv 2307.08691), so that attention costs what the rows cost, and
several sequences can lie behind each other in one batch. docs/performance.md has the figures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_NAME = "ragtuned_packed"


def can_pack_attention(model: PreTrainedModel) -> bool:
    """Whether use_packed_attention(model) computes what the model's own attention does.

    It needs bfloat16 or float16 on a CUDA GPU of compute capability 8.0 or more, heads of at most
    256 and a multiple of 8 wide, and a model without the forms of attention that this kernel does
    not know (soft-capped scores, attention sinks).
    """
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return False
    return model.dtype in (torch.bfloat16, torch.float16) and attention_is_known(model)


def head_width(config: PretrainedConfig) -> int:
    """Return how wide a head of the model's attention is."""
    told = getattr(config, "head_dim", None)
    return int(told or config.hidden_size // config.num_attention_heads)


def attention_is_known(model: PreTrainedModel) -> bool:
    """Whether the form of the model's attention is one that this kernel computes."""
    config = model.config.get_text_config()
    width = head_width(config)
    return (
        width <= 256
        and width % 8 == 0
        and not getattr(config, "attn_logit_softcapping", None)
        and not any("sink" in name for name, _ in model.named_parameters())
        and bool(model._supports_flash_attn)
    )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Have the model keep packed rows apart by their lengths; what is not packed stays as it is.

    The lengths are those that TRL's collator gives (cu_seq_lens_q, max_length_q).
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attention())
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)


def _mask(*, attention_mask: Any, **more: Any) -> Any:
    """Return a mask for padded rows; packed ones come without attention_mask and need none."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None:
        return None
    return sdpa_mask(attention_mask=attention_mask, **more)


def _attention() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Older PyTorch lets query heads share keys unasked, and has no word for it.
    asked = "enable_gqa" in inspect.signature(varlen_attn).parameters
    shared_heads: dict[str, Any] = {"enable_gqa": True} if asked else {}

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,  # (batch, heads, tokens, width)
        key: torch.Tensor,  # (batch, shared heads, tokens, width)
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,  # (rows + 1,), int32: where each row begins
        max_length_q: int | None = None,
        **more: Any,
    ) -> Any:
        if cu_seq_lens_q is None or max_length_q is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **more
            )
        attended: Any = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            **shared_heads,
        )
        return attended[None], None

    return attend
