"""The engine of a GPU: a vLLM server of this process's own, with adapters that come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.inference.openai_backend import read_error
from ragtuned_pipeline.inference.vllm_adapters import (
    AdapterNotTaken,
    load_adapter,
    server_words,
    unload_adapter,
)
from ragtuned_pipeline.inference.vllm_server import VllmServer, lora_rank
from ragtuned_pipeline.serving.interface import Body, NeedsRestart, Refused
from ragtuned_pipeline.serving.to_the_end import to_the_end
from ragtuned_pipeline.settings import VllmSettings
from ragtuned_pipeline.tuning.adapter_store import adapter_shape

if TYPE_CHECKING:
    import httpx2

_KEEPALIVE_SECONDS = 60.0  # of an idle connection; vLLM keeps them for longer
_ATTEMPTS = 3  # to send a request, where a connection breaks and vLLM is up
_CONNECT_SECONDS = 10.0
_LOAD_SECONDS = 300.0  # an adapter may be gigabytes, on a disk across a network
_RETRY_AFTER = 5.0
_TOO_LONG = "maximum context length"
_DATA, _END = b"data: ", b"data: [DONE]"


class VllmServing:
    """Engine over a VllmServer, which only this user's processes can ask: it has no port.

    Args:
        base_model: the setting tuning.base_model.
        settings: of the servers that this package starts.
        log: gets all that the server writes; the one before is kept as <name>.previous.log.
        max_rank: of the adapters that are served first; a higher one needs a restart.
        default_tokens: serving.max_tokens; where that is more than a prompt leaves of the context,
            an answer may have what is left.
        python: the interpreter that has vLLM.
        inherited: gives descriptors that the server keeps open (GpuTurn.inherited).
    """

    def __init__(
        self,
        base_model: str,
        settings: VllmSettings,
        log: Path,
        max_rank: int,
        default_tokens: int,
        python: Path | None = None,
        inherited: Callable[[], tuple[int, ...]] = tuple,
    ) -> None:
        self._base_model = base_model
        self._settings = settings
        self._log = log
        self._rank = lora_rank(max_rank)
        self._default_tokens = default_tokens
        self._python = python
        self._inherited = inherited
        self._server: VllmServer | None = None
        self._client: httpx2.AsyncClient | None = None
        self._address = ""
        self._folders: dict[str, Path] = {}  # of the adapters that are loaded

    async def start(self) -> None:
        import httpx2

        if self._log.is_file():
            self._log.replace(self._log.with_suffix(".previous.log"))
        # Cancelled, close() has a server to stop all the same.
        server = await to_the_end(asyncio.to_thread(self._start_server))
        self._address = await asyncio.wrap_future(server.up)
        self._client = httpx2.AsyncClient(
            trust_env=False,  # a proxy of the environment's is not for this machine's own addresses
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            transport=httpx2.AsyncHTTPTransport(
                uds=str(server.socket),
                trust_env=False,
                limits=httpx2.Limits(
                    max_connections=None,  # the gateway bounds what is asked at once
                    max_keepalive_connections=None,
                    keepalive_expiry=_KEEPALIVE_SECONDS,
                ),
            ),
        )

    async def load(self, adapter: str, folder: Path) -> None:
        import httpx2

        try:
            rank = lora_rank(adapter_shape(folder)[0])
        except (OSError, ValueError) as error:
            raise Refused(500, f"{folder}: {error}") from None
        try:
            if rank > self._rank:
                self._rank = rank
                raise NeedsRestart(f"adapter {folder.name} has a higher rank than vLLM expects")
            async with asyncio.timeout(_LOAD_SECONDS):
                await load_adapter(self._up(), self._address, adapter, folder)
            self._folders[adapter] = folder
        except AdapterNotTaken as error:
            raise Refused(500, str(error)) from None
        except TimeoutError:
            raise Refused(500, f"vLLM has not loaded {folder} in {_LOAD_SECONDS:g} s") from None
        except httpx2.HTTPError as error:
            raise self._lost(error) from None

    async def unload(self, adapter: str) -> None:
        import httpx2

        try:
            await unload_adapter(self._up(), self._address, adapter)
            self._folders.pop(adapter, None)
        except AdapterNotTaken as error:
            raise Refused(500, str(error)) from None
        except httpx2.HTTPError as error:
            raise self._lost(error) from None

    async def complete(self, adapter: str, body: Body) -> dict[str, Any]:
        import httpx2

        try:
            reply = await self._post(adapter, body, stream=False)
        except httpx2.HTTPError as error:
            raise self._lost(error) from None
        given: dict[str, Any] = reply.json()
        return given

    async def stream(self, adapter: str, body: Body) -> AsyncGenerator[dict[str, Any], None]:
        import httpx2

        try:
            reply = await self._post(adapter, body, stream=True)
            try:
                async for chunk in _chunks(reply):
                    if "error" in chunk:
                        raise Refused(502, f"vLLM: {chunk['error'].get('message')}")
                    yield chunk
            finally:
                await reply.aclose()
        except httpx2.HTTPError as error:
            raise self._lost(error) from None

    def why_ended(self) -> str | None:
        return "vLLM is not started" if self._server is None else self._server.why_ended()

    async def metrics(self) -> str:
        import httpx2

        try:
            reply = await self._up().get(f"{self._address.removesuffix('/v1')}/metrics")
        except httpx2.HTTPError as error:
            raise self._lost(error) from None
        return reply.text

    async def close(self) -> None:
        client, server, self._client, self._server = self._client, self._server, None, None
        self._folders.clear()
        if server is not None:
            await to_the_end(asyncio.to_thread(server.stop))
        if client is not None:
            await client.aclose()

    def _start_server(self) -> VllmServer:
        self._server = VllmServer(
            self._base_model,
            identity(self._base_model),
            self._settings,
            self._log,
            self._python,
            max_rank=self._rank,
            private=True,
            inherited=self._inherited(),
        )
        return self._server

    def _up(self) -> httpx2.AsyncClient:
        if self._client is None:
            raise Refused(503, "vLLM is not started", retry_after=_RETRY_AFTER)
        return self._client

    async def _post(self, adapter: str, body: Body, stream: bool) -> httpx2.Response:
        """Return vLLM's reply; the body of a streamed one is not read yet.

        Raises:
            Refused: it is an error; in vLLM's words.
        """
        if (folder := self._folders.get(adapter)) is not None and not folder.is_dir():
            # It is being forgotten. Where vLLM has to read it again, it would end.
            raise Refused(503, f"adapter {folder.name} was deleted", retry_after=1)
        asked = {**body, "model": adapter, "stream": stream}
        reply = await self._send(asked, stream)
        if reply.status_code == 400 and asked.get("max_tokens") == self._default_tokens:
            await reply.aread()
            if _TOO_LONG in server_words(reply):  # without a number, vLLM takes what is left
                reply = await self._send({**asked, "max_tokens": None}, stream)
        if reply.status_code == 200:
            return reply
        await reply.aread()
        if (ended := self.why_ended()) is not None:
            raise Refused(503, ended, retry_after=_RETRY_AFTER)
        _, parameter, _ = read_error(reply.content)
        raise Refused(reply.status_code, server_words(reply), parameter or None)

    async def _send(self, body: dict[str, Any], stream: bool) -> httpx2.Response:
        """Post the body; again where the connection breaks: an answer has no effect but itself."""
        import httpx2

        try:
            content = json.dumps(body, allow_nan=False).encode()
        except ValueError as error:  # 1e999 is a number in JSON, and none that can be sent on
            raise Refused(400, f"the request holds a number that is none: {error}") from None
        url = f"{self._address}/chat/completions"
        headers = {"Content-Type": "application/json"}
        attempt = 1
        while True:
            client = self._up()
            request = client.build_request("POST", url, content=content, headers=headers)
            try:
                return await client.send(request, stream=stream)
            except httpx2.TransportError:
                if attempt == _ATTEMPTS or self.why_ended() is not None:
                    raise
                attempt += 1

    def _lost(self, error: httpx2.HTTPError) -> Refused:
        reason = self.why_ended() or f"vLLM cannot be reached ({type(error).__name__})"
        return Refused(503, reason, retry_after=_RETRY_AFTER)


async def _chunks(reply: httpx2.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a stream.

    The client's own lines also end at characters that JSON leaves as they are in a string (U+2028).
    """
    rest = b""
    async for part in reply.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(_DATA) and line.rstrip() != _END:
                yield json.loads(line.removeprefix(_DATA))
