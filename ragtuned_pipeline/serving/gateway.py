"""The OpenAI-compatible address: GET /v1/models, POST /v1/chat/completions, /health, /metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ragtuned_pipeline.serving.interface import Refused
from ragtuned_pipeline.serving.metrics import Metrics
from ragtuned_pipeline.serving.requests import MOST_BYTES, Asked, Defaults, read_request
from ragtuned_pipeline.serving.router import Route as Served
from ragtuned_pipeline.serving.service import Service

_CLIENT_LEFT = 499  # nginx's status for it
_STRANGER = "ragtuned.stranger"  # in the scope of a request without the key
_CODES = {
    401: "invalid_api_key",
    404: "model_not_found",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]"}
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in front passes each piece on at once
]


def gateway(
    service: Service, metrics: Metrics, defaults: Defaults, key: str, max_requests: int
) -> ASGIApp:
    """Return the application.

    Args:
        key: what clients must send as `Authorization: Bearer <key>`; "" for none, and then only
            requests to a loopback name are answered: a page in a browser on this machine could
            otherwise ask under a name of its own that leads here.
        max_requests: at once; more are told to come back.
    """
    chat = _Chat(service, metrics, defaults, max_requests)
    state = _State(service, metrics)
    app = Starlette(
        routes=[
            Route("/v1/models", state.models),
            Route("/v1/models/{model}", state.model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/health", state.health),
            Route("/metrics", state.metrics),
        ],
        exception_handlers={
            Refused: _refused,  # type: ignore[dict-item]  # of Starlette's stub, which wants Exception
            HTTPException: _not_here,  # type: ignore[dict-item]
            Exception: _failed,
        },
    )
    return _Guard(app, key)


class _Guard:
    """Lets nobody in without the key, but to be told by /health whether requests are answered."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = _digest(key.encode()) if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._check(scope)) is not None:
            await error_response(refused)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        if self._key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.casefold() in _LOOPBACK_NAMES:
                return None
            return Refused(403, f"host {name!r}: without an API key only localhost is answered")
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(_digest(given), self._key):
            return None
        if scope["path"] == "/health":
            scope[_STRANGER] = True
            return None
        return Refused(401, "the API key is missing or wrong: send Authorization: Bearer <key>")


class _State:
    """What is served, for clients and for those who watch."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def models(self, _request: Request) -> Response:
        self._service.check_ready()
        routes = self._service.router.routes
        data = [_model(routes[corpus]) for corpus in sorted(routes)]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        self._service.check_ready()
        corpus = request.path_params["model"]
        if (route := self._service.router.routes.get(corpus)) is None:
            raise Refused(404, f"no corpus {corpus!r} is served", "model")
        return JSONResponse(_model(route))

    async def health(self, request: Request) -> Response:
        reason = self._service.why_not()
        told: dict[str, Any] = {"status": "ok" if reason is None else "unavailable"}
        if _STRANGER not in request.scope:
            routes = self._service.router.routes
            told["reason"] = reason
            served = {corpus: routes[corpus].promoted.content for corpus in sorted(routes)}
            told["served"] = served if reason is None else {}
            told["not_served"] = self._service.unserved()
        return JSONResponse(told, 200 if reason is None else 503)

    async def metrics(self, _request: Request) -> Response:
        text = self._metrics.text()
        if self._service.why_not() is None:
            with suppress(Refused):  # it ended just now
                text += await self._service.engine.metrics()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


class _Chat:
    """Answers POST /v1/chat/completions, as long as the client is there."""

    def __init__(
        self, service: Service, metrics: Metrics, defaults: Defaults, max_requests: int
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._defaults = defaults
        self._max_requests = max_requests
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(self._service, self._metrics, send)
        started = time.perf_counter()
        status = 500
        self._running += 1
        self._metrics.in_flight.set(self._running)
        try:
            if self._running > self._max_requests:
                reason = f"{self._max_requests} requests are being answered (serving.max_requests)"
                raise Refused(429, reason, retry_after=1)
            answer.asked = read_request(await _body(Request(scope, receive)), self._defaults)
            status = await _while_connected(receive, answer)
        except Refused as refused:
            status = refused.status
            await answer.refuse(refused, scope, receive)
        except (_ClientLeft, ClientDisconnect):
            status = _CLIENT_LEFT
        finally:
            self._running -= 1
            self._metrics.in_flight.set(self._running)
            self._metrics.requests.labels(answer.corpus, status).inc()
            if status == 200:
                seconds = time.perf_counter() - started
                self._metrics.seconds.labels(answer.corpus).observe(seconds)


class _Answer:
    """One answer on its way to the client.

    Attributes:
        asked: has to be set before it is called.
        corpus: of the answer, once it is known that it is served; before that "".
    """

    asked: Asked

    def __init__(self, service: Service, metrics: Metrics, send: Send) -> None:
        self.corpus = ""
        self._service = service
        self._metrics = metrics
        self._send = send
        self._begun = False

    async def __call__(self) -> int:
        """Answer; return the status.

        Raises:
            Refused: there is no answer, or it broke off.
        """
        asked = self.asked
        async with self._service.lease(asked.corpus) as adapter:
            self.corpus = asked.corpus
            if asked.stream:
                async with aclosing(self._service.engine.stream(adapter, asked.body)) as chunks:
                    await self._send_stream(chunks)
            else:
                given = await self._service.engine.complete(adapter, asked.body)
                given["model"] = self.corpus
                self._count(given.get("usage"))
                body = _json(given)
                length = (b"content-length", str(len(body)).encode())
                await self._start([(b"content-type", b"application/json"), length])
                await self._piece(body, last=True)
        return 200

    async def refuse(self, refused: Refused, scope: Scope, receive: Receive) -> None:
        """Tell the client why; in the stream, where that has begun."""
        if not self._begun:
            await error_response(refused)(scope, receive, self._send)
            return
        await self._piece(b"data: " + _json(_error(refused)) + b"\n\ndata: [DONE]\n\n", last=True)

    async def _send_stream(self, chunks: AsyncIterator[dict[str, Any]]) -> None:
        started = time.perf_counter()
        async for chunk in chunks:
            if not self._begun:
                seconds = time.perf_counter() - started
                self._metrics.first_token_seconds.labels(self.corpus).observe(seconds)
                await self._start(_EVENT_STREAM)
            chunk["model"] = self.corpus
            if not chunk.get("choices"):
                self._count(chunk.get("usage"))
                if not self.asked.wants_usage:
                    continue
            await self._piece(b"data: " + _json(chunk) + b"\n\n")
        await self._piece(b"data: [DONE]\n\n", last=True)

    async def _start(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _piece(self, body: bytes, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    def _count(self, usage: dict[str, Any] | None) -> None:
        if usage is not None:
            for kind in ("prompt", "completion"):
                count = usage.get(f"{kind}_tokens") or 0
                self._metrics.tokens.labels(self.corpus, kind).inc(count)


class _ClientLeft(Exception):
    pass


async def _while_connected(receive: Receive, answer: _Answer) -> int:
    """Return what `answer` returns; it is cancelled when the client leaves.

    Raises:
        _ClientLeft: it has left.
    """
    work = asyncio.create_task(answer())
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise _ClientLeft
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise Refused(413, f"the request's body is larger than {MOST_BYTES:,} bytes")
    return bytes(data)


def error_response(refused: Refused) -> Response:
    """Return the error in OpenAI's shape."""
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(refused.retry_after))
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(_error(refused), refused.status, headers)


def _error(refused: Refused) -> dict[str, Any]:
    kind = "invalid_request_error"
    if refused.status == 429:
        kind = "rate_limit_error"
    elif refused.status >= 500:
        kind = "server_error"
    code = _CODES.get(refused.status)
    told = {"message": refused.message, "type": kind, "param": refused.parameter, "code": code}
    return {"error": told}


async def _refused(_request: Request, refused: Refused) -> Response:
    return error_response(refused)


async def _not_here(request: Request, error: HTTPException) -> Response:
    reason = f"{request.method} {request.url.path}: {error.detail}"
    told = {"message": reason, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": told}, error.status_code, error.headers)


async def _failed(_request: Request, _error_: Exception) -> Response:
    return error_response(Refused(500, "the gateway failed; its log says why"))


def _model(route: Served) -> dict[str, Any]:
    promoted = route.promoted
    return {
        "id": route.corpus,
        "object": "model",
        "created": int(promoted.since),
        "owned_by": "ragtuned",
        "adapter": promoted.content,
        "promoted_at": datetime.fromtimestamp(promoted.since, UTC).isoformat(timespec="seconds"),
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
