"""What the teacher replies: one schema a prompt, and the prompts themselves.

Strings are bounded, because a small model may fill a schema with white space until its tokens end.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from ragtuned_pipeline.inference.prompts import Prompt, load_prompt
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import TEACHER, normalised

_PROMPTS = Path(__file__).parent / "prompts"

Asked = Annotated[str, Field(max_length=400)]
Thought = Annotated[str, Field(max_length=3000)]


class Question(BaseModel):
    """A question in several wordings, or the decision that there is nothing to ask."""

    thought: Thought
    decline: bool
    question: Asked
    short_wordings: list[Asked] = Field(max_length=40)
    long_wordings: list[Asked] = Field(max_length=40)


class LocalQuestion(Question):
    """What can be asked about an element of the graph from one text unit."""


class LocalAnswer(BaseModel):
    """The answer to a local question, or the decision that the evidence does not hold it."""

    thought: Thought
    decline: bool
    short_answer: str = Field(max_length=400)
    long_answer: str = Field(max_length=2000)


class Pair(Question):
    """A question with its answers."""

    short_answer: str = Field(max_length=1000)
    long_answer: str = Field(max_length=12_000)


class EntityPair(Pair):
    """About an entity as a whole."""


class RelationshipPair(Pair):
    """About how the first of two entities is related to the second."""


class CommunityPair(Pair):
    """About a group of entities as a whole."""


class Grounding(BaseModel):
    """What the judge finds; `faulty_wordings` are numbers from 1."""

    thought: Thought
    grounded: bool
    answers_question: bool
    faulty_wordings: list[int] = Field(max_length=80)


def prompt(name: str) -> Prompt:
    """Return the prompt file `name` of this room."""
    return load_prompt(_PROMPTS / f"{name}.md.j2")


@cache
def generator(kind: str, *prompts: str) -> str:
    """Return the name of what makes pairs of `kind`: "llm:local@" and a hash of its prompts."""
    files = ((_PROMPTS / f"{name}.md.j2").read_bytes() for name in prompts)
    return f"{TEACHER}{kind}@{hashlib.blake2b(b''.join(files), digest_size=4).hexdigest()}"


def wordings_wanted(settings: SynthesisSettings, held_out: bool) -> tuple[int, int]:
    """Return how many ways of asking for the short and for the long answer a fact needs.

    One that is held out of tuning is asked in its held-out wordings only.
    """
    count = max(1, settings.held_out_wordings)
    if not held_out:
        count = settings.train_wordings + settings.held_out_wordings
    return count - count // 2, count // 2


def question_fault(reply: Question, short: int, long: int) -> str | None:
    """Return why a reply that fits the schema is still no question, or None.

    Half of the wordings asked for are enough.
    """
    if reply.decline:
        return None
    if not normalised(reply.question):
        return "decline is false and question is empty: ask a question or decline"
    for name, wanted, given in (
        ("short_wordings", short - 1, reply.short_wordings),
        ("long_wordings", long, reply.long_wordings),
    ):
        distinct = len({normalised(wording) for wording in given} - {""})
        if 2 * distinct < wanted:
            return f"{name} holds {distinct} different wordings, {wanted} are wanted"
    return None


def answer_fault(reply: LocalAnswer | Pair) -> str | None:
    """Return why a reply that fits the schema is still no answer, or None."""
    if reply.decline or (reply.short_answer.strip() and reply.long_answer.strip()):
        return None
    return "decline is false and short_answer or long_answer is empty: answer or decline"
