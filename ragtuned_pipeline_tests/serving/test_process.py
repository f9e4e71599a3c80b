"""The gateway among other processes: who has the GPU, signals, a second server of one home."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.orchestration import serving_home
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.serving_home import (
    AlreadyServed,
    base_model_of,
    running_server,
    serve_home,
)
from ragtuned_pipeline.serving import service
from ragtuned_pipeline.serving.promoted import PromotedAdapters
from ragtuned_pipeline.serving.vllm_engine import VllmServing
from ragtuned_pipeline.settings import SettingsError, load_settings
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.deadline import with_deadline
from ragtuned_pipeline_tests.serving.world import (
    HTTP,
    NotingEngine,
    new_adapter,
    promote,
    serving,
    until,
)

MESSAGES = [{"role": "user", "content": "Which are you?"}]

TRAINING = """
import sys
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

with GpuTurn(Path(sys.argv[1]), "a run of corpus 'news'", present=True) as turn:
    turn.wait(lambda _: None)
    print("has it", flush=True)
    sys.stdin.read()
"""

# `ragtuned serve`, with another engine; its answers take a second.
SERVER = """
import sys
from ragtuned_pipeline.orchestration import serving_home
from ragtuned_pipeline_tests.serving.world import NotingEngine

class Slow(NotingEngine):
    async def close(self):
        await super().close()
        print("closed", flush=True)

def engine(*_):
    made = Slow()
    made.pause = 0.4
    return made

serving_home._engine = engine
from ragtuned_pipeline.cli import main
main()
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield with_deadline(process)
    process.communicate()


def test_the_gpu_is_given_to_a_training_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(service, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(service, "_SETTLE_SECONDS", 0.1)
    engine = NotingEngine()
    engine.pause = 0.5
    content = promote(tmp_path / "adapters", "harbour", "one")
    body = {"model": "harbour", "messages": MESSAGES}
    turn = GpuTurn(tmp_path, "ragtuned serve", present=True)
    with serving(engine, tmp_path / "adapters", turn=turn) as running:
        url = f"{running.address}/chat/completions"
        until(lambda: running.health()["served"] == {"harbour": content})
        replies: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: replies.append(HTTP.post(url, json=body)))
        asking.start()
        until(lambda: engine.running == 1)
        training = request.getfixturevalue("training")  # it waits for the GPU now
        until(lambda: running.health()["code"] == 503)
        refused = HTTP.post(url, json=body)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "30"
        asking.join()
        assert replies[0].status_code == 200  # what ran was finished

        assert training.stdout.readline() == "has it\n"
        assert engine.closes == 1
        until(lambda: "a run of corpus 'news'" in running.health()["reason"])
        training.communicate()
        until(lambda: running.health()["code"] == 200)
        assert engine.starts == 2
        assert HTTP.post(url, json=body).status_code == 200


class Stuck(NotingEngine):
    """Never done with its start, or with an adapter."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.stuck = False

    async def start(self) -> None:
        await (self._hang() if self.at == "start" else super().start())

    async def load(self, adapter: str, folder: Path) -> None:
        await self._hang()

    async def _hang(self) -> None:
        self.stuck = True
        await asyncio.Event().wait()


@pytest.mark.parametrize("at", ["start", "load"])
def test_the_gpu_is_given_away_while_the_engine_starts_or_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(service, "_LOOK_EVERY", 0.01)
    promote(tmp_path / "adapters", "harbour", "one")
    engine = Stuck(at)
    turn = GpuTurn(tmp_path, "ragtuned serve", present=True)
    with serving(engine, tmp_path / "adapters", turn=turn, wait=False):
        until(lambda: engine.stuck)
        training = request.getfixturevalue("training")
        assert training.stdout.readline() == "has it\n"
        assert engine.closes == 1


@pytest.fixture
def served(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    promote(tmp_path / "adapters", "harbour", "one")
    command = [sys.executable, "-c", SERVER, "serve", "--port", "0", "--home", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_signal_lets_running_requests_end_and_then_the_engine(
    tmp_path: Path, served: subprocess.Popen[str]
) -> None:
    home = Home(tmp_path)
    until(lambda: (running_server(home) or {}).get("pid") == served.pid)
    note = running_server(home)
    assert note is not None
    assert (note["engine"], note["base_model"]) == ("transformers", "embedded")
    with pytest.raises(AlreadyServed, match=note["address"]):
        serve_home(home, load_settings(tmp_path), "embedded", (), print)
    url, body = f"{note['address']}/chat/completions", {"model": "harbour", "messages": MESSAGES}
    root = note["address"].removesuffix("/v1")
    until(lambda: "harbour" in HTTP.get(f"{root}/health").json()["served"])

    replies: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: replies.append(HTTP.post(url, json=body)))
    asking.start()
    until(lambda: "ragtuned_in_flight 1.0" in HTTP.get(f"{root}/metrics").text)
    served.send_signal(signal.SIGTERM)
    asking.join()
    output, _ = served.communicate(timeout=20)

    assert replies[0].status_code == 200
    assert served.returncode == 0, output
    lines = [line.partition(" ")[2] for line in output.splitlines()]
    assert lines[0].startswith(f"serving {tmp_path} at {note['address']}")
    assert "harbour: adapter" in output
    assert lines[-2] == "the server is stopping"
    assert output.splitlines()[-1] == "closed"
    assert running_server(home) is None
    assert not (tmp_path / "serving.json").exists()


def test_what_a_killed_server_left_is_no_server(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text(json.dumps({"address": "x", "pid": os.getpid()}))
    assert running_server(Home(tmp_path)) is None
    (tmp_path / "serving.lock").touch()
    assert running_server(Home(tmp_path)) is None


def test_a_look_at_the_lock_keeps_no_server_from_starting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "serving.json").write_text("left by a server that was killed")
    with (tmp_path / "serving.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with serving_home._alone(home):
            assert running_server(home) is None  # it has not said yet where it is


def test_an_adapter_of_a_rank_that_vllm_does_not_know_stops_no_other(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    for corpus, rank in (("harbour", 16), ("valley", 1024)):
        content = new_adapter(adapters, corpus, "x", rank=rank)
        adapter_store.promote(adapters, corpus, content)
    settings = load_settings(tmp_path, overrides={"serving": {"engine": "vllm"}})
    look = PromotedAdapters(adapters, "embedded")
    engine = serving_home._engine(Home(tmp_path), settings, "embedded", look, None)
    assert isinstance(engine, VllmServing)
    assert engine._rank == 16


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "gateway.example"])
def test_off_loopback_a_key_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv("RAGTUNED_API_KEY", raising=False)
    settings = load_settings(tmp_path, overrides={"serving": {"host": host}})
    with pytest.raises(SettingsError, match="RAGTUNED_API_KEY"):
        serve_home(Home(tmp_path), settings, "embedded", (), print)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with serving(NotingEngine(), tmp_path / "adapters") as running:
        port = int(running.root.rpartition(":")[2])
        settings = load_settings(tmp_path, overrides={"serving": {"port": port}})
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port} cannot be had"):
            serve_home(Home(tmp_path), settings, "embedded", (), print)


def test_the_base_model_is_the_one_that_the_corpora_name(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for corpus, base_model in (("harbour", "Org/A"), ("valley", "Org/B"), ("hill", "Org/A")):
        documents = tmp_path / "documents" / corpus
        documents.mkdir(parents=True)
        home.register(corpus, documents, None, {"tuning": {"base_model": base_model}})
    assert base_model_of(home, (), "embedded") == "embedded"  # nothing is promoted
    promote(home.adapters, "harbour", "one")
    assert base_model_of(home, (), "embedded") == "Org/A"
    assert base_model_of(home, ("valley",), "embedded") == "Org/B"
    promote(home.adapters, "valley", "one")
    assert base_model_of(home, (), "embedded") == "embedded"
    assert base_model_of(home, ("harbour", "hill"), "embedded") == "Org/A"
