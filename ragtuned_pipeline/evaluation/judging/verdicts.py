"""What a judge or a grader replies, and how it is shown what it judges.

A verdict in other words than those asked for is read where they can mean one thing only ("Answer
2", "**Second.**", "both"); anything else ("A/B", "N/A", a whole sentence) does not fit the schema,
so that the model is asked again and at last counted as having given no verdict.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.evaluation.metrics import alternatives
from ragtuned_pipeline.inference.calls import Call, Failed, T, Teacher
from ragtuned_pipeline.inference.prompts import Prompt, load_prompt
from ragtuned_pipeline.tables import Failure

_PROMPTS = Path(__file__).parent / "prompts"

# Marks that carry no meaning around and between the words of a verdict; a slash or a comma does.
_MARKS = re.compile(r"[\s:*_`\"'.!()\[\]#“”‘’]+")
_LABEL = r"(?:(?:the )?(?:verdict|winner|better(?: one| answer)?)(?: is)? )?"
_BETTER = r"(?: (?:is|was) (?:the )?(?:better|winner)(?: one| answer)?| wins)?"


def _side(number: str) -> str:
    noun = r"(?:answer|response|option)"
    return rf"{_LABEL}(?:the )?(?:{noun} )?(?:{number})(?: one| {noun})?{_BETTER}"


_MEANINGS = {
    "first": re.compile(_side("1|one|first|1st|a")),
    "second": re.compile(_side("2|two|second|2nd|b")),
    "tie": re.compile(
        rf"{_LABEL}(?:"
        r"(?:a )?(?:tie|draw)|tied|(?:the )?same|equal|equally good|no difference|"
        r"neither(?: is better| one)?|"
        r"both(?: a and b| 1 and 2| first and second)?(?: answers)?(?: are equal(?:ly good)?)?"
        r")"
    ),
}

_GRADES = {
    "correct": ("correct", "right", "fully correct"),
    "partly": ("partly", "partly correct", "partly right", "partial", "partially correct"),
    "incorrect": ("incorrect", "wrong", "not correct"),
    "declined": ("declined", "declines", "refused", "refuses", "refusal"),
}
_GRADE_OF = {words: grade for grade, ways in _GRADES.items() for words in ways}


def _bare(value: str) -> str:
    return _MARKS.sub(" ", value.casefold()).strip()


def _side_meant(value: Any) -> Any:
    """Return the verdict that `value` means, or `value` for the schema to refuse."""
    if not isinstance(value, str):
        return value
    words = _bare(value)
    return next((said for said, ways in _MEANINGS.items() if ways.fullmatch(words)), value)


def _grade_meant(value: Any) -> Any:
    return _GRADE_OF.get(_bare(value), value) if isinstance(value, str) else value


Reason = Annotated[str, Field(min_length=1, max_length=1000)]


class Compared(BaseModel):
    """One dimension; the reason comes first, so that the verdict follows from it."""

    reason: Reason
    verdict: Annotated[Literal["first", "second", "tie"], BeforeValidator(_side_meant)]


class Comparison(BaseModel):
    """A judge's reply: its fields are judge.DIMENSIONS."""

    usefulness_correctness: Compared
    richness_diversity: Compared
    insightfulness_deep_understanding: Compared
    user_friendliness: Compared


class Grade(BaseModel):
    """A grader's reply."""

    reason: Reason
    verdict: Annotated[
        Literal["correct", "partly", "incorrect", "declined"], BeforeValidator(_grade_meant)
    ]


def replies_of(teacher: Teacher, calls: Iterable[Call[T]]) -> dict[str, T | Failure]:
    """Return for each call's item the reply, or the failure (its stage is the call's step).

    Raises:
        TeacherStopped: as `teacher` does.
    """
    replies: dict[str, T | Failure] = {}
    for outcome in teacher.complete(calls):
        call = outcome.call
        if isinstance(outcome, Failed):
            replies[call.item_id] = Failure(
                call.step, call.item_id, outcome.reason, outcome.attempts
            )
        else:
            replies[call.item_id] = outcome.value
    return replies


def prompt(name: str) -> Prompt:
    """Return the prompt file `name` of this room."""
    return load_prompt(_PROMPTS / f"{name}.md.j2")


def prompt_version(name: str) -> str:
    """Return 8 hex digits that change with the prompt file `name`."""
    return hashlib.blake2b((_PROMPTS / f"{name}.md.j2").read_bytes(), digest_size=4).hexdigest()


_TAG = re.compile(r"<(?=/?\s*(?:answer|answer_[12]|evidence|reference|description)\s*>)", re.I)


def material(text: str) -> str:
    """Return `text` as it is shown between tags: none of the prompts' tags can be closed by it."""
    return _TAG.sub("‹", text.strip())


def right_answers(query: Mapping[str, Any]) -> list[str]:
    """Return the right answers to a query (a row of the queries table), as they are shown.

    There are none to a generated question on the whole corpus, whose reference says what the corpus
    is about, and to an unanswerable one. An overview's gold is a piece of it: the whole is shown.
    """
    if query["question_set"] in ("generated_global", "unanswerable"):
        return []
    right = alternatives(query["reference_answer"] or "")
    if query["scope"] == "global" and query["long_answer"]:
        right = [query["long_answer"]]
    return list(filter(None, map(material, right)))


def shown_answer(answer: str) -> str:
    """Return an answer as it is shown; one that is empty is said to be."""
    return material(answer) or "(no answer was given)"
