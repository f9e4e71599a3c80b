"""What every answering system takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.inference.engine import ChatEngine, Message, chat, system_message
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import EMBEDDED_MODEL, EvaluationSettings

EngineLoader = Callable[[str, Path | None, int], ChatEngine]
Embed = Callable[[Sequence[str]], np.ndarray]  # texts to unit vectors, float32 of shape (n, d)
Rerank = Callable[[str, Sequence[str]], np.ndarray]  # question, texts to relevances, shape (n,)

# What the GraphRAG systems answer from.
GRAPH_TABLES = ("text_units", "entities", "relationships", "communities", "community_reports")


@dataclass(frozen=True)
class Setup:
    """What a system may use to answer.

    Args:
        tables: the documents, and what else its SystemSpec asks for, by name.
        settings: lengths and retrieval numbers, the same for all.
        base_model: the setting tuning.base_model.
        adapter: the tuned adapter's folder; None for systems without one.
        load_engine: (base model, adapter or None, batch size) to an engine; tests give a small one.
        embed: None where texts are found by their words (evaluation.embedding_model).
        rerank: None where nothing is reranked (evaluation.reranking_model).
    """

    tables: Mapping[str, pa.Table]
    settings: EvaluationSettings
    base_model: str
    adapter: Path | None
    load_engine: EngineLoader = TransformersEngine
    embed: Embed | None = None
    rerank: Rerank | None = None

    @property
    def documents(self) -> pa.Table:
        """The corpus."""
        return self.tables["documents"]

    @property
    def follows_instructions(self) -> bool:
        """Whether the base model can read a text or an instruction; the embedded one cannot."""
        return self.base_model != EMBEDDED_MODEL

    def conversation(self, question: str) -> list[Message]:
        """The question as every generating system is asked it."""
        return chat(question, system_message(self.base_model))


@dataclass(frozen=True)
class Answer:
    """One answer and what it cost, over all `calls` of a model.

    `seconds` is its share of the batch, `context_ids` name the texts given.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    context_ids: tuple[str, ...] = ()
    calls: int = 1


class Answerer(Protocol):
    """A system ready to answer; `description` says in a clause what it is."""

    @property
    def description(self) -> str: ...

    def answer(self, questions: Sequence[str]) -> list[Answer]: ...


@dataclass(frozen=True)
class SkippedSystem:
    """Why a system cannot take part: a whole sentence."""

    reason: str


@dataclass(frozen=True)
class Answered:
    """`answers` table rows of one system, and its description."""

    answers: pa.Table
    description: str


class System(Protocol):
    """Loads what a system needs, or says why it is skipped."""

    def __call__(self, setup: Setup) -> Answerer | SkippedSystem: ...


@dataclass(frozen=True)
class SystemSpec:
    """A system as it is listed: how it is prepared, and what it needs for that.

    Args:
        tables: names of the tables that it reads beside the documents.
        uses_adapter: whether the tuned adapter answers.
    """

    prepare: System
    tables: tuple[str, ...] = ()
    uses_adapter: bool = False


@dataclass(frozen=True)
class ClosedBook:
    """A model that answers from its weights alone."""

    description: str
    setup: Setup
    engine: ChatEngine

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        conversations = [self.setup.conversation(question) for question in questions]
        return replies(self.engine, conversations, self.setup.settings.max_answer_tokens)


def replies(
    engine: ChatEngine,
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    context_ids: Sequence[tuple[str, ...]] | None = None,
) -> list[Answer]:
    """Return the engine's replies as answers, each with the ids of the texts it was given."""
    given = context_ids or [()] * len(conversations)
    return [
        Answer(reply.text, reply.prompt_tokens, reply.completion_tokens, reply.seconds, ids)
        for reply, ids in zip(engine.generate(conversations, max_tokens), given, strict=True)
    ]


def with_texts(question: str, texts: Sequence[str]) -> str:
    """Return the question with texts before it, as every system that is given texts puts it."""
    return "\n\n".join(["Texts:", *texts, f"Question, to be answered from the texts: {question}"])
