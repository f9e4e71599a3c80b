"""The teacher against a real server: nothing is lost or paid twice, and it knows when to stop."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from ragtuned_pipeline.inference.backend import RawReply, Request
from ragtuned_pipeline.inference.calls import Call, Completed, Failed, Outcome, TeacherStopped
from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Usage
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.openai_backend import OpenAIBackend
from ragtuned_pipeline.inference.teacher import LlmTeacher
from ragtuned_pipeline.settings import BudgetSettings, TeacherSettings
from ragtuned_pipeline_tests.chat_server import Answer, ChatServer

SCOPE = Scope("run", "corpus")


class Echo(BaseModel):
    said: str
    words: list[str] = Field(default_factory=list)


def echo(request: dict[str, Any]) -> dict[str, Any]:
    """Repeat the first message: what was asked, whatever was said about it later."""
    said = request["messages"][0]["content"]
    return {"said": said, "words": said.split()}


def call(item: str, text: str | None = None, step: str = "step", **more: Any) -> Call[Echo]:
    return Call(step, item, tuple(chat(text or f"Say {item}.")), Echo, 100, **more)


def calls(count: int) -> list[Call[Echo]]:
    return [call(f"item {n}") for n in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CompletionStore]:
    with CompletionStore(tmp_path / "completions.sqlite") as opened:
        yield opened


def settings(server: ChatServer | str, **more: Any) -> TeacherSettings:
    address = server if isinstance(server, str) else server.address
    given = {"model": "m", "concurrency": 8, "timeout_seconds": 60, **more}
    return TeacherSettings(engine="openai", address=address, **given)


def teacher(
    made: TeacherSettings,
    store: CompletionStore,
    budget: BudgetSettings | None = None,
    scope: Scope = SCOPE,
) -> LlmTeacher:
    return LlmTeacher(
        OpenAIBackend(made), made, store, budget or BudgetSettings(), scope, backoff_seconds=0.01
    )


def answers(
    made: TeacherSettings,
    store: CompletionStore,
    asked: Iterable[Call[Echo]],
    budget: BudgetSettings | None = None,
    scope: Scope = SCOPE,
) -> list[Outcome[Echo]]:
    with teacher(made, store, budget, scope) as opened:
        return list(opened.complete(asked))


def until_stopped(
    made: TeacherSettings,
    store: CompletionStore,
    asked: Iterable[Call[Echo]],
    budget: BudgetSettings | None = None,
    scope: Scope = SCOPE,
) -> tuple[list[Outcome[Echo]], str]:
    """Return the outcomes before the teacher stopped, and what it said."""
    outcomes: list[Outcome[Echo]] = []
    with teacher(made, store, budget, scope) as opened:
        # extend() keeps what came before the error.
        with pytest.raises(TeacherStopped) as stopped:
            outcomes.extend(opened.complete(asked))
        return outcomes, str(stopped.value)


def total(store: CompletionStore, scope: Scope = SCOPE) -> Usage:
    return sum(store.usage(scope).values(), Usage())


def by_item(outcomes: list[Outcome[Echo]]) -> dict[str, str | None]:
    """Return what was said about each item, None for failures; each item must be there once."""
    assert max(Counter(outcome.call.item_id for outcome in outcomes).values()) == 1
    return {
        outcome.call.item_id: outcome.value.said if isinstance(outcome, Completed) else None
        for outcome in outcomes
    }


def test_each_call_is_answered_with_its_own_reply(store: CompletionStore) -> None:
    with ChatServer(echo) as server:
        outcomes = answers(settings(server), store, calls(50))
    assert by_item(outcomes) == {f"item {n}": f"Say item {n}." for n in range(50)}
    assert server.requests == 50
    usage = store.usage(SCOPE)["step"]
    assert (usage.calls, usage.completed, usage.retries, usage.failed) == (50, 50, 0, 0)
    assert usage.prompt_tokens == sum(o.prompt_tokens for o in outcomes if isinstance(o, Completed))


def test_a_second_run_asks_nothing(store: CompletionStore) -> None:
    with ChatServer(echo) as server:
        first = answers(settings(server), store, calls(20))
        again = answers(settings(server), store, calls(30), scope=Scope("second", "corpus"))
    assert server.requests == 30
    stored = [o for o in again if isinstance(o, Completed) and o.stored]
    assert len(stored) == 20
    assert {o.call.item_id: (o.value, o.completion_tokens) for o in stored} == {
        o.call.item_id: (o.value, o.completion_tokens) for o in first if isinstance(o, Completed)
    }
    usage = total(store, Scope("second", "corpus"))
    assert (usage.calls, usage.hits) == (10, 20)


def test_thirty_percent_of_mixed_faults_lose_nothing(store: CompletionStore) -> None:
    with ChatServer(echo, faults=0.3, slow_seconds=0.5) as server:
        outcomes = answers(settings(server, max_attempts=3), store, calls(200))
    assert len(server.faults) == 12  # every kind of fault was met
    said = by_item(outcomes)
    assert said.keys() == {f"item {n}" for n in range(200)}
    assert all(text in (None, f"Say {item}.") for item, text in said.items())
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert failed  # three attempts are few
    assert all(outcome.attempts == 3 and outcome.reason for outcome in failed)
    usage = total(store)
    assert server.requests == usage.calls == usage.completed + usage.retries + usage.failed
    assert usage.completed == 200 - len(failed) == store.count() == server.replies.total()
    assert usage.failed == len(failed)
    assert usage.retries == server.faults.total() - len(failed)


@pytest.mark.parametrize("fault", ["drop_before", "drop_mid", "503", "429"])
def test_connection_errors_and_busy_servers_are_retried(fault: str, store: CompletionStore) -> None:
    """Peers' defect 5: their retries skip connection errors and 503."""
    with ChatServer(echo, faults=0.5, kinds=(fault,)) as server:
        outcomes = answers(settings(server, max_attempts=30), store, calls(30))
    assert None not in by_item(outcomes).values()
    assert server.faults[fault] == total(store).retries > 5
    # A transport fault changes nothing about what is asked.
    assert len({(str(b["messages"]), b["seed"]) for b in server.bodies}) == 30


def test_requests_really_run_at_once(store: CompletionStore) -> None:
    """Peers' defect 5: "threaded" mode runs on one thread."""
    with ChatServer(echo, latency=0.5) as server:
        answers(settings(server, concurrency=12), store, calls(24))
    assert server.most_at_once == 12


def test_waiting_for_another_attempt_holds_no_slot(store: CompletionStore) -> None:
    """With one slot, an item that waits lets another one pass."""

    def reply(request: dict[str, Any]) -> Any:
        if "item 0" in str(request) and server.requests == 1:
            return Answer(503, {}, {"Retry-After": "0.3"})
        return echo(request)

    with ChatServer(reply) as server:
        outcomes = answers(settings(server, concurrency=1), store, calls(6))
    assert "item 0" in str(server.bodies[0])
    assert "item 0" not in str(server.bodies[1])
    assert None not in by_item(outcomes).values()


def test_the_server_says_how_long_to_wait(store: CompletionStore) -> None:
    asked_at: list[float] = []

    def reply(request: dict[str, Any]) -> Any:
        asked_at.append(time.monotonic())
        return Answer(429, {}, {"Retry-After": "1"}) if len(asked_at) == 1 else echo(request)

    with ChatServer(reply) as server:
        answers(settings(server), store, [call("item")])
    first, second = asked_at
    assert second - first >= 0.99  # the first wait of these tests is 0.01 s otherwise


def test_an_invalid_reply_is_tried_again_with_the_reason_told(store: CompletionStore) -> None:
    def reply(request: dict[str, Any]) -> Any:
        return ["I'm sorry, I can't.", {"words": []}, {"said": "long enough"}][
            (len(request["messages"]) > 1) + ("Field required" in str(request["messages"]))
        ]

    with ChatServer(reply) as server:
        (outcome,) = answers(settings(server, seed=5), store, [call("item")])
    assert isinstance(outcome, Completed)
    assert outcome.value.said == "long enough"
    first, second, third = server.bodies
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "I'm sorry, I can't."
    assert "the model refused" in second["messages"][2]["content"]
    assert "said: Field required" in third["messages"][2]["content"]
    assert len(third["messages"]) == 3
    assert [body["seed"] for body in (first, second, third)] == [5, 6, 7]
    usage = total(store)
    assert (usage.calls, usage.completed, usage.retries, usage.failed) == (3, 1, 2, 0)
    # It is stored as the answer to what was asked at first.
    with ChatServer(reply) as server:
        (again,) = answers(settings(server, seed=5), store, [call("item")])
    assert isinstance(again, Completed)
    assert again.stored
    assert server.requests == 0


def test_a_check_of_the_calls_own_is_told_too_and_holds_for_stored_replies(
    store: CompletionStore,
) -> None:
    def no_dot(reply: Echo) -> str | None:
        return "it ends with a full stop" if reply.said.endswith(".") else None

    def reply(request: dict[str, Any]) -> Any:
        told = "ends with a full stop" in str(request["messages"][-1])
        return {"said": "fine" if told else "wrong."}

    with ChatServer(reply) as server:
        (plain,) = answers(settings(server), store, [call("item")])
        (checked,) = answers(settings(server), store, [call("item", check=no_dot)])
        (failed,) = answers(
            settings(server, max_attempts=1), store, [call("b", "Say b.", check=no_dot)]
        )
    assert isinstance(plain, Completed)
    assert isinstance(checked, Completed)
    assert (plain.value.said, checked.value.said) == ("wrong.", "fine")
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.attempts) == ("it ends with a full stop", 1)


def test_a_fault_of_the_request_fails_its_item_at_once(store: CompletionStore) -> None:
    def reply(request: dict[str, Any]) -> Any:
        too_long = "item 3" in str(request)
        return Answer(400, {"error": {"message": "too long"}}) if too_long else echo(request)

    with ChatServer(reply) as server:
        outcomes = answers(settings(server), store, calls(6))
    (failed,) = (outcome for outcome in outcomes if isinstance(outcome, Failed))
    assert (failed.call.item_id, failed.attempts) == ("item 3", 1)
    assert "too long" in failed.reason
    assert server.requests == total(store).calls == 6
    assert total(store).failed == 1


@pytest.mark.parametrize(
    "changed", [{"model": "other"}, {"temperature": 0.7}, {"seed": 43}], ids=lambda c: str(c)
)
def test_another_model_or_sampling_never_gets_an_old_reply(
    changed: dict[str, Any], store: CompletionStore
) -> None:
    """Peers' defect 1: their key leaves out model and sampling."""

    def reply(request: dict[str, Any]) -> Any:
        return {"said": f"{request['model']} {request['temperature']} {request['seed']}"}

    with ChatServer(reply) as server:
        made = settings(server)
        (old,) = answers(made, store, [call("item")])
        (new,) = answers(made.model_copy(update=changed), store, [call("item")])
        (back,) = answers(made, store, [call("item")])
    assert server.requests == 2
    assert isinstance(old, Completed)
    assert isinstance(new, Completed)
    assert isinstance(back, Completed)
    assert (new.stored, back.stored) == (False, True)
    assert old.value == back.value != new.value


def test_another_schema_or_length_never_gets_an_old_reply(store: CompletionStore) -> None:
    """Peers' defect 1."""

    def ask(field: str, max_tokens: int = 100) -> Any:
        schema = type("Echo", (Echo,), {"__annotations__": {field: str}, field: "none"})
        with ChatServer(lambda request: {"said": "x", field: field}) as server:
            asked: Call[Any] = Call("step", "item", tuple(chat("Say x.")), schema, max_tokens)
            (outcome,) = answers(settings(server), store, [asked])
        return server.requests, outcome.value.model_dump()[field]  # type: ignore[union-attr]

    assert ask("first") == (1, "first")
    assert ask("second") == (1, "second")
    assert ask("second", 200) == (1, "second")
    assert ask("first") == (0, "first")


def test_a_bad_reply_is_never_stored(store: CompletionStore) -> None:
    """Peers' defect 1: bad JSON is stored before it is validated; the item stays missing."""
    kinds = ("truncated", "wrong_schema", "refused", "refused_in_words", "flood")
    with ChatServer(echo, faults=1, kinds=kinds) as server:
        outcomes = answers(settings(server, max_attempts=2), store, calls(10))
    assert set(by_item(outcomes).values()) == {None}
    assert store.count() == 0
    with ChatServer(echo) as server:
        outcomes = answers(settings(server), store, calls(10))
    assert None not in by_item(outcomes).values()


def test_equal_calls_that_are_open_at_once_are_sent_once(store: CompletionStore) -> None:
    asked = [call(f"copy {n}", text=f"Say {n % 3}.") for n in range(30)]
    with ChatServer(echo, latency=0.05) as server:
        outcomes = answers(settings(server), store, asked)
    assert server.requests == 3
    said = by_item(outcomes)
    assert said == {f"copy {n}": f"Say {n % 3}." for n in range(30)}
    assert sum(isinstance(o, Completed) and not o.stored for o in outcomes) == 3
    usage = total(store)
    assert (usage.calls, usage.completed, usage.hits) == (3, 3, 27)


def test_equal_calls_fail_together(store: CompletionStore) -> None:
    asked: list[Call[Echo]] = [call(f"copy {n}", text="Say it.") for n in range(10)]
    with ChatServer(faults=1, kinds=("500",), latency=0.3) as server:
        outcomes = answers(settings(server, max_attempts=2), store, asked)
    assert server.requests == 2
    assert by_item(outcomes) == {f"copy {n}": None for n in range(10)}


def test_calls_are_read_only_a_little_ahead(store: CompletionStore) -> None:
    read = 0

    def many() -> Iterator[Call[Echo]]:
        nonlocal read
        for each in calls(400):
            read += 1
            yield each

    ahead = []
    with ChatServer(echo) as server, teacher(settings(server, concurrency=4), store) as opened:
        for done, _ in enumerate(opened.complete(many()), 1):
            ahead.append(read - done)
    assert max(ahead) <= 8 * 4
    assert read == 400


def test_calls_may_depend_on_earlier_outcomes_of_the_same_teacher(store: CompletionStore) -> None:
    with ChatServer(echo) as server, teacher(settings(server), store) as opened:
        first = opened.complete(calls(40))
        then = (call(f"after {outcome.call.item_id}", step="second") for outcome in first)
        outcomes = list(opened.complete(then))
    assert by_item(outcomes).keys() == {f"after item {n}" for n in range(40)}
    usage = store.usage(SCOPE)
    assert (usage["step"].calls, usage["second"].calls) == (40, 40)


@pytest.mark.parametrize("max_calls", [0, 1, 25])
def test_the_limit_on_calls_is_exact_and_the_next_run_goes_on(
    max_calls: int, store: CompletionStore
) -> None:
    with ChatServer(echo, latency=0.01) as server:
        made = settings(server)
        first, why = until_stopped(made, store, calls(60), BudgetSettings(max_calls=max_calls))
        assert server.requests == len(first) == store.count() == max_calls
        assert f"budget.max_calls = {max_calls}" in why
        assert f"{max_calls} calls" in why
        assert "the same command goes on" in why
        # The same run has spent it; another one may go on.
        more, _ = until_stopped(made, store, calls(60), BudgetSettings(max_calls=max_calls))
        assert server.requests == max_calls
        assert len(more) == max_calls
        rest = answers(made, store, calls(60), scope=Scope("next", "corpus"))
    assert server.requests == 60
    assert by_item(rest) == {f"item {n}": f"Say item {n}." for n in range(60)}


def test_retries_are_held_to_the_limit_on_calls_too(store: CompletionStore) -> None:
    with ChatServer(echo, faults=0.4, kinds=("503", "truncated", "drop_mid")) as server:
        outcomes, _ = until_stopped(
            settings(server), store, calls(100), BudgetSettings(max_calls=50)
        )
    usage = total(store)
    assert server.requests == usage.calls == 50
    assert usage.completed == len(outcomes)
    assert usage.calls == usage.completed + usage.retries + usage.failed


@pytest.mark.parametrize(
    ("budget", "prices"),
    [
        (BudgetSettings(max_tokens=2000), {}),
        (BudgetSettings(max_money=0.02), {"price_prompt": 5, "price_completion": 20}),
    ],
    ids=["tokens", "money"],
)
def test_the_limits_on_tokens_and_money_hold_to_within_what_is_in_flight(
    budget: BudgetSettings, prices: dict[str, float], store: CompletionStore
) -> None:
    """A reply of 20 tokens where 250 were guessed at first: the budget is used up all the same."""

    def spent(usage: Usage) -> float:
        return usage.money if budget.max_money else usage.prompt_tokens + usage.completion_tokens

    limit = budget.max_money or budget.max_tokens or 0
    asked = [
        Call("step", f"item {n}", tuple(chat(f"Say item {n}.")), Echo, 1000) for n in range(500)
    ]
    with ChatServer(echo, latency=0.005) as server:
        made = settings(server, **prices)
        outcomes, why = until_stopped(made, store, asked, budget)
        usage = total(store)
        assert usage.completed == len(outcomes) == store.count()
        one = spent(usage) / usage.calls
        assert limit - 2 * one <= spent(usage) <= limit + made.concurrency * one
        assert f"budget.{'max_money' if budget.max_money else 'max_tokens'} = {limit}" in why
        rest = answers(made, store, asked, scope=Scope("next", "corpus"))
    assert None not in by_item(rest).values()
    assert server.requests == 500


def test_the_price_of_all_requests_is_counted(store: CompletionStore) -> None:
    with ChatServer(echo, faults=0.5, kinds=("wrong_schema",)) as server:
        answers(settings(server, price_prompt=3.0, price_completion=7.0), store, calls(20))
    usage = total(store)
    assert usage.retries > 0
    paid = (usage.prompt_tokens * 3 + usage.completion_tokens * 7) / 1e6
    assert usage.money == pytest.approx(paid)


def test_a_wrong_key_stops_the_run_and_is_not_shown(
    store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-1234567890")
    said = {"error": {"message": "Incorrect API key provided: sk-secret-1234567890"}}
    with ChatServer(lambda request: Answer(401, said)) as server:
        outcomes, why = until_stopped(
            settings(server, api_key_variable="MY_KEY"), store, calls(100)
        )
    assert outcomes == []
    assert "MY_KEY (teacher.api_key_variable)" in why
    assert "sk-" not in why
    assert server.requests == total(store).calls <= 8


def test_a_server_that_is_down_stops_the_run(store: CompletionStore) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        outcomes, why = until_stopped(settings(address, max_attempts=2), store, calls(500))
    assert 8 <= len(outcomes) < 100
    assert "reached no server" in why
    assert "teacher.address" in why
    assert address in why
    usage = total(store)
    assert usage.calls == usage.retries + usage.failed
    assert usage.failed == len(outcomes)


def test_a_server_that_only_fails_stops_the_run(store: CompletionStore) -> None:
    """Nine thousand items must not each be tried for half a minute and given up."""
    with ChatServer(lambda request: Answer(503, {"error": {"message": "overloaded"}})) as server:
        outcomes, why = until_stopped(settings(server, max_attempts=2), store, calls(500))
    assert 8 <= len(outcomes) < 100
    assert "calls in a row got no reply" in why
    assert "overloaded" in why


def test_a_stored_reply_that_is_no_longer_valid_is_asked_for_once(store: CompletionStore) -> None:
    def is_new(value: Echo) -> str | None:
        return None if value.said == "new" else "not new"

    checked = [call(f"item {n}", check=is_new) for n in range(3)]
    with ChatServer(echo) as server:
        answers(settings(server), store, calls(3))
    with ChatServer(lambda request: {"said": "new"}) as server:
        for _ in range(2):
            outcomes = answers(settings(server), store, checked)
            assert all(isinstance(outcome, Completed) for outcome in outcomes)
        assert server.requests == 3


def test_failures_here_and_there_do_not_stop_the_run(store: CompletionStore) -> None:
    with ChatServer(echo, faults=0.2, kinds=("drop_before",)) as server:
        outcomes = answers(settings(server, max_attempts=1), store, calls(200))
    assert len(by_item(outcomes)) == 200
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) > 8


def test_a_throttling_server_is_asked_less_at_once(store: CompletionStore) -> None:
    def reply(request: dict[str, Any]) -> Any:
        busy = server.at_once > 3
        return Answer(429, {}, {"Retry-After": "0.02"}) if busy else echo(request)

    with ChatServer(reply, latency=0.01) as server:
        outcomes = answers(settings(server, concurrency=32, max_attempts=20), store, calls(200))
    assert None not in by_item(outcomes).values()
    # Sent 32 at once throughout, nine in ten would be refused.
    assert server.requests - 200 < 200


def test_the_rate_of_requests_is_kept(store: CompletionStore) -> None:
    with ChatServer(echo, slots=1) as server:
        answers(settings(server, requests_per_minute=6000), store, calls(30))
    assert server.statistics()["seconds"] >= 29 * 0.01 * 0.9


def test_an_early_end_cancels_and_what_was_answered_is_kept(store: CompletionStore) -> None:
    with ChatServer(echo, latency=0.02) as server:
        with teacher(settings(server), store) as opened:
            outcomes = opened.complete(calls(1000))
            for _ in range(10):
                next(outcomes)
            outcomes.close()  # type: ignore[attr-defined]
        usage = total(store)
        assert 10 <= usage.completed == store.count() < 100
        assert usage.calls == usage.completed + usage.failed
        assert server.requests <= usage.calls
        assert "teacher" not in {thread.name for thread in threading.enumerate()}


class Hanging:
    """A backend that hangs on what is not about "quick", which it answers once it is let."""

    identity = "hanging"

    def __init__(self) -> None:
        self.hanging = self.cancelled = 0
        self.let = threading.Event()

    async def reply(self, request: Request) -> RawReply:
        while not self.let.is_set():
            await asyncio.sleep(0.01)
        if "quick" not in request.messages[0]["content"]:
            self.hanging += 1
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return RawReply('{"said": "quick"}', "stop", None, 1, 1)

    async def close(self) -> None: ...


def test_what_an_early_end_leaves_gives_its_slots_back(store: CompletionStore) -> None:
    backend = Hanging()
    made = TeacherSettings(concurrency=2)

    def asked() -> Iterator[Call[Echo]]:
        yield call("quick")
        yield from calls(3)
        backend.let.set()  # not before there are calls for both slots
        yield from calls(10)[3:]

    with LlmTeacher(backend, made, store, BudgetSettings(), SCOPE) as opened:
        outcomes = opened.complete(asked())
        assert next(outcomes).call.item_id == "quick"
        while backend.hanging < made.concurrency:
            time.sleep(0.01)
        outcomes.close()  # type: ignore[attr-defined]
        (again,) = opened.complete([call("quick again")])
    assert isinstance(again, Completed)
    assert backend.cancelled == 2
    assert total(store) == Usage(4, 2, 0, 2, 0, 2, 2)


def test_an_error_of_the_callers_own_ends_it_cleanly(store: CompletionStore) -> None:
    def broken() -> Iterator[Call[Echo]]:
        yield from calls(20)
        raise ValueError("no more")

    with ChatServer(echo) as server, teacher(settings(server), store) as opened:
        with pytest.raises(ValueError, match="no more"):
            list(opened.complete(broken()))
        # The teacher goes on with other calls.
        assert len(by_item(list(opened.complete(calls(30))))) == 30


def test_memory_does_not_grow_with_the_number_of_calls(store: CompletionStore) -> None:
    """Of what the teacher holds for a call nothing is left when its outcome was handed out."""
    alive: list[int] = []
    with (
        ChatServer(echo, faults=0.2, kinds=("500", "truncated")) as server,
        teacher(settings(server), store) as opened,
    ):
        for number, _ in enumerate(opened.complete(call(f"{n}") for n in range(600))):
            if number in (200, 590):
                gc.collect()
                alive.append(sum(isinstance(each, Call) for each in gc.get_objects()))
    assert alive[1] <= 8 * 8 + 8


def test_a_corpus_forgets_replies_that_it_alone_was_given(store: CompletionStore) -> None:
    other = Scope("run-2", "journal")
    with ChatServer(echo) as server:
        answers(settings(server), store, calls(3))
        answers(settings(server), store, calls(1), scope=other)
        store.begin_forgetting(SCOPE.corpus)
        answers(settings(server), store, calls(2), scope=SCOPE)
        assert store.forget(SCOPE.corpus) == 1
        store.begin_forgetting(SCOPE.corpus)
        assert store.forget(SCOPE.corpus) == 1, "the other corpus was given the first one too"
        answers(settings(server), store, calls(1), scope=other)
    assert total(store, other).calls == 0, "and pays for it no second time"
