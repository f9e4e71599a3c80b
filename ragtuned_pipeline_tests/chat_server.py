"""A real HTTP/1.1 server with an OpenAI-compatible API that misbehaves on purpose.

    python -m ragtuned_pipeline_tests.chat_server [--reply MODULE:FUNCTION] [--faults SHARE] ...

prints its address on its first line and serves until it is killed; GET /statistics counts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = (
    "429",  # with Retry-After
    "500",
    "503",
    "drop_before",  # the connection ends without an answer
    "drop_mid",  # ... in the middle of the body
    "slow",  # one byte at a time; the connection ends before the body does
    "endless",  # white space for ever, where the body should be
    "truncated",  # JSON cut off, finish_reason length
    "wrong_schema",
    "refused",  # in the API's own way
    "refused_in_words",
    "flood",  # a reply of white space
)
_DIMENSIONS = 256


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer, for replies that are none."""

    status: int
    body: Any = None  # JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = Callable[[dict[str, Any]], "dict[str, Any] | str | Answer"]


def example(request: dict[str, Any]) -> dict[str, Any]:
    """Return a reply that fits the request's schema; the same request gets the same one."""
    schema = request["response_format"]["json_schema"]["schema"]
    words = f"word{int(_hash(request), 16) % 1000}"

    def make(node: Mapping[str, Any]) -> Any:
        if "$ref" in node:
            return make(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
        if "const" in node or "enum" in node:
            return node.get("const", node.get("enum", [None])[0])
        if "anyOf" in node:
            return make(node["anyOf"][0])
        match node["type"]:
            case "object":
                return {name: make(each) for name, each in node["properties"].items()}
            case "array":
                return [make(node["items"])] * max(1, node.get("minItems", 1))
            case "string":
                return words.ljust(node.get("minLength", 0), "x")[: node.get("maxLength", 1000)]
            case "integer" | "number":
                return node.get("minimum", 1)
            case "boolean":
                return True
        return None

    made: dict[str, Any] = make(schema)
    return made


def _hash(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


class ChatServer:
    """Serves in a thread of its own, as a context manager.

    Args:
        reply: a request's body to the reply's content (JSON or text), or to a whole Answer.
        faults: the share of requests that fail, by one of `kinds`. Which ones depends on `seed`,
            the request, and how often it came; not on the order.
        latency: seconds that a reply takes.
        slots: requests worked at once; more wait for their turn.
        retry_after: what a 429 asks for, in seconds.
        slow_seconds: how long a slow stream lasts; by default longer than anybody waits.
        log: a file that gets a line of JSON for each request answered well: {"request": hash}.

    Attributes:
        address: what teacher.address should be.
        requests: chat requests received, whatever came of them.
        replies: chat requests answered well, by the request's hash.
        faults: requests that failed on purpose, by kind.
        most_at_once: chat requests in flight.
        connections: opened so far.
        headers: of the last chat request.
        bodies: the last 1000 chat requests' bodies.
    """

    def __init__(
        self,
        reply: Reply = example,
        *,
        faults: float = 0.0,
        kinds: tuple[str, ...] = FAULTS,
        seed: int = 0,
        latency: float = 0.0,
        slots: int | None = None,
        retry_after: float = 0.02,
        slow_seconds: float = 600.0,
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        self._reply = reply
        self._faults = faults
        self._kinds = kinds
        self._seed = seed
        self._latency = latency
        self._slots = slots
        self._retry_after = retry_after
        self._slow_seconds = slow_seconds
        self._log = log.open("a", encoding="utf-8") if log else None
        self._port = port
        self._seen: Counter[str] = Counter()
        self.requests = 0
        self.replies: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.headers: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = self.connections = 0
        self._load = _Load(slots or 1)
        self.address = ""

    def __enter__(self) -> ChatServer:
        up = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(up)), name="chat server", daemon=True
        )
        self._thread.start()
        assert up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join()
        if self._log:
            self._log.close()

    def statistics(self) -> dict[str, Any]:
        """Return the counts; `busy_share` is the share of time in which all slots worked, and
        `used_share` that of the slots' time in use, between the first request and the last.
        """
        return {
            "requests": self.requests,
            "replies": self.replies.total(),
            "repeated": sum(n - 1 for n in self.replies.values()),
            "faults": dict(self.faults),
            "most_at_once": self.most_at_once,
            "seconds": self._load.seconds,
            "busy_share": self._load.busy_share,
            "used_share": self._load.used_share,
        }

    async def _serve(self, up: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._down = asyncio.Event()
        self._turn = asyncio.Semaphore(self._slots or 1_000_000)
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            connections.add(task)
            self.connections += 1
            try:
                while await self._one(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the client went away, or the server ends
            finally:
                connections.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", self._port, backlog=1024)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        up.set()
        await self._down.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        line, *rest = head.strip().split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (each.partition(":") for each in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if (method, path) == ("POST", "/v1/chat/completions"):
            self.headers = headers
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self._load.changed(self.at_once, arrived=True)
            try:
                return await self._chat(json.loads(body), writer)
            finally:
                self.at_once -= 1
                self._load.changed(self.at_once, arrived=False)
        if (method, path) == ("POST", "/v1/embeddings"):
            await _send(writer, Answer(200, _embeddings(json.loads(body))))
        elif (method, path) == ("POST", "/v1/rerank"):
            await _send(writer, Answer(200, _relevances(json.loads(body))))
        elif (method, path) == ("GET", "/v1/models"):
            await _send(writer, Answer(200, {"object": "list", "data": [{"id": "test"}]}))
        elif (method, path) == ("GET", "/health"):
            await _send(writer, Answer(200, {}))
        elif (method, path) == ("GET", "/statistics"):
            await _send(writer, Answer(200, self.statistics()))
        else:
            await _send(writer, Answer(404, {"error": {"message": f"no {method} {path}"}}))
        return True

    async def _chat(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        self.requests += 1
        self.bodies = [*self.bodies[-999:], request]
        key = _hash(request)
        self._seen[key] += 1
        fault = self._fault(key)
        async with self._turn:
            await asyncio.sleep(self._latency)
        if fault:
            self.faults[fault] += 1
            return await self._misbehave(fault, request, writer)
        made = self._reply(request)
        if isinstance(made, Answer):
            await _send(writer, made)
            return True
        content = made if isinstance(made, str) else json.dumps(made)
        self.replies[key] += 1
        if self._log:
            self._log.write(json.dumps({"request": key}) + "\n")
            self._log.flush()
        await _send(writer, Answer(200, completion(request, content)))
        return True

    def _fault(self, key: str) -> str | None:
        drawn = hashlib.sha256(f"{self._seed} {key} {self._seen[key]}".encode()).digest()
        if int.from_bytes(drawn[:4]) / 2**32 >= self._faults:
            return None
        return self._kinds[int.from_bytes(drawn[4:8]) % len(self._kinds)]

    async def _misbehave(
        self, fault: str, request: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        said = {"error": {"message": f"on purpose: {fault}"}}
        match fault:
            case "429":
                await _send(writer, Answer(429, said, {"Retry-After": str(self._retry_after)}))
            case "500" | "503":
                await _send(writer, Answer(int(fault), said))
            case "drop_before":
                return False
            case "drop_mid" | "slow":
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
                writer.write(head + b'{"choices": [')
                await writer.drain()
                if fault == "drop_mid":
                    return False
                ends = time.monotonic() + self._slow_seconds
                while time.monotonic() < ends:
                    await asyncio.sleep(0.05)
                    writer.write(b" ")
                    await writer.drain()
                return False
            case "endless":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                    await writer.drain()
            case "truncated":
                content = '{"words": ["one", "tw'
                await _send(writer, Answer(200, completion(request, content, "length")))
            case "wrong_schema":
                await _send(writer, Answer(200, completion(request, '{"something": "else"}')))
            case "refused":
                await _send(writer, Answer(200, completion(request, None, refusal="I will not.")))
            case "refused_in_words":
                content = "I'm sorry, but I can't help with that."
                await _send(writer, Answer(200, completion(request, content)))
            case "flood":
                await _send(writer, Answer(200, completion(request, " \n" * 2000)))
        return True


class _Load:
    """Integrates over time how many of the slots are in use."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._at_once = 0
        self._first = self._last = math.nan
        self._now = [0.0, 0.0]  # seconds with all slots in use; slot seconds in use
        self._then = [0.0, 0.0]  # the same, when the last request arrived
        self._arrived = math.nan

    def changed(self, at_once: int, *, arrived: bool) -> None:
        now = time.perf_counter()
        if math.isnan(self._first):
            self._first = self._last = now
        passed = now - self._last
        self._now[0] += passed * (self._at_once >= self._slots)
        self._now[1] += passed * min(self._at_once, self._slots)
        self._last, self._at_once = now, at_once
        if arrived:
            self._arrived, self._then = now, list(self._now)

    @property
    def seconds(self) -> float:
        return self._arrived - self._first

    @property
    def busy_share(self) -> float:
        return self._then[0] / self.seconds if self.seconds > 0 else 0.0

    @property
    def used_share(self) -> float:
        return self._then[1] / self.seconds / self._slots if self.seconds > 0 else 0.0


def completion(
    request: dict[str, Any],
    content: str | None,
    finish_reason: str = "stop",
    refusal: str | None = None,
) -> dict[str, Any]:
    """Return the body of a chat completion; four characters count as a token."""
    asked = sum(len(message["content"]) for message in request["messages"])
    message = {"role": "assistant", "content": content, "refusal": refusal}
    prompt, made = -(-asked // 4), -(-len(content or "") // 4)
    return {
        "object": "chat.completion",
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        },
    }


def _embeddings(request: dict[str, Any]) -> dict[str, Any]:
    texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
    data = [
        {"object": "embedding", "index": i, "embedding": bag_of_words(text)}
        for i, text in enumerate(texts)
    ]
    return {"object": "list", "model": request["model"], "data": data}


def _relevances(request: dict[str, Any]) -> dict[str, Any]:
    """Cosines of bags of words, best first."""
    asked = bag_of_words(request["query"])
    rows = [
        {
            "index": index,
            "relevance_score": sum(a * b for a, b in zip(asked, bag_of_words(text), strict=True)),
        }
        for index, text in enumerate(request["documents"])
    ]
    rows.sort(key=lambda row: (-row["relevance_score"], row["index"]))
    return {"model": request["model"], "results": rows}


def bag_of_words(text: str) -> list[float]:
    """Words hashed into places of a unit vector: texts with the same words are equal."""
    vector = [0.0] * _DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        place = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % _DIMENSIONS
        vector[place] += 1.0
    norm = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / norm for x in vector]


def _bytes(answer: Answer) -> bytes:
    body = json.dumps(answer.body).encode()
    lines = [
        f"HTTP/1.1 {answer.status} Status",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(_bytes(answer))
    await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reply", default=f"{__name__}:example", help="MODULE:FUNCTION")
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    module, _, function = given.reply.partition(":")
    server = ChatServer(
        getattr(importlib.import_module(module), function),
        faults=given.faults,
        kinds=tuple(given.kinds.split(",")),
        seed=given.seed,
        latency=given.latency,
        slots=given.slots,
        log=given.log,
        port=given.port,
    )
    with server:
        print(server.address, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
