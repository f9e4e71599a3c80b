"""Relevances from a server that does what it should, and from one that does not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.reranking import rerank
from ragtuned_pipeline.settings import TeacherSettings
from ragtuned_pipeline_tests.chat_server import ChatServer

KEY = "sk-not-to-be-seen"
TEXTS = ["one two", "three", "one two three"]


class Server(ThreadingHTTPServer):
    """Gives each text its length, best first; the first requests fail as `faults` say."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.faults: list[tuple[int, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def settings(self, **others: Any) -> TeacherSettings:
        address = f"http://127.0.0.1:{self.server_port}/v1"
        return TeacherSettings(address=address, api_key_variable="SOME_KEY", **others)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body, self.headers["Authorization"]))
        rows = [{"index": i, "relevance_score": len(t)} for i, t in enumerate(body["documents"])]
        rows.sort(key=lambda row: -row["relevance_score"])
        good = 200, {}, json.dumps({"results": rows}).encode()
        status, headers, data = self.server.faults.pop(0) if self.server.faults else good
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


def results(*rows: tuple[Any, Any]) -> bytes:
    named = [{"index": index, "relevance_score": score} for index, score in rows]
    return json.dumps({"results": named}).encode()


def test_relevances_are_in_the_order_of_the_texts(server: Server) -> None:
    relevances = rerank("How many?", TEXTS, server.settings(), "large")
    np.testing.assert_array_equal(relevances, [7, 5, 13])
    asked = {"model": "large", "query": "How many?", "documents": TEXTS}
    assert server.requests == [("/v1/rerank", asked, f"Bearer {KEY}")]


def test_no_texts_need_no_server() -> None:
    settings = TeacherSettings(address="http://127.0.0.1:9/v1")
    assert rerank("Who?", [], settings, "m").shape == (0,)


def test_lost_requests_are_sent_again(server: Server) -> None:
    server.faults = [
        (429, {"Retry-After": "0.01"}, b"slowly"),
        (503, {}, b"loading"),
        (200, {}, b"<html>"),
        (200, {}, b'{"data": []}'),
        (200, {}, results((0, 1), (1, 2))),
    ]
    relevances = rerank("?", TEXTS, server.settings(), "m", backoff_seconds=0.01)
    assert relevances.tolist() == [7, 5, 13]
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        ((401, {}, f"the key {KEY} is wrong".encode()), "SOME_KEY", 1),
        ((404, {}, f"no such model, {KEY}".encode()), "evaluation.reranking_model = 'm'", 1),
        ((500, {}, b"out of memory"), "answered 500: out of memory", 3),
        ((200, {}, results((0, 1), (1, 1), (1, 2))), "sent no relevances", 3),
        ((200, {}, results((0, 1), (1, 1), (3, 2))), "sent no relevances", 3),
        ((200, {}, results((0, 1), (1, 1), (2, 1), (2, 2))), "sent no relevances", 3),
        ((200, {}, results((0, 1), (1, float("nan")), (2, 2))), "that is no number", 3),
        ((200, {}, results((0, 1), (1, "high"), (2, 2))), "sent no relevances", 3),
    ],
    ids=["key", "model", "server", "missing", "unknown", "twice", "nan", "word"],
)
def test_what_cannot_work_is_told_without_the_key(
    server: Server, fault: tuple[int, dict[str, str], bytes], said: str, requests: int
) -> None:
    server.faults = [fault] * 3
    with pytest.raises(TeacherStopped, match=r"^no relevances: http://127\.0\.0\.1") as stopped:
        rerank("?", TEXTS, server.settings(max_attempts=3), "m", backoff_seconds=0.01)
    assert said in str(stopped.value)
    assert KEY not in str(stopped.value)
    assert len(server.requests) == requests


def test_the_test_server_reranks_by_words_in_common() -> None:
    with ChatServer() as server:
        settings = TeacherSettings(address=server.address)
        texts = ["A quiet mill.", "The ferry to Quell.", "Who rows the ferry?"]
        relevances = rerank("Who rows the ferry?", texts, settings, "m")
    assert relevances.argmax() == 2
    assert relevances[2] > relevances[1] > relevances[0]
