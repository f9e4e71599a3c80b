"""One run of a corpus at a time, whoever starts it; and one that serves the home."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ragtuned_pipeline.orchestration.home import Home

_held: set[Path] = set()  # lock files that this process holds

COMMAND_LINE = {"ragtuned/started_by": "command line"}  # tags of runs in the caller's process


class RunFailed(RuntimeError):
    """A run ended early, or could not begin; the message is its reason."""


def taken(handle: IO[str]) -> bool:
    """Lock a file; return False, at once, where another process has it locked."""
    return _locked(handle, fcntl.LOCK_EX)


def is_held(lock: Path) -> bool:
    """Whether a process has the file locked."""
    with lock.open() as handle:
        return not _locked(handle, fcntl.LOCK_SH)


@contextmanager
def alone(home: Home, corpus: str) -> Iterator[None]:
    """Hold the corpus's lock; it is freed when the process ends, however it ends.

    Raises:
        RunFailed: another process holds it.
    """
    with _lock_file(home, corpus).open("w") as handle:
        if not taken(handle):
            raise RunFailed(f"another run of corpus {corpus!r} is going on; wait for it to end")
        with _noted(_lock_file(home, corpus)):
            yield


@contextmanager
def alone_serving(home: Home) -> Iterator[None]:
    """As `alone`, for the run that serves the home."""
    home.folder.mkdir(parents=True, exist_ok=True)
    with (home.folder / "serving.run.lock").open("w") as handle:
        if not taken(handle):
            raise RunFailed(f"another run serves {home.folder}; terminate it first")
        yield


@contextmanager
def wait_alone(home: Home, corpus: str, say_so: Callable[[], None]) -> Iterator[None]:
    """As `alone`, but wait for another process that holds the lock; `say_so` is called before.

    Where this process holds it, as a run of the command line does, there is nothing to wait for.
    """
    file = _lock_file(home, corpus)
    if file in _held:
        yield
        return
    with file.open("w") as handle:
        if not taken(handle):
            say_so()
            fcntl.flock(handle, fcntl.LOCK_EX)
        with _noted(file):
            yield


@contextmanager
def _noted(file: Path) -> Iterator[None]:
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)


def _lock_file(home: Home, corpus: str) -> Path:
    home.corpora.mkdir(parents=True, exist_ok=True)
    return home.corpora / f".{corpus}.lock"


def _locked(handle: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
