"""How relevant texts are to a question, by a server's reranking model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ragtuned_pipeline.inference.server_routes import Route, post_all
from ragtuned_pipeline.settings import TeacherSettings


def rerank(
    question: str,
    texts: Sequence[str],
    settings: TeacherSettings,
    model: str,
    *,
    backoff_seconds: float = 1.0,
) -> np.ndarray:
    """Return one relevance a text, in order: float64 of shape (n,), comparable among the texts.

    The server is teacher.address, and its route /rerank in the form of Jina, Cohere and vLLM. Lost
    requests are tried again as server_routes.post_all says.

    Args:
        backoff_seconds: the first wait before another attempt.

    Raises:
        SettingsError: the key holds characters that no header may.
        TeacherStopped: the server cannot be reached, refuses, or sends what are no relevances.
    """
    if not texts:
        return np.zeros(0)
    route = Route("rerank", "relevances", f"evaluation.reranking_model = {model!r}", _relevances)
    body = {"model": model, "query": question, "documents": list(texts)}
    return post_all(route, [body], settings, backoff_seconds)[0]


def _relevances(reply: Any, body: dict[str, Any]) -> np.ndarray:
    scores = {row["index"]: float(row["relevance_score"]) for row in reply["results"]}
    expected = range(len(body["documents"]))
    if len(reply["results"]) != len(expected) or scores.keys() != set(expected):
        raise ValueError(f"relevances of {sorted(scores)} for {len(expected)} texts")
    relevances = np.array([scores[place] for place in expected])
    if not np.isfinite(relevances).all():
        raise ValueError("a relevance that is no number")
    return relevances
