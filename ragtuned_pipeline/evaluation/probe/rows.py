"""Rows of the table "probe"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ragtuned_pipeline.ids import content_id

ACCURACY, LOSS = "accuracy", "loss"


def probe_rows(
    suite: str, model: str, measure: str, scores: Iterable[tuple[str, float]]
) -> list[dict[str, Any]]:
    """Return a row a score; `scores` are (item, score) pairs."""
    return [
        {
            "id": content_id("probe", suite, item, model),
            "suite": suite,
            "item": item,
            "model": model,
            "score": float(score),
            "measure": measure,
        }
        for item, score in scores
    ]
