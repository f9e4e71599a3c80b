"""Tokens as the base model has them: counted, texts cut to so many, and how many it takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ragtuned_pipeline.inference.base_models import load_fast_tokenizer, resolve
from ragtuned_pipeline.settings import SettingsError


class Tokens:
    """A base model's tokenizer, without special tokens.

    Args:
        base_model: the setting tuning.base_model.

    Raises:
        SettingsError: it cannot be loaded.
    """

    def __init__(self, base_model: str) -> None:
        self._tokenizer = load_fast_tokenizer(base_model)
        self._tokenizer.no_truncation()  # some are stored with it
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' token counts, int64 of shape (n,)."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.array([len(each) for each in encoded], dtype=np.int64)

    def cut(self, text: str, most: int) -> str:
        """Return the first `most` tokens of `text`, or all of it where it has no more."""
        ends = [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        return text if len(ends) <= most else text[: ends[most - 1] if most else 0]


def context_tokens(base_model: str) -> int:
    """Return how many tokens the base model takes at most, prompt and answer together.

    Raises:
        SettingsError: its config does not say.
    """
    file = Path(resolve(base_model)) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "max_position_embeddings" in config:  # else by transformers, which takes seconds to load
        return int(config["max_position_embeddings"])
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(resolve(base_model)).get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if most is None:
        raise SettingsError(
            f"setting tuning.base_model: the config of {base_model} does not say how many tokens "
            "its context holds (max_position_embeddings); add it to a local copy's config.json"
        )
    return int(most)
