"""Trainers that outlived their run: found by the lock of the folder they work in, and stopped.

A trainer ends with its run (tuning/trainer.die_with_parent). Where the kernel cannot see to that,
or the trainer hangs, it would keep the GPU and its folder for ever.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.locks import RunFailed, is_held
from ragtuned_pipeline.tuning.launch import SECONDS_TO_SAVE

_SECONDS_TO_DIE = 5.0
_LOOK_EVERY = 0.1
_LOCKS = Path("/proc/locks")  # proc_locks(5): Linux alone


@dataclass(frozen=True)
class Trainer:
    """A trainer at work; `pid` is None where it cannot be told, as on another machine."""

    folder: Path
    pid: int | None


def trainers_at_work(home: Home, corpus: str) -> list[Trainer]:
    """Return the trainers that hold the lock of a training of `corpus`.

    Whoever holds the corpus's lock while they work is no run of theirs: they are orphans.
    """
    locks = sorted((home.folder / "training" / corpus).glob("*/lock"))
    return [Trainer(lock.parent, _owner(lock)) for lock in locks if is_held(lock)]


def stop_orphan_trainers(home: Home, corpus: str) -> list[Trainer]:
    """Stop the corpus's trainers, after a checkpoint; return them. The caller holds its lock.

    Raises:
        RunFailed: one cannot be stopped from here.
    """
    found = trainers_at_work(home, corpus)
    for trainer in found:
        _stop(trainer)
    return found


def _stop(trainer: Trainer) -> None:
    lock = trainer.folder / "lock"
    for number, seconds in (
        (signal.SIGTERM, SECONDS_TO_SAVE),
        (signal.SIGKILL, _SECONDS_TO_DIE),
    ):
        if trainer.pid is None:
            break
        try:
            os.kill(trainer.pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            break
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_held(lock):
                return
            time.sleep(_LOOK_EVERY)
    who = f"process {trainer.pid}" if trainer.pid else "a process of another machine or container"
    raise RunFailed(f"a trainer without a run works in {trainer.folder} ({who}): stop it")


def _owner(lock: Path) -> int | None:
    """Return the process that holds a lock. The device is not compared: an overlay has another."""
    if not _LOCKS.is_file():
        return None
    inode = str(lock.stat().st_ino)
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
            command = Path("/proc", fields[4], "cmdline")
            if command.is_file() and b"trainer" in command.read_bytes():
                return int(fields[4])
    return None
