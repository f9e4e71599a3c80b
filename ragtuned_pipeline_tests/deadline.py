"""A deadline for other processes that tests wait for."""

from __future__ import annotations

import subprocess
import threading

SECONDS = 120.0


def with_deadline(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Return the process, killed when it is that old: who reads from it reads its end, and fails
    instead of hanging."""
    timer = threading.Timer(SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    return process
