"""Whose turn the GPU is, with real processes: a stand-in for a GPU is all that is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ragtuned_pipeline.inference.gpu_turn import GpuTurn, gpu_present
from ragtuned_pipeline_tests.deadline import with_deadline

_STEPS = """
import os, sys, time
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

home, name = Path(sys.argv[1]), sys.argv[2]
for _ in range(6):
    with GpuTurn(home, name, present=True) as turn:
        turn.wait(lambda _: None)
        os.close(os.open(home / "in use", os.O_CREAT | os.O_EXCL))
        time.sleep(0.002)
        (home / "in use").unlink()
"""

# Takes the GPU whenever it may, and at once again.
_SERVER = """
import os, sys
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

home = Path(sys.argv[1])
turn = GpuTurn(home, "a server", present=True)
times = 0
while True:
    if turn.try_take():
        os.close(os.open(home / "in use", os.O_CREAT | os.O_EXCL))
        times += 1
        if times == 1:
            print("up", flush=True)
        while not turn.is_wanted():
            pass
        (home / "in use").unlink()
        turn.release()
"""

_HOLDER = """
import sys, time
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

turn = GpuTurn(Path(sys.argv[1]), "a run of corpus 'news'", present=True)
while not turn.attempt():
    print("waits", flush=True)
    time.sleep(0.05)
print("has it", flush=True)
time.sleep(600)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def started(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return with_deadline(process)

    yield started
    for process in running:
        process.kill()
        process.communicate()


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_gpu_is_never_used_by_two_and_nobody_starves(tmp_path: Path, start: Start) -> None:
    server = start(_SERVER, str(tmp_path))
    assert _said(server) == "up"
    steps = [start(_STEPS, str(tmp_path), f"step {number}") for number in range(4)]
    for step in steps:
        _, errors = step.communicate(timeout=120)
        assert step.returncode == 0, errors
    assert server.poll() is None  # it would have ended where the GPU was in use twice


def test_a_killed_holder_frees_the_gpu(tmp_path: Path, start: Start) -> None:
    holder = start(_HOLDER, str(tmp_path))
    assert _said(holder) == "has it"
    turn, told = GpuTurn(tmp_path, "another run", present=True), list[str]()
    assert not turn.try_take()
    assert not turn.attempt()
    turn.release()

    def kill(reason: str) -> None:
        told.append(reason)
        holder.send_signal(signal.SIGKILL)

    turn.wait(kill)
    assert told == [f"the GPU is in use by process {holder.pid}, a run of corpus 'news'"]
    turn.release()


def test_a_killed_waiter_wants_the_gpu_no_more(tmp_path: Path, start: Start) -> None:
    turn = GpuTurn(tmp_path, "a server", present=True)
    assert turn.try_take()
    assert not turn.is_wanted()
    waiter = start(_HOLDER, str(tmp_path))
    assert _said(waiter) == "waits"
    assert turn.is_wanted()
    waiter.kill()
    waiter.wait()
    assert not turn.is_wanted()
    turn.release()


def test_who_waits_goes_before_who_only_takes_what_is_free(tmp_path: Path, start: Start) -> None:
    server = GpuTurn(tmp_path, "a server", present=True)
    assert server.try_take()
    waiter = start(_HOLDER, str(tmp_path))
    assert _said(waiter) == "waits"
    os.kill(waiter.pid, signal.SIGSTOP)  # it cannot take the GPU while nobody has it
    server.release()
    assert not server.try_take()
    os.kill(waiter.pid, signal.SIGCONT)
    while _said(waiter) == "waits":
        pass
    assert not server.is_wanted()
    assert not server.try_take()


def test_a_step_that_has_the_turn_shares_it_with_what_it_calls(
    tmp_path: Path, start: Start
) -> None:
    outer = GpuTurn(tmp_path, "the run", present=True)
    assert outer.attempt()
    with GpuTurn(tmp_path, "its training", present=True) as inner:
        inner.wait(pytest.fail)
        outer.release()
        waiter = start(_HOLDER, str(tmp_path))
        assert _said(waiter) == "waits"  # the training still has it
    while _said(waiter) == "waits":
        pass
    assert not outer.try_take()


def test_a_child_that_inherits_the_turn_keeps_it_when_its_owner_is_killed(
    tmp_path: Path, start: Start
) -> None:
    owner = start(
        _HOLDER.replace(
            'print("has it", flush=True)',
            "import subprocess\n"
            "child = subprocess.Popen(['sleep', '600'], pass_fds=turn.inherited())\n"
            "print(child.pid, flush=True)",
        ),
        str(tmp_path),
    )
    child = int(_said(owner))
    turn = GpuTurn(tmp_path, "another run", present=True)
    try:
        owner.kill()
        owner.wait()
        assert not turn.try_take()
    finally:
        os.kill(child, signal.SIGKILL)
    turn.wait(lambda _: None)
    turn.release()


def test_without_a_gpu_there_is_nothing_to_wait_for_and_no_file(tmp_path: Path) -> None:
    turns = [GpuTurn(tmp_path, name, present=False) for name in "ab"]
    assert all(turn.attempt() and turn.held and not turn.is_wanted() for turn in turns)
    for turn in turns:
        turn.release()
        assert not turn.held
    with GpuTurn(tmp_path, "a step", present=False) as turn:
        turn.wait(pytest.fail)
        assert not list(tmp_path.iterdir())


def test_no_gpu_is_seen_where_cuda_is_told_to_see_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_present()
