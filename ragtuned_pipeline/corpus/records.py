"""JSON, JSON lines and CSV to drafts of documents: one a record, or one chat from its messages."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ragtuned_pipeline.corpus.sentences import find_date, is_turn, looks_like_chat

TEXT_FIELDS = ("text", "content", "body", "message")
_MESSAGES_FIELDS = ("messages", "message", "conversation", "content")
_SPEAKER_FIELDS = ("speaker", "author", "from", "role", "sender", "user")
_TITLE_FIELDS = ("title", "headline", "subject")
_DATE_FIELDS = ("date", "time", "datetime", "timestamp", "ts", "created_at", "created", "published")
_LATEST_SECOND = 1e11  # a larger number of seconds since 1970 is milliseconds


@dataclass(frozen=True)
class Draft:
    """A document before it has an id. `record` is None where the document is its whole file."""

    text: str
    format: str
    record: int | None = None
    title: str | None = None
    date: str | None = None
    rest: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Fault:
    """Why a file, or one record of it, gives no document."""

    reason: str
    record: int | None = None


def read_json(text: str) -> Iterator[Draft | Fault]:
    """Yield what the JSON value in `text` holds; JSON lines where it is several values."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        read = text[: error.pos]
        if error.msg == "Extra data" and read.endswith("\n") and "\n" not in read.strip():
            yield from read_json_lines(text)
        else:
            yield Fault(
                f"is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
            )
    except (ValueError, RecursionError) as error:
        yield Fault(f"is not JSON that can be read: {error}")
    else:
        records = _records_in(value)
        if records is None:
            yield _draft(value, None)
        else:
            yield from _drafts(list(enumerate(records, start=1)))


def read_json_lines(text: str) -> Iterator[Draft | Fault]:
    """Yield what the JSON values in `text`, one a line, hold; records are numbered by line."""
    values: list[tuple[int, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            yield Fault(
                f"is not valid JSON: {error.msg} at line {number} column {error.colno}", number
            )
        except (ValueError, RecursionError) as error:
            yield Fault(f"line {number} is not JSON that can be read: {error}", number)
    if values:
        yield from _drafts(values)


def read_csv(text: str, tab: bool) -> Iterator[Draft | Fault]:
    """Yield a draft for every row of the table in `text`; its first row names the columns."""
    header_line = text.lstrip("\n").split("\n", 1)[0]
    delimiter = "\t" if tab else max(",;\t|", key=header_line.count)
    # The limit is the module's: no field is longer than the text.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    number = 0
    try:
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            if names is None:
                names = [name.strip() or f"column {i}" for i, name in enumerate(row, start=1)]
                continue
            number += 1
            if len(row) == len(names):
                yield _row(dict(zip(names, row, strict=True)), number)
            else:
                yield Fault(
                    f"row {number} (line {rows.line_num}) has {len(row)} fields where the header "
                    f"has {len(names)}",
                    number,
                )
    except csv.Error as error:
        yield Fault(
            f"is not valid CSV: {error} in the row that ends at line {rows.line_num}; "
            "no row from there on was read",
            number + 1,
        )
        return
    if number == 0:
        yield Fault("has a header and no rows")


def _row(fields: dict[str, str], number: int) -> Draft | Fault:
    if _first(fields, TEXT_FIELDS) is not None:
        return _draft(fields, number)
    lines = [
        f"{name}: {' '.join(value.split())}" for name, value in fields.items() if value.strip()
    ]
    return Draft(
        "\n".join(lines), "record", number, _text_of(fields, _TITLE_FIELDS), _date_of(fields)
    )


def _records_in(value: Any) -> Sequence[Any] | None:
    """Return the list of records that `value` is, or wraps under one name, or None."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and _first(value, TEXT_FIELDS + _MESSAGES_FIELDS) is None:
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(lists) == 1:
            return lists[0]
    return None


def _drafts(values: list[tuple[int, Any]]) -> Iterator[Draft | Fault]:
    if not values:
        yield Fault("is an empty list")
    elif _are_messages([value for _, value in values]):
        yield Draft(_chat([value for _, value in values]), "chat", date=_date_of(values[0][1]))
    else:
        for number, value in values:
            yield _draft(value, number)


def _draft(value: Any, number: int | None) -> Draft | Fault:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        return Fault(f"is {type(value).__name__} where a record (an object) is expected", number)
    name = next((name for name in value if _holds_messages(name, value[name])), None)
    date = None
    if name is not None:
        text, text_format, date = _chat(value[name]), "chat", _date_of(value[name][0])
    else:
        name = _first(value, TEXT_FIELDS)
        if name is None:
            return Fault(f"has no text: none of the fields {', '.join(TEXT_FIELDS)}", number)
        text = _words(value[name]).strip()
        text_format = "chat" if looks_like_chat(text) else "record"
    if not text:
        return Fault(f"has no text: its field {name!r} is empty", number)
    rest = {key: field for key, field in value.items() if key != name}
    title = _text_of(rest, _TITLE_FIELDS)
    return Draft(text, text_format, number, title, _date_of(rest) or date, rest or None)


# --- chats ------------------------------------------------------------------------------------


def _holds_messages(name: str, value: Any) -> bool:
    return name.lower() in _MESSAGES_FIELDS and isinstance(value, list) and _are_messages(value, 1)


def _are_messages(values: Sequence[Any], least: int = 2) -> bool:
    """Return whether `values` are the messages of a chat, not records that name an author."""
    if len(values) < least or not all(isinstance(value, dict) for value in values):
        return False
    if any(_first(value, _TITLE_FIELDS) for value in values):
        return False
    speakers = [_text_of(value, _SPEAKER_FIELDS) for value in values]
    if None in speakers or any(_first(value, TEXT_FIELDS) is None for value in values):
        return False
    return least == 1 or len(set(speakers)) < len(speakers)


def _chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the messages as a chat log: `Speaker: words`, under a `Time:` line a day."""
    lines: list[str] = []
    day: str | None = None
    for message in messages:
        when = _date_of(message)
        if when and when != day:
            lines.append(f"Time: {when}")
            day = when
        field = _first(message, TEXT_FIELDS)
        words = _words(message[field]).strip() if field else ""
        if not words:
            continue
        first, *others = words.split("\n")
        lines.append(f"{_speaker(_text_of(message, _SPEAKER_FIELDS) or '')}: {first}")
        # A list item's mark keeps "Flour: 2 kg" inside a message from being read as a turn.
        lines.extend(f"- {line}" if is_turn(line) else line for line in others)
    return "\n".join(lines)


def _speaker(name: str) -> str:
    """Return `name` as it can stand before the colon of a chat line."""
    plain = " ".join(re.sub(r"[^\w '’&./-]+", " ", name).replace("_", " ").split()[:5])
    return plain if is_turn(f"{plain}: x") else f"Speaker {plain}".strip()


# --- fields -----------------------------------------------------------------------------------


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the key of the first of `names`, in any case, that `fields` has a value for."""
    by_name = {key.lower().strip(): key for key, value in fields.items() if value is not None}
    return next((by_name[name] for name in names if name in by_name), None)


def _text_of(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    key = _first(fields, names)
    return (_words(fields[key]).strip() or None) if key else None


def _words(value: Any) -> str:
    """Return the words in `value`: a string, a number, or the parts that chat exports have."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_words, value))
    if isinstance(value, dict):
        key = _first(value, ("text", "name"))
        return _words(value[key]) if key else ""
    return "" if isinstance(value, bool) or value is None else str(value)


def _date_of(fields: Mapping[str, Any]) -> str | None:
    key = _first(fields, _DATE_FIELDS)
    if key is None:
        return None
    value = fields[key]
    if isinstance(value, str):
        found = find_date(value)
        if found or not re.fullmatch(r"\d{9,13}(\.\d+)?", value):
            return found
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e8 < value < 1e14:
        return None
    seconds = value / 1000 if value > _LATEST_SECOND else value
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
