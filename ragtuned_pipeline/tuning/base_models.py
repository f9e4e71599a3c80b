"""The base model as tuning sees it: training rows as tokens, and the machine it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtuned_pipeline.inference.base_models import (
    identity,
    load_fast_tokenizer,
    load_generation_config,
    load_model,
    load_tokenizer,
    resolve,
)
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.settings import SettingsError, TuningSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ChatRow",
    "TokenRow",
    "encode_rows",
    "identity",
    "load_fast_tokenizer",
    "load_model",
    "load_tokenizer",
    "refuse_missing_gpu",
    "refuse_unending",
    "resolve",
    "row_counter",
]

_COUNTED_AT_ONCE = 1024  # rows

ChatRow = tuple[str | None, str, str]  # system (null where there is none), prompt, completion


@dataclass(frozen=True)
class TokenRow:
    """One training row as tokens; the loss is on `input_ids[prompt_tokens:]`."""

    input_ids: list[int]
    prompt_tokens: int


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow]) -> list[TokenRow]:
    """Return the rows as tokens of the chat template.

    The same tokens as SFTTrainer's own preparation of prompt + completion message lists (a test
    holds this), in one batched call instead of two template calls a row.

    Raises:
        SettingsError: the chat template shows a prompt differently once it is answered.
    """
    prompts, whole = [], []
    for system, prompt, completion in rows:
        asked: list[Any] = [*chat(prompt, system)]
        prompts.append(
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        )
        whole.append(_answered(tokenizer, system, prompt, completion))
    if not rows:
        return []
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    for before, after in zip(prompt_ids, whole_ids, strict=True):
        if after[: len(before)] != before:
            raise SettingsError(
                "setting tuning.base_model: the chat template of this model shows a question "
                "differently once it is answered, so that what it learns is not what it is asked; "
                "choose another base model"
            )
    return [
        TokenRow(after, len(before)) for before, after in zip(prompt_ids, whole_ids, strict=True)
    ]


def row_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[ChatRow]], np.ndarray]:
    """Return a function that gives each row's length in tokens, chat template included (int64)."""

    def count(rows: Sequence[ChatRow]) -> np.ndarray:
        lengths = np.empty(len(rows), dtype=np.int64)
        # In parts: the tokens of all rows at once would take gigabytes for a large corpus.
        for start in range(0, len(rows), _COUNTED_AT_ONCE):
            part = [_answered(tokenizer, *row) for row in rows[start : start + _COUNTED_AT_ONCE]]
            tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
            lengths[start : start + len(part)] = [len(ids) for ids in tokens]
        return lengths

    return count


def _answered(
    tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: str, completion: str
) -> str:
    """Return a whole row as the chat template writes it."""
    messages: list[Any] = [*chat(prompt, system), {"role": "assistant", "content": completion}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def refuse_missing_gpu(settings: TuningSettings) -> None:
    """Raise SettingsError where the settings ask for a CUDA GPU and this machine has none."""
    if not settings.require_cuda:
        return
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "setting tuning.require_cuda: this machine has no CUDA GPU; use --profile embedded, "
            f"run on a machine with one, or set it to false to train {settings.base_model} "
            "on the CPU, which may take days"
        )


def refuse_unending(base_model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise SettingsError where answers would be learned to end with what stops no generation."""
    known: Any = load_generation_config(base_model).eos_token_id
    stops = set(known) if isinstance(known, list) else {known}
    [row] = encode_rows(tokenizer, [(None, "What is it?", "It is.")])
    answer = row.input_ids[row.prompt_tokens :]
    if not stops.intersection(answer):
        end = tokenizer.decode(answer[-2:])
        raise SettingsError(
            f"setting tuning.base_model: answers of {base_model} end with {end!r} by its "
            "chat template, and eos_token_id in its generation_config.json names no token of it; "
            "add the template's there, or choose another base model"
        )
