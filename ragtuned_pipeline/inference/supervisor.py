"""Runs a command that never outlives its owner: `python -m ... OWNER_PID COMMAND [ARGUMENT ...]`.

The command gets a session of its own, so that Ctrl-C in the owner's terminal does not reach it.
When this process is told to stop (SIGTERM), or its owner is gone, however it went, the command
gets SIGTERM, and what is left of it and of all it has started SIGKILL. This process ends when all
of them have, with the command's exit status.

The owner is watched by its process id: a death signal (PR_SET_PDEATHSIG) would come as soon as the
*thread* ends that started this process, and a pipe would be held open by the owner's forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY = 0.1  # seconds
_GRACE_SECONDS = 10.0  # for the command itself
_REST_SECONDS = 5.0  # for what it leaves behind


def supervised(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` for this process; start it in a session of its
    own."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


def main(owner: int, command: Sequence[str]) -> int:
    """Return the exit status of `command`; minus a signal's number where that ended it."""
    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told_to_stop.append(number))
    libc = ctypes.CDLL(None)
    # What the command leaves behind becomes a child of this process, which can wait for it.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        command,
        start_new_session=True,
        # Should this process be killed: it is its only thread that starts the command.
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    while not told_to_stop and os.getppid() == owner and server.poll() is None:
        time.sleep(_LOOK_EVERY)
    _end(server)
    return server.returncode


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(_GRACE_SECONDS)
    server.kill()
    server.wait()
    # The rest, too, is told first: what ends by itself removes its shared memory.
    _signal(server.pid, signal.SIGTERM)
    while not _all_ended(server.pid, _REST_SECONDS):
        _signal(server.pid, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _all_ended(group: int, seconds: float) -> bool:
    """Return whether no process of the group is left, after at most `seconds`."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                time.sleep(_LOOK_EVERY)
        return False
    return True


if __name__ == "__main__":
    status = main(int(sys.argv[1]), sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
