"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, however it dies.

    SIGTERM, so that a checkpoint is saved first. The signal follows the parent *thread*: start the
    trainer from one that lives as long as the training.
    """
    parent = os.getppid()
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        raise SystemExit(128 + signal.SIGTERM)
