"""One request to a real server: what is sent, and what becomes of every way to fail."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import BaseModel

from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.openai_backend import OpenAIBackend, retry_after
from ragtuned_pipeline.settings import SettingsError, TeacherSettings
from ragtuned_pipeline_tests.chat_server import Answer, ChatServer, completion

KEY = "sk-secret-1234567890"


class Words(BaseModel):
    words: list[str]


REQUEST = Request(chat("Say two words."), "Words", Words.model_json_schema(), 100, 0.25, 7)


def ask(address: str, times: int = 1, **settings: Any) -> list[RawReply]:
    """Send REQUEST so many times at once, by one backend."""

    async def main() -> list[RawReply]:
        given = {"model": "m", "timeout_seconds": 60, **settings}
        backend = OpenAIBackend(TeacherSettings(address=address, **given))
        try:
            return list(await asyncio.gather(*(backend.reply(REQUEST) for _ in range(times))))
        finally:
            await backend.close()

    return asyncio.run(main())


def failure(address: str, **settings: Any) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        ask(address, **settings)
    return caught.value


def answering(status: int, message: str = "no", **error: Any) -> ChatServer:
    headers = {"Retry-After": "1.5"}
    body = {"error": {"message": message, **error}}
    return ChatServer(lambda request: Answer(status, body, headers))


def test_a_reply_and_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    with ChatServer(lambda request: {"words": ["a", "b"]}) as server:
        (reply,) = ask(server.address + "/", api_key_variable="SOME_KEY")
    assert reply == RawReply('{"words": ["a", "b"]}', "stop", None, 4, 6)
    (body,) = server.bodies
    form = body.pop("response_format")
    assert form["json_schema"]["name"] == "Words"
    assert body == {
        "model": "m",
        "messages": chat("Say two words."),
        "temperature": 0.25,
        "seed": 7,
        "max_tokens": 100,
    }
    assert server.headers["authorization"] == f"Bearer {KEY}"


def test_without_a_key_no_header_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as server:
        ask(server.address)
    assert "authorization" not in server.headers


@pytest.mark.parametrize("how", ["json_object", "prompt"])
def test_where_the_server_takes_no_schema_the_words_go_along(how: Any) -> None:
    with ChatServer(lambda request: "{}") as server:
        ask(server.address, structured_output=how)
    (body,) = server.bodies
    assert ("response_format" in body) == (how == "json_object")
    assert "- words: a list, each item text" in body["messages"][-1]["content"]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_status_that_passes_may_be_tried_again(status: int) -> None:
    with answering(status, "busy") as server:
        failed = failure(server.address)
    assert failed.again
    assert failed.after == 1.5
    assert failed.throttled == (status == 429)
    assert not failed.unreachable
    assert not failed.refused
    assert f"answered {status}: busy" in failed.reason


@pytest.mark.parametrize("status", [400, 413, 418, 422])
def test_a_fault_of_the_request_ends_the_item(status: int) -> None:
    with answering(status, "This model's maximum context length is 8 tokens") as server:
        failed = failure(server.address)
    assert not failed.again
    assert not failed.refused
    assert "maximum context length" in failed.reason


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_run_and_is_not_shown(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(status, f"Incorrect API key provided: {KEY[:9]}***{KEY[-4:]}") as server:
        failed = failure(server.address, api_key_variable="MY_KEY")
        monkeypatch.delenv("MY_KEY")
        without = failure(server.address, api_key_variable="MY_KEY")
    assert failed.refused
    assert not failed.again
    assert "MY_KEY (teacher.api_key_variable) is not accepted" in failed.reason
    assert KEY[:9] not in failed.reason
    assert "MY_KEY (teacher.api_key_variable) is not set" in without.reason


def test_a_server_that_quotes_the_key_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with answering(500, f"cannot look up {KEY}") as server:
        failed = failure(server.address, api_key_variable="MY_KEY")
    assert "cannot look up ***" in failed.reason


@pytest.mark.parametrize(
    ("status", "error", "setting"),
    [
        (404, {"message": "no such model"}, "teacher.model = 'm' and teacher.address"),
        (302, {"message": "moved"}, "teacher.address"),
        (400, {"message": "bad", "param": "response_format"}, "teacher.structured_output"),
        (400, {"message": "'json_schema' is not supported"}, "teacher.structured_output"),
        (400, {"message": "only 1 is taken", "param": "temperature"}, "teacher.temperature"),
        (400, {"message": "unknown", "param": "model"}, "teacher.model"),
        (429, {"message": "pay", "code": "insufficient_quota"}, "teacher.api_key_variable"),
    ],
)
def test_what_no_request_can_work_with_names_the_setting(
    status: int, error: dict[str, str], setting: str
) -> None:
    with answering(status, **error) as server:
        failed = failure(server.address)
    assert failed.refused
    assert not failed.again
    assert setting in failed.reason


def test_models_that_want_the_newer_name_of_the_limit_get_it() -> None:
    def reply(request: dict[str, Any]) -> Any:
        if "max_tokens" in request:
            words = "'max_tokens' is not supported, use 'max_completion_tokens' instead"
            return Answer(400, {"error": {"message": words, "param": "max_tokens"}})
        return {"words": []}

    async def main(address: str) -> RawReply:
        backend = OpenAIBackend(TeacherSettings(address=address, model="m"))
        with pytest.raises(RequestFailed) as caught:
            await backend.reply(REQUEST)
        assert caught.value.again
        made = await backend.reply(REQUEST)
        await backend.close()
        return made

    with ChatServer(reply) as server:
        assert asyncio.run(main(server.address)).text == '{"words": []}'
    assert server.bodies[-1]["max_completion_tokens"] == 100


def test_nobody_at_the_address_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        failed = failure(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    assert failed.again
    assert failed.unreachable
    assert "ConnectError" in failed.reason


@pytest.mark.parametrize(("fault", "unreachable"), [("drop_before", True), ("drop_mid", False)])
def test_a_dropped_connection_may_be_tried_again(fault: str, unreachable: bool) -> None:
    with ChatServer(faults=1, kinds=(fault,)) as server:
        failed = failure(server.address)
    assert failed.again
    assert failed.unreachable == unreachable


def test_the_deadline_holds_for_the_whole_reply() -> None:
    """A byte now and then keeps a connection's read timeout from ever being reached."""
    with ChatServer(faults=1, kinds=("slow",)) as server:
        failed = failure(server.address, timeout_seconds=1.5)
    assert failed.again
    assert not failed.unreachable
    assert "teacher.timeout_seconds = 1.5" in failed.reason
    with ChatServer(latency=5) as server:
        silent = failure(server.address, timeout_seconds=0.2)
    assert silent.again
    assert silent.unreachable


def test_an_endless_body_is_cut_off() -> None:
    with ChatServer(faults=1, kinds=("endless",)) as server:
        failed = failure(server.address, timeout_seconds=60)
    assert failed.again
    assert "sent over" in failed.reason


@pytest.mark.parametrize("body", ["text", {}, {"choices": []}, {"choices": [{"message": None}]}, 3])
def test_an_answer_that_is_no_completion_may_be_tried_again(body: Any) -> None:
    with ChatServer(lambda request: Answer(200, body)) as server:
        failed = failure(server.address)
    assert failed.again
    assert "no chat completion" in failed.reason


def test_refusals_and_missing_counts_are_read() -> None:
    def reply(request: dict[str, Any]) -> Answer:
        made = completion(request, None, refusal="I will not.")
        del made["usage"]
        return Answer(200, made)

    with ChatServer(reply) as server:
        (raw,) = ask(server.address)
    assert (raw.text, raw.refusal) == ("", "I will not.")
    assert (raw.prompt_tokens, raw.completion_tokens) == (4, 0)


def test_a_proxy_of_the_environments_is_not_for_this_machines_own_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ChatServer() as server:
        monkeypatch.setenv("HTTP_PROXY", server.address.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "")
        assert ask(server.address)
        proxied = failure("http://teacher.example/v1")
    assert "no POST http://teacher.example/v1/chat/completions" in proxied.reason


def test_requests_run_at_once_and_share_connections() -> None:
    with ChatServer(latency=0.3) as server:
        replies = ask(server.address, times=24, concurrency=8)
    assert len(replies) == 24
    assert server.most_at_once == 8
    assert server.connections == 8


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"address": "localhost:8000/v1"}, "teacher.address"),
        ({"address": "http://[bad"}, "teacher.address"),
        ({"address": "http:///v1"}, "teacher.address"),
        ({"address": "http://host:port/v1"}, "teacher.address"),
        ({"model": ""}, "teacher.model"),
        ({"api_key_variable": "ODD_KEY"}, "teacher.api_key_variable"),
    ],
)
def test_settings_that_cannot_work_are_named(
    settings: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD_KEY", "sk-\x07né")
    with pytest.raises(SettingsError, match=named) as caught:
        OpenAIBackend(TeacherSettings(**{"model": "m", **settings}))
    assert "sk-" not in str(caught.value)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("2") == 2
    assert retry_after("0.25") == 0.25
    assert retry_after("-3") == 0
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)) == 0
    in_an_hour = retry_after(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert in_an_hour == pytest.approx(3600, abs=5)
    for senseless in (None, "", "soon", "nan", "inf"):
        assert retry_after(senseless) is None
