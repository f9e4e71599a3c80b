"""The gateway for any OpenAI client: the real client, real sockets, an engine that notes."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from ragtuned_pipeline.inference.engine import ANSWER_LENGTH
from ragtuned_pipeline.serving.requests import MOST_BYTES, Defaults, read_request
from ragtuned_pipeline_tests.serving.world import (
    HTTP,
    Gateway,
    NotingEngine,
    new_adapter,
    promote,
    serving,
    until,
)

KEY = "a key that nobody guesses"
QUESTION: list[Any] = [{"role": "user", "content": "Who keeps the light?"}]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "adapters"
    promote(folder, "harbour", "one")
    promote(folder, "valley", "one")
    new_adapter(folder, "refused", "one")
    return folder


@pytest.fixture(scope="module")
def engine() -> NotingEngine:
    return NotingEngine()


@pytest.fixture(scope="module")
def running(adapters: Path, engine: NotingEngine) -> Iterator[Gateway]:
    with serving(engine, adapters) as gateway:
        until(lambda: len(gateway.health()["served"]) == 2)
        yield gateway


@pytest.fixture(scope="module")
def client(running: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.address, api_key="any", max_retries=0) as client:
        yield client


def served(running: Gateway) -> dict[str, str]:
    found: dict[str, str] = running.health()["served"]
    return found


def test_each_promoted_adapter_is_a_model(client: openai.OpenAI, running: Gateway) -> None:
    models = {model.id: model for model in client.models.list()}

    assert sorted(models) == ["harbour", "valley"]  # not the one that was never promoted
    assert {name: model.model_extra["adapter"] for name, model in models.items()} == served(running)
    assert models["harbour"].model_extra["promoted_at"].endswith("+00:00")
    assert client.models.retrieve("valley").id == "valley"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("refused")


def test_a_corpus_answers_under_its_name(client: openai.OpenAI, running: Gateway) -> None:
    answer = client.chat.completions.create(model="valley", messages=QUESTION)

    assert answer.choices[0].message.content == f"it is {served(running)['valley']}"
    assert answer.model == "valley"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10


def test_a_stream_is_the_same_answer_piece_by_piece(
    client: openai.OpenAI, running: Gateway
) -> None:
    stream = client.chat.completions.create(model="harbour", messages=QUESTION, stream=True)
    chunks = list(stream)

    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == f"it is {served(running)['harbour']}"
    assert len(pieces) == 4
    assert {chunk.model for chunk in chunks} == {"harbour"}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_what_it_used_where_asked(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="harbour", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream

    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 3


def test_what_a_request_leaves_open_is_as_tuned(
    client: openai.OpenAI, engine: NotingEngine
) -> None:
    client.chat.completions.create(model="harbour", messages=QUESTION)
    assert engine.bodies[-1] == {"messages": QUESTION, "temperature": 0, "max_tokens": 50}

    client.chat.completions.create(
        model="harbour",
        messages=QUESTION,
        temperature=0.7,
        max_completion_tokens=9,
        stop=["."],
        extra_body={"top_k": 3},
    )
    assert engine.bodies[-1] == {
        "messages": QUESTION,
        "temperature": 0.7,
        "max_completion_tokens": 9,
        "stop": ["."],
        "top_k": 3,
    }


def test_the_system_message_of_tuning_stands_before_a_question_without_one() -> None:
    defaults = Defaults.of("Qwen/Qwen2.5-7B-Instruct", 50)

    def asked(*messages: dict[str, str]) -> list[dict[str, str]]:
        body = {"model": "harbour", "messages": messages}
        read: list[dict[str, str]] = read_request(json.dumps(body).encode(), defaults).body[
            "messages"
        ]
        return read

    assert asked(*QUESTION) == [{"role": "system", "content": ANSWER_LENGTH}, *QUESTION]
    for role in ("system", "developer"):  # the newer word, which chat templates do not know
        own = {"role": role, "content": "In rhyme."}
        assert asked(own, *QUESTION) == [{**own, "role": "system"}, *QUESTION]


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="served: harbour, valley") as missing:
        client.chat.completions.create(model="hill", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"

    with pytest.raises(openai.BadRequestError, match="too hot") as hot:
        client.chat.completions.create(model="harbour", messages=QUESTION, temperature=2)
    assert hot.value.param == "temperature"
    assert hot.value.type == "invalid_request_error"

    with pytest.raises(openai.BadRequestError, match="too hot"):  # no stream has begun
        client.chat.completions.create(
            model="harbour", messages=QUESTION, temperature=2, stream=True
        )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "no JSON"),
        (b"[1]", 400, "no JSON object"),
        (b"[" * 200_000, 400, "no JSON"),
        (b'\xff{"model": 1}', 400, "no JSON"),
        (b'{"messages": []}', 400, "model"),
        (b'{"model": "harbour"}', 400, "messages"),
        (b'{"model": "harbour", "messages": []}', 400, "messages"),
        (b'{"model": "harbour", "messages": ["hi"]}', 400, "messages"),
        (b'{"model": "harbour", "messages": [{"role": "user"}], "stream": "yes"}', 400, "stream"),
        (b'{"model": "a\\ud800", "messages": [{"role": "user"}]}', 400, "half of a character"),
        (
            b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800"}]}',
            400,
            "half of a character",
        ),
        (b" " * (MOST_BYTES + 1), 413, "larger than"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_a_sentence(
    running: Gateway, body: bytes, status: int, words: str
) -> None:
    reply = HTTP.post(f"{running.address}/chat/completions", content=body)

    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]


def test_what_is_not_there_is_said_in_the_same_shape(running: Gateway) -> None:
    missing = HTTP.post(f"{running.address}/load_lora_adapter", json={})
    assert missing.status_code == 404
    assert "load_lora_adapter" in missing.json()["error"]["message"]
    wrong = HTTP.get(f"{running.address}/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()


def test_without_a_key_only_a_loopback_name_is_answered(running: Gateway) -> None:
    for host, status in (("evil.example:8008", 403), ("localhost:1", 200), ("[::1]:1", 200)):
        reply = HTTP.get(f"{running.address}/models", headers={"Host": host})
        assert reply.status_code == status, host


def test_more_than_max_requests_are_told_to_come_back(adapters: Path) -> None:
    engine = NotingEngine()
    engine.pause = 0.1
    with (
        serving(engine, adapters, max_requests=1) as running,
        openai.OpenAI(base_url=running.address, api_key="any", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="harbour", messages=QUESTION, stream=True)
        with pytest.raises(openai.RateLimitError) as busy:
            client.chat.completions.create(model="harbour", messages=QUESTION)
        assert busy.value.response.headers["Retry-After"] == "1"
        assert len(list(stream)) == 4
        until(lambda: running.metrics()["ragtuned_in_flight"] == 0)
        client.chat.completions.create(model="harbour", messages=QUESTION)


def test_nobody_gets_in_without_the_key(adapters: Path) -> None:
    with serving(NotingEngine(), adapters, key=KEY) as running:
        for given in ("Bearer", "Bearer another", f"Basic {KEY}", f"Bearer {KEY[:-1]}"):
            headers = {"Authorization": given, "Host": "localhost"}
            for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/v1/nothing"):
                reply = HTTP.get(f"{running.root}{path}", headers=headers)
                assert reply.status_code == 401, (given, path)
                assert reply.json()["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=running.address, api_key=KEY, max_retries=0) as client:
            assert client.chat.completions.create(model="valley", messages=QUESTION).choices
        # What is up is no secret; what is served is.
        assert running.health() == {"code": 200, "status": "ok"}
        assert sorted(running.health(KEY)["served"]) == ["harbour", "valley"]
        assert KEY not in "".join(running.said)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_generation(adapters: Path, stream: bool) -> None:
    engine = NotingEngine()
    engine.pause = 1.0
    with serving(engine, adapters) as running:
        body = {"model": "harbour", "messages": QUESTION, "stream": stream}
        with pytest.raises(httpx2.ReadTimeout):
            HTTP.post(f"{running.address}/chat/completions", json=body, timeout=0.2)
        until(lambda: engine.broken_off == 1 and engine.running == 0, 0.9)
        until(lambda: running.metrics()["ragtuned_in_flight"] == 0)
        assert running.metrics()['ragtuned_requests_total{corpus="harbour",status="499"}'] == 1


def test_a_client_that_leaves_while_it_asks_is_no_failure(adapters: Path) -> None:
    with serving(NotingEngine(), adapters) as running:
        place = urlsplit(running.address)
        with socket.create_connection((place.hostname, place.port)) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99"
            connection.sendall(f"{head}\r\n\r\n{{".encode())
            until(lambda: running.metrics()["ragtuned_in_flight"] == 1)
        until(lambda: running.metrics()["ragtuned_in_flight"] == 0)
        assert running.metrics()['ragtuned_requests_total{corpus="",status="499"}'] == 1


def test_what_is_counted(adapters: Path) -> None:
    with (
        serving(NotingEngine(), adapters) as running,
        openai.OpenAI(base_url=running.address, api_key="any", max_retries=0) as client,
    ):
        client.chat.completions.create(model="harbour", messages=QUESTION)
        list(client.chat.completions.create(model="harbour", messages=QUESTION, stream=True))
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="hill", messages=QUESTION)
        found = running.metrics()
        content = served(running)["harbour"]

    assert found['ragtuned_requests_total{corpus="harbour",status="200"}'] == 2
    assert found['ragtuned_requests_total{corpus="",status="404"}'] == 1
    assert found['ragtuned_tokens_total{corpus="harbour",kind="prompt"}'] == 14
    assert found['ragtuned_tokens_total{corpus="harbour",kind="completion"}'] == 6
    assert found['ragtuned_request_seconds_count{corpus="harbour"}'] == 2
    assert found['ragtuned_first_token_seconds_count{corpus="harbour"}'] == 1
    assert found[f'ragtuned_adapter{{adapter="{content}",corpus="harbour"}}'] == 1
    assert found["ragtuned_engine_up"] == 1
    assert found["engine_of_its_own"] == 1
