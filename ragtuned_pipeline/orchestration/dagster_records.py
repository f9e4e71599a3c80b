"""What Dagster has recorded of a corpus: counted, and deleted so that no byte of it stays.

Its events carry previews of tables, so that they hold sentences of documents.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

_BUSY_SECONDS = 60.0


class RecordsInUse(RuntimeError):
    """Another process keeps what was deleted in the file; the message says what to do."""


def ended_runs(instance: dg.DagsterInstance, corpus: str) -> list[str]:
    """Return the ids of the corpus's runs that are over, sorted."""
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": corpus}))
    return sorted(run.run_id for run in runs if run.is_finished and _is_ours(run))


def forget_records(instance: dg.DagsterInstance, corpus: str) -> int:
    """Delete the corpus's runs that are over, their events, checks and logs; return how many.

    The events of its assets go with them, whatever run they are of. Runs that go on are left alone.
    SQLite files are written anew without what was deleted; a database server does that by itself.

    Raises:
        RecordsInUse: another process reads them without a pause.
    """
    from dagster._core.storage.event_log import SqliteEventLogStorage
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)  # each of Dagster's own is one
    runs = ended_runs(instance, corpus)
    for run in runs:
        storage.delete_events(run)
        instance.compute_log_manager.delete_logs(prefix=[run])
    keys = [key.to_string() for key in _our_keys()]
    _delete_events(storage, corpus, runs, keys)
    for run in runs:  # last: what is left of them after a crash is found by them
        instance.delete_run(run)
    if isinstance(storage, SqliteEventLogStorage):
        index = Path(storage.path_for_shard("index"))
        _delete_shards(instance, index.parent)
        history = index.parents[1]
        for file in (history / "runs.db", index, index.with_name(".db")):
            _write_anew(file)
    return len(runs)


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run is one of this project: an instance may serve other projects too."""
    if run.asset_selection:
        return run.asset_selection <= _our_keys()
    return run.job_name in {"build_memory", "full_evaluation"}


def _our_keys() -> AbstractSet[dg.AssetKey]:
    from ragtuned_pipeline.definitions import defs

    return defs.resolve_asset_graph().get_all_asset_keys()


def _delete_events(
    storage: SqlEventLogStorage, corpus: str, runs: Sequence[str], keys: Sequence[str]
) -> None:
    """Delete the events of the corpus's partition, and let each asset's last event be another's."""
    from dagster._core.instance import RUNLESS_RUN_ID
    from dagster._core.storage.event_log.schema import (
        AssetCheckExecutionsTable as Checks,
    )
    from dagster._core.storage.event_log.schema import AssetEventTagsTable as Tags
    from dagster._core.storage.event_log.schema import AssetKeyTable as Keys
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from sqlalchemy import and_, or_, select

    of_corpus = and_(Events.c.partition == corpus, Events.c.asset_key.in_(keys))
    with storage.run_connection(RUNLESS_RUN_ID) as connection:
        connection.execute(Events.delete().where(of_corpus))
    with storage.index_connection() as connection:
        ids = select(Events.c.id).where(of_corpus)
        connection.execute(Tags.delete().where(Tags.c.event_id.in_(ids)))
        connection.execute(Events.delete().where(of_corpus))
        partition = and_(Checks.c.partition == corpus, Checks.c.asset_key.in_(keys))
        connection.execute(Checks.delete().where(or_(Checks.c.run_id.in_(runs), partition)))
        emptied = {"last_materialization": None, "cached_status_data": None}
        connection.execute(Keys.update().where(Keys.c.asset_key.in_(keys)).values(emptied))
    for key in keys:
        asset = dg.AssetKey.from_db_string(key)
        assert asset is not None
        left = storage.fetch_materializations(asset, limit=1).records
        if left:
            storage.store_asset_event(left[0].event_log_entry, left[0].storage_id)


def _delete_shards(instance: dg.DagsterInstance, folder: Path) -> None:
    """Delete the files of runs that are gone: Dagster empties them and lets the bytes be."""
    shards = {file for file in folder.iterdir() if ".db" in file.name}
    names = {file.name.partition(".db")[0] for file in shards} - {"", "index"}
    known = {name for name in names if instance.has_run(name)}
    for file in shards:
        name = file.name.partition(".db")[0]
        if name in names - known:
            file.unlink(missing_ok=True)


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
