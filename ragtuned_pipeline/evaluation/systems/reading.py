"""What systems that retrieve have in common: something is found, and the base model reads it.

The embedded base model cannot read a text; an extractive reader takes its place there, and the
systems' descriptions say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ragtuned_pipeline.evaluation.systems.interface import (
    Answer,
    Answerer,
    Setup,
    replies,
    with_texts,
)
from ragtuned_pipeline.evaluation.systems.reader import Reader
from ragtuned_pipeline.evaluation.systems.tokens import Tokens
from ragtuned_pipeline.inference.engine import ChatEngine

QUOTES = "an extractive reader (it quotes the sentences that hold most of the question; no model)"


@dataclass(frozen=True)
class Found:
    """What was found for one question.

    Attributes:
        texts: as a model reads them.
        ids: of what they are made of.
        quotable: texts of the finder's `all_texts`, as the extractive reader quotes them.
        faults: what is missing and should be there, each in a sentence.
    """

    texts: Sequence[str]
    ids: tuple[str, ...]
    quotable: Sequence[str]
    faults: tuple[str, ...] = ()


class Finder(Protocol):
    """Finds texts for questions; `description` says in a clause how."""

    @property
    def description(self) -> str: ...

    @property
    def all_texts(self) -> Sequence[str]: ...

    def find(self, questions: Sequence[str]) -> list[Found]: ...


def read_by_base(setup: Setup, finder: Finder, text_tokens: int) -> Answerer:
    """Return the system whose finds, of about `text_tokens` tokens, the base model reads, or the
    extractive reader where the base model cannot."""
    if setup.follows_instructions:
        read = f"{finder.description}, read by the base model"
        return GeneratingReader(read, setup, finder, setup.load_base(text_tokens))
    return ExtractiveReader(f"{finder.description}, read by {QUOTES}", setup, finder)


@dataclass(frozen=True)
class GeneratingReader:
    """A model reads what was found."""

    description: str
    setup: Setup
    finder: Finder
    engine: ChatEngine

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        found, seconds = _timed(self.finder, questions)
        answers = replies(
            self.engine,
            [
                self.setup.conversation(with_texts(question, each.texts))
                for question, each in zip(questions, found, strict=True)
            ],
            self.setup.settings.max_answer_tokens,
            [each.ids for each in found],
        )
        return [
            replace(answer, seconds=answer.seconds + seconds, faults=each.faults)
            for answer, each in zip(answers, found, strict=True)
        ]


class ExtractiveReader:
    """The extractive reader quotes what was found, in as many tokens as a model may answer with.

    Tokens are counted as a model's would be in the reader's place.
    """

    def __init__(self, description: str, setup: Setup, finder: Finder) -> None:
        self.description = description
        self._finder = finder
        self._reader = Reader(finder.all_texts)
        self._tokens = Tokens(setup.base_model)
        self._most = setup.settings.max_answer_tokens

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        found, seconds = _timed(self._finder, questions)
        return [
            self._answer(question, each, seconds)
            for question, each in zip(questions, found, strict=True)
        ]

    def _answer(self, question: str, found: Found, seconds: float) -> Answer:
        started = time.perf_counter()
        text = self._tokens.cut(self._reader.read(question, found.quotable), self._most)
        seconds += time.perf_counter() - started
        asked, written = self._tokens.count([with_texts(question, found.texts), text]).tolist()
        return Answer(text, asked, written, seconds, found.ids, faults=found.faults)


def _timed(finder: Finder, questions: Sequence[str]) -> tuple[list[Found], float]:
    """Return what is found, and the seconds that it took, for each question."""
    started = time.perf_counter()
    found = finder.find(questions)
    return found, (time.perf_counter() - started) / max(1, len(questions))
