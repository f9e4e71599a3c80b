"""What every chat engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from ragtuned_pipeline.settings import EMBEDDED_MODEL


class Message(TypedDict):
    """One turn of a conversation, as chat templates and chat APIs spell it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Reply:
    """One answer and what it cost.

    `seconds` is the reply's share of its batch: batch time divided by batch size.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ChatEngine(Protocol):
    """Answers conversations, in the order given."""

    def generate(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[Reply]: ...


# The same words to every system that is told anything, so that no system wins or loses by length.
ANSWER_LENGTH = "Answer directly and in full, in no more words than that takes."


def system_message(base_model: str) -> str | None:
    """Return what stands before every question, in tuning and in evaluation alike.

    The embedded base model knows questions and answers only; told more, it answers worse.
    """
    return None if base_model == EMBEDDED_MODEL else ANSWER_LENGTH


def chat(question: str, system: str | None = None) -> list[Message]:
    """Return the conversation that asks `question`; `system` null where the base model has none."""
    asked: Message = {"role": "user", "content": question}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]
