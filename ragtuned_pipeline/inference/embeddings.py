"""Embeddings of texts by an OpenAI-compatible server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from ragtuned_pipeline.inference.backend import RequestFailed
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.openai_backend import retry_after
from ragtuned_pipeline.settings import TeacherSettings

if TYPE_CHECKING:
    import httpx2

_AT_ONCE = 128  # texts in a request
_RETRIED = {408, 409, 425, 429}
_SHOWN = 300  # characters of a server's words in an error
_LONGEST_BACKOFF_SECONDS = 60.0


def embed(
    texts: Sequence[str], settings: TeacherSettings, *, backoff_seconds: float = 1.0
) -> np.ndarray:
    """Return one vector a text, in order: float32 of shape (n, d), each of length 1.

    The model is teacher.embedding_model at teacher.address. Lost requests are tried again up to
    teacher.max_attempts in all, after as long as the server says, else after twice as long each
    time.

    Args:
        texts: none of them empty; servers refuse those.
        backoff_seconds: the first wait before another attempt.

    Raises:
        TeacherStopped: the server cannot be reached, refuses, or sends what is no embedding.
    """
    import httpx2

    batches = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
    if not batches:
        return np.zeros((0, 0), dtype=np.float32)
    key = os.environ.get(settings.api_key_variable, "").strip()
    retrying = Retrying(
        stop=stop_after_attempt(settings.max_attempts),
        wait=_Wait(backoff_seconds),
        retry=retry_if_exception(lambda e: isinstance(e, RequestFailed) and e.again),
        reraise=True,
    )
    with (
        httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=settings.timeout_seconds,
        ) as client,
        ThreadPoolExecutor(min(settings.concurrency, len(batches))) as pool,
    ):
        sent = [pool.submit(retrying, _embed, client, settings, b) for b in batches]
        try:
            vectors = [each.result() for each in sent]
        except RequestFailed as failed:
            pool.shutdown(wait=False, cancel_futures=True)
            reason = failed.reason.replace(key, "***") if key else failed.reason
            raise TeacherStopped(f"no embeddings: {reason}") from None
    if len({v.shape[1] for v in vectors}) > 1:
        raise TeacherStopped(f"no embeddings: {settings.address} sent vectors of unequal length")
    return np.concatenate(vectors)


class _Wait:
    """The seconds before another attempt: what the server asks for, else longer each time."""

    def __init__(self, seconds: float) -> None:
        self._backoff = wait_exponential_jitter(
            multiplier=seconds, max=_LONGEST_BACKOFF_SECONDS, jitter=seconds
        )

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        asked = error.after if isinstance(error, RequestFailed) else None
        return max(self._backoff(state), asked or 0.0)


def _embed(client: httpx2.Client, settings: TeacherSettings, texts: Sequence[str]) -> np.ndarray:
    import httpx2

    body = {"model": settings.embedding_model, "input": list(texts), "encoding_format": "float"}
    try:
        response = client.post(f"{settings.address.rstrip('/')}/embeddings", json=body)
    except httpx2.HTTPError as error:
        raise RequestFailed(
            f"{settings.address}: {type(error).__name__}: {error}", again=True
        ) from None
    if response.status_code != 200:
        raise _failure(response, settings)
    try:
        rows = sorted(response.json()["data"], key=lambda row: row["index"])
        vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    except (ValueError, TypeError, LookupError) as error:
        raise RequestFailed(
            f"{settings.address} sent no embeddings ({error!r}): {response.text[:_SHOWN]!r}",
            again=True,
        ) from None
    return _normalised(vectors, len(texts), settings.address)


def _normalised(vectors: np.ndarray, expected: int, address: str) -> np.ndarray:
    if vectors.ndim != 2 or len(vectors) != expected:
        raise RequestFailed(
            f"{address} sent an array of shape {vectors.shape} for {expected} texts", again=True
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise RequestFailed(f"{address} sent a vector without a direction", again=True)
    unit: np.ndarray = vectors / lengths
    return unit


def _failure(response: httpx2.Response, settings: TeacherSettings) -> RequestFailed:
    status = response.status_code
    if status in (401, 403):  # without the server's words, which may quote the key
        return RequestFailed(
            f"{settings.address} answered {status}: the key in the environment variable "
            f"{settings.api_key_variable} (teacher.api_key_variable) is not accepted, or not set",
            again=False,
        )
    said = f"{settings.address} answered {status}: {response.text.strip()[:_SHOWN]}"
    if status in _RETRIED or status >= 500:
        after = retry_after(response.headers.get("retry-after"))
        return RequestFailed(said, again=True, after=after)
    return RequestFailed(
        f"{said}; check teacher.embedding_model = {settings.embedding_model!r} and "
        f"teacher.address = {settings.address!r}",
        again=False,
    )
