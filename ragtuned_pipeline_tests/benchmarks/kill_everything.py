"""kill -9 at random moments of a whole run, from the folder to the promoted adapter.

    python -m ragtuned_pipeline_tests.benchmarks.kill_everything [KILLS] [SEED]

A small corpus is run by the command line; now the whole process group is killed, now the trainer
alone, now the run without its trainer. Each time a run comes to its end, it is compared with one
that nobody killed: every table, every adapter, what answers, and what is left lying about.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.promotion_history import history
from ragtuned_pipeline.orchestration.runs import prepare_environment
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline_tests.conftest import HARBOUR

CORPUS = "harbour"
SETTINGS = """
[tuning]
time_budget_minutes = 0.15
checkpoint_steps = 10
[evaluation]
questions_per_set = 20
local_queries = 10
global_queries = 5
control_facts = 6
"""
_TRAINER = "ragtuned_pipeline.orchestration.trainer_process"


def run(home: Home) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "ragtuned_pipeline.cli", "run", str(HARBOUR)]
    return subprocess.Popen(
        [*command, "--name", CORPUS, "--home", str(home.folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def trainers() -> list[int]:
    """Return the trainer processes of this machine."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if _TRAINER.encode() in command:
            found.append(int(process.name))
    return found


def kill(process: subprocess.Popen[bytes], whom: str) -> None:
    """Kill what `whom` says: "all", the "trainer" (all where none runs), or the "run" itself."""
    alive = trainers()
    if whom == "trainer" and alive:
        os.kill(alive[0], signal.SIGKILL)
        process.wait()
    elif whom == "run":
        os.kill(process.pid, signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def state(home: Home) -> dict[str, Any]:
    """Return what a run ends in, without times."""
    store = TableStore(home.tables)
    names = sorted(path.name for path in Path(home.tables).iterdir())
    card = json.loads((home.report(CORPUS) / "scorecard.json").read_text(encoding="utf-8"))
    last = history(home, CORPUS)[-1]
    return {
        "tables": {name: content_hash(_timeless(store.read(name, CORPUS))) for name in names},
        "adapters": sorted(p.name for p in (home.adapters / CORPUS).iterdir() if len(p.name) == 20),
        "answers": (home.adapters / CORPUS / "current").resolve().name,
        "last decision": (last.what, last.adapter),
        "systems": sorted(card["systems"]),
    }


def _timeless(data: pa.Table) -> pa.Table:
    if "seconds" in data.column_names:
        return data.drop_columns(["seconds"])
    if "measure" in data.column_names and "value" in data.column_names:
        return data.filter(pc.not_equal(data["measure"], "seconds"))
    return data


def lying_about(home: Home) -> Iterator[str]:
    """Name what should not be left at the end."""
    yield from (f"trainer {number}" for number in trainers())
    yield from (str(path) for path in home.folder.rglob("*.tmp"))
    prepare_environment(home)
    with dg.DagsterInstance.get() as instance:
        unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
        for each in instance.get_runs(dg.RunsFilter(statuses=unfinished)):
            yield f"run {each.run_id} is {each.status.value}"
        for key in instance.event_log_storage.get_concurrency_keys():
            slots = instance.event_log_storage.get_concurrency_info(key)
            if slots.active_slot_count:
                yield f"{slots.active_slot_count} claimed slots of the pool {key}"


def finish(home: Home) -> float:
    """Let a run end; return its seconds.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    process = run(home)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode()[-2000:])
    return time.monotonic() - started


def main(kills: int, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = _home(Path(folder, "undisturbed"))
        whole = finish(undisturbed)
        expected = state(undisturbed)
        print(f"undisturbed: {whole:.0f} s", flush=True)
        killed = chains = 0
        while killed < kills:
            chains += 1
            home = _home(Path(folder, f"killed-{chains}"))
            killed += _killed_to_the_end(home, draw, whole, kills - killed)
            got = state(home)
            different = [name for name in expected if expected[name] != got[name]]
            left = list(lying_about(home))
            print(f"chain {chains}: different: {different or 'nothing'}; left: {left or 'nothing'}")
            for name in different:
                print(f"  undisturbed {expected[name]}\n  killed      {got[name]}", flush=True)


def _killed_to_the_end(home: Home, draw: random.Random, whole: float, most: int) -> int:
    """Kill runs of one home until one ends by itself; return how many were killed."""
    killed = 0
    while True:
        process = run(home)
        whom = draw.choice(["all", "all", "trainer", "run"])
        after = draw.uniform(2, 0.5 * whole)
        try:
            process.wait(after if killed < most else None)
        except subprocess.TimeoutExpired:
            kill(process, whom)
            killed += 1
            print(f"killed {whom} after {after:.0f} s", flush=True)
            continue
        if process.returncode:
            raise RuntimeError((process.stderr.read() if process.stderr else b"").decode()[-2000:])
        return killed


def _home(folder: Path) -> Home:
    folder.mkdir()
    (folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    return Home(folder)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [30, 0][len(numbers) :]))
