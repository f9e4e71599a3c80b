"""One run of a corpus at a time, whoever starts it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from ragtuned_pipeline.orchestration.home import Home

COMMAND_LINE = {"ragtuned/started_by": "command line"}  # tags of runs in the caller's process


class RunFailed(RuntimeError):
    """A run ended early, or could not begin; the message is its reason."""


@contextmanager
def alone(home: Home, corpus: str) -> Iterator[None]:
    """Hold the corpus's lock; it is freed when the process ends, however it ends.

    Raises:
        RunFailed: another process holds it.
    """
    with _lock_file(home, corpus) as handle:
        if not _taken(handle):
            raise RunFailed(f"another run of corpus {corpus!r} is going on; wait for it to end")
        yield


@contextmanager
def wait_alone(home: Home, corpus: str, say_so: Callable[[], None]) -> Iterator[None]:
    """As `alone`, but wait for whoever holds the lock; `say_so` is called before."""
    with _lock_file(home, corpus) as handle:
        if not _taken(handle):
            say_so()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_file(home: Home, corpus: str) -> IO[str]:
    home.corpora.mkdir(parents=True, exist_ok=True)
    return (home.corpora / f".{corpus}.lock").open("w")


def _taken(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
