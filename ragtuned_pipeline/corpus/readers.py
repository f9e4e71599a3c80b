"""A folder of files to the table of documents, and the failures of what could not be read."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.corpus.records import Draft, Fault, read_csv, read_json, read_json_lines
from ragtuned_pipeline.corpus.sentences import find_date, head_of, looks_like_chat
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.item_store import Items, item_key
from ragtuned_pipeline.tables import Failure, table

_STAGE = "documents"
_BYTE_ORDER_MARKS = (  # longest first: UTF-32's begins with UTF-16's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\v\b\x1b")
_MEGABYTE = 1_000_000


class CorpusError(ValueError):
    """A folder cannot be a corpus; the message says why and what to change."""


class _Unreadable(Exception):
    """Why a file gives no document: the end of a sentence that begins with its name."""


def read_folder(
    folder: Path, max_file_megabytes: float, converted: Items | None = None
) -> tuple[pa.Table, list[Failure]]:
    """Read every file below `folder`, hidden ones apart.

    A document's id depends on its relative path and its text. Its creation_date is the one that
    its text, its record or its file name gives, never a file time. Its raw_data is the rest of
    its record, as JSON.

    Args:
        folder: searched at every depth; links that lead out of it are refused.
        max_file_megabytes: larger files are refused; a megabyte is 10^6 bytes.
        converted: remembers what was made of files of other formats, by their bytes.

    Returns:
        The table `documents`, sorted by path, text_unit_ids empty; and a failure for every file
        or record that gave no document, `at` the modification time of the file.

    Raises:
        CorpusError: there is no such folder, or nothing in it could be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CorpusError(f"{folder} {what}: give a folder that holds the documents")
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    first_path: dict[str, str] = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        for item in _items(path, folder, max_file_megabytes, converted):
            item_id = name if item.record is None else f"{name}#{item.record}"
            outcome = item if isinstance(item, Fault) else _row(item, item_id, path)
            if isinstance(outcome, dict):
                kept = first_path.setdefault(outcome["text"].strip(), item_id)
                if kept != item_id:
                    outcome = Fault(f"has the same text as {kept}, which is kept")
            if isinstance(outcome, Fault):
                reason = f"{_printable(item_id)} {outcome.reason}"
                failures.append(Failure(_STAGE, _printable(item_id), reason, at=_modified(path)))
            else:
                rows.append({"human_readable_id": len(rows), **outcome})
    if not rows:
        found = "nothing in it could be read" if failures else "it is empty"
        example = f" (the first: {failures[0].reason})" if failures else ""
        raise CorpusError(
            f"{folder} gives no document: {found}{example}; put text, markdown, JSON, CSV or chat "
            "files into it"
        )
    return table("documents", rows), failures


def _files(folder: Path) -> list[Path]:
    """Return what is to be read, by relative path: files, links, folders that are shut."""
    found: list[Path] = []

    def shut(error: OSError) -> None:
        found.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, onerror=shut):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = [Path(parent, name) for name in names if not name.startswith(".")]
        # A link to a folder inside is no second copy of its files; one that leads out is refused.
        links = [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        found += inside + [link for link in links if _leads_out(link, folder)]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _leads_out(path: Path, folder: Path) -> bool:
    return not path.resolve().is_relative_to(folder.resolve())


def _items(
    path: Path, folder: Path, max_file_megabytes: float, converted: Items | None
) -> Iterator[Draft | Fault]:
    """Yield what the file holds; whatever keeps it from being read is a fault."""
    try:
        if path.is_symlink() and _leads_out(path, folder):
            raise _Unreadable("is a link that leads out of the folder: put a copy there instead")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Unreadable(
                "is a folder that may not be opened: change its permissions"
                if path.is_dir()
                else "is no ordinary file"
            )
        if status.st_size > max_file_megabytes * _MEGABYTE:
            raise _Unreadable(
                f"has {status.st_size / _MEGABYTE:.1f} MB, more than the {max_file_megabytes:g} "
                "allowed: split it or raise corpus.max_file_megabytes"
            )
        if status.st_size == 0:
            raise _Unreadable("is empty")
        yield from _read(path, converted)
    except _Unreadable as error:
        yield Fault(str(error))
    except PermissionError:
        yield Fault("may not be read: change its permissions")
    except FileNotFoundError:
        yield Fault("is a link to nothing" if path.is_symlink() else "has vanished")
    except OSError as error:
        yield Fault(f"cannot be read: {error.strerror or error}")


def _read(path: Path, converted: Items | None) -> Iterator[Draft | Fault]:
    suffix = path.suffix.lower()
    if suffix in _READERS:
        text = _normal(_decode(path.read_bytes()))
        if not text.strip():
            raise _Unreadable("holds only white space")
        yield from _READERS[suffix](text)
    elif suffix in _CONVERTED:
        yield _converted(path, converted)
    else:
        _decode(path.read_bytes())  # a binary file is better called so
        raise _Unreadable(f"has the unknown format {suffix}: name it .txt if it is plain text")


def _read_text(text: str, plain_format: str) -> Iterator[Draft]:
    yield Draft(text, "chat" if looks_like_chat(text) else plain_format)


_READERS: dict[str, Callable[[str], Iterator[Draft | Fault]]] = {
    **dict.fromkeys(
        ("", ".txt", ".text", ".log", ".rst"), partial(_read_text, plain_format="text")
    ),
    **dict.fromkeys((".md", ".markdown"), partial(_read_text, plain_format="markdown")),
    ".json": read_json,
    **dict.fromkeys((".jsonl", ".ndjson"), read_json_lines),
    ".csv": partial(read_csv, tab=False),
    ".tsv": partial(read_csv, tab=True),
}

_CONVERTED = frozenset(
    (".docx", ".pdf", ".pptx", ".xlsx", ".xls", ".html", ".htm", ".epub", ".msg", ".ipynb", ".xml")
)

_ZIPPED = frozenset((".docx", ".pptx", ".xlsx", ".epub"))


def _converted(path: Path, remembered: Items | None) -> Draft:
    """Return the document that markitdown makes of a file of another format.

    A long PDF takes minutes: its text is remembered by the file's bytes.

    Raises:
        _Unreadable: markitdown is not installed, or cannot convert the file.
    """
    markitdown = _markitdown(path)
    suffix, data = path.suffix.lower(), path.read_bytes()
    key = item_key(version("markitdown"), suffix, hashlib.blake2b(data).hexdigest())
    known = remembered.get([key]) if remembered else {}
    text = known[key] if key in known else _convert(markitdown, data, suffix)
    if remembered and key not in known:
        remembered.put({key: text})
    return Draft(text, "chat" if looks_like_chat(text) else "markdown")


def _markitdown(path: Path) -> Any:
    try:
        return importlib.import_module("markitdown")
    except ModuleNotFoundError:
        raise _Unreadable(
            f"has the format {path.suffix}, which needs markitdown: "
            "pip install 'ragtuned-pipeline[documents]'"
        ) from None


def _convert(markitdown: Any, data: bytes, suffix: str) -> str:
    """Return the text in `data`.

    Raises:
        _Unreadable: markitdown cannot convert it, or finds no text.
    """
    # Where a converter fails, markitdown goes on to read the bytes as plain text.
    if (suffix in _ZIPPED and not zipfile.is_zipfile(io.BytesIO(data))) or (
        suffix == ".pdf" and b"%PDF-" not in data[:1024]
    ):
        raise _Unreadable(f"is damaged, or no {suffix} file")
    try:
        made = markitdown.MarkItDown().convert_stream(io.BytesIO(data), file_extension=suffix)
    except markitdown.MarkItDownException as error:
        reason = " ".join(str(error).split())[:300]
        raise _Unreadable(f"could not be converted by markitdown: {reason}") from None
    text = _normal(made.text_content)
    if not text.strip():
        raise _Unreadable("holds no text that markitdown can find")
    return text


def _decode(data: bytes) -> str:
    """Return the text in `data`: UTF-8, what a byte order mark says, else the likeliest encoding.

    Raises:
        _Unreadable: it is no text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise _Unreadable(
                    f"begins as {encoding.upper()} and breaks off it at byte {error.start}: "
                    "save it as UTF-8"
                ) from None
    controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in data[:8192])
    if b"\0" in data[:8192] or controls > 0.05 * len(data[:8192]):
        raise _Unreadable("is binary, not text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _guessed(data, error)


def _guessed(data: bytes, utf8_error: UnicodeDecodeError) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(data)
    best = matches.best()
    if best is None:
        raise _Unreadable(
            f"is in no encoding that can be told (as UTF-8 it is wrong at byte "
            f"{utf8_error.start}): save it as UTF-8"
        )
    # The single-byte encodings of Latin letters are hardly told apart by a few accents; Windows'
    # Western one is by far the commonest, so it is taken wherever it is nearly as likely.
    for match in matches:
        if (
            match.encoding == "cp1252"
            and match.chaos <= best.chaos + 0.1
            and match.coherence >= best.coherence - 0.2
        ):
            return str(match)
    return str(best)


def _normal(text: str) -> str:
    """Return `text` with "\\n" between lines and its characters composed (NFC)."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text)


def _row(draft: Draft, item_id: str, path: Path) -> dict[str, Any] | Fault:
    """Return the draft's row of the documents table, without human_readable_id."""
    if draft.format == "record":
        title, date = draft.title, draft.date
    else:
        head = head_of(draft.text, draft.format)
        title, date = draft.title or head.title, draft.date or head.date
    stem = path.stem if draft.record is None else f"{path.stem} #{draft.record}"
    rest = draft.rest and json.dumps(draft.rest, ensure_ascii=False, sort_keys=True)
    row: dict[str, Any] = {
        "id": content_id("doc", item_id, draft.text),
        "title": title or stem,
        "text": draft.text,
        "text_unit_ids": [],
        "creation_date": date or find_date(path.stem.replace("_", " ")),
        "raw_data": rest,
        "path": item_id,
        "format": draft.format,
    }
    if item_id != _printable(item_id):
        return Fault("has a name that is not UTF-8: rename it")
    if any(value != _printable(value) for value in row.values() if isinstance(value, str)):
        return Fault("holds half a character (a lone surrogate) that no text can hold")
    return row


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _modified(path: Path) -> str:
    """Return when the file was last changed, ISO 8601 in UTC; empty where that cannot be told."""
    try:
        seconds = path.lstat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()
