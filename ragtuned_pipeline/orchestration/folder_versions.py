"""Whether a corpus has changed: by its files' bytes, read again only where their status changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration.partitions import VERSION_TAG

if TYPE_CHECKING:
    from ragtuned_pipeline.orchestration.home import Home

_FOLDER = dg.AssetKey("corpus_folder")

_Status = list[int]  # size, mtime, ctime (both in nanoseconds), inode


@dataclass(frozen=True)
class FolderStatus:
    """What a corpus's files look like without being read.

    Attributes:
        key: a hash of names, sizes, times and inodes, and of the corpus's settings.
        changed_at: when the last of them changed, seconds since 1970. The time of the status change
            and not of the content: a copy that keeps old times (cp -p, rsync -a) shows in it.
    """

    key: str
    changed_at: float

    def is_quiet(self, seconds: float, key_before: str) -> bool:
        """Whether nothing has changed for so long.

        Where the clock was set back and the change lies in the future, what counts is that nothing
        differs from the last look, `key_before`.
        """
        age = time.time() - self.changed_at
        return age >= seconds if age >= 0 else self.key == key_before


def folder_status(home: Home, corpus: str) -> FolderStatus:
    """Return the status of a corpus's folder, gold questions and settings.

    Raises:
        CorpusMissing: there is no such folder.
        SettingsError: the corpus's settings cannot be read.
    """
    files = _sources(home, corpus)
    statuses = [(name, _status(file)) for name, file in files.items()]
    folders = {file.parent for file in files.values()} | {home.documents(corpus)}
    latest = max([status[2] for _, status in statuses] + [_status(each)[2] for each in folders])
    settings = home.settings(corpus).model_dump(mode="json")
    return FolderStatus(_digest([statuses, settings]), latest / 1e9)


def folder_version(home: Home, corpus: str) -> str:
    """Return a hash of all that a corpus is made of: its files, gold questions and settings.

    Hashes of single files are kept beside the folder, in `.<corpus>.files.json`; only files whose
    status differs are read again.

    Raises:
        CorpusMissing: there is no such folder.
        SettingsError: the corpus's settings cannot be read.
    """
    kept = home.corpora / f".{corpus}.files.json"
    known: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    hashed: dict[str, tuple[_Status, str]] = {}
    for name, file in _sources(home, corpus).items():
        status, (status_before, hash_before) = _status(file), known.get(name, (None, ""))
        hashed[name] = status, hash_before if status == status_before else _hash(file)
    if hashed != {name: tuple(each) for name, each in known.items()}:
        write_text(kept, json.dumps(hashed, sort_keys=True))
    made_of = {
        "files": {name: digest for name, (_, digest) in hashed.items()},
        "settings": home.settings(corpus).model_dump(mode="json"),
    }
    return _digest(made_of)


@dataclass(frozen=True)
class Report:
    """The last report of a corpus's folder: Dagster's number of it, the version, and when."""

    id: int
    version: str
    at: float


def report_folder(instance: dg.DagsterInstance, home: Home, corpus: str) -> str:
    """Report the version of the corpus that a run is about to read, where it is a new one.

    Returns:
        the version, for `note_read`.
    """
    version = folder_version(home, corpus)
    report = last_report(instance, corpus)
    if report is None or report.version != version:
        instance.report_runless_asset_event(report_event(corpus, version))
    return version


def last_report(instance: dg.DagsterInstance, corpus: str) -> Report | None:
    """Return the last report of the corpus's folder; None where there is none."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(_FOLDER, asset_partitions=[corpus]), limit=1
    ).records
    for record in records:
        materialization = record.asset_materialization
        tags = (materialization.tags if materialization else None) or {}
        return Report(record.storage_id, tags.get(VERSION_TAG, ""), record.timestamp)
    return None


def note_read(home: Home, corpus: str, version: str) -> None:
    """Note that the corpus's tables are made of this version of its folder."""
    write_text(_read_file(home, corpus), version)


def read_version(home: Home, corpus: str) -> str:
    """Return the version that the corpus's tables are made of; empty where none was read."""
    file = _read_file(home, corpus)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _read_file(home: Home, corpus: str) -> Path:
    return home.corpora / f".{corpus}.read"


def report_event(corpus: str, version: str) -> dg.AssetMaterialization:
    """Return the event that reports a version of the corpus's folder."""
    # A materialisation: an observation would start nothing.
    return dg.AssetMaterialization(_FOLDER, partition=corpus, tags={VERSION_TAG: version})


def _sources(home: Home, corpus: str) -> dict[str, Path]:
    """Return the files that a corpus is made of, by their names in it; the gold questions last."""
    folder, gold = home.documents(corpus), home.gold(corpus)
    found = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    if gold and gold.is_file():
        found["/gold questions"] = gold  # a name that no file of the folder can have
    return {
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"): file
        for name, file in found.items()
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, hidden ones apart, by name; links to nothing too.

    A folder that may not be opened has none: the reader will say so.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _status(file: Path) -> _Status:
    try:
        status = file.stat()
    except OSError:  # gone, a link to nothing, or shut: the reader will say so
        return [0, 0, 0, 0]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "blake2b").hexdigest()
    except OSError:
        return "unreadable"
