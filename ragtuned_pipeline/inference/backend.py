"""What carries one request to a model and its reply back; the teacher does everything around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ragtuned_pipeline.inference.engine import Message


@dataclass(frozen=True)
class Request:
    """One request as a backend sends it.

    Attributes:
        schema: JSON schema of the reply, as pydantic makes it, None for a reply in plain words;
            `name` is the schema's name.
        max_tokens: of the reply.
    """

    messages: Sequence[Message]
    name: str
    schema: dict[str, Any] | None
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class RawReply:
    """What the model sent, unread.

    Attributes:
        finish_reason: "stop", "length" (cut off at max_tokens), "content_filter", ...
        refusal: the model's words where it refused in the API's own way, else None.
        prompt_tokens, completion_tokens: as the server counts them.
    """

    text: str
    finish_reason: str
    refusal: str | None
    prompt_tokens: int
    completion_tokens: int


class RequestFailed(Exception):
    """A request got no reply.

    Attributes:
        reason: what happened, in words for the failures table.
        again: whether another attempt may help.
        after: seconds to wait before it, where the server said so.
        throttled: the server asks for fewer requests (429).
        unreachable: no server answered at all.
        refused: no request of this run can work (wrong key, no such model): the run must stop.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool,
        after: float | None = None,
        throttled: bool = False,
        unreachable: bool = False,
        refused: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.after = after
        self.throttled = throttled
        self.unreachable = unreachable
        self.refused = refused


class Backend(Protocol):
    """One way to a model. `identity` names the weights: it is part of a stored reply's key."""

    identity: str

    async def reply(self, request: Request) -> RawReply:
        """Send the request once.

        Raises:
            RequestFailed: there is no reply.
        """
        ...

    async def close(self) -> None: ...
