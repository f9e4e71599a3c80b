"""Answers of one system: for the evaluation's assets, and for `ragtuned ask`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.evaluation.systems import SYSTEMS, SkippedSystem, answer_all
from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup
from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.orchestration.home import write_text
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.steps import code_version
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import Failure, table
from ragtuned_pipeline.tuning.adapter_store import AdapterError, current, find

if TYPE_CHECKING:
    import pyarrow as pa

    from ragtuned_pipeline.inference.engine import ChatEngine
    from ragtuned_pipeline.item_store import Items
    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.orchestration.training import Training
    from ragtuned_pipeline.settings import Settings


@dataclass(frozen=True)
class SystemNote:
    """What the report says about a system: what it is, or why it was skipped."""

    description: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Given:
    """What a system gave: a table `answers` (empty where it is skipped), what failed on the way,
    the note on it, and how many replies its models gave and how many of them anew."""

    answers: pa.Table
    note: SystemNote
    failures: Sequence[Failure] = ()
    replies: int = 0
    replies_anew: int = 0


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
    tables: Mapping[str, pa.Table],
    settings: Settings,
    training: Training | None,
    step: str,
) -> Given:
    """Return the system's answers to all `queries`.

    Args:
        tables: what the system reads, by name; the documents among them.
        step: under which replies are remembered from run to run.

    Raises:
        SettingsError: the base model cannot be loaded.
        TeacherStopped: the server of embeddings or of the reranker gives none.
    """
    if not is_asked(system, settings):
        note = SystemNote(skipped="Left out by the setting evaluation.systems.")
        return Given(table("answers", []), note)
    adapter = home.adapters / corpus / training.adapter if training else None
    with (
        open_items(home.items(corpus), step) as items,
        _setup(tables, settings, adapter, items) as setup,
    ):
        answered = answer_all(system, queries, setup)
    if isinstance(answered, SkippedSystem):
        return Given(table("answers", []), SystemNote(skipped=answered.reason))
    note = SystemNote(description=answered.description)
    return Given(answered.answers, note, answered.failures, items.asked, items.asked - items.known)


# What replies depend on beside weights and conversation.
_DECODING = ("inference/transformers_engine.py", "inference/base_models.py")


@contextmanager
def _setup(
    tables: Mapping[str, pa.Table], settings: Settings, adapter: Path | None, items: Items | None
) -> Iterator[Setup]:
    """Yield what a system may use; the engines that it loads are closed at the end, so that the
    next step has their memory.

    Args:
        items: the replies of earlier runs; None to ask the model whatever is asked.
    """
    import torch

    from ragtuned_pipeline.inference.base_models import identity
    from ragtuned_pipeline.inference.embeddings import embed
    from ragtuned_pipeline.inference.remembered import RememberingEngine
    from ragtuned_pipeline.inference.reranking import rerank
    from ragtuned_pipeline.inference.transformers_engine import TransformersEngine

    evaluation, teacher = settings.evaluation, settings.teacher
    embedding = teacher.model_copy(update={"embedding_model": evaluation.embedding_model})
    with ExitStack() as engines:

        def load(base_model: str, folder: Path | None, batch_size: int) -> ChatEngine:
            def loaded() -> ChatEngine:
                engine = TransformersEngine(base_model, folder, batch_size)
                engines.callback(engine.close)
                return engine

            if items is None:
                return loaded()
            made_by = [
                identity(base_model),
                folder.name if folder else "",
                code_version(*_DECODING),
                version("transformers"),
                version("torch"),
                "cuda" if torch.cuda.is_available() else "cpu",  # which round otherwise
            ]
            return RememberingEngine(json.dumps(made_by), loaded, items)

        yield Setup(
            tables,
            evaluation,
            settings.tuning.base_model,
            adapter,
            load,
            (lambda texts: embed(texts, embedding)) if evaluation.embedding_model else None,
            (lambda question, texts: rerank(question, texts, teacher, evaluation.reranking_model))
            if evaluation.reranking_model
            else None,
        )


def write_note(home: Home, corpus: str, system: str, note: SystemNote) -> None:
    write_text(note_file(home, corpus, system), json.dumps(asdict(note), sort_keys=True))


def is_asked(system: str, settings: Settings) -> bool:
    """Whether the setting evaluation.systems lets a system answer."""
    return not settings.evaluation.systems or system in settings.evaluation.systems


# They say who is asked what, and change no answer to a question.
_ASKING = {"systems", "questions_per_set", "local_queries", "global_queries", "control_facts"}


def answering_key(settings: Settings) -> dict[str, Any]:
    """Return the settings that answers depend on, for `settings_key`."""
    return settings.evaluation.model_dump(mode="json", exclude=_ASKING)


class CannotAnswer(ValueError):
    """A system cannot answer for a corpus; the message says why."""


@contextmanager
def prepared_system(
    home: Home, corpus: str, system: str, content: str | None = None
) -> Iterator[Answerer]:
    """Yield a system ready to answer questions about `corpus`.

    Args:
        content: the stored adapter that it answers with; None for the promoted one.

    Raises:
        CannotAnswer: it needs something that is not there, or the corpus is too large for it.
        SettingsError: there is no such system, or the base model cannot be loaded.
    """
    if system not in SYSTEMS:
        raise SettingsError(f"--system {system}: choose one of {', '.join(SYSTEMS)}")
    spec, store, settings = SYSTEMS[system], TableStore(home.tables), home.settings(corpus)
    names = ["documents", *spec.tables]
    if missing := [name for name in names if not store.exists(name, corpus)]:
        raise CannotAnswer(
            f"corpus {corpus!r} has no {missing[0].replace('_', ' ')} yet; run `ragtuned run` first"
        )
    adapter = None
    if spec.uses_adapter:
        try:
            base_model = settings.tuning.base_model
            adapter = (
                current(home.adapters, corpus, base_model)
                if content is None
                else find(home.adapters, corpus, content, base_model)
            )
        except AdapterError as error:
            raise CannotAnswer(str(error)) from None
    tables = {name: store.read(name, corpus) for name in names}
    with _setup(tables, settings, adapter, None) as setup:
        prepared = spec.prepare(setup)
        if isinstance(prepared, SkippedSystem):
            raise CannotAnswer(prepared.reason)
        yield prepared
