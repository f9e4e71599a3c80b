"""The trainer process: `python -m ragtuned_pipeline.tuning.trainer JOB.json`.

JOB.json: {"training_rows": path, "held_out": path or null, "settings": TuningSettings, "output":
folder, "start_from": folder or null}. One JSON object a line on stdout: progress, then {"event":
"done", ...TrainResult} or {"event": "failed", "reason": sentence}. Exit status 0, 1 (failed), 143
(stopped by SIGTERM, to be resumed). The process gives all memory back when it ends, and ends with
its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.sft import TrainingInterrupted, TrainResult, train

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

# Environment of a process that trains on a CPU. By default glibc gives large blocks back to the
# kernel as soon as they are freed; each training step then faults the same pages in again, which
# took 40 % of the time of a step of the embedded model (docs/log.md, 2026-11-25). Read by the
# allocator when the process starts.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


# How long a thread of a process waits for the others before it lets the processor go, in turns of
# its loop. By default it waits so long that beside another busy process a training takes ten times
# as long, for 10 % when it is alone (docs/log.md, 2026-11-27). Read when torch is loaded.
SHORT_WAITS = ("GOMP_SPINCOUNT", "10000")


class TrainJob(BaseModel):
    """What one trainer process is asked to do; see train()."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_rows: Path
    held_out: Path | None
    settings: TuningSettings
    output: Path
    start_from: Path | None = None


def run_job(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> TrainResult:
    """Do the job in this process. Raises what train() raises."""
    return train(
        job.training_rows, job.held_out, job.settings, job.output, progress, job.start_from
    )


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


def main(arguments: Sequence[str]) -> int:
    """Run the job file named in `arguments`; return the exit status."""
    if len(arguments) != 1:
        _say({"event": "failed", "reason": "usage: python -m ragtuned_pipeline.tuning.trainer JOB"})
        return 2
    die_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault(*SHORT_WAITS)
    job = TrainJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        result = run_job(job, _say)
    except TrainingInterrupted as stop:
        _say({"event": "stopped", "reason": str(stop)})
        return 128 + signal.SIGTERM
    except (SettingsError, RuntimeError) as error:
        _say({"event": "failed", "reason": str(error)})
        return 1
    _say({"event": "done", **asdict(result)})
    return 0


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
