"""Forgetting a document: nothing of the home holds its text or has learned it afterwards.

Whatever is made from a corpus is deleted, except the history of its promotions and what was spent
on it, and made again from what is left in the folder. That is more than what the document reached,
and it leaves no question of what that was. The teacher's replies are kept until the end, so that
nothing is paid for twice; then those that were not used again are deleted.

What is being forgotten is noted in `corpora/.<corpus>.forgetting.json`. Where the command was
killed, the same one goes on from there. The note, which holds the questions of the probe, goes
last.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from ragtuned_pipeline.corpus.readers import CorpusError, read_folder
from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.answering import prepared_system
from ragtuned_pipeline.orchestration.dagster_records import (
    end_run,
    ended_runs,
    forget_records,
    runs_without_process,
)
from ragtuned_pipeline.orchestration.home import Home, remove
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.locks import RunFailed, alone
from ragtuned_pipeline.orchestration.orphans import stop_orphan_trainers
from ragtuned_pipeline.orchestration.runs import (
    StepEvent,
    has_records,
    open_instance,
    prepare_environment,
    run_holding_lock,
)
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.settings import CORPUS_NAME
from ragtuned_pipeline.tables import Failure, table
from ragtuned_pipeline.tuning import adapter_store

if TYPE_CHECKING:
    from upath import UPath

_MOST_ASKED = 200  # questions of the probe
_NAMING = ["id", "title", "path", "text"]  # what a document, or words of it, are found by
_MOST_NAMED = 3  # documents in an error
_KEPT_OF_ADAPTERS = {"history.json", ".history.lock"}  # hashes and numbers


class CannotForget(ValueError):
    """The document cannot be forgotten so; the message says why and what to do instead."""


class Question(BaseModel):
    """A question of the probe, in a wording that no adapter was tuned on; `gold` is what a right
    answer contains."""

    model_config = ConfigDict(frozen=True)

    question: str
    gold: str


class Forgetting(BaseModel):
    """What is to be forgotten of a corpus.

    Attributes:
        document: as it was asked for; empty for whatever is gone from the folder.
        paths: of the documents, as the table `documents` has them.
        files: of them, those to be deleted, relative to the folder.
        questions: whose facts came from these documents alone.
        gold: questions of the user's own that name one of the documents.
        elsewhere: of other corpora of the home that hold the text too, the command for each.
        answered_before: questions that the promoted adapter answered right; None where it was not
            asked.
        deleted: counts by name, once all is deleted and only making anew is left.
    """

    model_config = ConfigDict(frozen=True)

    document: str
    paths: tuple[str, ...]
    files: tuple[str, ...]
    questions: tuple[Question, ...]
    gold: tuple[str, ...]
    elsewhere: Mapping[str, str] = {}
    answered_before: int | None = None
    deleted: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Forgotten:
    """What came of it.

    Attributes:
        deleted: counts by name.
        answered: of the probe's questions, how many were answered right by "before", "after" and
            "base"; None where that one was not there to be asked.
        notes: what is left to be known or done, one sentence each.
        answers: whether an adapter answers for what is left of the corpus; true where nothing is.
    """

    document: str
    paths: tuple[str, ...]
    deleted: Mapping[str, int]
    asked: int
    answered: Mapping[str, int | None]
    notes: tuple[str, ...]
    answers: bool


# --- what is to be forgotten ------------------------------------------------------------------


def plan_forgetting(
    home: Home, corpus: str, document: str | None, whole_file: bool = False
) -> Forgetting:
    """Return what forgetting `document` means; nothing is changed.

    Where forgetting was interrupted, that is what is returned.

    Args:
        document: its path below the corpus's folder, its id, or its title if no other has it; None
            for the documents that were made from the folder and are in it no more.
        whole_file: delete the other records of its file with it.

    Raises:
        CannotForget: there is no such document, it is not alone in its file, or another one is
            being forgotten.
        CorpusMissing, SettingsError: as `Home.documents`, `Home.settings`.
    """
    unfinished = unfinished_forgetting(home, corpus)
    if unfinished is not None:
        if document is None or document == unfinished.document:
            return unfinished
        raise CannotForget(interrupted_sentence(corpus, unfinished))
    folder = home.documents(corpus)
    read, failures = _read(home, corpus)
    made, live = (each.select(_NAMING) for each in (_stored(home, corpus, "documents"), read))
    if document is None:
        gone = pc.invert(pc.is_in(made["id"], value_set=live["id"].combine_chunks()))
        paths = made.filter(gone)["path"].to_pylist()
        files: list[str] = []
    else:
        items = _Items(folder, live, failures, made)
        paths, files = items.with_copies(items.named(document), whole_file)
        _check_deletable(folder, files)
    of_paths = pc.field("path").isin(pa.array(paths, pa.string()))
    forgotten = made.filter(gone if document is None else of_paths)
    if document is not None:
        forgotten = pa.concat_tables([forgotten, live.filter(of_paths)])
    return Forgetting(
        document=document or "",
        paths=tuple(sorted(set(paths))),
        files=tuple(files),
        questions=_questions(home, corpus, forgotten["id"].combine_chunks()),
        gold=_gold_that_cites(home, corpus, forgotten),
        elsewhere=_elsewhere(home, corpus, forgotten["text"].combine_chunks()),
    )


def unfinished_forgetting(home: Home, corpus: str) -> Forgetting | None:
    """Return what was being forgotten when the command was interrupted.

    Raises:
        CannotForget: the note of it is damaged.
    """
    file = home.forgetting_note(corpus)
    if not file.is_file():
        return None
    try:
        return Forgetting.model_validate_json(file.read_bytes())
    except ValidationError:
        raise CannotForget(
            f"{file}, the note of what is being forgotten, is damaged: remove it, and repeat "
            f"`ragtuned forget {corpus}` with the document, or without one if its file is gone"
        ) from None


def interrupted_sentence(corpus: str, unfinished: Forgetting) -> str:
    """Why something waits for what `unfinished_forgetting` found."""
    return (
        f"forgetting {unfinished.document or 'what is gone'} in corpus {corpus!r} was "
        f"interrupted; finish that first: ragtuned forget {corpus}"
    )


def holdings(home: Home, corpus: str) -> dict[str, int]:
    """Count what forgetting deletes: adapters, tables, runs, and at most so many replies."""
    from ragtuned_pipeline.inference.completions import CompletionStore

    replies = runs = 0
    if home.completions.is_file():
        with CompletionStore(home.completions) as store:
            replies = store.forgettable(corpus)
    if has_records(home):
        with open_instance(home) as instance:
            runs = len(ended_runs(instance, corpus))
    return {
        "adapters": len(adapter_store.stored(home.adapters, corpus)),
        "tables": len(_tables(home, corpus)),
        "runs": runs,
        "replies": replies,
    }


def planned_lines(
    home: Home, corpus: str, forgetting: Forgetting, counts: Mapping[str, int]
) -> list[str]:
    """Return in words what forgetting does; `counts` of `holdings`."""
    folder = home.documents(corpus)
    lines = [f"delete {folder / file}" for file in forgetting.files]
    if not lines:
        gone = _shortened(forgetting.paths) or "no document that a table knows"
        lines = [f"gone from {folder}: {gone}"]
    if forgetting.deleted is not None:
        return [*lines, "an interrupted command has deleted what was made with it; it goes on"]
    return [
        *lines,
        f"delete what corpus {corpus!r} was made into: {counts['adapters']} adapters, "
        f"{counts['tables']} tables, the report, {counts['runs']} runs of Dagster's",
        f"make it anew from what is left, and ask it {len(forgetting.questions)} questions",
        f"delete of {counts['replies']:,} replies of the teacher's those that were not used again",
        *(f"your own question stays, and names it: {question}" for question in forgetting.gold),
        *_elsewhere_lines(forgetting),
    ]


def result_lines(forgotten: Forgotten) -> list[str]:
    """Return in words what came of it."""
    counts = forgotten.deleted
    lines = [
        f"forgotten: {_shortened(forgotten.paths) or 'no document that a table knew'}",
        f"deleted: {counts['files']} files, {counts['adapters']} adapters, {counts['tables']} "
        f"tables, {counts['runs']} runs of Dagster's, {counts['replies']:,} replies",
    ]
    if forgotten.asked:
        said = (
            f"{'not asked' if number is None else number} {who}"
            for who, number in (
                ("before", forgotten.answered["before"]),
                ("now", forgotten.answered["after"]),
                ("by the base model", forgotten.answered["base"]),
            )
        )
        lines.append(f"of {forgotten.asked} questions about it, right: {', '.join(said)}")
    return [*lines, *forgotten.notes]


class _Items:
    """The documents of a folder, the copies of their text, and what else lies in it, by path."""

    def __init__(
        self, folder: Path, live: pa.Table, failures: Sequence[Failure], made: pa.Table
    ) -> None:
        self._folder = folder
        self._rows = pa.concat_tables([live, made]).drop_columns(["text"]).to_pylist()
        documents = live["path"].to_pylist()
        self._paths = {*documents, *(failure.item_id for failure in failures)}
        self._kept = _copies(documents, failures)

    def named(self, document: str) -> list[str]:
        """Return the paths that `document` names.

        Raises:
            CannotForget: none, or several documents with one title.
        """
        if document in self._paths or any(row["path"] == document for row in self._rows):
            return [document]
        if self._is_file(document):
            return [path for path in self._paths if self.file_of(path) == document] or [document]
        for field in ("id", "title"):
            found = sorted({row["path"] for row in self._rows if row[field] == document})
            if len(found) == 1:
                return found
            if found:
                raise CannotForget(
                    f"{len(found)} documents have the title {document!r}; name one by its path: "
                    + _shortened(found)
                )
        names = {name: None for row in self._rows for name in (row["path"], row["title"]) if name}
        near = difflib.get_close_matches(document, names, _MOST_NAMED, cutoff=0.4)
        near = near or [name for name in names if document.casefold() in name.casefold()]
        hint = f"; near it: {_shortened(near)}" if near else ""
        raise CannotForget(
            f"no document {document!r} in {self._folder}: give its path below that folder, its "
            f"title or its id{hint}"
        )

    def with_copies(self, paths: list[str], whole_file: bool) -> tuple[list[str], list[str]]:
        """Return `paths` and the paths of equal texts, and the files to delete, both sorted.

        Raises:
            CannotForget: a file holds other records too.
        """
        chosen, files = set(paths), set[str]()
        named_file = {self.file_of(path) for path in paths} if len(paths) > 1 else set()
        while True:
            texts = {self._kept.get(path, path) for path in chosen}
            wider = chosen | {path for path in self._kept if self._kept[path] in texts} | texts
            files = {file for file in map(self.file_of, wider) if file is not None}
            for file in files:
                records = {path for path in self._paths if self.file_of(path) == file}
                if records - wider and not (whole_file or file in named_file):
                    [record, *_] = sorted(path for path in wider if self.file_of(path) == file)
                    raise CannotForget(
                        f"{record} is one of {len(records)} records in {self._folder / file}: "
                        "delete it there by hand, then run the command without a document; or add "
                        "--whole-file to delete the whole file"
                    )
                wider |= records
            if wider == chosen:
                return sorted(chosen), sorted(files)
            chosen = wider

    def file_of(self, path: str) -> str | None:
        """Return the file that a document or record is in; None where it is gone."""
        if self._is_file(path):
            return path
        before, mark, _ = path.rpartition("#")
        return before if mark and self._is_file(before) else None

    def _is_file(self, path: str) -> bool:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or any(part.startswith(".") for part in parts):
            return False
        return os.path.lexists(self._folder / path) and not (self._folder / path).is_dir()


def _copies(documents: Iterable[str], failures: Sequence[Failure]) -> dict[str, str]:
    """Return path -> path of the document with the same text, of those that the reader left out."""
    known = set(documents)
    found = {}
    for failure in failures:
        said = failure.reason.removeprefix(f"{failure.item_id} has the same text as ")
        kept = said.removesuffix(", which is kept")
        if kept in known:
            found[failure.item_id] = kept
    return found


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _read(home: Home, corpus: str) -> tuple[pa.Table, list[Failure]]:
    """Read the folder; no document is left where the last one is gone."""
    megabytes = home.settings(corpus).corpus.max_file_megabytes
    try:
        return read_folder(home.documents(corpus), megabytes)
    except CorpusError:
        return table("documents", []), []


def _stored(home: Home, corpus: str, name: str) -> pa.Table:
    store = TableStore(home.tables)
    return store.read(name, corpus) if store.exists(name, corpus) else table(name, [])


def _check_deletable(folder: Path, files: Iterable[str]) -> None:
    for file in files:
        if not os.access((folder / file).parent, os.W_OK):
            raise CannotForget(
                f"{folder / file} cannot be deleted: its folder may not be written; change its "
                "permissions"
            )


def _questions(home: Home, corpus: str, documents: pa.Array) -> tuple[Question, ...]:
    """Return the questions of the probe: held-out wordings of trained facts of `documents` alone.

    At most _MOST_ASKED, the first by id, which is as good as a draw.
    """
    facts = _stored(home, corpus, "training_rows")["fact_id"].unique()
    pairs = _stored(home, corpus, "qa_pairs").filter(
        pc.field("kept")
        & (pc.field("split") == "held_out_wording")
        & (pc.field("kind") != "unanswerable")
        & pc.field("fact_id").isin(facts)
    )
    sources = pairs["document_ids"].combine_chunks()
    inside = pc.is_in(sources.flatten(), value_set=documents).to_numpy(zero_copy_only=False)
    owners = pc.list_parent_indices(sources).to_numpy()
    outside = np.bincount(owners[~inside], minlength=pairs.num_rows)
    within = np.bincount(owners[inside], minlength=pairs.num_rows)
    alone_there = pairs.filter(pa.array((outside == 0) & (within > 0)))
    asked = alone_there.sort_by("id").slice(0, _MOST_ASKED).select(["question", "gold"])
    return tuple(Question(**row) for row in asked.to_pylist())


def _gold_that_cites(home: Home, corpus: str, documents: pa.Table) -> tuple[str, ...]:
    from ragtuned_pipeline.evaluation.questions.queries import read_gold

    file = home.gold(corpus)
    if file is None or not documents.num_rows:
        return ()
    rows, _ = read_gold(file, documents)
    return tuple(row["question"] for row in rows if row["document_ids"])


def _elsewhere(home: Home, corpus: str, texts: pa.Array) -> dict[str, str]:
    """Return corpus -> command, of the other corpora that share the folder or hold a text."""
    folder, found = home.documents(corpus), {}
    for name in home.names():
        if name == corpus or not CORPUS_NAME.fullmatch(name):
            continue
        made = _stored(home, name, "documents")
        if home.documents(name) == folder:  # the file is gone there too
            found[name] = f"ragtuned forget {name}"
        elif paths := made.filter(pc.is_in(made["text"], value_set=texts))["path"].to_pylist():
            commands = (f"ragtuned forget {name} {shlex.quote(path)}" for path in sorted(paths))
            found[name] = " && ".join(commands)
    return found


def _elsewhere_lines(forgetting: Forgetting) -> list[str]:
    return [
        f"corpus {name!r} holds it too: run `{command}`"
        for name, command in forgetting.elsewhere.items()
    ]


# --- forgetting -------------------------------------------------------------------------------


def forget(
    home: Home, corpus: str, forgetting: Forgetting, on_event: Callable[[StepEvent], None]
) -> Forgotten:
    """Forget it, make the corpus anew without it, and ask what the new adapter still knows of it.

    Args:
        forgetting: of `plan_forgetting`.

    Raises:
        CannotForget: a file cannot be deleted.
        RunFailed: another run of the corpus is going on, or the corpus cannot be made anew.
        StoreInUse, RecordsInUse: another process keeps deleted bytes in a file.
    """
    with alone(home, corpus):
        prepare_environment(home)
        if unfinished_forgetting(home, corpus) is None:
            _write(home, corpus, forgetting)  # first: whatever asking comes to, it goes on
            right = _right(home, corpus, "tuned", forgetting.questions, on_event)
            forgetting = forgetting.model_copy(update={"answered_before": right})
            _write(home, corpus, forgetting)
        notes: list[str] = []
        if forgetting.deleted is None:
            deleted = _delete(home, corpus, forgetting, notes)
            forgetting = forgetting.model_copy(update={"deleted": deleted})
            _write(home, corpus, forgetting)
        after = base = None
        answers = True
        if _read(home, corpus)[0].num_rows:
            _make_anew(home, corpus, on_event)
            training = read_training(home, corpus, "tuned")
            trained = training.adapter if training else None
            after = _right(home, corpus, "tuned", forgetting.questions, on_event, trained)
            answers = adapter_store.promoted(home.adapters, corpus) is not None
            if not answers:
                notes.append(_why_none_answers(home, corpus, trained))
            base = _right(home, corpus, "base", forgetting.questions, on_event)
        else:
            notes.append("No document is left: nothing was made anew, and nothing answers.")
        replies = _forget_replies(home, corpus)
        note = home.forgetting_note(corpus)
        for half in home.corpora.glob(f".{note.name}.*.tmp"):
            half.unlink()
        note.unlink()
    notes += [
        f"Your own question stays in {home.gold(corpus)}, and in what is made of it: {question}"
        for question in forgetting.gold
    ]
    notes += _elsewhere_lines(forgetting)
    return Forgotten(
        forgetting.document,
        forgetting.paths,
        {**(forgetting.deleted or {}), "replies": replies},
        len(forgetting.questions),
        {"before": forgetting.answered_before, "after": after, "base": base},
        tuple(notes),
        answers,
    )


def _why_none_answers(home: Home, corpus: str, trained: str | None) -> str:
    if trained is None:
        return f"No adapter was trained: nothing answers for corpus {corpus!r}."
    reasons = past.refusal(past.history(home, corpus), trained, None)
    return (
        f"Nothing answers for corpus {corpus!r}: adapter {trained} is not promoted"
        f"{f' ({reasons})' if reasons else ''}; `ragtuned promote {corpus} {trained} --force` "
        "promotes it all the same."
    )


def _delete(home: Home, corpus: str, forgetting: Forgetting, notes: list[str]) -> dict[str, int]:
    """Delete the document and whatever was made with it, what answers first; return counts."""
    folder = home.documents(corpus)
    for file in forgetting.files:
        try:
            (folder / file).unlink(missing_ok=True)
        except OSError as error:
            raise CannotForget(
                f"{folder / file} cannot be deleted ({error.strerror}); once it can be, the same "
                "command goes on"
            ) from None
    adapters = home.adapters / corpus
    # A copy of the home that followed links made a folder of it.
    remove(adapter_store.current_link(home.adapters, corpus))
    counts = {
        "files": len(forgetting.files),
        "adapters": len(adapter_store.stored(home.adapters, corpus)),
    }
    for place in sorted(adapters.iterdir()) if adapters.is_dir() else ():
        if place.name not in _KEPT_OF_ADAPTERS:
            remove(place)
    stop_orphan_trainers(home, corpus)
    remove(home.folder / "training" / corpus)
    remove(home.training_logs(corpus))
    _begin_forgetting_replies(home, corpus)
    items = home.items(corpus)
    for ending in ("", "-journal", "-wal", "-shm"):
        items.with_name(items.name + ending).unlink(missing_ok=True)
    tables = _tables(home, corpus)
    for path in tables:
        path.unlink()
    remove(home.report(corpus))
    (home.folder / "reports" / "index.html").unlink(missing_ok=True)
    (home.corpora / f".{corpus}.files.json").unlink(missing_ok=True)
    _remove_logs(home, corpus, notes)
    with open_instance(home) as instance:
        for run in runs_without_process(instance, corpus):
            end_run(instance, run)
        runs = forget_records(instance, corpus)
    return counts | {"tables": len(tables), "runs": runs}


def _make_anew(home: Home, corpus: str, on_event: Callable[[StepEvent], None]) -> None:
    try:
        run_holding_lock(home, corpus, None, on_event)
    except RunFailed as error:
        raise RunFailed(
            f"what was made with it is deleted, but the corpus cannot be made anew: {error}; mend "
            f"that, and `ragtuned forget {corpus}` goes on"
        ) from None


def _right(
    home: Home,
    corpus: str,
    system: str,
    questions: Sequence[Question],
    on_event: Callable[[StepEvent], None],
    adapter: str | None = None,
) -> int | None:
    """Return how many questions a system answers right, None where it cannot answer.

    Args:
        adapter: a stored one; None for the promoted one.
    """
    from safetensors import SafetensorError

    from ragtuned_pipeline.evaluation.metrics import score_answers

    if not questions:
        return 0

    def waits(why: str) -> None:
        on_event(StepEvent("waiting", numbers={"why": why}))

    try:
        with prepared_system(home, corpus, system, adapter, waits) as answerer:
            given = answerer.answer([each.question for each in questions])
    # What loading tables, weights and an adapter raises where one is missing or damaged, or memory
    # is short: nothing to be forgotten waits for that. CannotAnswer and SettingsError are such.
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return None
    answers, golds = [each.text for each in given], [each.gold for each in questions]
    return int(score_answers(answers, golds).contains.sum())


def _begin_forgetting_replies(home: Home, corpus: str) -> None:
    from ragtuned_pipeline.inference.completions import CompletionStore

    if home.completions.is_file():
        with CompletionStore(home.completions) as store:
            store.begin_forgetting(corpus)


def _forget_replies(home: Home, corpus: str) -> int:
    from ragtuned_pipeline.inference.completions import CompletionStore

    if not home.completions.is_file():
        return 0
    with CompletionStore(home.completions) as store:
        return store.forget(corpus)


def _tables(home: Home, corpus: str) -> list[UPath]:
    """Return the corpus's table files, and half-written ones."""
    whole, half = f"{corpus}.parquet", f".{corpus}.parquet."
    files = TableStore(home.tables).files()
    return [path for path in files if path.name == whole or path.name.startswith(half)]


def _remove_logs(home: Home, corpus: str, notes: list[str]) -> None:
    """Delete the logs of servers, which may hold prompts, unless another run may write one."""
    logs = home.folder / "logs"
    if not logs.is_dir():
        return
    try:
        with ExitStack() as others:
            for name in home.names():
                if name != corpus:
                    others.enter_context(alone(home, name))
            remove(logs)
    except RunFailed:
        notes.append(f"{logs} may hold prompts, and another run writes it: delete it afterwards.")


def _write(home: Home, corpus: str, forgetting: Forgetting) -> None:
    write_text(home.forgetting_note(corpus), forgetting.model_dump_json())
