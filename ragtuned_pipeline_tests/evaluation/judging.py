"""Queries and answers to judge, and teachers that judge them as they are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS
from ragtuned_pipeline.evaluation.questions.queries import query_row
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher

SWAPPED = {"first": "second", "second": "first", "tie": "tie"}

_SHOWN = re.compile(r"<answer_([12])>\n(.*?)\n</answer_\1>", re.DOTALL)


def query(number: int, scope: str = "local", **changes: Any) -> dict[str, Any]:
    """One row of the queries table; its id says which."""
    return {
        "id": f"query-{scope}-{number:04}",
        "scope": scope,
        "question": f"What is known of matter {number}?",
        "reference_answer": f"gold{number}" if scope == "local" else "All about the harbour.",
        "persona": None,
        "task": None,
        "document_ids": [],
        "question_set": f"generated_{scope}",
        "kind": scope,
        "fact_id": None,
        "form": None,
        "long_answer": None,
        "evidence": None,
        "source_ids": [],
        "generator": "by hand",
        "seed": None,
    } | changes


def queries(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return table("queries", rows)


def held_out_wordings(
    question: str, gold: str, count: int, right: int
) -> tuple[pa.Table, pa.Table]:
    """Queries on facts of their own, and the answers: the tuned model's first `right` are right,
    and none of the base's."""
    asked = queries(
        [
            query_row(
                question_set="held_out_wording",
                scope="local",
                kind="local",
                question=f"{question} {place}",
                reference_answer=gold,
                document_ids=[],
                fact_id=f"fact-{place}",
            )
            for place in range(count)
        ]
    )
    ids = asked["id"].to_pylist()
    return asked, answers(
        {
            "tuned": {each: gold if n < right else "Nobody" for n, each in enumerate(ids)},
            "base": dict.fromkeys(ids, "Nobody"),
        }
    )


def answers(given: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """The answers table of {system: {query id: answer}}."""
    return table(
        "answers",
        [
            {
                "id": content_id("answer", system, query_id),
                "query_id": query_id,
                "system": system,
                "answer": text,
                "prompt_tokens": 1,
                "completion_tokens": 1,
                "seconds": 0.0,
                "context_ids": [],
                "calls": 1,
                "money": 0.0,
            }
            for system, texts in given.items()
            for query_id, text in texts.items()
        ],
    )


def shown(call: Call[Any]) -> tuple[str, str]:
    """The two answers as the judge sees them."""
    (_, first), (_, second) = _SHOWN.findall(call.messages[-1]["content"])
    return first, second


def reply(verdict: str | Mapping[str, str]) -> dict[str, Any]:
    """A judge's reply: one verdict for all dimensions, or one for each."""
    said = dict.fromkeys(DIMENSIONS, verdict) if isinstance(verdict, str) else verdict
    return {name: {"reason": f"on {name}", "verdict": said[name]} for name in DIMENSIONS}


def judging(decide: Callable[[str, str], str]) -> InMemoryTeacher:
    """A teacher whose verdict on two shown answers is what `decide` says."""
    return InMemoryTeacher(lambda call: reply(decide(*shown(call))))
