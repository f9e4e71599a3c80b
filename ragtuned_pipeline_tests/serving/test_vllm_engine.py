"""What the engine makes of vLLM's replies: a server that replies as vLLM 0.32 does."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ragtuned_pipeline.serving.interface import NeedsRestart, Refused
from ragtuned_pipeline.serving.vllm_engine import VllmServing
from ragtuned_pipeline.settings import VllmSettings
from ragtuned_pipeline_tests.serving.world import new_adapter
from ragtuned_pipeline_tests.vllm_stand_in import alive, started

TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, you requested 50 output tokens"
)
BODY = {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0, "max_tokens": 50}
# Characters at which a line ends for Python, and for no JSON.
ODD = "one\u2028two\x85three\x0bfour"


class Alive:
    """The process of a server that is up; nothing of it is used here."""

    def why_ended(self) -> None:
        return None

    def stop(self) -> None:
        pass


class Vllm:
    """Replies with what `reply` makes of a request's body, and keeps the bodies."""

    def __init__(self, reply: Callable[[dict[str, Any]], Response]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.reply = reply

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return self.reply(self.bodies[-1])


def error(status: int, message: str, parameter: str | None = None) -> Response:
    told = {"message": message, "type": "BadRequestError", "param": parameter, "code": status}
    return JSONResponse({"error": told}, status)


def run(
    tmp_path: Path,
    vllm: Vllm,
    use: Callable[[VllmServing], Awaitable[None]],
) -> None:
    """Call `use` with an engine whose server is `vllm`."""

    async def main() -> None:
        app = Starlette(routes=[Route("/v1/{path:path}", vllm.answer, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server._serve([listener]))
        engine = VllmServing("embedded", VllmSettings(), tmp_path / "log", 8, 50)
        engine._address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        engine._client = httpx2.AsyncClient(trust_env=False)
        engine._server = Alive()  # type: ignore[assignment]
        try:
            await use(engine)
        finally:
            await engine.close()
            server.should_exit = True
            await serving

    asyncio.run(main())


def streamed(*events: Any) -> Response:
    """A stream in pieces that end anywhere."""
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    data = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 7):
            yield data[start : start + 7]

    return StreamingResponse(pieces(), media_type="text/event-stream")


def test_a_stream_is_read_whatever_is_in_it(tmp_path: Path) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": ODD}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    vllm = Vllm(lambda _: streamed(chunk, usage))

    async def use(engine: VllmServing) -> None:
        assert [each async for each in engine.stream("harbour@1", BODY)] == [chunk, usage]

    run(tmp_path, vllm, use)
    assert vllm.bodies == [{**BODY, "model": "harbour@1", "stream": True}]


def test_a_stream_that_breaks_off_is_refused_in_vllms_words(tmp_path: Path) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "one"}}]}
    vllm = Vllm(lambda _: streamed(chunk, {"error": {"message": "EngineCore is dead"}}))

    async def use(engine: VllmServing) -> None:
        stream = engine.stream("harbour@1", BODY)
        assert await anext(stream) == chunk
        with pytest.raises(Refused, match="EngineCore is dead"):
            await anext(stream)

    run(tmp_path, vllm, use)


def test_where_the_default_is_too_long_vllm_takes_what_is_left(tmp_path: Path) -> None:
    answered = {"choices": [{"message": {"content": "It."}}]}
    vllm = Vllm(lambda body: error(400, TOO_LONG) if body["max_tokens"] else JSONResponse(answered))

    async def use(engine: VllmServing) -> None:
        assert await engine.complete("harbour@1", BODY) == answered
        with pytest.raises(Refused, match="maximum context length"):  # the client's own number
            await engine.complete("harbour@1", {**BODY, "max_tokens": 51})

    run(tmp_path, vllm, use)
    assert [body["max_tokens"] for body in vllm.bodies] == [50, None, 51]


def test_what_vllm_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    vllm = Vllm(lambda _: error(400, "top_p must be in (0, 1]", "top_p"))

    async def use(engine: VllmServing) -> None:
        with pytest.raises(Refused, match="top_p must be") as refused:
            await engine.complete("harbour@1", BODY)
        assert (refused.value.status, refused.value.parameter) == (400, "top_p")
        with pytest.raises(Refused, match="top_p must be"):
            await anext(engine.stream("harbour@1", BODY))

    run(tmp_path, vllm, use)


def test_a_number_that_cannot_be_sent_on_is_the_clients_fault(tmp_path: Path) -> None:
    vllm = Vllm(lambda _: JSONResponse({}))

    async def use(engine: VllmServing) -> None:
        with pytest.raises(Refused) as refused:
            await engine.complete("harbour@1", {**BODY, "temperature": float("inf")})
        assert refused.value.status == 400

    run(tmp_path, vllm, use)
    assert vllm.bodies == []


def test_a_server_that_is_gone_is_no_failure_of_the_gateway(tmp_path: Path) -> None:
    async def use(engine: VllmServing) -> None:
        engine._address = "http://127.0.0.1:9/v1"
        for asking in (engine.complete("a@1", BODY), anext(engine.stream("a@1", BODY))):
            with pytest.raises(Refused) as refused:
                await asking
            assert refused.value.status == 503
            assert refused.value.retry_after

    run(tmp_path, Vllm(lambda _: JSONResponse({})), use)


def test_adapters_are_loaded_by_their_folder_and_a_higher_rank_needs_a_restart(
    tmp_path: Path,
) -> None:
    adapters = tmp_path / "adapters"
    small, large, too_large = (
        adapters / "harbour" / new_adapter(adapters, "harbour", "x", rank=rank)
        for rank in (8, 9, 1024)
    )
    replies = [
        JSONResponse({}),
        error(400, "The lora adapter 'harbour@1' has already been loaded."),
        error(500, "no room"),
        JSONResponse({}),
        error(404, "The lora adapter 'harbour@1' cannot be found."),
    ]
    vllm = Vllm(lambda _: replies.pop(0))

    async def use(engine: VllmServing) -> None:
        await engine.load("harbour@1", small)
        await engine.load("harbour@1", small)
        with pytest.raises(Refused, match="no room"):
            await engine.load("harbour@1", small)
        with pytest.raises(Refused, match="512 at most"):
            await engine.load("harbour@3", too_large)
        with pytest.raises(NeedsRestart, match=large.name):
            await engine.load("harbour@2", large)
        await engine.load("harbour@2", large)  # started anew, it is prepared for it
        await engine.unload("harbour@1")

    run(tmp_path, vllm, use)
    assert vllm.bodies[0] == {"lora_name": "harbour@1", "lora_path": str(small)}
    assert vllm.bodies[-1] == {"lora_name": "harbour@1"}


def test_an_adapter_that_was_deleted_is_not_asked_any_more(tmp_path: Path) -> None:
    """vLLM 0.32 ends where it has to read an adapter again and finds none."""
    adapters = tmp_path / "adapters"
    folder = adapters / "harbour" / new_adapter(adapters, "harbour", "x")
    vllm = Vllm(lambda _: JSONResponse({}))

    async def use(engine: VllmServing) -> None:
        await engine.load("harbour@1", folder)
        await engine.complete("harbour@1", BODY)
        folder.rename(tmp_path / "gone")
        with pytest.raises(Refused, match="was deleted") as refused:
            await engine.complete("harbour@1", BODY)
        assert refused.value.retry_after == 1

    run(tmp_path, vllm, use)
    assert len(vllm.bodies) == 2


def test_a_request_whose_connection_breaks_is_sent_again(tmp_path: Path) -> None:
    """As where a server closes an idle connection just when it is used again."""
    connections = 0

    async def breaks_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        if connections > 1:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + b'{"it": 1} ')
            await writer.drain()
        writer.close()

    async def use(engine: VllmServing) -> None:
        server = await asyncio.start_server(breaks_once, "127.0.0.1", 0)
        engine._address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        assert await engine.complete("harbour@1", BODY) == {"it": 1}
        server.close()

    run(tmp_path, Vllm(lambda _: JSONResponse({})), use)
    assert connections == 2


def test_the_server_can_be_asked_by_this_user_alone(stand_in: Path, tmp_path: Path) -> None:
    async def main() -> Path:
        engine = VllmServing("embedded", VllmSettings(), tmp_path / "log", 8, 50)
        await engine.start()
        assert engine._server is not None
        assert engine._server.socket is not None
        folder = engine._server.socket.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        [server, _] = started(stand_in)
        given = Path(f"/proc/{server}/cmdline").read_text(encoding="utf-8").split("\0")
        assert given[given.index("--uds") + 1] == str(engine._server.socket)
        assert not {"--host", "--port"} & {*given}
        answered = await engine.complete("harbour@1", BODY)
        assert answered["choices"][0]["message"]["content"] == "harbour@1: Who?"
        await engine.close()
        return folder

    assert not asyncio.run(main()).exists()
    assert alive(started(stand_in)) == []


@pytest.mark.usefixtures("stand_in")
def test_a_server_is_stopped_even_where_its_start_and_its_stop_are_cancelled(
    tmp_path: Path,
) -> None:
    async def begun(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return task

    async def main() -> None:
        engine = VllmServing("embedded", VllmSettings(), tmp_path / "log", 8, 50)
        await begun(engine.start())
        assert engine._server is not None
        process = engine._server._process
        await begun(engine.close())
        assert process.poll() is not None

    asyncio.run(main())
