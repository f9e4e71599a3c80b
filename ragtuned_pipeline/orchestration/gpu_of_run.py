"""The GPU as one run uses it: by one managed server, or by what a step loads; never by both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.inference.vllm_server import ManagedVllm
from ragtuned_pipeline.settings import Settings

_LOOK_EVERY = 0.5  # seconds, for another run that waits


class GpuOfRun:
    """Holds the GPU's turn from its first use to the end of the run.

    So a server that is always up does not come back between two steps. Another *run* that waits
    gets the turn where this one does not use it for a while between two steps: it may wait there
    for Dagster's pool, which the other may hold while it waits for the GPU.

    Args:
        home: the home's folder.
        purpose: who this is, for others.
        present: whether there is a GPU; None to look.
        idle_seconds: how long between two steps is a while; most follow at once, and each change
            of runs is the start of a server.
    """

    def __init__(
        self,
        home: Path,
        purpose: str,
        present: bool | None = None,
        idle_seconds: float = 15.0,
    ) -> None:
        self._home = home
        self._turn = GpuTurn(home, purpose, present)
        self._managed: ManagedVllm | None = None
        self._users = 0
        self._idle_seconds = idle_seconds
        self._idle_since = time.monotonic()
        self._lock = threading.RLock()
        self._ended = threading.Event()
        threading.Thread(target=self._give_way, name="gpu of the run", daemon=True).start()

    @contextmanager
    def alone(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Have the GPU for what the block loads: the server is stopped before.

        Args:
            on_wait: told where another process has the GPU, who that is.
        """
        with self._used():
            self._stop_server()
            self._turn.wait(on_wait)
            yield

    @contextmanager
    def server(
        self, model: str, max_rank: int, settings: Settings, on_wait: Callable[[str], None]
    ) -> Iterator[ManagedVllm]:
        """Yield the run's server; it waits for the GPU, and starts, when it is asked something.

        Args:
            model: "embedded", a local folder, or a Hugging Face id.
            max_rank: of the adapters that it must take; 0 for none.
            on_wait: as of alone().

        Raises:
            SettingsError: there is no such model.
        """
        with self._used():
            yield self._server_for(model, max_rank, settings, on_wait)

    def end(self) -> None:
        """Stop the server and give the GPU back."""
        self._ended.set()
        with self._lock:
            self._stop_server()
            self._turn.release()

    @contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._idle_since = time.monotonic()
                if not self._users and not self._turn.held:
                    self._turn.release()  # nobody here waits for it any more

    def _server_for(
        self, model: str, max_rank: int, settings: Settings, on_wait: Callable[[str], None]
    ) -> ManagedVllm:
        with self._lock:
            here = self._managed
            if here and here.identity == identity(model) and here.max_rank >= max_rank:
                return here
            self._stop_server()
            self._managed = ManagedVllm(
                model,
                settings.teacher,
                settings.vllm,
                self._home / "logs",
                max_rank,
                self._turn,
                on_wait,
            )
            return self._managed

    def _stop_server(self) -> None:
        with self._lock:
            if self._managed is not None:
                self._managed.stop()
                self._managed = None

    def _give_way(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            with self._lock:
                idle = not self._users and self._turn.held
                a_while = time.monotonic() - self._idle_since >= self._idle_seconds
                if idle and a_while and self._turn.is_wanted():
                    self._stop_server()
                    self._turn.release()
