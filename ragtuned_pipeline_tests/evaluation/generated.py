"""Worlds for the generated queries: small corpora with their graph, their pairs and training rows.

python -m ragtuned_pipeline_tests.evaluation.generated writes the golden tables anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.evaluation.questions.generated_queries import (
    GeneratedQueries,
    generate_queries,
    generate_queries_with_teacher,
)
from ragtuned_pipeline.inference.calls import Call, Outcome, T, Teacher
from ragtuned_pipeline.settings import EvaluationSettings, TuningSettings
from ragtuned_pipeline.synthesis.rows import select_training_rows
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher
from ragtuned_pipeline_tests.scripted import queries as script
from ragtuned_pipeline_tests.synthesis import corpora

GOLDEN = Path(__file__).parent / "generated_queries_golden.json"
GOLDEN_TEACHER = Path(__file__).parent / "generated_queries_llm_golden.json"


@dataclass(frozen=True)
class Memory:
    """The tables that the generated queries are made from."""

    world: corpora.World
    qa_pairs: pa.Table
    training_rows: pa.Table
    new_wording: pa.Table

    @property
    def graph(self) -> dict[str, pa.Table]:
        return {
            name: getattr(self.world, name)
            for name in (
                "documents",
                "text_units",
                "entities",
                "relationships",
                "community_reports",
            )
        }

    @property
    def pairs(self) -> dict[str, pa.Table]:
        names = ("qa_pairs", "training_rows", "new_wording")
        return {name: getattr(self, name) for name in names}

    def generate(self, **settings: Any) -> GeneratedQueries:
        return generate_queries(
            **self.graph, **self.pairs, settings=EvaluationSettings.model_validate(settings)
        )

    def ask(self, teacher: Teacher, **settings: Any) -> GeneratedQueries:
        return generate_queries_with_teacher(
            **self.graph,
            teacher=teacher,
            model="scripted",
            settings=EvaluationSettings.model_validate(settings),
        )


def memory_of(world: corpora.World, minutes: float = 15, **synthesis: Any) -> Memory:
    """Return the world with its pairs, and the rows that are tuned in so many minutes."""
    made = world.synthesise(**synthesis)
    chosen = select_training_rows(
        made.qa_pairs, _words, TuningSettings(time_budget_minutes=minutes)
    )
    return Memory(world, made.qa_pairs, chosen.training_rows, made.queries_new_wording)


def _words(rows: Any) -> np.ndarray:
    return np.array([len(f"{system or ''} {p} {c}".split()) for system, p, c in rows], dtype=int)


@cache
def harbour() -> Memory:
    """The corpus of the other rooms' tests; the time is too short for all of its facts."""
    return memory_of(corpora.harbour(), minutes=0.4)


@cache
def tiny() -> Memory:
    return memory_of(corpora.small(corpora.TINY))


def scripted(call: Call[Any]) -> dict[str, Any]:
    return script.reply(call.schema.__name__, call.messages)


def teacher(change: Callable[[Call[Any], dict[str, Any]], Any] | None = None) -> InMemoryTeacher:
    """The scripted teacher; `change` gets each reply and returns another in its place."""
    return InMemoryTeacher(lambda call: change(call, scripted(call)) if change else scripted(call))


class Shuffling:
    """A teacher whose outcomes come in another order."""

    def __init__(self, teacher: InMemoryTeacher, seed: int) -> None:
        self._teacher = teacher
        self._random = random.Random(seed)

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        outcomes = list(self._teacher.complete(calls))
        self._random.shuffle(outcomes)
        yield from outcomes


def golden() -> GeneratedQueries:
    return tiny().generate(local_queries=8, global_queries=6)


def golden_with_teacher() -> GeneratedQueries:
    return tiny().ask(teacher(), local_queries=8, global_queries=6)


if __name__ == "__main__":
    for file, made in ((GOLDEN, golden()), (GOLDEN_TEACHER, golden_with_teacher())):
        file.write_text(corpora.as_text(made.queries.to_pylist()), encoding="utf-8")
