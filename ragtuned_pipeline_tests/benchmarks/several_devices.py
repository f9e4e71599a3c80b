"""A training of two processes, disturbed in every way, against an undisturbed one.

    python -m ragtuned_pipeline_tests.benchmarks.several_devices [FOLDER]

On a CPU, by torchrun, in about three minutes on two cores: stopped by SIGTERM and resumed; one of
its processes, the one that started it, or torchrun itself ended by SIGKILL. Says of each what the
trainer said, how long its processes lived on, and whether it was resumed to the same losses and
weights.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline_tests.tuning.conftest import FRAMES, job_file, rows, write_rows
from ragtuned_pipeline_tests.tuning.processes import at_work, lines, start, wait_for_step

SETTINGS = TuningSettings(rank=8, alpha=16, batch_size=6, epochs=4, checkpoint_steps=7, devices=2)
STEP = 10  # at which it is disturbed
WAYS = ("stopped", "process 1 killed", "process 0 killed", "parent killed", "launcher killed")


def begin(folder: Path) -> subprocess.Popen[str]:
    job = folder / "job.json"
    if not job.is_file():
        folder.mkdir(parents=True)
        job_file(folder, write_rows(rows(FRAMES), folder / "rows.parquet"), SETTINGS)
    return start(job)


def disturb(way: str, process: subprocess.Popen[str], folder: Path) -> None:
    if way == "stopped":
        process.send_signal(signal.SIGTERM)
        return
    role = {"parent killed": "parent", "launcher killed": "launcher"}.get(way, way.split()[1])
    os.kill(at_work(folder)[role], signal.SIGKILL)


def lived_on(folder: Path) -> float:
    """Seconds until no process of it is left."""
    started = time.monotonic()
    while at_work(folder):
        time.sleep(0.05)
    return round(time.monotonic() - started, 1)


def outcome(folder: Path) -> tuple[Any, bytes]:
    result = json.loads((folder / "run" / "result.json").read_text())
    weights = (Path(result["adapter"]) / "adapter_model.safetensors").read_bytes()
    return result["losses"], weights


def main(folder: Path) -> None:
    whole = begin(folder / "whole")
    assert lines(whole)[-1]["event"] == "done"
    for way in WAYS:
        place = folder / way.replace(" ", "-")
        process = begin(place)
        wait_for_step(process, STEP)
        disturb(way, process, place)
        said = lines(process)
        seconds = lived_on(place)
        kept = sorted(each.name for each in (place / "run").glob("checkpoint-*"))
        resumed = lines(begin(place))[-1]
        figures = {
            "way": way,
            "status": process.returncode,
            "said": said[-1].get("reason", "") if said else "",
            "lived_on_seconds": seconds,
            "checkpoints": kept,
            "resumed_from_step": resumed["resumed_from_step"],
            "same_losses_and_weights": outcome(place) == outcome(folder / "whole"),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
