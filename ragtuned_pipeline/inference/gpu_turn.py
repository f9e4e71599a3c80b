"""Whose turn it is to use the machine's GPU: never two at once, among all processes of a home.

`<home>/gpu.lock` is locked (flock) by who uses the GPU and says who that is; `<home>/gpu.wanted` is
locked by who is next. The kernel frees both with their process, however it ends. There is one turn
whatever the number of GPUs: a training uses all that are visible, and so may a server.

Steps wait for the GPU. A server that is always up takes it when it is free and nobody waits, and
gives it back when somebody does; so that a server which takes it again at once starves nobody.
Within a process the turn is shared: a step that starts a trainer or a server holds it for them.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOOK_EVERY = 0.1  # seconds between two looks at a GPU that is in use

_mutex = threading.Lock()


@dataclass
class _Held:
    file: IO[str]
    users: int


_held: dict[Path, _Held] = {}  # lock files that this process holds


def gpu_present() -> bool:
    """Whether this process sees an NVIDIA GPU; without loading torch, which takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    # /dev/dxg is how Windows' subsystem for Linux has it.
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


class GpuTurn:
    """One user of the GPU; in a `with`, what it has or waits for is released at the end.

    Args:
        folder: the home.
        purpose: what the others are told, as "a run of corpus 'news'".
        present: whether there is a GPU; None to look. Without one there is always a turn.
    """

    def __init__(self, folder: Path, purpose: str, present: bool | None = None) -> None:
        self._lock = folder.absolute() / "gpu.lock"
        self._wanted = folder.absolute() / "gpu.wanted"
        self._purpose = purpose
        self._present = gpu_present() if present is None else present
        self._mine = False
        self._place: IO[str] | None = None  # this user is next

    def __enter__(self) -> GpuTurn:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this user has the turn now."""
        return self._mine

    def attempt(self) -> bool:
        """Take the turn and return True; where the GPU is in use, ask for it and return False.

        A step calls this again and again (LOOK_EVERY) until it has the turn; `release` gives up.
        """
        with _mutex:
            if not self._mine and self._present and not self._share():
                self._place = self._place or _locked(self._wanted, fcntl.LOCK_EX)
                if self._place is None or not self._take():
                    return False
            self._mine = True
            self._leave_place()
            return True

    def wait(self, on_wait: Callable[[str], None]) -> None:
        """Return when this user has the turn.

        Args:
            on_wait: told once, where there is something to wait for, what that is.
        """
        told = False
        while not self.attempt():
            if not told:
                on_wait(self.waits_for())
                told = True
            time.sleep(LOOK_EVERY)

    def try_take(self) -> bool:
        """Take the turn if the GPU is free and nobody waits for it; return whether this has it."""
        with _mutex:
            if not self._mine and self._present and not self._share():
                nobody_waits = _locked(self._wanted, fcntl.LOCK_SH)
                if nobody_waits is None:
                    return False
                with nobody_waits:
                    if not self._take():
                        return False
            self._mine = True
            return True

    def is_wanted(self) -> bool:
        """Whether another process waits for the GPU: then give it back as soon as may be."""
        if not self._present:
            return False
        nobody_waits = _locked(self._wanted, fcntl.LOCK_SH)
        if nobody_waits is None:
            return True
        nobody_waits.close()
        return False

    def waits_for(self) -> str:
        """Return a sentence without its full stop that says who has the GPU."""
        try:
            holder = self._lock.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            holder = ""
        return f"the GPU is in use by {holder or 'another process'}"

    def release(self) -> None:
        """Give the turn back, or stop waiting for it; nothing where this user has neither."""
        with _mutex:
            self._leave_place()
            if not self._mine:
                return
            self._mine = False
            held = _held.get(self._lock)
            if held is None:  # no GPU
                return
            held.users -= 1
            if not held.users:
                del _held[self._lock]
                held.file.truncate(0)
                fcntl.flock(held.file, fcntl.LOCK_UN)  # in a child that has inherited it, too
                held.file.close()

    def inherited(self) -> tuple[int, ...]:
        """Return the descriptors that a child needs so that the turn ends with it, not before.

        For one that outlives this process by some moments where that is killed: a server's
        supervisor.
        """
        with _mutex:
            held = _held.get(self._lock) if self._mine else None
            return (held.file.fileno(),) if held else ()

    def _share(self) -> bool:
        """Use the turn that this process has already."""
        held = _held.get(self._lock)
        if held is None:
            return False
        held.users += 1
        return True

    def _take(self) -> bool:
        file = _locked(self._lock, fcntl.LOCK_EX)
        if file is None:
            return False
        file.truncate(0)
        file.write(f"process {os.getpid()}, {self._purpose}\n")
        file.flush()
        _held[self._lock] = _Held(file, 1)
        return True

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None


def _locked(path: Path, kind: int) -> IO[str] | None:
    """Return the file, locked; None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
