"""Every system that answers: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from ragtuned_pipeline.evaluation.systems import (
    base,
    graphrag_global,
    graphrag_local,
    long_context,
    tuned,
    tuned_rag,
    vanilla_rag,
)
from ragtuned_pipeline.evaluation.systems.interface import (
    GRAPH_TABLES,
    Answered,
    Setup,
    SkippedSystem,
    SystemSpec,
)
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.teacher import price
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import Failure, table

SYSTEMS: Mapping[str, SystemSpec] = {
    "tuned": SystemSpec(tuned.prepare, uses_adapter=True),
    "base": SystemSpec(base.prepare),
    "tuned_rag": SystemSpec(tuned_rag.prepare, uses_adapter=True),
    "vanilla_rag": SystemSpec(vanilla_rag.prepare),
    "graphrag_local": SystemSpec(graphrag_local.prepare, GRAPH_TABLES),
    "graphrag_global": SystemSpec(graphrag_global.prepare, GRAPH_TABLES),
    "long_context": SystemSpec(long_context.prepare),
}

__all__ = ["SYSTEMS", "Answered", "Setup", "SkippedSystem", "answer_all"]


def answer_all(name: str, queries: pa.Table, setup: Setup) -> Answered | SkippedSystem:
    """Return the answers of the system `name` to all `queries`, in their order.

    Raises:
        SettingsError: there is no system of that name.
    """
    if name not in SYSTEMS:
        raise SettingsError(
            f"setting evaluation.systems: {name!r} is not one of {', '.join(SYSTEMS)}"
        )
    prepared = SYSTEMS[name].prepare(setup)
    if isinstance(prepared, SkippedSystem):
        return prepared
    query_ids = queries.column("id").to_pylist()
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
            "calls": answer.calls,
            "money": price(setup.settings, answer.prompt_tokens, answer.completion_tokens),
        }
        for query_id, answer in zip(query_ids, answers, strict=True)
    ]
    failures = tuple(
        Failure(f"answers_{name}", query_id, fault)
        for query_id, answer in zip(query_ids, answers, strict=True)
        for fault in answer.faults
    )
    description = prepared.description
    if failures:
        description += f"; failures on the way: {len(failures):,}"
    return Answered(table("answers", rows), description, failures)
