"""Long context: the base model with the whole corpus in its prompt, where it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragtuned_pipeline.evaluation.systems.interface import (
    RESERVED_TOKENS,
    Answer,
    Answerer,
    Setup,
    SkippedSystem,
    replies,
    with_texts,
)
from ragtuned_pipeline.evaluation.systems.tokens import Tokens, context_tokens
from ragtuned_pipeline.inference.engine import ChatEngine


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return the base model with the whole corpus, or the reason why that is not possible.

    The corpus is cut to fit only where evaluation.truncate_long_context says so: part of a corpus
    is another system under the same name.
    """
    titles, texts = (setup.documents.column(name).to_pylist() for name in ("title", "text"))
    whole = [f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)]
    ids = tuple(setup.documents.column("id").to_pylist())
    tokens = Tokens(setup.base_model)
    counts = tokens.count(whole)
    needed, room = int(counts.sum()), setup.room
    fit = _fit(setup, needed)
    if not setup.follows_instructions:
        return SkippedSystem(
            "The embedded base model has never been taught to read a text and answer from it; "
            + fit
        )
    description = "the base model with the whole corpus in its prompt"
    if needed > room:
        if not setup.settings.truncate_long_context or room <= 0:
            return SkippedSystem(fit[0].upper() + fit[1:])
        whole = _truncated(whole, counts, room, tokens)
        description = (
            f"the base model with the first {room:,} of the corpus's {needed:,} tokens in its "
            "prompt, as many as its context holds"
        )
    engine = setup.load_engine(setup.base_model, None, 1)
    return LongContext(description, setup, engine, whole, ids[: len(whole)])


@dataclass(frozen=True)
class LongContext:
    """Asks with every document's title and text before the question, in the order of the table."""

    description: str
    setup: Setup
    engine: ChatEngine
    texts: Sequence[str]
    ids: tuple[str, ...]

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        return [answer for question in questions for answer in self._answer(question)]

    def _answer(self, question: str) -> list[Answer]:
        # One at a time: all prompts at once are as many copies of the corpus.
        asked = self.setup.conversation(with_texts(question, self.texts))
        return replies(self.engine, [asked], self.setup.settings.max_answer_tokens, [self.ids])


def _fit(setup: Setup, corpus_tokens: int) -> str:
    needed = corpus_tokens + RESERVED_TOKENS + setup.settings.max_answer_tokens
    holds = context_tokens(setup.base_model)
    verb = "fits" if needed <= holds else "does not fit"
    return (
        f"the corpus with a question and its answer takes {needed:,} tokens and {verb} "
        f"into the base model's context of {holds:,} tokens."
    )


def _truncated(texts: Sequence[str], counts: np.ndarray, room: int, tokens: Tokens) -> list[str]:
    """Return the first `room` tokens of the texts together."""
    ends = np.cumsum(counts)
    whole = int(np.searchsorted(ends, room, side="right"))
    left = room - int(ends[whole - 1] if whole else 0)
    return [*texts[:whole], *([tokens.cut(texts[whole], left)] if left else [])]
