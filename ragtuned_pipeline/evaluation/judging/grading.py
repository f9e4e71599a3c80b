"""Grades: a model reads each answer beside the reference and the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.judging.verdicts import (
    Grade,
    material,
    prompt,
    prompt_version,
    replies_of,
    right_answers,
    shown_answer,
)
from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.inference.calls import Call, Teacher
from ragtuned_pipeline.settings import JudgeSettings
from ragtuned_pipeline.tables import Failure, table

GRADE_PROMPT_VERSION = prompt_version("grade")

_REPLY_TOKENS = 400
# Questions as people ask them. Other wordings of made pairs are scored by their gold words.
_SETS = ("generated_local", "gold_local", "gold_global", "unanswerable")


def queries_to_grade(queries: pa.Table, settings: JudgeSettings, seed: int) -> pa.Table:
    """Return the queries whose answers are graded: of each set at most
    `settings.queries_per_scope`, drawn by `seed`."""
    rows = queries.select(["id", "question_set"]).to_pydict()
    drawn: list[str] = []
    for name in _SETS:
        pairs = zip(rows["id"], rows["question_set"], strict=True)
        of_set = [query_id for query_id, question_set in pairs if question_set == name]
        of_set.sort(key=lambda query_id: (seeded_int(seed, "graded", query_id), query_id))
        drawn += of_set[: settings.queries_per_scope]
    return queries.filter(pc.field("id").isin(pa.array(drawn, pa.string())))


def grade_with_teacher(
    queries: pa.Table, answers: pa.Table, teacher: Teacher, identity: str
) -> tuple[pa.Table, list[Failure]]:
    """Return the grades table, by query and system, and what could not be graded.

    Every system's answer to every query that has a right answer or evidence, or that the corpus
    does not answer: there "declined" is right. An answer that is empty or missing is "declined"
    without a call. A call without a valid reply is a row without a verdict, and a failure.

    Args:
        identity: of the grading model.

    Raises:
        TeacherStopped: as `teacher` does.
        ValueError: a system answers one query twice.
    """
    given: dict[tuple[str, str], str] = {}
    for row in answers.to_pylist():
        key = row["query_id"], row["system"]
        if key in given:
            raise ValueError(f"answers: {row['system']} answers {row['query_id']} twice")
        given[key] = row["answer"] or ""
    systems = sorted({system for _, system in given})
    gradable = [query for query in queries.to_pylist() if _gradable(query)]
    cells = [
        (query, system, given.get((query["id"], system), ""))
        for query in sorted(gradable, key=lambda query: query["id"])
        for system in systems
    ]
    calls = (_call(query, system, answer) for query, system, answer in cells if answer.strip())
    replies = replies_of(teacher, calls)
    judge = f"{identity}, prompt {GRADE_PROMPT_VERSION}"
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for query, system, _ in cells:
        reply = replies.get(_item(query, system))
        verdict: str | None = "declined"
        reason = "the answer is empty"
        if isinstance(reply, Failure):
            failures.append(reply)
            verdict, reason = None, reply.reason
        elif reply is not None:
            verdict, reason = reply.verdict, reply.reason
        rows.append(
            {
                "id": content_id("grade", query["id"], system, judge),
                "query_id": query["id"],
                "system": system,
                "verdict": verdict,
                "reason": reason,
                "judge": judge,
            }
        )
    return table("grades", rows), failures


def _gradable(query: Mapping[str, Any]) -> bool:
    return bool(
        query["question_set"] == "unanswerable" or right_answers(query) or query["evidence"]
    )


def _item(query: Mapping[str, Any], system: str) -> str:
    return f"{query['id']} {system}"


def _call(query: Mapping[str, Any], system: str, answer: str) -> Call[Grade]:
    messages = prompt("grade").messages(
        question=query["question"],
        answerable=query["question_set"] != "unanswerable",
        evidence=material(query["evidence"] or ""),
        references=right_answers(query),
        answer=shown_answer(answer),
    )
    return Call("grading", _item(query, system), messages, Grade, _REPLY_TOKENS)
