"""What a step asks of the teacher, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel

from ragtuned_pipeline.inference.engine import Message

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One reply that is wanted.

    Attributes:
        step: what the call is part of ("extraction", "gleaning", ...): spending is counted by it.
        item_id: what the call is about; a failure names it. Unique among the calls of a step.
        messages: the whole conversation.
        schema: the reply's JSON; its name is the schema's name in the request.
        max_tokens: of the reply.
        check: returns why a reply that fits the schema is still wrong, or None. The reason is told
            to the model in the next attempt.
    """

    step: str
    item_id: str
    messages: tuple[Message, ...]
    schema: type[T]
    max_tokens: int
    check: Callable[[T], str | None] | None = None


@dataclass(frozen=True)
class Completed(Generic[T]):
    """A call with its valid reply; `stored` says that it was in the completion store already."""

    call: Call[T]
    value: T
    prompt_tokens: int
    completion_tokens: int
    stored: bool = False


@dataclass(frozen=True)
class Failed(Generic[T]):
    """A call that gave no valid reply in `attempts` attempts; `reason` is that of the last one."""

    call: Call[T]
    reason: str
    attempts: int


Outcome = Completed[T] | Failed[T]


class Teacher(Protocol):
    """Answers calls; implementations are teacher.LlmTeacher and, for plans, plan.Planner."""

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        """Yield one outcome a call, as they finish, in no order.

        `calls` is read only a little ahead of the replies, so that memory does not grow with it.

        Raises:
            TeacherStopped: the budget is spent, or the server refuses all calls; whatever was
                paid for is in the store.
        """
        ...


class TeacherStopped(RuntimeError):
    """The teacher cannot go on; the message says why and what to change. Nothing paid is lost."""
