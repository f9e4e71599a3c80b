"""The base model asked through the teacher, where one server serves as both."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.calls import Call, Completed, Teacher
from ragtuned_pipeline.inference.engine import Message, Reply


class PlainAnswer(BaseModel):
    """What the base model answers, in its own words."""

    answer: str = Field(max_length=8000)


class TaughtBase:
    """A ChatEngine over a teacher: answers are stored and counted like all others."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order; an empty one where there was no answer."""
        ids = [
            content_id("ask", *(message["content"] for message in conversation))
            for conversation in conversations
        ]
        calls = {
            each: Call("base", each, tuple(conversation), PlainAnswer, max_tokens)
            for each, conversation in zip(ids, conversations, strict=True)
        }
        answered = {
            outcome.call.item_id: Reply(
                outcome.value.answer, outcome.prompt_tokens, outcome.completion_tokens, 0.0
            )
            for outcome in self._teacher.complete(calls.values())
            if isinstance(outcome, Completed)
        }
        return [answered.get(each, Reply("", 0, 0, 0.0)) for each in ids]
