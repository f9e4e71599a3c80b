"""Which adapter answers for a corpus, changed under load without a failed request.

A new adapter is loaded beside the old one; then requests that begin go to it, in one step; the old
one is unloaded when the last of its own has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ragtuned_pipeline.serving.interface import Engine, Refused
from ragtuned_pipeline.serving.metrics import Metrics
from ragtuned_pipeline.serving.promoted import Promoted, Wanted

_BACKOFF = (2.0, 60.0)  # seconds before an adapter that was not taken is tried again: first, most


@dataclass(eq=False)
class Route:
    """An adapter that the engine has.

    Attributes:
        adapter: its name in the engine: <corpus>@<content hash>.
        running: the requests that it answers now, each with what can cut it short.
        idle: set while there is none.
    """

    corpus: str
    promoted: Promoted
    running: set[asyncio.Timeout] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def adapter(self) -> str:
        return engine_name(self.corpus, self.promoted.content)


@dataclass
class _NotTaken:
    """A promotion that the engine does not take: why, and when it is tried again (monotonic)."""

    content: str
    reason: str
    attempts: int
    again_at: float


@dataclass
class _Retiring:
    route: Route
    task: asyncio.Task[None]
    unloading: bool = False


def engine_name(corpus: str, content: str) -> str:
    """Return the engine's name of an adapter; '@' is in no corpus's name."""
    return f"{corpus}@{content}"


class Router:
    """The routes of one engine.

    Args:
        drain_seconds: for the requests of an adapter that is replaced; then they are cut short.
        say: is told, in one line, what has changed.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics, drain_seconds: float, say: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._drain_seconds = drain_seconds
        self._say = say
        self._routes: dict[str, Route] = {}
        self._retiring: dict[str, _Retiring] = {}  # by the engine's name
        self._not_taken: dict[str, _NotTaken] = {}

    @property
    def routes(self) -> dict[str, Route]:
        """What serves each corpus; not to be changed."""
        return self._routes

    def not_taken(self) -> dict[str, str]:
        """Return why a corpus's promoted adapter does not serve, by corpus."""
        return {corpus: failed.reason for corpus, failed in self._not_taken.items()}

    @asynccontextmanager
    async def lease(self, corpus: str) -> AsyncIterator[str]:
        """Yield the engine's name of the adapter that answers; it stays loaded until the end.

        Raises:
            Refused: there is none for the corpus, or the answer was cut short.
        """
        route = self._routes.get(corpus)
        if route is None:
            known = ", ".join(sorted(self._routes)) or "none yet"
            raise Refused(404, f"no corpus {corpus!r} is served (served: {known})", "model")
        limit = asyncio.timeout(None)
        route.running.add(limit)
        route.idle.clear()
        try:
            async with limit:
                yield route.adapter
        except TimeoutError:
            if not limit.expired():
                raise
            reason = "the answer took longer than serving.drain_seconds while its engine was needed"
            raise Refused(503, reason, retry_after=1) from None
        finally:
            route.running.discard(limit)
            if not route.running:
                route.idle.set()

    async def sync(self, wanted: Wanted) -> None:
        """Serve what is wanted, and nothing else; return when all that is new has been tried.

        Raises:
            NeedsRestart: the engine takes an adapter only when it is started anew.
        """
        for corpus in [name for name in self._routes if name not in wanted.adapters]:
            self._say(f"{corpus}: not served any more")
            self._retire(self._routes.pop(corpus))
            self._show()
        for corpus in [name for name in self._not_taken if name not in wanted.adapters]:
            del self._not_taken[corpus]
        for corpus, promoted in wanted.adapters.items():
            if self._is_due(corpus, promoted):
                await self._serve(corpus, promoted)

    async def drain(self) -> None:
        """Return when nothing runs; what runs longer than drain_seconds is cut short."""
        everything = [*self._routes.values(), *(each.route for each in self._retiring.values())]
        await asyncio.gather(*(self._wait_idle(route) for route in everything))

    def clear(self) -> None:
        """Forget all routes: the engine has ended, and its adapters with it."""
        for retiring in self._retiring.values():
            retiring.task.cancel()
        self._routes.clear()
        self._retiring.clear()
        self._not_taken.clear()
        self._show()

    def _is_due(self, corpus: str, promoted: Promoted) -> bool:
        route, failed = self._routes.get(corpus), self._not_taken.get(corpus)
        if route is not None and route.promoted.content == promoted.content:
            self._not_taken.pop(corpus, None)
            return False
        if failed is not None and failed.content == promoted.content:
            return time.monotonic() >= failed.again_at
        return True

    async def _serve(self, corpus: str, promoted: Promoted) -> None:
        """Load the adapter and let it answer, or note why it does not."""
        try:
            route = await self._loaded(corpus, promoted)
        except Refused as refused:
            self._note_not_taken(corpus, promoted, refused.message)
            return
        self._not_taken.pop(corpus, None)
        before = self._routes.get(corpus)
        self._routes[corpus] = route
        self._metrics.swaps.labels(corpus, "served").inc()
        self._show()
        told = f" (before: {before.promoted.content})" if before else ""
        self._say(f"{corpus}: adapter {promoted.content} answers now{told}")
        if before is not None:
            self._retire(before)

    async def _loaded(self, corpus: str, promoted: Promoted) -> Route:
        name = engine_name(corpus, promoted.content)
        retiring = self._retiring.get(name)
        if retiring is not None and not retiring.unloading:  # a rollback: it is loaded still
            retiring.task.cancel()
            del self._retiring[name]
            retiring.route.promoted = promoted
            return retiring.route
        if retiring is not None:
            await asyncio.wait([retiring.task])
        await self._engine.load(name, promoted.folder)
        return Route(corpus, promoted)

    def _note_not_taken(self, corpus: str, promoted: Promoted, reason: str) -> None:
        before = self._not_taken.get(corpus)
        again = before is not None and before.content == promoted.content
        attempts = before.attempts + 1 if before is not None and again else 1
        first, most = _BACKOFF
        wait = min(first * 2 ** (attempts - 1), most)
        failed = _NotTaken(promoted.content, reason, attempts, time.monotonic() + wait)
        self._not_taken[corpus] = failed
        self._metrics.swaps.labels(corpus, "failed").inc()
        if not again or before is None or before.reason != reason:
            route = self._routes.get(corpus)
            rest = f"adapter {route.promoted.content} goes on" if route else "nothing answers"
            self._say(f"{corpus}: adapter {promoted.content} cannot be served: {reason}; {rest}")

    def _retire(self, route: Route) -> None:
        task = asyncio.create_task(self._unload_when_idle(route))
        self._retiring[route.adapter] = _Retiring(route, task)

    async def _unload_when_idle(self, route: Route) -> None:
        await self._wait_idle(route)
        retiring = self._retiring.get(route.adapter)
        if retiring is None or retiring.task is not asyncio.current_task():
            return  # it serves again
        retiring.unloading = True
        try:
            await self._engine.unload(route.adapter)
        except Refused as refused:
            self._say(f"{route.corpus}: adapter {route.promoted.content}: {refused.message}")
        finally:
            if self._retiring.get(route.adapter) is retiring:
                del self._retiring[route.adapter]

    async def _wait_idle(self, route: Route) -> None:
        with contextlib.suppress(TimeoutError):
            # asyncio.wait_for loses a cancellation that comes when the last answer has just ended.
            async with asyncio.timeout(self._drain_seconds):
                await route.idle.wait()
        for limit in route.running:
            if not limit.expired():
                limit.reschedule(0.0)  # now
        await route.idle.wait()

    def _show(self) -> None:
        self._metrics.serving({c: route.promoted.content for c, route in self._routes.items()})
