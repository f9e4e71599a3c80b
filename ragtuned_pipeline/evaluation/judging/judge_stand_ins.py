"""What judging may ask and be told in a plan, before any system has answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from ragtuned_pipeline.evaluation.judging.verdicts import Compared, Comparison, Grade
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.inference.limits import CHARACTERS_A_TOKEN
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.tables import table

# Answers take about half of what they may: a plan rather too high than too low.
_ANSWERED_SHARE = 0.5
_SENTENCE = "It was settled in that year, and whoever had a part in it says so too. "
_REASON = "The first gives the year and the name that the evidence has; the second leaves them out."


def judge_stand_ins() -> Mapping[type[BaseModel], Callable[[Call[Any]], BaseModel]]:
    """Return for each reply schema of a judge what a reply to a call may look like."""
    compared = Compared(reason=_REASON, verdict="first")
    return {
        Comparison: lambda _call: Comparison(**dict.fromkeys(Comparison.model_fields, compared)),
        Grade: lambda _call: Grade(reason=_REASON, verdict="correct"),
    }


def answer_stand_ins(
    queries: pa.Table, systems: Sequence[str], settings: EvaluationSettings
) -> pa.Table:
    """Return the answers that each of `systems` might give, no two of them alike."""
    characters = int(_ANSWERED_SHARE * settings.max_answer_tokens * CHARACTERS_A_TOKEN)
    text = (_SENTENCE * (characters // len(_SENTENCE) + 1))[:characters]
    rows = [
        {
            "id": content_id("answer", system, query_id),
            "query_id": query_id,
            "system": system,
            "answer": f"{system}: {text}",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "seconds": 0.0,
            "context_ids": [],
            "calls": 1,
            "money": 0.0,
        }
        for system in systems
        for query_id in queries["id"].to_pylist()
    ]
    return table("answers", rows)
