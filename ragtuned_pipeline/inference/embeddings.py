"""Embeddings of texts by an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.server_routes import Route, post_all
from ragtuned_pipeline.settings import TeacherSettings

_AT_ONCE = 128  # texts in a request


def embed(
    texts: Sequence[str], settings: TeacherSettings, *, backoff_seconds: float = 1.0
) -> np.ndarray:
    """Return one vector a text, in order: float32 of shape (n, d), each of length 1.

    The model is teacher.embedding_model at teacher.address. Lost requests are tried again as
    server_routes.post_all says.

    Args:
        texts: none of them empty; servers refuse those.
        backoff_seconds: the first wait before another attempt.

    Raises:
        SettingsError: the key holds characters that no header may.
        TeacherStopped: the server cannot be reached, refuses, or sends what is no embedding.
    """
    model = settings.embedding_model
    route = Route("embeddings", "embeddings", f"teacher.embedding_model = {model!r}", _vectors)
    bodies = [
        {
            "model": model,
            "input": list(texts[start : start + _AT_ONCE]),
            "encoding_format": "float",
        }
        for start in range(0, len(texts), _AT_ONCE)
    ]
    vectors = post_all(route, bodies, settings, backoff_seconds)
    if len({v.shape[1] for v in vectors}) > 1:
        raise TeacherStopped(f"no embeddings: {settings.address} sent vectors of unequal length")
    return np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)


def _vectors(reply: Any, body: dict[str, Any]) -> np.ndarray:
    rows = sorted(reply["data"], key=lambda row: row["index"])
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(body["input"]):
        raise ValueError(f"an array of shape {vectors.shape} for {len(body['input'])} texts")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a vector without a direction")
    unit: np.ndarray = vectors / lengths
    return unit
