"""What a crash of the machine left in a home: found, and mended where nothing can be lost by it.

Of a corpus whose lock a run holds nothing is touched, nor looked at. What is deleted here is made
again by the next run, or was never finished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ragtuned_pipeline.files import TEMPORARY, temporary_name
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.dagster_records import (
    dead_runs,
    dead_server_runs,
    end_run,
)
from ragtuned_pipeline.orchestration.early_checks import check_early
from ragtuned_pipeline.orchestration.forgetting import CannotForget, unfinished_forgetting
from ragtuned_pipeline.orchestration.home import CorpusMissing, Home, remove
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.locks import RunFailed, alone
from ragtuned_pipeline.orchestration.orphans import stop_orphan_trainers, trainers_at_work
from ragtuned_pipeline.orchestration.runs import (
    has_records,
    open_instance,
    record_files,
    records_written,
)
from ragtuned_pipeline.orchestration.steps import schema_name
from ragtuned_pipeline.settings import CORPUS_NAME, SettingsError
from ragtuned_pipeline.tables import SCHEMAS, check_schema
from ragtuned_pipeline.tuning import adapter_store

_LEAST_FREE = 1 << 30  # bytes; the checkpoints of one training of a 7B model fit
_CLOCKS_DIFFER = 60.0  # seconds, between machines that share a home
_BUSY_SECONDS = 5.0
_ADAPTER = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True)
class Finding:
    """A defect and what was done about it.

    Attributes:
        what: the defect.
        remedy: what was done, what would be done, or what a person has to do.
        state: "mended", "mendable" (nothing was to be changed) or "left".
    """

    what: str
    remedy: str
    state: Literal["mended", "mendable", "left"]


@dataclass(frozen=True)
class _Defect:
    what: str
    remedy: str
    mend: Callable[[], object] | None = None


@dataclass(frozen=True)
class _Fault:
    """Why something is not sound; where it was not `read`, its content may be."""

    why: str
    read: bool = True


def examine(home: Home, mend: bool) -> list[Finding]:
    """Return what is wrong in a home, mended where that is safe and `mend` is set."""
    return [_finding(defect, mend) for defect in _defects(home)]


def _finding(defect: _Defect, mend: bool) -> Finding:
    if defect.mend is None:
        return Finding(defect.what, defect.remedy, "left")
    if not mend:
        return Finding(defect.what, defect.remedy, "mendable")
    try:
        with records_written():
            defect.mend()
    except (OSError, RunFailed, adapter_store.AdapterError) as error:
        return Finding(defect.what, f"cannot be mended: {error}", "left")
    return Finding(defect.what, defect.remedy, "mended")


def _defects(home: Home) -> Iterator[_Defect]:
    if not home.folder.is_dir():
        return
    unwritable = _unwritable(home.folder)
    if unwritable:
        yield _Defect(
            f"{home.folder} cannot be written ({unwritable})",
            "free space, change its permissions, mount it for writing, or name another (--home)",
        )
        return
    yield from _space(home)
    yield from _future_times(home)
    yield from _temporaries((home.folder / "reports").glob(".*.tmp"))
    yield from _databases(home)
    yield from _runs(home)
    links = sorted(p for p in home.corpora.glob("[!.]*") if p.is_symlink() and not p.exists())
    for corpus in sorted({*home.names(), *(link.name for link in links)}):
        if not CORPUS_NAME.fullmatch(corpus):
            yield _Defect(
                f"{home.corpora / corpus} has a name that no corpus may have",
                "rename it: 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit",
            )
            continue
        try:
            with alone(home, corpus):
                yield from _corpus(home, corpus)
        except RunFailed:
            continue  # a run is at work
    yield from _gone_corpora(home)


# --- the home ---------------------------------------------------------------------------------


def _unwritable(folder: Path) -> str:
    """Return why a folder cannot be written, or the empty string."""
    probe = folder / temporary_name("doctor")
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _space(home: Home) -> Iterator[_Defect]:
    free = shutil.disk_usage(home.folder).free
    if free < _LEAST_FREE:
        yield _Defect(
            f"the disk of {home.folder} has {free / 1e6:,.0f} MB left",
            f"free some: a run may need {_LEAST_FREE / 1e6:,.0f} MB (`ragtuned prune` deletes "
            "replies that no run uses)",
        )


def _future_times(home: Home) -> Iterator[_Defect]:
    limit = time.time() + _CLOCKS_DIFFER
    found = [
        (time_of, file)
        for folder, _, names in os.walk(home.folder)
        for file in (Path(folder, name) for name in names)
        if (time_of := _changed_at(file)) > limit
    ]
    if found:
        latest, file = max(found)
        when = datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds")
        yield _Defect(
            f"{len(found)} files have times in the future, the latest {file} ({when})",
            "set the clock right if it is wrong; if it was wrong before, nothing needs to be done",
        )


def _changed_at(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except FileNotFoundError:  # a run has just moved it
        return 0.0


def _temporaries(files: Iterator[Path]) -> Iterator[_Defect]:
    """Half-written files of processes that are gone."""
    for file in sorted(files):
        named = TEMPORARY.fullmatch(file.name)
        if named and not _lives(int(named[1])):
            yield _Defect(f"{file} was never finished", "deleted", partial(remove, file))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _gone_corpora(home: Home) -> Iterator[_Defect]:
    known = {p.name for p in home.corpora.glob("[!.]*")} if home.corpora.is_dir() else set()
    places: dict[str, list[str]] = {}
    for path in TableStore(home.tables).files():
        if path.suffix == ".parquet":
            places.setdefault(path.stem, []).append(str(path))
    for folder in ("adapters", "reports", "training", "training-logs"):
        for place in sorted((home.folder / folder).glob("[!.]*/")):
            places.setdefault(place.name, []).append(str(place))
    for file in sorted((home.folder / "items").glob("*.sqlite")):
        places.setdefault(file.stem, []).append(str(file))
    for corpus, found in sorted(places.items()):
        if corpus not in known:
            yield _Defect(
                f"corpus {corpus!r} is not in {home.corpora} any more, but {len(found)} files and "
                f"folders are made of it, {found[0]} the first",
                f"delete what is named {corpus} in tables, adapters, reports, training, "
                "training-logs and items, or put the corpus back: "
                f"ragtuned run DIR --name {corpus}",
            )


# --- databases and Dagster's runs -------------------------------------------------------------


def _databases(home: Home) -> Iterator[_Defect]:
    yield from _unsound(
        home.completions,
        f"put it back from a copy, save what can be read with `sqlite3 {home.completions} "
        ".recover`, or move it away: its replies are then asked for, and paid, again",
    )
    main = record_files(home)
    folder = main[0].parents[1]
    for file in main:
        yield from _unsound(
            file,
            f"stop Dagster and move {folder} away: the history of runs is lost, "
            "tables and adapters are not",
        )
    for file in sorted((folder / "history" / "runs").glob("*.db")):
        if file not in main:
            yield from _unsound(file, "delete it: the log of that run is lost, nothing else")


def _unsound(
    file: Path, remedy: str, mend: Callable[[], object] | None = None
) -> Iterator[_Defect]:
    """What is wrong with an SQLite file; `remedy` is for one that is damaged."""
    fault = _fault(file)
    if fault and not fault.read:
        yield _unread(str(file), fault)
    elif fault:
        yield _Defect(f"{file} is damaged ({fault.why})", remedy, mend)


def _unread(what: str, fault: _Fault) -> _Defect:
    return _Defect(
        f"{what} cannot be read ({fault.why})",
        "see to its permissions, its disk or the network: nothing of it was changed",
    )


def _fault(file: Path) -> _Fault | None:
    """Return what SQLite finds wrong with a file."""
    if not file.is_file():
        return None
    try:
        with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:  # locked: somebody works with it
        return None if "locked" in str(error) else _Fault(str(error), read=False)
    except sqlite3.DatabaseError as error:
        return _Fault(str(error))
    return None if said == "ok" else _Fault(" ".join(str(said).split()))


def _runs(home: Home) -> Iterator[_Defect]:
    try:
        if not has_records(home) or any(map(_fault, record_files(home))):
            return
        with open_instance(home) as instance:
            yield from _runs_without_process(home, instance)
            yield from _pool_slots(instance)
    except (RunFailed, SettingsError) as error:
        yield _Defect("Dagster's runs could not be looked at", str(error))


def _runs_without_process(home: Home, instance: dg.DagsterInstance) -> Iterator[_Defect]:
    """Each while the lock is held that it would hold, so that it can be ended."""
    for corpus, run in dead_runs(home, instance):
        yield _dead_run(instance, run, f"of corpus {corpus!r}")
    for run in dead_server_runs(home, instance):
        yield _dead_run(instance, run, "that serves the home")


def _dead_run(instance: dg.DagsterInstance, run: dg.DagsterRun, which: str) -> _Defect:
    return _Defect(
        f"run {run.run_id} {which} is marked as going on, and has no process",
        "marked as failed, and its place in the pool freed",
        partial(end_run, instance, run),
    )


def _pool_slots(instance: dg.DagsterInstance) -> Iterator[_Defect]:
    storage = instance.event_log_storage
    for key in sorted(storage.get_concurrency_keys()):
        info = storage.get_concurrency_info(key)
        holders = info.active_run_ids | {step.run_id for step in info.pending_steps}
        for holder in sorted(holders):
            run = instance.get_run_by_id(holder)
            if run is None or run.is_finished:
                yield _Defect(
                    f"run {holder} is over and still has a place in the pool {key!r}",
                    "freed",
                    partial(storage.free_concurrency_slots_for_run, holder),
                )


# --- one corpus, its lock held ----------------------------------------------------------------


def _corpus(home: Home, corpus: str) -> Iterator[_Defect]:
    yield from _set_up(home, corpus)
    try:
        if unfinished_forgetting(home, corpus) is not None:
            yield _Defect(
                f"forgetting a document of corpus {corpus!r} was interrupted",
                f"run `ragtuned forget {corpus}`: it goes on",
            )
    except CannotForget as error:
        yield _Defect(str(error), "until then nothing else of the corpus is looked at")
        return
    if trainers := trainers_at_work(home, corpus):
        numbers = ", ".join(str(trainer.pid) for trainer in trainers)
        yield _Defect(
            f"a trainer of corpus {corpus!r} works without a run (process {numbers})",
            "stopped, after a checkpoint",
            partial(stop_orphan_trainers, home, corpus),
        )
    yield from _temporaries(_own_temporaries(home, corpus))
    items = home.items(corpus)
    yield from _unsound(items, "deleted; the next run makes it anew", items.unlink)
    yield from _records(home, corpus)
    yield from _adapters(home, corpus)
    yield from _tables(home, corpus)


def _set_up(home: Home, corpus: str) -> Iterator[_Defect]:
    """What a run of the corpus would refuse at once: its folder, its settings, its tools."""
    try:
        home.documents(corpus)
    except CorpusMissing as error:
        yield _Defect(str(error), "until then its adapter answers as before")
    try:
        settings = home.settings(corpus)
        check_early(settings)
        if settings.teacher.engine == "vllm":
            from ragtuned_pipeline.inference.vllm_server import interpreter

            interpreter()
    except (SettingsError, TeacherStopped) as error:
        yield _Defect(f"corpus {corpus!r} cannot be run: {error}", "see to that, then run it again")


def _own_temporaries(home: Home, corpus: str) -> Iterator[Path]:
    yield from home.corpora.glob(f".{corpus}.json.*.tmp")
    yield from home.corpora.glob(f"..{corpus}.*.tmp")
    for folder in ("adapters", "reports", "training", "training-logs"):
        yield from (home.folder / folder / corpus).rglob(".*.tmp")
    for path in TableStore(home.tables).files():
        if isinstance(path, Path) and path.name.startswith(f".{corpus}.parquet."):
            yield path


def _records(home: Home, corpus: str) -> Iterator[_Defect]:
    """What is noted of trainings, adapters and files, the history apart."""
    noted = sorted((home.adapters / corpus).glob("*.json"))
    for file in (*noted, home.corpora / f".{corpus}.files.json"):
        if file.name == "history.json" or not file.is_file():
            continue
        try:
            json.loads(file.read_bytes())
        except OSError as error:
            yield _unread(str(file), _Fault(str(error), read=False))
        except ValueError as error:
            yield _Defect(
                f"{file} is damaged ({error})",
                "deleted; the next run goes on without it",
                file.unlink,
            )


def _adapters(home: Home, corpus: str) -> Iterator[_Defect]:
    folder = home.adapters / corpus
    faults = {
        place.name: fault
        for place in sorted(folder.glob("[0-9a-f]*"))
        if _ADAPTER.fullmatch(place.name) and (fault := _adapter_fault(place))
    }
    damaged = {adapter: fault.why for adapter, fault in faults.items() if fault.read}
    for adapter in sorted(faults.keys() - damaged.keys()):
        yield _unread(f"adapter {adapter} of corpus {corpus!r}", faults[adapter])
    try:
        entries = past.history(home, corpus)
    except past.PromotionError as error:
        yield _Defect(str(error), "until then nothing is promoted or rolled back")
        return
    link = adapter_store.current_link(home.adapters, corpus)
    answers = link.readlink().name if link.is_symlink() else None
    if answers is not None and (answers in damaged or not link.is_dir()):
        why = damaged.get(answers, "it is gone")
        what = f"adapter {answers}, which answers for {corpus!r}, is not whole ({why})"
        whole = [
            adapter
            for adapter in adapter_store.stored(home.adapters, corpus)
            if adapter not in {answers, *faults}
        ]
        aside = past.set_aside(entries)
        earlier = next((a for a in past.before(entries) if a in whole and a not in aside), None)
        if earlier is None and whole:  # a person has decided against it, or the gate has
            yield _Defect(what, f"`ragtuned promote {corpus} {whole[0]}` lets another one answer")
            damaged.pop(answers, None)  # not deleted before
        else:
            yield _Defect(
                what,
                f"adapter {earlier} answers again, until the next run"
                if earlier
                else "none answers until the next run",
                partial(_let_answer, home, corpus, answers, earlier),
            )
    for adapter, why in damaged.items():
        yield _Defect(
            f"adapter {adapter} of corpus {corpus!r} is not whole ({why})",
            "deleted; the next run tunes it again if it is still wanted",
            partial(adapter_store.delete, home.adapters, corpus, adapter),
        )


def _adapter_fault(folder: Path) -> _Fault | None:
    """Return why an adapter is not whole.

    The weights' file begins with the length of its header, which tells where its last tensor ends
    (https://github.com/huggingface/safetensors, "Format").
    """
    try:
        for name in ("adapter_config.json", "base_model.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        weights = folder / "adapter_model.safetensors"
        with weights.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            end = 8 + length + _end(json.loads(handle.read(min(length, weights.stat().st_size))))
        if weights.stat().st_size != end:
            return _Fault("its weights are cut off")
        same = adapter_store.content_of(folder) == folder.name
    except FileNotFoundError as error:
        return _Fault(f"{Path(error.filename).name} is missing")
    except OSError as error:
        return _Fault(str(error), read=False)
    except ValueError as error:
        return _Fault(f"a file of it is damaged: {error}")
    return None if same else _Fault("its content is another than its name says")


def _end(header: Any) -> int:
    """Return where the last tensor ends, in bytes from the header's end.

    Raises:
        ValueError: it is no header of weights.
    """
    try:
        tensors = {name: header[name] for name in header if name != "__metadata__"}
        return int(max(each["data_offsets"][1] for each in tensors.values()))
    except (TypeError, LookupError, ValueError):
        raise ValueError("its weights have no header") from None


def _let_answer(home: Home, corpus: str, damaged: str, adapter: str | None) -> None:
    with past.locked(home, corpus) as entries:
        if adapter is None:
            adapter_store.current_link(home.adapters, corpus).unlink()
        else:
            entry = past.Entry(
                what="promoted by hand",
                adapter=adapter,
                left=damaged,
                trained=None,  # no adapter is set aside by this
                when=past.now(),
                run=past.COMMAND_LINE,
                data_version="",
                numbers={},
                reasons=(f"ragtuned doctor: adapter {damaged} was not whole",),
            )
            past.append(home, corpus, entries, entry)


def _tables(home: Home, corpus: str) -> Iterator[_Defect]:
    for path in TableStore(home.tables).files():
        name = path.parent.name
        if path.name != f"{corpus}.parquet" or schema_name(name) not in SCHEMAS:
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            yield _unread(str(path), _Fault(str(error), read=False))
            continue
        try:
            read = pq.read_table(pa.BufferReader(content)).replace_schema_metadata()
            check_schema(schema_name(name), read)
        except (pa.ArrowException, OSError) as error:  # of what was read: no place fails here
            why = f"cannot be read ({' '.join(str(error).split())[:200]})"
        except ValueError as error:
            why = f"is of another version ({error})"
        else:
            continue
        yield _Defect(f"{path} {why}", "deleted; the next run makes it anew", path.unlink)
