"""A training on several devices: one process each, started and watched by torchrun.

    python -m ragtuned_pipeline.tuning.launch PROCESSES JOB.json

is torchrun for the trainer, and ends with its parent as the trainer does. The process that asks for
it (`train_on_all`) reads the first process's progress lines from its output. SIGTERM goes down the
same way: to torchrun, to all processes, which then agree on the step to stop after.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.machine import device_count
from ragtuned_pipeline.tuning.parent import die_with_parent
from ragtuned_pipeline.tuning.training_plan import devices_refusal

SECONDS_TO_SAVE = 120  # after SIGTERM; torchrun's 30 are few for a step of a large model


def process_count(settings: TuningSettings) -> int:
    """Return how many processes train: one a GPU that is asked for, or `devices` on a CPU.

    Raises:
        SettingsError: as device_count, or they cannot share an optimizer step evenly.
    """
    import torch

    processes = device_count(settings, torch.cuda.device_count())
    refusal = devices_refusal(settings, processes)
    if refusal:
        raise SettingsError(refusal)
    return processes


def needs_launch(processes: int) -> bool:
    """Whether a training of so many processes needs torchrun.

    One process beside which other GPUs are visible needs it too: it would use them all, by threads.
    """
    import torch

    return processes > 1 or torch.cuda.device_count() > 1


class RanksFailed(RuntimeError):
    """A process of the training ended before its time; the message says which and how."""


def train_on_all(
    job: Path, processes: int, progress: Callable[[dict[str, Any]], None]
) -> str | None:
    """Run the job in `processes` processes; return None, or why they stopped before the end.

    Args:
        job: the trainer's job file.
        progress: gets the first process's lines.

    Raises:
        RanksFailed: one of them failed; the others are ended.
    """
    command = [sys.executable, "-m", __name__, str(processes), str(job)]
    # A session of their own: Ctrl-C comes to them from here alone, as SIGTERM.
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    asked_to_stop = False

    def stop(*_: Any) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        launcher.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    ended: dict[str, str] = {}
    try:
        assert launcher.stdout is not None
        for text in launcher.stdout:
            line = _line(text)
            event = line.get("event", "")
            if event in ("failed", "died", "stopped"):
                ended.setdefault(event, str(line["reason"]))
            elif event and event != "done":
                progress(line)
        status = launcher.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if status == 0:
        return None
    # Where one dies the others fail for want of it.
    for event in ("died", "failed"):
        if event in ended and not (asked_to_stop and "stopped" in ended):
            raise RanksFailed(ended[event])
    if "stopped" in ended or asked_to_stop:
        return ended.get("stopped", "stopped before the first step")
    raise RanksFailed(f"the processes of the training ended with status {status}; see their output")


def _line(text: str) -> dict[str, Any]:
    """Return a line of the trainer; what libraries print goes on to stderr."""
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if isinstance(line, dict):
        return line
    sys.stderr.write(text)
    return {}


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; print a line for the process that died first, if one did."""
    die_with_parent()
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    processes, job = arguments
    # Threads of all processes together as many as one would have.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(processes))))
    chosen = ["--standalone", "--nproc_per_node", processes, "--monitor-interval", "0.2"]
    chosen += ["--shutdown-timeout", str(SECONDS_TO_SAVE)]
    run: Any = torchrun
    try:
        run.run(run.parse_args([*chosen, "-m", "ragtuned_pipeline.tuning.trainer", job]))
    except SignalException:
        return 128 + signal.SIGTERM
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                reason = (
                    f"process {rank + 1} of {processes} of the training was ended by "
                    f"{signal.Signals(-failure.exitcode).name}; was there too little memory?"
                )
                sys.stdout.write(json.dumps({"event": "died", "reason": reason}) + "\n")
                break
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
