"""What holds the teacher back: the server's rates, its load, and the budget.

All of it belongs to one event loop, and waits by awaiting only.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from ragtuned_pipeline.inference.backend import RequestFailed
from ragtuned_pipeline.inference.completions import Usage
from ragtuned_pipeline.inference.engine import Message
from ragtuned_pipeline.settings import BudgetSettings

CHARACTERS_A_TOKEN = 4  # of English in the tokenizers of hosted models, about

_LONGEST_BACKOFF_SECONDS = 60.0


def estimated_tokens(messages: Sequence[Message]) -> int:
    """Return about how many tokens the messages have."""
    return -(-sum(len(message["content"]) for message in messages) // CHARACTERS_A_TOKEN)


class Backoff:
    """The seconds before another attempt: twice as long each time, and what the server asks for
    at least; none after an answer that only was of no use. A `wait` of tenacity's."""

    def __init__(self, first_seconds: float) -> None:
        self._longer = wait_exponential_jitter(
            multiplier=first_seconds, max=_LONGEST_BACKOFF_SECONDS, jitter=first_seconds
        )

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, RequestFailed):
            return max(self._longer(state), error.after or 0.0)
        return 0.0


def retry_options(most: int, backoff: Backoff) -> dict[str, Any]:
    """Return tenacity's arguments for requests that are sent `most` times at most, again where
    that may help; the last failure is raised."""
    return {
        "stop": stop_after_attempt(most),
        "wait": backoff,
        "retry": retry_if_exception(lambda e: isinstance(e, RequestFailed) and e.again),
        "reraise": True,
    }


class Pace:
    """Spaces out requests, or their tokens, evenly at `per_minute`; None is no limit.

    Each taker gets the next free moment at once and sleeps until then, so that takers go in the
    order they came and a late wake-up costs no rate. In any minute fewer units start than
    `per_minute` plus those of the last taker.

    Args:
        clock: seconds that only grow.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_each = 60 / (per_minute or math.inf)
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    async def take(self, units: float) -> None:
        """Wait until `units` more may start."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + units * self._seconds_each
        if start > now:
            await self._sleep(start - now)

    def correct(self, units: float) -> None:
        """Count `units` more (or, negative, fewer) than were taken: the estimate was wrong."""
        self._free_at += units * self._seconds_each


class AdaptiveConcurrency:
    """At most `limit` holders at once; the limit follows what the server bears (AIMD).

    It starts at `most`, is halved when the server throttles, and grows by one after as many
    successes as it allows at once. Requests that were in flight when it was last halved do not
    halve it again: what they met was the old load.
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self._most = most
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._halvings = 0
        self._successes = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Hold a slot, first come first served; gives the mark that throttled() wants."""
        await self._acquire()
        try:
            yield self._halvings
        finally:
            self._held -= 1
            self._grant()

    def throttled(self, mark: int) -> None:
        """The server asked a request for fewer requests; `mark` is that of the request's slot."""
        if mark == self._halvings:
            self._halvings += 1
            self._successes = 0
            self.limit = max(1, self.limit // 2)

    def succeeded(self) -> None:
        """The server answered a request."""
        self._successes += 1
        if self._successes >= self.limit and self.limit < self._most:
            self._successes = 0
            self.limit += 1
            self._grant()

    async def _acquire(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # granted, but nobody is left to take it
                self._held -= 1
                self._grant()
            raise

    def _grant(self) -> None:
        while self._waiting and self._held < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._held += 1
                turn.set_result(None)


class Budget:
    """Hard limits on what is spent, with what is in flight reserved.

    Calls never exceed their limit. Tokens and money are known only after a reply, so that they
    may exceed theirs by as much as the requests in flight were underestimated.
    """

    def __init__(self, limits: BudgetSettings) -> None:
        self._limits = limits
        self._in_flight = Usage()
        self._settled = asyncio.Event()

    def exceeded(self, spent: Usage, wanted: Usage) -> str | None:
        """Return which limit the request `wanted` would exceed, in words, or None."""
        total = spent + self._in_flight + wanted
        limits = self._limits
        for name, limit, used in (
            ("max_calls", limits.max_calls, total.calls),
            ("max_tokens", limits.max_tokens, total.prompt_tokens + total.completion_tokens),
            ("max_money", limits.max_money, total.money),
        ):
            if limit is not None and used > limit:
                return f"the next request would exceed budget.{name} = {limit}"
        return None

    async def settled(self) -> bool:
        """Wait until a request in flight is over; return False at once where there is none.

        It may have cost less than was reserved for it, so that there is room again.
        """
        if not self._in_flight.calls:
            return False
        await self._settled.wait()
        return True

    @contextmanager
    def reserved(self, wanted: Usage) -> Iterator[None]:
        """Hold `wanted` back until the request's real usage is known."""
        self._in_flight += wanted
        try:
            yield
        finally:
            self._in_flight += Usage(
                calls=-wanted.calls,
                prompt_tokens=-wanted.prompt_tokens,
                completion_tokens=-wanted.completion_tokens,
                money=-wanted.money,
            )
            self._settled.set()
            self._settled = asyncio.Event()
