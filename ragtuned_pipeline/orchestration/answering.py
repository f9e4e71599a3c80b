"""Answers of one system: for the evaluation's assets, and for `ragtuned ask`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.evaluation.systems import SYSTEMS, SkippedSystem, answer_all
from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup
from ragtuned_pipeline.tables import table

if TYPE_CHECKING:
    import pyarrow as pa

    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.orchestration.training import Training
    from ragtuned_pipeline.settings import Settings


@dataclass(frozen=True)
class SystemNote:
    """What the report says about a system: what it is, or why it was skipped."""

    description: str
    skipped: str


def answer_table(
    home: Home,
    corpus: str,
    system: str,
    queries: pa.Table,
    documents: pa.Table,
    settings: Settings,
    training: Training | None,
) -> tuple[pa.Table, dict[str, str]]:
    """Return the system's answers (none where it is skipped) and its SystemNote as a dict."""
    if system not in settings.evaluation.systems:
        note = SystemNote("", "Left out by the setting evaluation.systems.")
        return table("answers", []), asdict(note)
    adapter = home.adapters / corpus / training.adapter if training else None
    answered = answer_all(
        system,
        queries,
        Setup(documents, settings.evaluation, settings.tuning.base_model, adapter),
    )
    if isinstance(answered, SkippedSystem):
        return table("answers", []), asdict(SystemNote("", answered.reason))
    return answered.answers, asdict(SystemNote(answered.description, ""))
