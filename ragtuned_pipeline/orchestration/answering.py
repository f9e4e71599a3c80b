"""Answers of one system: for the evaluation's assets, and for `ragtuned ask`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtuned_pipeline.evaluation.systems import SYSTEMS, SkippedSystem, answer_all
from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup
from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.inference.gpu_turn import GpuTurn
from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.steps import base_model_key, code_behind, code_version
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import Failure, table
from ragtuned_pipeline.tuning.adapter_store import AdapterError, current, find

if TYPE_CHECKING:
    import pyarrow as pa

    from ragtuned_pipeline.inference.engine import ChatEngine
    from ragtuned_pipeline.item_store import Items
    from ragtuned_pipeline.orchestration.home import Home
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
    adapter: Path | None,
    step: str,
    open_engine: OpenEngine,
) -> Given:
    """Return the system's answers to all `queries`.

    Args:
        tables: what the system reads, by name; the documents among them.
        adapter: the folder of the one that the system answers with; None without one.
        step: under which replies are remembered from run to run.
        open_engine: entered when something is asked that is not remembered.

    Raises:
        SettingsError: the base model cannot be loaded.
        TeacherStopped: the server of embeddings, of the reranker or of the answering model gives
            none.
    """
    if not is_asked(system, settings):
        note = SystemNote(skipped="Left out by the setting evaluation.systems.")
        return Given(table("answers", []), note)
    with (
        open_items(home.items(corpus), step) as items,
        _setup(tables, settings, adapter, open_engine, items) as setup,
    ):
        answered = answer_all(system, queries, setup)
    if isinstance(answered, SkippedSystem):
        return Given(table("answers", []), SystemNote(skipped=answered.reason))
    note = SystemNote(description=answered.description)
    return Given(answered.answers, note, answered.failures, items.asked, items.asked - items.known)


# From an adapter's folder, or None for the base model alone, and a batch size to an engine, which
# is closed at the end so that the next step has its memory.
OpenEngine = Callable[[Path | None, int], AbstractContextManager["ChatEngine"]]

# What replies depend on beside weights and conversation: this, and what it imports.
_DECODING = {
    "transformers": "inference/transformers_engine.py",
    "vllm": "inference/vllm_engine.py",
}


@contextmanager
def _setup(
    tables: Mapping[str, pa.Table],
    settings: Settings,
    adapter: Path | None,
    open_engine: OpenEngine,
    items: Items | None,
) -> Iterator[Setup]:
    """Yield what a system may use; the engines that it loads are closed at the end.

    Args:
        items: the replies of earlier runs; None to ask the model whatever is asked.
    """
    from ragtuned_pipeline.inference.embeddings import embed
    from ragtuned_pipeline.inference.remembered import RememberingEngine
    from ragtuned_pipeline.inference.reranking import rerank

    evaluation, teacher = settings.evaluation, settings.teacher
    embedding = teacher.model_copy(update={"embedding_model": evaluation.embedding_model})
    with ExitStack() as engines:

        def load(base_model: str, folder: Path | None, batch_size: int) -> ChatEngine:
            def loaded() -> ChatEngine:
                return engines.enter_context(open_engine(folder, batch_size))

            if items is None:
                return loaded()
            made_by = [base_model_key(settings.tuning), folder.name if folder else ""]
            made_by += [answering_engine(settings), _device(settings), engine_key(settings)]
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


def answering_engine(settings: Settings) -> str:
    """Return the package that answers, and its version.

    Raises:
        TeacherStopped: evaluation.engine is "vllm" and there is no vLLM.
    """
    if settings.evaluation.engine == "vllm":
        from ragtuned_pipeline.inference.vllm_server import vllm_package

        return vllm_package()
    return f"transformers {version('transformers')}"


def _device(settings: Settings) -> str:
    """What rounds in a way of its own: torch on its device. vLLM's package is of one device."""
    if settings.evaluation.engine == "vllm":
        return ""
    import torch

    return f"torch {version('torch')}, {'cuda' if torch.cuda.is_available() else 'cpu'}"


def engine_key(settings: Settings) -> dict[str, Any]:
    """Return what of code and settings makes the engine decode as it does."""
    engine = settings.evaluation.engine
    arguments = list(settings.vllm.arguments) if engine == "vllm" else []
    return {"code": code_version(*code_behind(_DECODING[engine])), "arguments": arguments}


def write_note(home: Home, corpus: str, system: str, note: SystemNote) -> None:
    write_text(note_file(home, corpus, system), json.dumps(asdict(note), sort_keys=True))


def is_asked(system: str, settings: Settings) -> bool:
    """Whether the setting evaluation.systems lets a system answer."""
    return not settings.evaluation.systems or system in settings.evaluation.systems


# They say who is asked what, and change no answer to a question.
_ASKING = {"systems", "questions_per_set", "local_queries", "global_queries", "control_facts"}


def answering_key(settings: Settings) -> dict[str, Any]:
    """Return what answers depend on beside questions, tables and weights, for `settings_key`."""
    return settings.evaluation.model_dump(mode="json", exclude=_ASKING) | engine_key(settings)


@contextmanager
def _gpu(home: Home, corpus: str, on_wait: Callable[[str], None] | None) -> Iterator[None]:
    with GpuTurn(home.folder, f"answers about corpus {corpus!r}") as turn:
        if on_wait is not None:
            turn.wait(on_wait)
        elif not turn.try_take():
            raise CannotAnswer(
                f"{turn.waits_for()}; ask when it is free, or, without the GPU, "
                "with CUDA_VISIBLE_DEVICES= before the command; where `ragtuned serve` has it, "
                "ask that"
            )
        yield


class CannotAnswer(ValueError):
    """A system cannot answer for a corpus; the message says why."""


@contextmanager
def prepared_system(
    home: Home,
    corpus: str,
    system: str,
    content: str | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Answerer]:
    """Yield a system ready to answer questions about `corpus`, in this process.

    Whatever evaluation.engine says: a few answers are not worth the start of a server.

    Args:
        content: the stored adapter that it answers with; None for the promoted one.
        on_wait: told where another process has the GPU, who that is; None not to wait for it.

    Raises:
        CannotAnswer: it needs something that is not there, the corpus is too large for it, or the
            GPU is in use.
        SettingsError: there is no such system, or the base model cannot be loaded.
    """
    if system not in SYSTEMS:
        raise SettingsError(f"--system {system}: choose one of {', '.join(SYSTEMS)}")
    spec, store, settings = SYSTEMS[system], TableStore(home.tables), home.settings(corpus)
    base_model = settings.tuning.base_model
    names = ["documents", *spec.tables]
    if missing := [name for name in names if not store.exists(name, corpus)]:
        raise CannotAnswer(
            f"corpus {corpus!r} has no {missing[0].replace('_', ' ')} yet; run `ragtuned run` first"
        )
    adapter = None
    if spec.uses_adapter:
        try:
            adapter = (
                current(home.adapters, corpus, base_model)
                if content is None
                else find(home.adapters, corpus, content, base_model)
            )
        except AdapterError as error:
            raise CannotAnswer(str(error)) from None
    tables = {name: store.read(name, corpus) for name in names}

    @contextmanager
    def open_engine(folder: Path | None, batch_size: int) -> Iterator[ChatEngine]:
        from ragtuned_pipeline.inference.transformers_engine import TransformersEngine

        with (
            _gpu(home, corpus, on_wait),
            closing(TransformersEngine(base_model, folder, batch_size)) as engine,
        ):
            yield engine

    with _setup(tables, settings, adapter, open_engine, None) as setup:
        prepared = spec.prepare(setup)
        if isinstance(prepared, SkippedSystem):
            raise CannotAnswer(prepared.reason)
        yield prepared
