"""What a plan takes for a teacher's replies on generated queries: as long as a good LLM's.

A fifth of the samples for local questions is declined, as in synthesis, and others are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.evaluation.questions.corpus_description import CorpusDescription
from ragtuned_pipeline.evaluation.questions.global_queries import (
    GlobalQuestions,
    Persona,
    Personas,
    Tasks,
)
from ragtuned_pipeline.evaluation.questions.local_queries import EvaluationQuestion
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.inference.plan import StandIn

_SENTENCE = "Then the matter was taken up again by all who had a part in it from the beginning. "
_SENTENCES = 13  # of a description: about 220 words
_THOUGHT = (
    "The evidence states what the subject did, when and where. The time is worth asking for, and "
    "the question must name the subject and the occasion to stand alone."
)
_INTEREST = "They want to understand how the parts hang together and what follows for their work."
_ASKED_PER_DECLINED = 5
_COUNT = re.compile(r"exactly (\d+)")


def query_stand_ins() -> Mapping[type[BaseModel], StandIn]:
    """Return for each reply schema of the generated queries what a reply may look like."""
    return {
        CorpusDescription: lambda _: CorpusDescription(description=_SENTENCE * _SENTENCES),
        Personas: lambda call: Personas(
            personas=[
                Persona(name=f"a member number {n} of the local council", interest=_INTEREST)
                for n in range(_count(call))
            ]
        ),
        Tasks: lambda call: Tasks(
            tasks=[
                f"Trace how the dealings of party {n} with the others changed"
                for n in range(_count(call))
            ]
        ),
        GlobalQuestions: lambda call: GlobalQuestions(
            questions=[
                f"Which causes and consequences have the {seeded_int(n, call.item_id)} conflicts?"
                for n in range(_count(call))
            ]
        ),
        EvaluationQuestion: _question,
    }


def _question(call: Call[EvaluationQuestion]) -> EvaluationQuestion:
    if seeded_int(2, call.item_id) % _ASKED_PER_DECLINED == 0:
        return EvaluationQuestion(
            thought=_THOUGHT, decline=True, question="", answer="", evidence=[]
        )
    day = seeded_int(1, call.item_id) % 10**9  # so that no two questions are alike
    return EvaluationQuestion(
        thought=_THOUGHT,
        decline=False,
        question=f"When was the matter of the parties settled after all in case {day}?",
        answer=f"on day {day}",
        evidence=[_SENTENCE.strip()],
    )


def _count(call: Call[Any]) -> int:
    """Return how many the prompt asks for.

    Raises:
        ValueError: the prompt no longer says so.
    """
    match = _COUNT.search(call.messages[0]["content"])
    if match is None:
        raise ValueError(f"a prompt of {call.step} no longer says {_COUNT.pattern!r}")
    return int(match[1])
