"""The life of the engine behind the gateway: started, kept in step with the promotions, started
again when it ends, and away while somebody else needs the GPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.serving.interface import Engine, NeedsRestart, Refused
from ragtuned_pipeline.serving.metrics import Metrics
from ragtuned_pipeline.serving.promoted import PromotedAdapters, Wanted
from ragtuned_pipeline.serving.router import Router

_LOOK_EVERY = 0.5  # seconds between two looks at the promotions, the engine and the GPU
# A run's steps use the GPU one after the other: it is free for good when nobody has asked for it
# for so long.
_SETTLE_SECONDS = 10.0
_QUICK_SECONDS = 60.0  # an engine that ended sooner after its start was quick to
_MOST_QUICK = 5
_RESTART_BACKOFF = 1.0  # seconds before the second start; then 3, 7, 15
_COME_BACK = {"starting": 5.0, "ready": 5.0, "making room": 30.0, "waiting": 30.0}  # seconds

Phase = Literal["starting", "ready", "making room", "waiting"]


class Service:
    """Keeps an engine answering for what is promoted; see `run`.

    Args:
        turn: the GPU's, where it is shared with trainings and evaluations; None to keep it.
        say: is told, in one line, what has changed.
    """

    def __init__(
        self,
        engine: Engine,
        promoted: PromotedAdapters,
        metrics: Metrics,
        drain_seconds: float,
        say: Callable[[str], None],
        turn: GpuTurn | None = None,
    ) -> None:
        self.engine = engine
        self.router = Router(engine, metrics, drain_seconds, say)
        self._promoted = promoted
        self._metrics = metrics
        self._say = say
        self._turn = turn
        self._phase: Phase = "starting"
        self._reason = "the engine is starting"
        self._since = time.monotonic()  # of the phase
        self._has_served = False
        self._settle = 0.0  # seconds
        self._wanted: Wanted | None = None

    def why_not(self) -> str | None:
        """Return why nothing can be answered now; None while the engine can."""
        if self._phase == "ready":
            return self.engine.why_ended()
        return self._reason

    def check_ready(self) -> None:
        """Raises Refused where nothing can be answered now: why, and when to come back."""
        if (reason := self.why_not()) is not None:
            raise Refused(503, reason, retry_after=_COME_BACK[self._phase])

    def unserved(self) -> dict[str, str]:
        """Return why a corpus, or its newest promotion, is not served, by corpus."""
        found = dict(self._wanted.unserved) if self._wanted else {}
        return found | self.router.not_taken()

    @asynccontextmanager
    async def lease(self, corpus: str) -> AsyncIterator[str]:
        """Yield the engine's name of the corpus's adapter, as Router.lease.

        Raises:
            Refused: the engine cannot answer now, there is none for the corpus, or the answer was
                cut short.
        """
        self.check_ready()
        async with self.router.lease(corpus) as adapter:
            yield adapter

    async def run(self) -> None:
        """Serve until this is cancelled; the engine is closed however it ends.

        Raises:
            SettingsError, TeacherStopped: the engine cannot be started, or ended again and again.
        """
        quick = 0
        try:
            while True:
                await self._take_turn()
                try:
                    await self._serve_a_while()
                    quick = 0
                except TeacherStopped as ended:
                    if not self._has_served:
                        raise
                    quick = quick + 1 if time.monotonic() - self._since < _QUICK_SECONDS else 1
                    if quick == _MOST_QUICK:
                        raise TeacherStopped(f"{ended}; {quick} times in a row") from None
                    self._enter("starting", f"{ended}; it is started again")
                await self._stop()
                await asyncio.sleep((2**quick - 1) * _RESTART_BACKOFF)
        finally:
            self._enter("starting", "the server is stopping")
            await self._stop()

    async def _serve_a_while(self) -> None:
        """Start the engine and keep it in step with the promotions, until it has to be closed.

        Raises:
            SettingsError, TeacherStopped: it cannot be started, or has ended by itself.
        """
        if self._phase != "starting":  # else the reason says already why it is started again
            self._enter("starting", "the engine is starting")
        self._metrics.engine_starts.inc()
        reason = await self._unless_wanted(self.engine.start())
        while reason is None:
            reason = await self._keep_in_step()
            if reason is None:
                if self._phase != "ready":
                    self._enter("ready", "")
                    self._has_served = True
                await asyncio.sleep(_LOOK_EVERY)
        self._enter("making room", reason)
        await self.router.drain()

    async def _keep_in_step(self) -> str | None:
        """Serve what is promoted; return why the engine has to be closed, if it has."""
        if (ended := self.engine.why_ended()) is not None:
            raise TeacherStopped(ended)
        self._wanted = self._promoted.look()
        try:
            return await self._unless_wanted(self.router.sync(self._wanted))
        except NeedsRestart as needed:
            return f"{needed}; the engine is started anew for it"

    async def _unless_wanted(self, work: Coroutine[Any, Any, None]) -> str | None:
        """Do `work`, which may take minutes; where somebody waits for the GPU, cancel it and return
        why the engine has to be closed."""
        task = asyncio.create_task(work)
        try:
            while self._turn is None or not self._turn.is_wanted():
                await asyncio.wait([task], timeout=_LOOK_EVERY)
                if task.done():
                    task.result()
                    return None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._settle = _SETTLE_SECONDS
        return "the GPU is given to a training or an evaluation; it comes back afterwards"

    def _enter(self, phase: Phase, reason: str) -> None:
        self._phase, self._reason, self._since = phase, reason, time.monotonic()
        self._metrics.engine_up.set(phase == "ready")
        self._say(reason or "ready")

    async def _take_turn(self) -> None:
        """Have the GPU's turn; taken back, it is held a while for anybody else who asks for it."""
        if self._turn is None:
            return
        while True:
            while not self._turn.try_take():
                reason = self._turn.waits_for()
                if (self._phase, self._reason) != ("waiting", reason):
                    self._enter("waiting", reason)
                await asyncio.sleep(_LOOK_EVERY)
            until = time.monotonic() + self._settle
            while time.monotonic() < until and not self._turn.is_wanted():
                await asyncio.sleep(_LOOK_EVERY)
            if not self._turn.is_wanted():
                self._settle = 0.0
                return
            self._turn.release()

    async def _stop(self) -> None:
        self.router.clear()
        try:
            await self.engine.close()
        finally:
            if self._turn is not None:
                self._turn.release()
