"""What Dagster has recorded of a corpus: runs that were killed ended, and all of it deleted.

Its events carry previews of tables, so that they hold sentences of documents.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, nullcontext
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from ragtuned_pipeline.orchestration.home import Home, remove
from ragtuned_pipeline.orchestration.locks import COMMAND_LINE, RunFailed, alone, alone_serving
from ragtuned_pipeline.orchestration.partitions import CORPUS_TAG

if TYPE_CHECKING:
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from sqlalchemy.engine import Connection

_BUSY_SECONDS = 60.0
# A run of the daemon takes its corpus's lock within seconds of its start, before its first step.
# One that is older, or has begun a step, and does not hold it has no process any more.
_SECONDS_TO_START = 300.0
AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_JOBS = {"build_memory", "full_evaluation"}
SERVE = "serve_memories"  # the job whose run serves the home
# Tables of a database server that hold events, copies of them, and runs.
_EVENT_TABLES = ("event_logs", "asset_event_tags", "asset_keys", "asset_check_executions")
_RUN_TABLES = ("runs", "run_tags")
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class RecordsInUse(RuntimeError):
    """Another process keeps what was deleted in the file; the message says what to do."""


def dead_runs(
    home: Home, instance: dg.DagsterInstance, held: str | None = None
) -> Iterator[tuple[str, dg.DagsterRun]]:
    """Yield the runs that are marked as going on and have no process, each after its corpus, while
    that corpus's lock is held. A corpus whose lock a living run holds is left alone.

    Args:
        held: the corpus whose lock the caller holds.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=AT_WORK))
    for corpus in sorted({run.tags[CORPUS_TAG] for run in runs if CORPUS_TAG in run.tags}):
        try:
            with nullcontext() if corpus == held else alone(home, corpus):
                for run in runs_without_process(instance, corpus):
                    yield corpus, run
        except RunFailed:
            continue


def runs_without_process(instance: dg.DagsterInstance, corpus: str) -> list[dg.DagsterRun]:
    """Return the runs of a corpus that are marked as going on and have no process.

    The caller holds the corpus's lock, which a run that goes on would hold itself.
    """
    filters = dg.RunsFilter(statuses=AT_WORK, tags={CORPUS_TAG: corpus})
    return [
        record.dagster_run
        for record in instance.get_run_records(filters)
        if COMMAND_LINE.items() <= record.dagster_run.tags.items()
        or _had_time_to_start(instance, record)
        or _has_begun_a_step(instance, record.dagster_run.run_id)
    ]


def dead_server_runs(home: Home, instance: dg.DagsterInstance) -> Iterator[dg.DagsterRun]:
    """Yield the runs that are marked as serving the home and have no process, while nobody serves
    it in a run."""
    try:
        with alone_serving(home):
            for record in instance.get_run_records(dg.RunsFilter(job_name=SERVE, statuses=AT_WORK)):
                if _had_time_to_start(instance, record):
                    yield record.dagster_run
    except RunFailed:
        return


def _had_time_to_start(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run would have taken its lock by now.

    A container may have to be fetched first: how long that may take is dagster.yaml's to say.
    """
    starting = record.dagster_run.status == dg.DagsterRunStatus.STARTING
    allowed = instance.run_monitoring_start_timeout_seconds if starting else 0.0
    return time.time() - _changed_at(record) > max(allowed, _SECONDS_TO_START)


def _changed_at(record: dg.RunRecord) -> float:
    changed = record.update_timestamp
    return (changed if changed.tzinfo else changed.replace(tzinfo=UTC)).timestamp()


def _has_begun_a_step(instance: dg.DagsterInstance, run: str) -> bool:
    found = instance.get_records_for_run(run, of_type=dg.DagsterEventType.STEP_START, limit=1)
    return bool(found.records)


def end_run(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Mark a run that has no process as failed, and free its place in the pool."""
    instance.report_run_failed(run, "the process of this run was killed")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def ended_runs(instance: dg.DagsterInstance, corpus: str) -> list[str]:
    """Return the ids of the corpus's runs that are over, sorted."""
    runs = instance.get_runs(dg.RunsFilter(tags={CORPUS_TAG: corpus}))
    return sorted(run.run_id for run in runs if run.is_finished and _is_ours(run))


def forget_records(instance: dg.DagsterInstance, corpus: str) -> int:
    """Delete the corpus's runs that are over, their events, checks and logs; return how many.

    The events of its assets go with them, whatever run they are of, and so does what is left of
    runs that were deleted from the UI. Runs that go on are left alone.
    Files and tables are written anew without what was deleted.

    Raises:
        RecordsInUse: another process reads them without a pause.
    """
    from dagster._core.storage.event_log import SqliteEventLogStorage
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)  # each of Dagster's own is one
    runs = ended_runs(instance, corpus)
    if isinstance(storage, SqliteEventLogStorage):
        _hold_highest_id(storage)
    _delete_events(storage, corpus, runs)
    for run in runs:
        storage.delete_events(run)
        instance.compute_log_manager.delete_logs(prefix=[run])
    for run in runs:  # last: what is left of them after a crash is found by them
        instance.delete_run(run)
    if isinstance(storage, SqliteEventLogStorage):
        index = Path(storage.path_for_shard("index"))
        _delete_remains(instance, index.parent)
        history = index.parents[1]
        for file in (history / "runs.db", index, index.with_name(".db")):
            _write_anew(file)
    else:
        run_storage = instance.run_storage
        assert isinstance(run_storage, SqlRunStorage)  # as above
        with storage.index_connection() as connection:
            _write_tables_anew(connection, _EVENT_TABLES)
        with run_storage.connect() as connection:
            _write_tables_anew(connection, _RUN_TABLES)
    return len(runs)


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run is one of this project: an instance may serve other projects too.

    One asset of ours is enough: others of the same run may be gone from the project since.
    """
    return run.job_name in _JOBS or bool((run.asset_selection or set()) & _our_keys())


def _our_keys() -> AbstractSet[dg.AssetKey]:
    from ragtuned_pipeline.definitions import defs

    return defs.resolve_asset_graph().get_all_asset_keys()


def _hold_highest_id(storage: SqlEventLogStorage) -> None:
    """Add an empty event behind the last one, in place of an earlier such one.

    SQLite gives the ids of the last events again once they are deleted, and the daemon, which
    remembers how far it has read, would pass over the new ones.
    """
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from sqlalchemy import func, select

    with storage.index_connection() as connection:
        highest = select(func.coalesce(func.max(Events.c.id), 0))
        (last,) = connection.execute(highest).one()
        connection.execute(Events.delete().where(Events.c.event == ""))
        connection.execute(Events.insert().values(id=last + 1, run_id="", event=""))


def _delete_events(storage: SqlEventLogStorage, corpus: str, runs: Sequence[str]) -> None:
    """Delete the events of the corpus's partition, and the copies that Dagster keeps of each
    asset's last event: without one it looks for the last that is left.

    The assets are those of now and those of the runs, which may be gone since.
    """
    from dagster._core.instance import RUNLESS_RUN_ID
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable as Checks,
    )
    from dagster._core.storage.event_log.schema import AssetEventTagsTable as Tags
    from dagster._core.storage.event_log.schema import AssetKeyTable as Keys
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from sqlalchemy import and_, or_, select

    with storage.index_connection() as connection:
        made = select(Events.c.asset_key).where(Events.c.run_id.in_(runs)).distinct()
        last = select(Keys.c.asset_key).where(Keys.c.last_run_id.in_(runs))
        found = [*connection.execute(made), *connection.execute(last)]
    keys = sorted({key.to_string() for key in _our_keys()} | {key for (key,) in found if key})
    of_corpus = and_(Events.c.partition == corpus, Events.c.asset_key.in_(keys))
    with storage.index_connection() as connection:
        ids = select(Events.c.id).where(of_corpus)
        connection.execute(Tags.delete().where(Tags.c.event_id.in_(ids)))
        connection.execute(Events.delete().where(of_corpus))
        partition = and_(Checks.c.partition == corpus, Checks.c.asset_key.in_(keys))
        connection.execute(Checks.delete().where(or_(Checks.c.run_id.in_(runs), partition)))
        emptied = {"last_materialization": None, "cached_status_data": None}
        connection.execute(Keys.update().where(Keys.c.asset_key.in_(keys)).values(emptied))
    with storage.run_connection(RUNLESS_RUN_ID) as connection:  # a file of its own in SQLite
        connection.execute(Events.delete().where(of_corpus))


def _delete_remains(instance: dg.DagsterInstance, events: Path) -> None:
    """Delete the files of runs that are gone: Dagster empties those of events and lets the bytes
    be, and keeps what steps have printed.

    Args:
        events: the folder of the files of events, <run id>.db.
    """
    places = [*events.glob("*.db*"), *Path(os.environ["RAGTUNED_DAGSTER"]).iterdir()]
    known: dict[str, bool] = {}
    for place in places:
        run = place.name.partition(".db")[0]
        if _RUN_ID.fullmatch(run):
            known[run] = known[run] if run in known else instance.has_run(run)
            if not known[run]:
                remove(place)


def _write_tables_anew(connection: Connection, names: Sequence[str]) -> None:
    """Let Postgres write tables anew, whose files keep what was deleted until the place is needed.

    Its log (WAL) keeps that until it is written over, and so do backups.
    """
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    if connection.dialect.name != "postgresql":
        return
    connection.execute(text(f"SET lock_timeout = {_BUSY_SECONDS * 1000:.0f}"))  # milliseconds
    for name in names:
        try:
            connection.execute(text(f"VACUUM (FULL) {name}"))
        except OperationalError as error:
            raise RecordsInUse(
                f"the table {name} of Dagster's database cannot be written anew "
                f"({' '.join(str(error.orig).split())}); stop the webserver and the daemon and "
                "repeat the command, so that what was deleted leaves its files"
            ) from None


def _write_anew(file: Path) -> None:
    if not file.is_file():
        return
    with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise RecordsInUse(
            f"{file} is being read without a pause; stop the Dagster UI and daemon (make ui) and "
            "repeat the command, so that what was deleted leaves the file"
        )
