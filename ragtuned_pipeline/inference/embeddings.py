"""Embeddings of texts by an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from ragtuned_pipeline.inference.backend import RequestFailed
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.limits import Backoff
from ragtuned_pipeline.inference.openai_backend import api_key, client_options, told_by_status
from ragtuned_pipeline.settings import TeacherSettings

if TYPE_CHECKING:
    import httpx2

_AT_ONCE = 128  # texts in a request
_SHOWN = 300  # characters of a server's words in an error


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
        SettingsError: the key holds characters that no header may.
        TeacherStopped: the server cannot be reached, refuses, or sends what is no embedding.
    """
    import httpx2

    batches = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
    if not batches:
        return np.zeros((0, 0), dtype=np.float32)
    key = api_key(settings)
    retrying = Retrying(
        stop=stop_after_attempt(settings.max_attempts),
        wait=Backoff(backoff_seconds),
        retry=retry_if_exception(lambda e: isinstance(e, RequestFailed) and e.again),
        reraise=True,
    )
    with (
        httpx2.Client(**client_options(settings, key), timeout=settings.timeout_seconds) as client,
        ThreadPoolExecutor(min(settings.concurrency, len(batches))) as pool,
    ):
        sent = [pool.submit(retrying, _embed, client, settings, key, b) for b in batches]
        try:
            vectors = [each.result() for each in sent]
        except RequestFailed as failed:
            pool.shutdown(wait=False, cancel_futures=True)
            reason = failed.reason.replace(key, "***") if key else failed.reason
            raise TeacherStopped(f"no embeddings: {reason}") from None
    if len({v.shape[1] for v in vectors}) > 1:
        raise TeacherStopped(f"no embeddings: {settings.address} sent vectors of unequal length")
    return np.concatenate(vectors)


def _embed(
    client: httpx2.Client, settings: TeacherSettings, key: str, texts: Sequence[str]
) -> np.ndarray:
    import httpx2

    body = {"model": settings.embedding_model, "input": list(texts), "encoding_format": "float"}
    try:
        response = client.post(f"{settings.address.rstrip('/')}/embeddings", json=body)
    except httpx2.HTTPError as error:
        raise RequestFailed(
            f"{settings.address}: {type(error).__name__}: {error}", again=True
        ) from None
    if response.status_code != 200:
        raise _failure(response, settings, key)
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


def _failure(response: httpx2.Response, settings: TeacherSettings, key: str) -> RequestFailed:
    status = response.status_code
    said = f"{settings.address} answered {status}: {response.text.strip()[:_SHOWN]}"
    return told_by_status(settings, key, status, response.headers, said) or RequestFailed(
        f"{said}; check teacher.embedding_model = {settings.embedding_model!r} and "
        f"teacher.address = {settings.address!r}",
        again=False,
    )
