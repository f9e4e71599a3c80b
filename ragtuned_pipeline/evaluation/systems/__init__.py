"""Every system that answers: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from ragtuned_pipeline.evaluation.systems import base, long_context, tuned, vanilla_rag
from ragtuned_pipeline.evaluation.systems.interface import (
    Answered,
    Setup,
    SkippedSystem,
    System,
)
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import table

SYSTEMS: Mapping[str, System] = {
    "tuned": tuned.prepare,
    "base": base.prepare,
    "vanilla_rag": vanilla_rag.prepare,
    "long_context": long_context.prepare,
}

__all__ = ["SYSTEMS", "Answered", "Setup", "SkippedSystem", "answer_all"]


def answer_all(name: str, queries: pa.Table, setup: Setup) -> Answered | SkippedSystem:
    """Return the answers table of the system `name` to all `queries`, in their order.

    Raises:
        SettingsError: there is no system of that name.
    """
    if name not in SYSTEMS:
        raise SettingsError(
            f"setting evaluation.systems: {name!r} is not one of {', '.join(SYSTEMS)}"
        )
    prepared = SYSTEMS[name](setup)
    if isinstance(prepared, SkippedSystem):
        return prepared
    answers = prepared.answer(queries.column("question").to_pylist())
    rows = [
        {
            "id": content_id("answer", name, query_id),
            "query_id": query_id,
            "system": name,
            "answer": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seconds": answer.seconds,
            "context_ids": list(answer.context_ids),
        }
        for query_id, answer in zip(queries.column("id").to_pylist(), answers, strict=True)
    ]
    return Answered(table("answers", rows), prepared.description)
