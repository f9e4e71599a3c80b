"""The trainer process: `python -m ragtuned_pipeline.tuning.trainer JOB.json`.

JOB.json: {"training_rows": path, "held_out": path or null, "settings": TuningSettings, "output":
folder, "start_from": folder or null, "logs": folder or null}. One JSON object a line on stdout:
progress, then {"event": "done", ...TrainResult} or {"event": "failed", "reason": sentence}. Exit
status 0, 1 (failed), 143 (stopped by SIGTERM, to be resumed). The process gives all memory back
when it ends, and ends with its parent. On several devices it starts one such process for each, see
launch.py, and passes on what the first one says.
"""

from __future__ import annotations

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
from ragtuned_pipeline.tuning.launch import needs_launch, process_count, train_on_all
from ragtuned_pipeline.tuning.parent import die_with_parent
from ragtuned_pipeline.tuning.ranks import is_first, is_rank, lost_another
from ragtuned_pipeline.tuning.sft import TrainingInterrupted, TrainResult, refuse_settings, train

# Environment of a process that trains on a CPU. By default glibc gives large blocks back to the
# kernel as soon as they are freed; each training step then faults the same pages in again, which
# took 40 % of the time of a step of the embedded model (docs/log.md, 2026-11-25). Read by the
# allocator when the process starts.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}


class TrainJob(BaseModel):
    """What one trainer process is asked to do; see train()."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_rows: Path
    held_out: Path | None
    settings: TuningSettings
    output: Path
    start_from: Path | None = None
    logs: Path | None = None


class CannotGoOn(Exception):
    """The machine failed a training, as a full disk does; the message is a sentence for people."""


def begin() -> None:
    """Prepare this process to be a trainer's."""
    die_with_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def run_job(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> TrainResult:
    """Do the job in this process, or on several devices in as many that it starts.

    Raises:
        what train() raises, and SettingsError where the devices cannot share the work.
        RanksFailed: one of several processes failed.
        CannotGoOn: instead of OSError and SafetensorError.
    """
    from safetensors import SafetensorError

    try:
        return _run(job, progress)
    except (OSError, SafetensorError) as error:  # a full disk, above all
        raise CannotGoOn(f"the training in {job.output} cannot go on: {error}") from error


def _run(job: TrainJob, progress: Callable[[dict[str, Any]], None]) -> TrainResult:
    refuse_settings(job.settings)
    if is_rank() or not needs_launch(processes := process_count(job.settings)):
        return train(
            job.training_rows,
            job.held_out,
            job.settings,
            job.output,
            progress,
            job.start_from,
            job.logs,
        )
    job.output.mkdir(parents=True, exist_ok=True)
    file = job.output / "job.json"
    file.write_text(job.model_dump_json(), encoding="utf-8")
    stopped = train_on_all(file, processes, progress)
    if stopped is not None:
        raise TrainingInterrupted(stopped)
    return TrainResult(**json.loads((job.output / "result.json").read_text(encoding="utf-8")))


def main(arguments: Sequence[str]) -> int:
    """Run the job file named in `arguments`; return the exit status."""
    if len(arguments) != 1:
        _say({"event": "failed", "reason": "usage: python -m ragtuned_pipeline.tuning.trainer JOB"})
        return 2
    begin()
    job = TrainJob.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        result = run_job(job, _say)
    except TrainingInterrupted as stop:
        _say({"event": "stopped", "reason": str(stop)})
        return 128 + signal.SIGTERM
    except (SettingsError, RuntimeError, CannotGoOn) as error:
        if not lost_another(error):
            _say({"event": "failed", "reason": str(error)})
        return 1
    if is_first():
        _say({"event": "done", **asdict(result)})
    return 0


def _say(line: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the parent is gone: SIGTERM comes, and a checkpoint is saved
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
