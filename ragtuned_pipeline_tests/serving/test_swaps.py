"""Adapters that come, go and are refused, under load: no request may notice."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ragtuned_pipeline.serving import router, service
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.serving.steady_load import History, load
from ragtuned_pipeline_tests.serving.world import (
    HTTP,
    Gateway,
    NotingEngine,
    new_adapter,
    promote,
    serving,
    until,
)

MESSAGES: list[Any] = [{"role": "user", "content": "Which are you?"}]


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(router, "_BACKOFF", (0.02, 0.05))


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def engine() -> NotingEngine:
    return NotingEngine()


def served(running: Gateway, corpus: str) -> str | None:
    found: str | None = running.health()["served"].get(corpus)
    return found


def ask(running: Gateway, corpus: str, **others: Any) -> httpx2.Response:
    body = {"model": corpus, "messages": MESSAGES, **others}
    return HTTP.post(f"{running.address}/chat/completions", json=body, timeout=30)


def answer(running: Gateway, corpus: str) -> str:
    reply = ask(running, corpus)
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content.removeprefix("it is ")


def test_no_request_fails_or_is_answered_by_another_adapter_while_adapters_are_swapped(
    adapters: Path, engine: NotingEngine
) -> None:
    corpora = ["harbour", "valley"]
    engine.pause = 0.004
    history = History()
    for corpus in corpora:
        history.promote(adapters, corpus, new_adapter(adapters, corpus, "0"))
    with serving(engine, adapters) as running, load(running.address, corpora, MESSAGES) as done:
        for number in range(1, 21):
            corpus = corpora[number % 2]
            # Every third goes back to the one before, which may not have been unloaded yet.
            content = history.before(corpus) if number % 3 == 0 and number > 3 else None
            history.promote(adapters, corpus, content or new_adapter(adapters, corpus, str(number)))
            until(lambda c=corpus: served(running, c) == history.last(c))
            history.seen(corpus)
            enough = len(done) + 5
            until(lambda n=enough: len(done) >= n)
        until(lambda: len(engine.loaded) == 2)  # the replaced ones are gone

    assert [each for each in done if each.failed] == []
    assert [each for each in done if each.answer.split()[-1] not in history.allowed(each)] == []


def test_a_promotion_that_the_engine_does_not_take_leaves_the_old_one_answering(
    adapters: Path, engine: NotingEngine
) -> None:
    old = promote(adapters, "harbour", "old")
    with serving(engine, adapters) as running:
        new = new_adapter(adapters, "harbour", "new")
        engine.refused.add(new)
        adapter_store.promote(adapters, "harbour", new)
        until(lambda: "harbour" in running.health()["not_served"])

        health = running.health()
        assert health["code"] == 200
        assert health["served"] == {"harbour": old}
        assert health["not_served"] == {"harbour": f"no room for {new}"}
        assert answer(running, "harbour") == old
        until(
            lambda: (
                running.metrics().get('ragtuned_swaps_total{corpus="harbour",outcome="failed"}', 0)
                > 2
            )
        )
        told = [line for line in running.said if "no room" in line]
        assert told == [
            f"harbour: adapter {new} cannot be served: no room for {new}; adapter {old} goes on"
        ]

        engine.refused.clear()  # it is tried again
        until(lambda: served(running, "harbour") == new)
        assert running.health()["not_served"] == {}
        assert answer(running, "harbour") == new


def test_a_rollback_finds_the_old_one_still_loaded(adapters: Path, engine: NotingEngine) -> None:
    old = promote(adapters, "harbour", "old")
    engine.pause = 0.2
    with serving(engine, adapters) as running:
        until(lambda: served(running, "harbour") == old)
        long = threading.Thread(target=lambda: replies.append(answer(running, "harbour")))
        replies: list[str] = []
        long.start()
        until(lambda: engine.running == 1)
        new = promote(adapters, "harbour", "new")
        until(lambda: served(running, "harbour") == new)
        adapter_store.promote(adapters, "harbour", old)
        until(lambda: served(running, "harbour") == old)
        long.join()
        until(lambda: engine.unloaded == [f"harbour@{new}"])
        assert replies == [old]
        assert answer(running, "harbour") == old


def test_an_answer_longer_than_drain_seconds_is_cut_short_and_says_so(
    adapters: Path, engine: NotingEngine
) -> None:
    old = promote(adapters, "harbour", "old")
    engine.pause = 0.3
    with serving(engine, adapters, drain_seconds=0.1) as running:
        until(lambda: served(running, "harbour") == old)
        replies: list[httpx2.Response] = []
        asking = [
            threading.Thread(
                target=lambda s=stream: replies.append(ask(running, "harbour", stream=s))
            )
            for stream in (False, True)
        ]
        for thread in asking:
            thread.start()
        until(lambda: engine.running == 2)
        time.sleep(0.35)  # the stream has begun
        promote(adapters, "harbour", "new")
        for thread in asking:
            thread.join()
        until(lambda: engine.unloaded == [f"harbour@{old}"])

    by_status = {reply.status_code: reply for reply in replies}
    assert sorted(by_status) == [200, 503]
    assert "serving.drain_seconds" in by_status[503].json()["error"]["message"]
    assert by_status[503].headers["Retry-After"] == "1"
    *_, error, end = by_status[200].text.strip().split("\n\n")
    assert "serving.drain_seconds" in error
    assert end == "data: [DONE]"


def test_a_corpus_comes_and_is_forgotten_while_the_gateway_runs(
    adapters: Path, engine: NotingEngine
) -> None:
    with serving(engine, adapters) as running:
        assert running.health()["served"] == {}
        assert ask(running, "harbour").status_code == 404
        content = promote(adapters, "harbour", "one")
        until(lambda: served(running, "harbour") == content)
        (adapters / "harbour").rename(adapters / ".gone")
        until(lambda: served(running, "harbour") is None)
        until(lambda: engine.loaded == {})
        assert ask(running, "harbour").status_code == 404


def test_only_the_corpora_that_are_named_are_served(adapters: Path, engine: NotingEngine) -> None:
    promote(adapters, "harbour", "one")
    promote(adapters, "valley", "one")
    with serving(engine, adapters, corpora=("valley", "hill")) as running:
        until(lambda: served(running, "valley") is not None)
        health = running.health()
        assert sorted(health["served"]) == ["valley"]
        assert "promoted" in health["not_served"]["hill"]


def test_an_adapter_of_another_base_model_is_not_served(
    adapters: Path, engine: NotingEngine
) -> None:
    promote(adapters, "harbour", "one")
    content = new_adapter(adapters, "valley", "one", base_model="Qwen/Qwen2.5-7B-Instruct")
    adapter_store.promote(adapters, "valley", content)
    with serving(engine, adapters) as running:
        until(lambda: served(running, "harbour") is not None)
        reason = running.health()["not_served"]["valley"]
        assert "Qwen/Qwen2.5-7B-Instruct" in reason
        assert "tuning.base_model" in reason
        assert f"valley@{content}" not in engine.loaded


def test_an_adapter_that_is_not_whole_stops_no_other(adapters: Path, engine: NotingEngine) -> None:
    promote(adapters, "harbour", "one")
    content = promote(adapters, "valley", "one")
    (adapters / "valley" / content / "base_model.json").write_text("{", encoding="utf-8")
    with serving(engine, adapters) as running:
        until(lambda: served(running, "harbour") is not None)
        assert "cannot be read" in running.health()["not_served"]["valley"]


@pytest.fixture
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(service, "_RESTART_BACKOFF", 0.0)
    return None


@pytest.mark.usefixtures("_no_backoff")
def test_an_engine_that_ends_is_started_again(adapters: Path, engine: NotingEngine) -> None:
    content = promote(adapters, "harbour", "one")
    with serving(engine, adapters) as running:
        until(lambda: served(running, "harbour") == content)
        engine.start_gate.clear()
        engine.ended = "the engine ended: a bug"
        reply = ask(running, "harbour")
        assert reply.status_code == 503
        assert reply.headers["Retry-After"] == "5"
        assert "a bug" in reply.json()["error"]["message"]
        health = running.health()
        assert (health["code"], health["status"]) == (503, "unavailable")
        assert "a bug" in health["reason"]
        assert health["served"] == {}
        assert HTTP.get(f"{running.address}/models").status_code == 503
        running.call(engine.start_gate.set)
        until(lambda: served(running, "harbour") == content)
        assert answer(running, "harbour") == content
        assert running.metrics()["ragtuned_engine_starts_total"] == 2


@pytest.mark.usefixtures("_no_backoff")
def test_an_engine_that_ends_again_and_again_is_given_up(
    adapters: Path, engine: NotingEngine
) -> None:
    with serving(engine, adapters) as running:
        for life in range(1, 6):
            until(lambda n=life: engine.starts == n and running.service.why_not() is None)
            engine.ended = "the engine ended: a bug"
            until(lambda: running.service.why_not() is not None)
        until(lambda: engine.closes == 5)
    assert str(running.failed) == "the engine ended: a bug; 5 times in a row"


def test_a_promotion_that_needs_another_start_gets_it(adapters: Path, engine: NotingEngine) -> None:
    promote(adapters, "valley", "one")
    with serving(engine, adapters) as running:
        until(lambda: served(running, "valley") is not None)
        content = new_adapter(adapters, "harbour", "one")
        engine.restart_for.add(content)
        adapter_store.promote(adapters, "harbour", content)
        until(lambda: served(running, "harbour") == content)
        assert engine.starts == 2
        assert sorted(running.health()["served"]) == ["harbour", "valley"]
        assert "a higher rank; the engine is started anew for it" in running.said
