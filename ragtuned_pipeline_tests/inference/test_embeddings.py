"""Embeddings from a server that does what it should, and from one that does not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.embeddings import embed
from ragtuned_pipeline.settings import TeacherSettings

KEY = "sk-not-to-be-seen"


def vector(text: str) -> list[float]:
    return [float(len(text)), 1.0, float(text.count("a"))]


class Server(ThreadingHTTPServer):
    """Embeds by `vector`; the first requests fail as `faults` say: (status, headers, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.faults: list[tuple[int, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def settings(self, **others: Any) -> TeacherSettings:
        address = f"http://127.0.0.1:{self.server_port}/v1"
        return TeacherSettings(
            address=address, embedding_model="small", api_key_variable="SOME_KEY", **others
        )


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body, self.headers["Authorization"]))
            fault = self.server.faults.pop(0) if self.server.faults else None
        rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
        good = 200, {}, json.dumps({"data": rows[::-1]}).encode()
        status, headers, data = fault or good
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SOME_KEY", KEY)
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,)).start()
        yield made
        made.shutdown()


def test_vectors_have_length_one_and_the_texts_order(server: Server) -> None:
    texts = [f"{'a' * (n % 7)}{n}" for n in range(300)]
    vectors = embed(texts, server.settings())
    expected = np.array([vector(text) for text in texts], dtype=np.float32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(
        vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6
    )
    assert sorted(len(body["input"]) for _, body, _ in server.requests) == [44, 128, 128]
    assert {path for path, _, _ in server.requests} == {"/v1/embeddings"}
    assert {body["model"] for _, body, _ in server.requests} == {"small"}
    assert {key for _, _, key in server.requests} == {f"Bearer {KEY}"}


def test_no_texts_need_no_server() -> None:
    assert embed([], TeacherSettings(address="http://127.0.0.1:9/v1")).shape == (0, 0)


def test_lost_requests_are_sent_again(server: Server) -> None:
    no_numbers = json.dumps({"data": [{"index": 0, "embedding": ["x"]}]}).encode()
    server.faults = [
        (429, {"Retry-After": "0.01"}, b"slowly"),
        (503, {}, b"loading"),
        (200, {}, b"<html>"),
        (200, {}, no_numbers),
        (200, {}, b'{"data": []}'),
    ]
    vectors = embed(["a"], server.settings(), backoff_seconds=0.01)
    assert vectors.shape == (1, 3)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        ((401, {}, f"the key {KEY} is wrong".encode()), "SOME_KEY", 1),
        ((400, {}, f"no such model, {KEY}".encode()), "teacher.embedding_model = 'small'", 1),
        ((500, {}, b"out of memory"), "answered 500: out of memory", 3),
        (
            (200, {}, b'{"data": [{"index": 0, "embedding": [0, 0]}]}'),
            "a vector without a direction",
            3,
        ),
    ],
    ids=["key", "model", "server", "zero"],
)
def test_what_cannot_work_is_told_without_the_key(
    server: Server, fault: tuple[int, dict[str, str], bytes], said: str, requests: int
) -> None:
    server.faults = [fault] * 3
    with pytest.raises(TeacherStopped, match=r"^no embeddings: http://127\.0\.0\.1") as stopped:
        embed(["a"], server.settings(max_attempts=3), backoff_seconds=0.01)
    assert said in str(stopped.value)
    assert KEY not in str(stopped.value)
    assert len(server.requests) == requests


def test_an_unreachable_server_is_named(server: Server) -> None:
    settings = server.settings(max_attempts=2)
    server.server_close()
    with pytest.raises(TeacherStopped, match=r"ConnectError"):
        embed(["a"], settings, backoff_seconds=0.01)
