"""What the teacher may reply in a plan: as long as a real reply, and good enough for every gate.

Lengths are those that the prompts ask for: a thought of two or three sentences, questions of about
twelve words, long answers of as many words as are wanted. A fifth of the local questions is
declined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.synthesis.replies import (
    CommunityPair,
    EntityPair,
    Grounding,
    LocalAnswer,
    LocalQuestion,
    RelationshipPair,
)

_THOUGHT = (
    "The first sentence names the subject and says what it did; the second adds when and where. "
    "The time is worth asking for, and the question must name the subject and the occasion."
)
_NOTES = _THOUGHT + (
    " Several pieces tell of the same course of events: how it began, who took part, what was "
    "decided and what came of it. Together they show why the matter was settled as it was."
)
_CHECK = (
    "The name stands in the first sentence, the date in the second, the place in the third. "
    "Nothing in the long answer goes beyond them, and the question is answered."
)
_SENTENCE = "Then the matter was taken up again by all who had a part in it from the beginning. "

_ASKED_PER_DECLINED = 5  # one local question in so many is declined

_SHORT = re.compile(r"exactly (\d+) other ways")
_LONG = re.compile(r"exactly (\d+) ways")
_WORDS = re.compile(r"in about (\d+) words")
_NAMED = re.compile(r"^(?:Subject|First subject|Second subject|Group): (.+)$", re.MULTILINE)


def synthesis_stand_ins() -> Mapping[type[BaseModel], Callable[[Call[Any]], BaseModel]]:
    """Return for each reply schema of this room what a reply to a call may look like."""
    return {
        LocalQuestion: _local_question,
        LocalAnswer: _local_answer,
        EntityPair: lambda call: EntityPair(**_pair(call)),
        RelationshipPair: lambda call: RelationshipPair(**_pair(call)),
        CommunityPair: lambda call: CommunityPair(**_pair(call)),
        Grounding: lambda call: Grounding(
            thought=_CHECK, grounded=True, answers_question=True, faulty_wordings=[]
        ),
    }


def _local_question(call: Call[Any]) -> LocalQuestion:
    if seeded_int(2, call.item_id) % _ASKED_PER_DECLINED == 0:
        return LocalQuestion(
            thought=_THOUGHT, decline=True, question="", short_wordings=[], long_wordings=[]
        )
    return LocalQuestion(thought=_THOUGHT, decline=False, **_asked(call))


def _asked(call: Call[Any]) -> dict[str, Any]:
    subject = " and ".join(_NAMED.findall(call.messages[-1]["content"]))
    told = call.messages[0]["content"]
    short, long = _number(_SHORT, told), _number(_LONG, told)
    case = seeded_int(0, call.item_id) % 10**6  # so that no two items ask the same
    return {
        "question": f"When was the matter of {subject} settled in case {case}?",
        "short_wordings": [
            f"Way {n} to ask when {subject} had it settled, case {case}?" for n in range(short)
        ],
        "long_wordings": [
            f"Explain in way {n} how and when {subject} had it settled, case {case}."
            for n in range(long)
        ],
    }


def _local_answer(call: Call[Any]) -> LocalAnswer:
    gold = _gold(call)
    said = f"The matter was settled {gold}, after a long talk of all who had a part in it."
    return LocalAnswer(thought=_THOUGHT, decline=False, short_answer=gold, long_answer=said)


def _pair(call: Call[Any]) -> dict[str, Any]:
    gold = _gold(call)
    words = _number(_WORDS, call.messages[0]["content"])
    short = f"The matter was settled {gold}, after a long talk of all who had a part in it."
    sentences = max(1, round((words - len(short.split())) / len(_SENTENCE.split())))
    return {
        "thought": _NOTES,
        "decline": False,
        **_asked(call),
        "short_answer": short,
        "long_answer": f"{short}\n\n{_SENTENCE * sentences}".strip(),
    }


def _gold(call: Call[Any]) -> str:
    day = seeded_int(1, call.item_id) % 40_000
    return f"on {1 + day % 28} May {1900 + day // 28 % 150}"


def _number(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"a prompt of synthesis no longer says {pattern.pattern!r}")
    return int(match[1])
