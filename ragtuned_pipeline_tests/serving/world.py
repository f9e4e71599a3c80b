"""A gateway over a real socket, with an engine that notices every mistake of the routes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.serving.gateway import gateway
from ragtuned_pipeline.serving.interface import Body, Engine, NeedsRestart, Refused
from ragtuned_pipeline.serving.metrics import Metrics
from ragtuned_pipeline.serving.promoted import PromotedAdapters
from ragtuned_pipeline.serving.requests import Defaults
from ragtuned_pipeline.serving.running import Server, address_of, answer, listening
from ragtuned_pipeline.serving.service import Service
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning import adapter_store

HTTP = httpx2.Client(trust_env=False)


class NotingEngine:
    """Answers with the content hash of the adapter asked, word by word.

    A request fails if its adapter is not loaded from its beginning to its end; an adapter fails to
    load if it is refused. What it is asked, it keeps.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Path] = {}
        self.starts = 0
        self.closes = 0
        self.ended: str | None = None
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self.refused: set[str] = set()  # content hashes
        self.restart_for: set[str] = set()
        self.pause = 0.0  # seconds before each word
        self.bodies: list[Body] = []
        self.running = 0
        self.broken_off = 0
        self.unloaded: list[str] = []

    async def start(self) -> None:
        await self.start_gate.wait()
        self.starts += 1
        self.ended = None
        self.loaded.clear()

    async def load(self, adapter: str, folder: Path) -> None:
        await asyncio.sleep(0.002)
        content = adapter.partition("@")[2]
        if content in self.refused:
            raise Refused(500, f"no room for {content}")
        if content in self.restart_for:
            self.restart_for.discard(content)
            raise NeedsRestart("a higher rank")
        assert (folder / "adapter_config.json").is_file()
        self.loaded[adapter] = folder

    async def unload(self, adapter: str) -> None:
        await asyncio.sleep(0.002)
        del self.loaded[adapter]
        self.unloaded.append(adapter)

    async def complete(self, adapter: str, body: Body) -> dict[str, Any]:
        words = [word async for word in self._words(adapter, body)]
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": adapter,
            "choices": [choice],
            "usage": _usage(len(words)),
        }

    async def stream(self, adapter: str, body: Body) -> AsyncGenerator[dict[str, Any], None]:
        count = 0
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": adapter}
        async for word in self._words(adapter, body):
            count += 1
            delta = {"role": "assistant", "content": word if count == 1 else f" {word}"}
            yield {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {**chunk, "choices": [], "usage": _usage(count)}

    def why_ended(self) -> str | None:
        return self.ended

    async def metrics(self) -> str:
        return "engine_of_its_own 1\n"

    async def close(self) -> None:
        self.closes += 1
        self.loaded.clear()

    async def _words(self, adapter: str, body: Body) -> AsyncGenerator[str, None]:
        self.bodies.append(body)
        self.running += 1
        try:
            for word in ("it", "is", adapter.partition("@")[2]):
                if adapter not in self.loaded:
                    raise Refused(500, f"{adapter} is not loaded")
                if body["temperature"] == 2:
                    raise Refused(400, "temperature: too hot", "temperature")
                await asyncio.sleep(self.pause)
                yield word
        except (asyncio.CancelledError, GeneratorExit):
            self.broken_off += 1
            raise
        finally:
            self.running -= 1


def _usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": words, "total_tokens": 7 + words}


def new_adapter(
    adapters: Path, corpus: str, weights: str, base_model: str = "embedded", rank: int = 8
) -> str:
    """Store an adapter by hand; return its content hash."""
    made = adapters.parent / "made" / corpus
    made.mkdir(parents=True, exist_ok=True)
    (made / "adapter_model.safetensors").write_text(f"{corpus} {weights}", encoding="utf-8")
    config = {"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"}
    (made / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return adapter_store.store(made, adapters, corpus, base_model)


def promote(adapters: Path, corpus: str, weights: str) -> str:
    """Store an adapter and promote it; return its content hash."""
    content = new_adapter(adapters, corpus, weights)
    adapter_store.promote(adapters, corpus, content)
    return content


class Gateway:
    """A gateway that runs in a thread of its own.

    Attributes:
        address: http://127.0.0.1:port/v1
        said: what the service has said.
        failed: why the service ended by itself, once it has.
    """

    def __init__(self, address: str, service: Service, said: list[str]) -> None:
        self.address = address
        self.root = address.removesuffix("/v1")
        self.service = service
        self.said = said
        self.failed: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def call(self, function: Callable[[], None]) -> None:
        """Call a function in the gateway's own thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(function)

    def health(self, key: str = "") -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        reply = HTTP.get(f"{self.root}/health", headers=headers)
        return {"code": reply.status_code, **reply.json()}

    def metrics(self) -> dict[str, float]:
        text = HTTP.get(f"{self.root}/metrics").text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#"]
        return {name: float(value) for name, value in lines}

    def metrics_like(self, name: str) -> float:
        """The sum over all labels of a metric."""
        found = self.metrics().items()
        return sum(value for key, value in found if key.partition("{")[0] == name)


@contextmanager
def serving(
    engine: Engine,
    adapters: Path,
    *,
    base_model: str = "embedded",
    corpora: tuple[str, ...] = (),
    key: str = "",
    max_requests: int = 64,
    drain_seconds: float = 30.0,
    turn: GpuTurn | None = None,
    wait: bool = True,
) -> Iterator[Gateway]:
    """Yield a gateway over `engine`; with `wait`, once it can answer."""
    metrics, said = Metrics(), list[str]()
    promoted = PromotedAdapters(adapters, base_model, corpora)
    service = Service(engine, promoted, metrics, drain_seconds, said.append, turn)
    app = gateway(service, metrics, Defaults.of(base_model, 50), key, max_requests)
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="error")
    server = Server(config)
    listener = listening("127.0.0.1", 0)
    running = Gateway(address_of(listener), service, said)

    async def run() -> None:
        running.loop = asyncio.get_running_loop()
        try:
            await answer(server, service, listener)
        except (SettingsError, TeacherStopped) as error:
            running.failed = error

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        if wait:
            until(lambda: service.why_not() is None)
        yield running
    finally:
        server.end()
        thread.join()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what has to come to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)
