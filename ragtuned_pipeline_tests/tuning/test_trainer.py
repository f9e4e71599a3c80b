"""The trainer as a process: killed, stopped, orphaned, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline_tests.tuning.conftest import FRAMES, job_file, rows, write_rows
from ragtuned_pipeline_tests.tuning.processes import COMMAND, lines, start, wait_for_step

WEIGHTS = "adapter/adapter_model.safetensors"


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    settings = TuningSettings(epochs=12, batch_size=16, checkpoint_steps=10)
    given = write_rows(rows(FRAMES), tmp_path / "rows.parquet")
    return job_file(tmp_path, given, settings)


def test_a_killed_training_goes_on_to_the_weights_of_an_undisturbed_one(
    job: Path, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    content = json.loads(job.read_text()) | {"output": str(undisturbed / "run")}
    (undisturbed / "job.json").write_text(json.dumps(content))
    whole = lines(start(undisturbed / "job.json"))

    killed = start(job)
    wait_for_step(killed, 24)
    killed.kill()
    killed.wait()
    # A kill in the middle of a save leaves a torn checkpoint: it must not be gone on from.
    torn = tmp_path / "run" / "checkpoint-40"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": 4')
    resumed = lines(start(job))

    assert resumed[-1]["event"] == whole[-1]["event"] == "done"
    assert resumed[-1]["resumed_from_step"] in (10, 20, 30)
    assert whole[-1]["resumed_from_step"] == 0
    assert resumed[-1]["losses"][-1] == whole[-1]["losses"][-1]
    a, b = load_file(tmp_path / "run" / WEIGHTS), load_file(undisturbed / "run" / WEIGHTS)
    assert all((a[name] == b[name]).all() for name in a)


def test_a_stopped_training_saves_first(job: Path, tmp_path: Path) -> None:
    process = start(job)
    wait_for_step(process, 2)
    process.send_signal(signal.SIGTERM)
    told = lines(process)
    assert process.returncode == 143
    assert told[-1]["event"] == "stopped"
    assert list((tmp_path / "run").glob("checkpoint-*"))


def test_a_trainer_dies_with_its_parent(job: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({[*COMMAND, str(job)]!r}, stdout=subprocess.PIPE, text=True)\n"
        "for line in child.stdout:\n"
        "    if '\"step\"' in line: break\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(300):
        if not alive(child):
            return
        time.sleep(0.1)
    raise AssertionError("the trainer outlived its parent")


def test_a_wrong_setting_is_one_sentence_and_status_1(tmp_path: Path) -> None:
    settings = TuningSettings(base_model="/nowhere/model")
    given = write_rows(rows(FRAMES[:1]), tmp_path / "rows.parquet")
    process = start(job_file(tmp_path, given, settings))
    told = lines(process)
    assert process.returncode == 1
    assert told[-1]["event"] == "failed"
    assert told[-1]["reason"].startswith("setting tuning.base_model: /nowhere/model")
