"""The managed vLLM server: real processes and sockets, with a stand-in for vLLM's own program."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from ragtuned_pipeline.inference import vllm_server
from ragtuned_pipeline.inference.backend import Request, RequestFailed
from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER, identity, settled_template
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.vllm_server import (
    ManagedVllm,
    VllmServer,
    _template_arguments,
    serve,
)
from ragtuned_pipeline.settings import TeacherSettings, VllmSettings
from ragtuned_pipeline_tests.vllm_stand_in import alive, started

TEACHER = TeacherSettings(engine="vllm")


def settings(mode: str = "", **others: object) -> VllmSettings:
    arguments = ("--mode", mode) if mode else ()
    return VllmSettings(arguments=arguments, **others)


def free(address: str) -> bool:
    with socket.socket() as port, contextlib.suppress(OSError):
        port.bind(("127.0.0.1", urlsplit(address).port))
        return True
    return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while alive(pids):
        assert time.monotonic() < deadline, f"{alive(pids)} stay"
        time.sleep(0.05)


def request(text: str = "Hello") -> Request:
    schema = {"type": "object", "properties": {}}
    return Request([{"role": "user", "content": text}], "Any", schema, 8, 0.0, 1)


def test_a_server_is_up_in_the_block_and_gone_after_it(stand_in: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "vllm.log"
    with serve("embedded", settings(), log) as address:
        assert address.endswith("/v1")
        models = httpx2.get(f"{address}/models", trust_env=False).json()
        assert models["data"][0]["id"] == identity("embedded")
        assert not free(address)
        pids = started(stand_in)
        assert alive(pids) == pids
        assert os.getsid(pids[0]) == pids[0]
    assert alive(pids) == []
    assert free(address)
    assert "starting" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_a_server_is_stopped_whatever_ends_the_block(
    stand_in: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), serve("embedded", settings(), tmp_path / "log") as address:
        raise error
    assert alive(started(stand_in)) == []
    assert free(address)


def test_a_server_is_stopped_with_the_generator_that_uses_it(
    stand_in: Path, tmp_path: Path
) -> None:
    def use() -> Iterator[str]:
        with serve("embedded", settings(), tmp_path / "log") as address:
            yield address

    using = use()
    next(using)
    assert len(alive(started(stand_in))) == 2
    using.close()
    assert alive(started(stand_in)) == []


def test_the_last_error_tells_why_a_server_ended_while_it_started(
    stand_in: Path, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    with (
        pytest.raises(
            TeacherStopped, match=r"ended \(exit status 3\): ValueError: no room"
        ) as said,
        serve("embedded", settings("die"), log),
    ):
        pytest.fail("it is not up")
    assert str(log) in str(said.value)
    assert alive(started(stand_in)) == []


def test_an_exit_status_that_is_no_signal_is_told(stand_in: Path, tmp_path: Path) -> None:
    """255 is what a Python that cannot write its last words, or a program's exit(-1), ends with."""
    server = VllmServer("embedded", "it", settings("exit 255"), tmp_path / "vllm.log")
    with pytest.raises(TeacherStopped, match=r"ended \(exit status 255\): starting"):
        server.up.result(timeout=60)
    server.stop()


@pytest.fixture
def thinking(tmp_path: Path) -> Path:
    """A model whose template may think first, as Qwen3's, which is settled."""
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "thinking")
    file = model / "chat_template.jinja"
    own = file.read_text(encoding="utf-8")
    file.write_text("{%- if enable_thinking %}<think>{% endif %}" + own, encoding="utf-8")
    return model


@pytest.mark.parametrize("max_rank", [0, 8])
def test_every_server_asks_by_the_settled_template(
    stand_in: Path, tmp_path: Path, thinking: Path, max_rank: int
) -> None:
    managed = ManagedVllm(str(thinking), TEACHER, settings(), tmp_path / "logs", max_rank)
    given = json.loads(asyncio.run(managed.backend().reply(request())).text)
    managed.stop()
    assert Path(given["--chat-template"]).read_text() == settled_template(str(thinking))
    assert not list((tmp_path / "logs").glob(".*")), "nothing half is left"


def test_a_template_of_the_users_own_is_the_only_one(
    stand_in: Path, tmp_path: Path, thinking: Path
) -> None:
    own = VllmSettings(arguments=("--chat-template", "mine.jinja"))
    managed = ManagedVllm(str(thinking), TEACHER, own, tmp_path / "logs")
    given = json.loads(asyncio.run(managed.backend().reply(request())).text)
    managed.stop()
    assert given["--chat-template"] == "mine.jinja"
    assert not list((tmp_path / "logs").glob("*.jinja"))


def test_servers_of_several_models_share_no_template(
    stand_in: Path, tmp_path: Path, thinking: Path
) -> None:
    other = shutil.copytree(thinking, tmp_path / "other")
    file = other / "chat_template.jinja"
    file.write_text("{%- set other = true %}" + file.read_text(), encoding="utf-8")
    settled = {str(each): settled_template(str(each)) for each in (thinking, other)}
    places = {
        model: Path(_template_arguments(model, tmp_path, ())[1]) for model in (*settled, *settled)
    }
    assert {model: place.read_text() for model, place in places.items()} == settled


def test_a_model_without_a_template_stops_the_run_with_a_sentence(
    stand_in: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "plain")
    (model / "chat_template.jinja").unlink()
    (failed,) = failures(ManagedVllm(str(model), TEACHER, settings(), tmp_path / "logs"))
    assert "has no chat template" in failed.reason
    assert not stand_in.exists()


def test_a_server_that_is_not_up_in_time_is_stopped(stand_in: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(TeacherStopped, match=r"not up after 1\.5 s .*starting.*start_seconds"),
        serve("embedded", settings("hang", start_seconds=1.5), tmp_path / "log"),
    ):
        pytest.fail("it is not up")
    assert alive(started(stand_in)) == []


OWNER = """
import sys, threading
from pathlib import Path
from ragtuned_pipeline.inference.vllm_server import serve
from ragtuned_pipeline.settings import VllmSettings

def own():
    with serve("embedded", VllmSettings(arguments={arguments}), Path(sys.argv[1])) as up:
        print(up, flush=True)
        threading.Event().wait()

threading.Thread(target=own).start()
"""


@pytest.mark.parametrize("mode", ["", "hang", "stubborn"])
def test_nothing_outlives_a_killed_owner(stand_in: Path, tmp_path: Path, mode: str) -> None:
    code = OWNER.format(arguments=("--mode", mode) if mode else ())
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    with owner:
        if mode == "hang":
            while not stand_in.exists() or len(started(stand_in)) < 2:
                time.sleep(0.05)
        else:
            owner.stdout.readline()
        pids = started(stand_in)
        assert alive(pids) == pids
        owner.send_signal(signal.SIGKILL)
    wait_until_gone(pids)


def test_the_server_ends_with_its_supervisor(stand_in: Path, tmp_path: Path) -> None:
    with serve("embedded", settings(), tmp_path / "log"):
        server = started(stand_in)[0]
        supervisor = int(Path(f"/proc/{server}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(supervisor, signal.SIGKILL)
        wait_until_gone([server])
    os.kill(started(stand_in)[1], signal.SIGKILL)


def test_steps_share_a_server_that_the_first_request_starts(stand_in: Path, tmp_path: Path) -> None:
    managed = ManagedVllm("embedded", TEACHER, settings(), tmp_path)
    first, second = managed.backend(), managed.backend()
    assert first.identity == identity("embedded")
    assert not stand_in.exists()

    async def ask() -> list[str]:
        replies = await asyncio.gather(*(each.reply(request()) for each in (first, second) * 4))
        await first.close()
        replies.append(await second.reply(request()))
        await second.close()
        return [reply.text for reply in replies]

    assert len(asyncio.run(ask())) == 9
    pids = started(stand_in)
    assert len(pids) == 2
    managed.stop()
    assert alive(pids) == []
    managed.stop()


def test_a_run_without_requests_starts_nothing(stand_in: Path, tmp_path: Path) -> None:
    managed = ManagedVllm("embedded", TEACHER, settings(), tmp_path)
    asyncio.run(managed.backend().close())
    managed.stop()
    assert not stand_in.exists()


def failures(managed: ManagedVllm, text: str = "Hello") -> list[RequestFailed]:
    """Ask until the run must stop; return why each request failed."""

    async def ask() -> list[RequestFailed]:
        backend = managed.backend()
        failed: list[RequestFailed] = []
        while not (failed and failed[-1].refused):
            try:
                await backend.reply(request(text))
            except RequestFailed as error:
                failed.append(error)
            await asyncio.sleep(0.05)
        await backend.close()
        return failed

    failed = asyncio.run(ask())
    managed.stop()
    return failed


def test_a_server_that_ends_while_it_starts_stops_the_run(stand_in: Path, tmp_path: Path) -> None:
    (failed,) = failures(ManagedVllm("embedded", TEACHER, settings("die"), tmp_path))
    assert "no room for a cache" in failed.reason
    assert str(tmp_path / "vllm.log") in failed.reason


def test_a_server_that_ends_later_stops_the_run(stand_in: Path, tmp_path: Path) -> None:
    *lost, failed = failures(ManagedVllm("embedded", TEACHER, settings(), tmp_path), "die")
    assert all(each.again for each in lost)
    assert "ended (exit status 5): KeyError: 'a bug'" in failed.reason
    assert alive(started(stand_in)) == []


def test_a_request_that_is_given_up_does_not_wait_for_the_server(
    stand_in: Path, tmp_path: Path
) -> None:
    managed = ManagedVllm("embedded", TEACHER, settings("hang"), tmp_path)

    async def give_up() -> None:
        asked = asyncio.create_task(managed.backend().reply(request()))
        while not stand_in.exists() or len(started(stand_in)) < 2:
            await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert asked.cancelled()

    asyncio.run(give_up())
    managed.stop()
    assert alive(started(stand_in)) == []


def test_where_vllm_is_missing_the_error_names_both_ways_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.delenv("RAGTUNED_VLLM_PYTHON", raising=False)
    (failed,) = failures(ManagedVllm("embedded", TEACHER, settings(), tmp_path))
    assert "pip install -e '.[gpu]'" in failed.reason
    assert "make vllm-cpu" in failed.reason
    monkeypatch.setenv("RAGTUNED_VLLM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(TeacherStopped, match="no Python interpreter"):
        vllm_server.interpreter()
    monkeypatch.setenv("RAGTUNED_VLLM_PYTHON", sys.executable)
    assert vllm_server.interpreter() == Path(sys.executable)
