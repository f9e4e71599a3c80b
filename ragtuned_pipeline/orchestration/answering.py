"""Answers of one system: for the evaluation's assets, and for `ragtuned ask`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ragtuned_pipeline.evaluation.systems import SYSTEMS, SkippedSystem, answer_all
from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup
from ragtuned_pipeline.orchestration.home import write_text
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning.adapter_store import AdapterError, current

if TYPE_CHECKING:
    import pyarrow as pa

    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.orchestration.training import Training
    from ragtuned_pipeline.settings import Settings


@dataclass(frozen=True)
class SystemNote:
    """What the report says about a system: what it is, or why it was skipped."""

    description: str = ""
    skipped: str = ""


def note_file(home: Home, corpus: str, system: str) -> Path:
    return home.report(corpus) / "systems" / f"{system}.json"


def read_note(home: Home, corpus: str, system: str) -> SystemNote:
    """Return what was noted when the system answered; an empty note where it never did."""
    file = note_file(home, corpus, system)
    if not file.is_file():
        return SystemNote()
    return SystemNote(**json.loads(file.read_text(encoding="utf-8")))


def answer_table(
    home: Home,
    corpus: str,
    system: str,
    queries: pa.Table,
    documents: pa.Table,
    settings: Settings,
    training: Training | None,
) -> tuple[pa.Table, SystemNote]:
    """Return the system's answers (none where it is skipped) and the note on it.

    Raises:
        SettingsError: the base model cannot be loaded.
    """
    if system not in settings.evaluation.systems:
        return table("answers", []), SystemNote(
            skipped="Left out by the setting evaluation.systems."
        )
    adapter = home.adapters / corpus / training.adapter if training else None
    setup = Setup(documents, settings.evaluation, settings.tuning.base_model, adapter)
    answered = answer_all(system, queries, setup)
    if isinstance(answered, SkippedSystem):
        return table("answers", []), SystemNote(skipped=answered.reason)
    return answered.answers, SystemNote(description=answered.description)


def write_note(home: Home, corpus: str, system: str, note: SystemNote) -> None:
    write_text(note_file(home, corpus, system), json.dumps(asdict(note), sort_keys=True))


class CannotAnswer(ValueError):
    """A system cannot answer for a corpus; the message says why."""


def prepare_system(home: Home, corpus: str, system: str) -> Answerer:
    """Return a system ready to answer questions about `corpus`, with its promoted adapter.

    Raises:
        CannotAnswer: it needs something that is not there, or the corpus is too large for it.
        SettingsError: there is no such system, or the base model cannot be loaded.
    """
    if system not in SYSTEMS:
        raise SettingsError(f"--system {system}: choose one of {', '.join(SYSTEMS)}")
    store, settings = TableStore(home.tables), home.settings(corpus)
    if not store.exists("documents", corpus):
        raise CannotAnswer(f"corpus {corpus!r} has not been read yet; run `ragtuned run` first")
    base_model = settings.tuning.base_model
    adapter = None
    if system == "tuned":
        try:
            adapter = current(home.adapters, corpus, base_model)
        except AdapterError as error:
            raise CannotAnswer(str(error)) from None
    documents = store.read("documents", corpus)
    prepared = SYSTEMS[system](Setup(documents, settings.evaluation, base_model, adapter))
    if isinstance(prepared, SkippedSystem):
        raise CannotAnswer(prepared.reason)
    return prepared
