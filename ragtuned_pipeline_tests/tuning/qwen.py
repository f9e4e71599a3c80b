"""The sizes of Qwen2.5's instruct models; nothing is downloaded."""

from __future__ import annotations

from typing import Any

# https://huggingface.co/Qwen: width, feed-forward width, layers, heads, key-value heads,
# vocabulary, whether the head is the embedding.
_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
_SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
}


def qwen_sizes(size: str) -> dict[str, Any]:
    """Return what transformers' Qwen2Config is made of."""
    return dict(zip(_NAMES, _SIZES[size], strict=True))
