"""Requests to any OpenAI-compatible server: OpenAI, vLLM, Ollama, llama.cpp."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.limits import estimated_tokens
from ragtuned_pipeline.inference.structured import conversation, response_format
from ragtuned_pipeline.settings import SettingsError, TeacherSettings

if TYPE_CHECKING:
    import httpx2

_SHOWN = 300  # characters of a server's words in a reason
_RETRIED = {408, 409, 425, 429}
# A body's bound: what surrounds the text, and a token's longest usual form in escaped JSON.
_BODY_BYTES, _TOKEN_BYTES = 1 << 20, 96
# Servers close idle connections after 5 s (uvicorn) or more; a request sent just then is lost.
_KEEPALIVE_SECONDS = 4.0
# Parameters that a server or model may not take; none of the run's requests would work.
_PARAMETERS = {
    "response_format": 'set teacher.structured_output to "json_object" or "prompt"',
    "temperature": "set teacher.temperature to one that the model takes",
    "model": "set teacher.model to one that the server has",
}


class OpenAIBackend:
    """Sends requests to `<teacher.address>/chat/completions`.

    The key is read from the environment variable named by teacher.api_key_variable, and sent only
    where that is set: local servers need none. It is never part of an error.

    Raises:
        SettingsError: teacher.address or teacher.model cannot be one, or the key holds characters
            that no header may.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        if not _is_address(settings.address):
            raise SettingsError(
                f"teacher.address is {settings.address!r}: write it as https://host:port/v1"
            )
        if not settings.model:
            raise SettingsError("teacher.model is empty: set it to the server's name of a model")
        self.identity = settings.model
        self._settings = settings
        self._url = f"{settings.address.rstrip('/')}/chat/completions"
        self._key = api_key(settings)
        self._client: httpx2.AsyncClient | None = None
        # OpenAI's newer models take only the second name, older servers only the first.
        self._limit_name = "max_tokens"

    async def reply(self, request: Request) -> RawReply:
        """Send the request once, and wait no longer than teacher.timeout_seconds for all of it."""
        import httpx2

        answered = False
        body = bytearray()
        most = _BODY_BYTES + _TOKEN_BYTES * request.max_tokens
        try:
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                self._open().stream("POST", self._url, json=self._body(request)) as response,
            ):
                answered = True
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > most:
                        raise RequestFailed(f"the server sent over {most} bytes", again=True)
        except TimeoutError:
            reason = f"no whole reply in teacher.timeout_seconds = {self._settings.timeout_seconds}"
            raise RequestFailed(reason, again=True, unreachable=not answered) from None
        except httpx2.HTTPError as error:
            reason = f"{self._settings.address}: {type(error).__name__}: {error}"
            raise RequestFailed(
                self._without_key(reason), again=True, unreachable=not answered
            ) from None
        if response.status_code != 200:
            raise self._failure(response.status_code, response.headers, bytes(body))
        return _read(bytes(body), request)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> httpx2.AsyncClient:
        import httpx2

        if self._client is None:
            most = self._settings.concurrency
            self._client = httpx2.AsyncClient(
                **client_options(self._settings, self._key),
                # The deadline of the whole request holds; the client's own timeouts add nothing.
                timeout=httpx2.Timeout(None),
                limits=httpx2.Limits(
                    max_connections=most,
                    max_keepalive_connections=most,
                    keepalive_expiry=_KEEPALIVE_SECONDS,
                ),
            )
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        how = self._settings.structured_output
        body = {
            "model": self._settings.model,
            "messages": conversation(request, how),
            "temperature": request.temperature,
            "seed": request.seed,
            self._limit_name: request.max_tokens,
        }
        form = response_format(request, how)
        return body if form is None else {**body, "response_format": form}

    def _failure(self, status: int, headers: Mapping[str, str], body: bytes) -> RequestFailed:
        settings = self._settings
        code, parameter, words = read_error(body)
        said = f"{settings.address} answered {status}: {self._without_key(words)}"
        if status == 404 or 300 <= status < 400:
            return _refused(
                f"{said}; check teacher.model = {settings.model!r} and "
                f"teacher.address = {settings.address!r}"
            )
        if status == 429 and code == "insufficient_quota":
            return _refused(f"{said}; teacher.api_key_variable names a key without credit left")
        told = told_by_status(settings, self._key, status, headers, said)
        if told is not None:
            return told
        if status in (400, 422):
            if self._limit_name == "max_tokens" and "max_completion_tokens" in words:
                self._limit_name = "max_completion_tokens"
                return RequestFailed(said, again=True)
            if "response_format" in words or "json_schema" in words:
                parameter = "response_format"
            change = _PARAMETERS.get(parameter.split(".")[0])
            if change:
                return _refused(f"{said}; {change}")
        return RequestFailed(said, again=False)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def api_key(settings: TeacherSettings) -> str:
    """Return the key in the environment variable teacher.api_key_variable, "" where it is not set.

    Raises:
        SettingsError: it holds characters that no header may.
    """
    key = os.environ.get(settings.api_key_variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(
            f"the key in {settings.api_key_variable} (teacher.api_key_variable) holds "
            "characters that no key has: set it again"
        )
    return key


def client_options(settings: TeacherSettings, key: str) -> dict[str, Any]:
    """Return how an httpx2 client reaches teacher.address."""
    return {
        # A proxy of the environment's is not for this machine's own addresses.
        "trust_env": urlsplit(settings.address).hostname not in ("localhost", "127.0.0.1", "::1"),
        "headers": {"Authorization": f"Bearer {key}"} if key else None,
    }


def told_by_status(
    settings: TeacherSettings, key: str, status: int, headers: Mapping[str, str], said: str
) -> RequestFailed | None:
    """Return the failure that a status alone tells: a wrong key, or a request to try again."""
    if status in (401, 403):  # without the server's words, which may quote the key
        return _refused(
            f"{settings.address} answered {status}: the key in the environment variable "
            f"{settings.api_key_variable} (teacher.api_key_variable) is "
            f"{'not accepted' if key else 'not set'}"
        )
    if status in _RETRIED or status >= 500:
        after = retry_after(headers.get("retry-after"))
        return RequestFailed(said, again=True, after=after, throttled=status == 429)
    return None


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header (seconds or an HTTP date) asks to wait."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def read_error(body: bytes) -> tuple[str, str, str]:
    """Return code, parameter and message of an error body; "" for what it has not."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)
    except ValueError:
        return "", "", text.strip()[:_SHOWN]
    if isinstance(error, dict):
        error = error.get("error", error)
    if not isinstance(error, dict):
        return "", "", text.strip()[:_SHOWN]
    words = str(error.get("message", text.strip()))[:_SHOWN]
    return str(error.get("code") or ""), str(error.get("param") or ""), words


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _refused(reason: str) -> RequestFailed:
    return RequestFailed(reason, again=False, refused=True)


def _read(body: bytes, request: Request) -> RawReply:
    try:
        sent = json.loads(body)
        choice = sent["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal")
        usage = sent.get("usage") or {}
        # Some servers count no tokens: the estimates of the budget then.
        prompt = usage.get("prompt_tokens") or estimated_tokens(request.messages)
        completion = usage.get("completion_tokens") or estimated_tokens(
            [{"role": "assistant", "content": text}]
        )
        return RawReply(
            str(text), str(choice.get("finish_reason")), refusal, int(prompt), int(completion)
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        words = body[:_SHOWN].decode("utf-8", "replace")
        raise RequestFailed(
            f"the server's answer is no chat completion ({error!r}): {words!r}", again=True
        ) from None
