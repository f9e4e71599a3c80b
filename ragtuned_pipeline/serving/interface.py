"""What answers behind the gateway: one base model and adapters that come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Protocol

Body = Mapping[str, Any]


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP: 400 for a parameter that cannot be met, 503 while nothing can answer, ...
        message: one sentence for the client.
        parameter: the field of the request that is at fault, if one is.
        retry_after: seconds, where the same request may be answered later.
    """

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.parameter = parameter
        self.retry_after = retry_after


class NeedsRestart(Exception):
    """The engine takes an adapter only when it is closed and started again; the message says why.

    Once it has raised this, start() prepares for that adapter.
    """


class Engine(Protocol):
    """A base model with adapters, each under a name that says its content and is never used again
    for another one: a cache of the engine's that is kept by name is never stale.

    `body` is an OpenAI chat completion request, as the gateway has completed it: `messages`,
    `max_tokens` (or `max_completion_tokens`), `temperature`, whatever else the client sent; `model`
    and `stream` are not the engine's to read. Replies are OpenAI's chat.completion and
    chat.completion.chunk objects, whose `model` the gateway puts in. A chat.completion has `usage`.
    A stream's last chunk has it, with empty `choices`: the gateway counts tokens by it, and keeps
    it from clients that did not ask (`stream_options.include_usage`).
    """

    async def start(self) -> None:
        """Load the base model; return when it can answer.

        Raises:
            SettingsError, TeacherStopped: it cannot be loaded.
        """
        ...

    async def load(self, adapter: str, folder: Path) -> None:
        """Let requests name the adapter in `folder`; nothing where they can already.

        Raises:
            Refused: the engine does not take it; the message says why.
            NeedsRestart: it would, started anew.
        """
        ...

    async def unload(self, adapter: str) -> None:
        """Give the adapter's memory back. Nobody asks it any more.

        Raises:
            Refused: the engine does not.
        """
        ...

    async def complete(self, adapter: str, body: Body) -> dict[str, Any]:
        """Return a chat.completion; cancelled, it stops the generation.

        Raises:
            Refused: there is none.
        """
        ...

    def stream(self, adapter: str, body: Body) -> AsyncGenerator[dict[str, Any], None]:
        """Yield chat.completion.chunk objects; one that is closed early stops the generation.

        Raises:
            Refused: there is none, or it broke off.
        """
        ...

    def why_ended(self) -> str | None:
        """Return why nothing can answer any more; None while all is well."""
        ...

    async def metrics(self) -> str:
        """Return the engine's own metrics in Prometheus' text format; "" where it has none."""
        ...

    async def close(self) -> None:
        """Stop, and give all memory back; start() begins anew."""
        ...
