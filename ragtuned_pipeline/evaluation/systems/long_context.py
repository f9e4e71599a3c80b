"""Long context: the base model with the whole corpus in its prompt, where it fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ragtuned_pipeline.evaluation.systems.interface import (
    Answer,
    Answerer,
    Setup,
    SkippedSystem,
    replies,
    with_texts,
)
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer, resolve
from ragtuned_pipeline.inference.engine import ChatEngine

# For the question, the chat template and the instruction around the corpus.
RESERVED_TOKENS = 256


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return the base model with the whole corpus, or the reason why that is not possible.

    The corpus is never cut to fit: half a corpus would be another system under the same name.
    """
    if not setup.follows_instructions:
        return SkippedSystem(
            "The embedded base model has never been taught to read a text and answer from it; "
            + _fit(setup)[1]
        )
    fits, sentence = _fit(setup)
    if not fits:
        return SkippedSystem(sentence[0].upper() + sentence[1:])
    engine = setup.load_engine(setup.base_model, None, 1)
    return LongContext("the base model with the whole corpus in its prompt", setup, engine)


@dataclass(frozen=True)
class LongContext:
    """Asks with every document's title and text before the question, in the order of the table."""

    description: str
    setup: Setup
    engine: ChatEngine

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        texts, ids = _texts(self.setup), tuple(self.setup.documents.column("id").to_pylist())
        return replies(
            self.engine,
            [self.setup.conversation(with_texts(question, texts)) for question in questions],
            self.setup.settings.max_answer_tokens,
            [ids] * len(questions),
        )


def _fit(setup: Setup) -> tuple[bool, str]:
    tokenizer = load_fast_tokenizer(setup.base_model)
    encoded = tokenizer.encode_batch_fast(_texts(setup), add_special_tokens=False)
    needed = sum(map(len, encoded)) + RESERVED_TOKENS + setup.settings.max_answer_tokens
    holds = context_tokens(setup.base_model)
    verb = "fits" if needed <= holds else "does not fit"
    return needed <= holds, (
        f"the corpus with a question and its answer takes {needed:,} tokens and {verb} "
        f"into the base model's context of {holds:,} tokens."
    )


def _texts(setup: Setup) -> list[str]:
    titles, texts = (setup.documents.column(name).to_pylist() for name in ("title", "text"))
    return [f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)]


def context_tokens(base_model: str) -> int:
    """Return how many tokens the base model takes at most, prompt and answer together."""
    file = Path(resolve(base_model)) / "config.json"
    if file.is_file():  # a folder's own config: transformers takes seconds to load
        return int(json.loads(file.read_text(encoding="utf-8"))["max_position_embeddings"])
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base_model).max_position_embeddings)
