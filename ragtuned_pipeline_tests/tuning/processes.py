"""Trainers as processes: started, read, looked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "ragtuned_pipeline.tuning.trainer"]


def start(job: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, str(job)], stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What it says from now on, until it ends."""
    out, _ = process.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()]


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        line = json.loads(text)
        if line["event"] == "step" and line["step"] >= step:
            return
    raise AssertionError("the trainer ended before it got there")


def at_work(folder: Path) -> dict[str, int]:
    """The processes whose command names a file in `folder`: parent, launcher, and 0, 1, ... for the
    processes that train, with their numbers."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            command = (place / "cmdline").read_bytes().decode()
            environment = (place / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"{folder}/" not in command:
            continue
        ranks = [each.removeprefix("RANK=") for each in environment if each.startswith("RANK=")]
        role = "launcher" if "tuning.launch" in command else "parent"
        found[ranks[0] if ranks else role] = int(place.name)
    return found
