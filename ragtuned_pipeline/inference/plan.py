"""What the teacher would be asked, counted without asking it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from pydantic import BaseModel

from ragtuned_pipeline.inference.calls import Call, Completed, Outcome, T
from ragtuned_pipeline.inference.completions import CompletionStore, Usage
from ragtuned_pipeline.inference.limits import CHARACTERS_A_TOKEN
from ragtuned_pipeline.inference.teacher import call_key, price
from ragtuned_pipeline.settings import TeacherSettings

StandIn = Callable[[Call[Any]], BaseModel]

_AT_ONCE = 512  # calls whose tokens are counted together


class Planner:
    """A teacher that answers by stand-ins and counts; `usage` is what asking would cost, by step.

    A step that is run with it makes the calls that it would make, so that a plan needs no second
    account of them. Replies that are in the store already are given as they are and cost nothing.

    Args:
        model: the teacher's identity.
        stand_ins: for each reply schema, what a reply to a call may look like.
        count_tokens: of texts, with the teacher's tokenizer.
        store: None to plan as if nothing had been paid for yet.
    """

    def __init__(
        self,
        model: str,
        settings: TeacherSettings,
        stand_ins: Mapping[type[BaseModel], StandIn],
        count_tokens: Callable[[Sequence[str]], np.ndarray],
        store: CompletionStore | None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._stand_ins = stand_ins
        self._count_tokens = count_tokens
        self._store = store
        self._lengths = store.mean_completion_tokens(model) if store else {}
        self.usage: dict[str, Usage] = {}

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        """Yield a completed outcome for each call, in order."""
        rest = iter(calls)
        while batch := list(itertools.islice(rest, _AT_ONCE)):
            prompts = self._count_tokens(
                ["\n".join(message["content"] for message in call.messages) for call in batch]
            )
            replies = [self._reply(call) for call in batch]
            lengths = self._count_tokens([value.model_dump_json() for value, _ in replies])
            for call, (value, stored), prompt, length in zip(
                batch, replies, prompts.tolist(), lengths.tolist(), strict=True
            ):
                expected = round(self._lengths.get(call.step, length))
                made = Completed(call, value, int(prompt), expected, stored)
                self._count(made)
                yield made

    def _reply(self, call: Call[T]) -> tuple[T, bool]:
        if self._store:
            stored = self._store.get(call_key(self._model, call, self._settings))
            if stored is not None:
                return call.schema.model_validate_json(stored.text), True
        return cast(T, self._stand_ins[call.schema](call)), False

    def _count(self, made: Completed[T]) -> None:
        step = made.call.step
        usage = Usage(hits=1)
        if not made.stored:
            tokens = made.prompt_tokens, made.completion_tokens
            usage = Usage(1, 1, 0, 0, 0, *tokens, price(self._settings, *tokens))
        self.usage[step] = self.usage.get(step, Usage()) + usage


def seconds(usage: Usage, settings: TeacherSettings) -> float:
    """Return about how long the requests of `usage` take: by the account's limits, or by writing.

    A reply is written at `assumed_tokens_per_second`, as many at once as `concurrency` says.
    """
    tokens = usage.prompt_tokens + usage.completion_tokens
    return max(
        60 * usage.calls / settings.requests_per_minute if settings.requests_per_minute else 0.0,
        60 * tokens / settings.tokens_per_minute if settings.tokens_per_minute else 0.0,
        usage.completion_tokens
        / settings.assumed_tokens_per_second
        / min(settings.concurrency, max(usage.calls, 1)),
    )


def by_characters(texts: Sequence[str]) -> np.ndarray:
    """Return about how many tokens a hosted model counts in each text, int64 of shape (n,)."""
    return np.ceil([len(text) / CHARACTERS_A_TOKEN for text in texts]).astype(np.int64)
