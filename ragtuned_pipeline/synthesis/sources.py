"""The corpus as synthesis reads it: documents as labelled lists of sentences, and their names."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import sentences_of

_MONTH_NAMES = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_ISO_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_WORD = re.compile(r"[^\W_]+(?:['’.&-][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of a document; `units` are the text units that hold it."""

    text: str
    start: int
    end: int
    speaker: str | None
    date: str | None
    units: tuple[str, ...]
    heading: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One document: `label` names it in a question, `anchor` places a statement in it."""

    id: str
    label: str
    anchor: str
    date: str | None
    lines: tuple[Line, ...]
    is_chat: bool


def spoken_date(date: str | None) -> str | None:
    """Return "2034-01-17" as "17 January 2034"; what is no ISO date as None."""
    match = _ISO_DATE.match(date or "")
    if match is None or not 1 <= int(match[2]) <= 12:
        return None
    return f"{int(match[3])} {_MONTH_NAMES[int(match[2]) - 1]} {int(match[1])}"


def read_sources(documents: pa.Table, text_units: pa.Table) -> list[Source]:
    """Return the documents in the table's order, each with its sentences.

    Labels are unique: documents that would share one get their path added.
    """
    units: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    columns = (
        text_units.column(name).to_pylist() for name in ("document_id", "start", "end", "id")
    )
    for document_id, start, end, unit_id in zip(*columns, strict=True):
        units[document_id].append((start, end, unit_id))
    rows = documents.select(["id", "title", "text", "creation_date", "path", "format"]).to_pylist()
    read = [
        (row, _lines(row["text"] or "", row["format"] or "text", sorted(units[row["id"]])))
        for row in rows
    ]
    labels = [_label(row["title"] or "", row["creation_date"], lines) for row, lines in read]
    shared = Counter(labels)
    sources: list[Source] = []
    for (row, lines), plain in zip(read, labels, strict=True):
        label = plain if shared[plain] == 1 else f"{plain} ({row['path']})"
        date = spoken_date(row["creation_date"])
        on_date = date is not None and label.startswith("the ")
        anchor = f"on {date}" if on_date and shared[plain] == 1 else f"according to {label}"
        sources.append(
            Source(row["id"], label, anchor, date, tuple(lines), row["format"] == "chat")
        )
    return sources


def _lines(text: str, document_format: str, units: Sequence[tuple[int, int, str]]) -> list[Line]:
    starts = [start for start, _, _ in units]
    lines: list[Line] = []
    for sentence in sentences_of(text, document_format):
        last = bisect_right(starts, sentence.start)
        holding = tuple(
            unit_id for start, end, unit_id in units[max(0, last - 3) : last] if end >= sentence.end
        )
        if not holding:  # cut in two by a text unit's end
            holding = tuple(
                unit_id
                for start, end, unit_id in units
                if start < sentence.end and end > sentence.start
            )
        lines.append(
            Line(
                sentence.text,
                sentence.start,
                sentence.end,
                sentence.speaker,
                sentence.date,
                holding,
                _is_heading(text, sentence.start, sentence.text),
            )
        )
    return lines


def _is_heading(text: str, start: int, sentence: str) -> bool:
    line = text[text.rfind("\n", 0, start) + 1 : start]
    return line.lstrip().startswith("#") or not any(c.isalnum() for c in sentence)


def _label(title: str, date: str | None, lines: Iterable[Line]) -> str:
    day = spoken_date(date)
    if " " in title.strip() and re.search(r"[A-Za-z]{2}", title) and not _ISO_DATE.match(title):
        return f'"{title.strip()}"'.replace('""', '"')
    speakers = sorted({line.speaker for line in lines if line.speaker})
    if day is not None and speakers:
        return f"the conversation of {day}"
    if day is not None:
        return f"the entry of {day}"
    return f'"{title.strip() or "the untitled document"}"'


class Names:
    """The entities' titles and aliases, and where they stand in a text."""

    def __init__(self, entities: pa.Table) -> None:
        columns = ("id", "title", "type", "aliases", "frequency")
        rows = entities.select(list(columns)).to_pylist()
        owners: dict[str, set[str]] = defaultdict(set)
        self.titles: dict[str, str] = {}
        self.frequency: dict[str, int] = {}
        self.kinds: dict[str, str] = {}
        for row in rows:
            self.titles[row["id"]] = row["title"]
            self.frequency[row["id"]] = row["frequency"] or 1
            for name in (row["title"], *(row["aliases"] or ())):
                owners[name].add(row["id"])
                self.kinds.setdefault(name, row["type"] or "")
        self.all = frozenset(owners)
        self._owner = {name: next(iter(ids)) for name, ids in owners.items() if len(ids) == 1}
        self._by_words: dict[tuple[str, ...], str] = {}
        self._longest: dict[str, int] = {}
        for name in sorted(self._owner):
            words = tuple(_WORD.findall(name))
            if words and words[0][0].isupper():
                self._by_words[words] = self._owner[name]
                self._longest[words[0]] = max(self._longest.get(words[0], 0), len(words))

    def owner(self, name: str) -> str | None:
        """Return the entity that alone bears `name`."""
        return self._owner.get(name)

    def in_text(self, text: str) -> list[str]:
        """Return the entities that `text` names, by first appearance, the longest name first."""
        words = _WORD.findall(text)
        found: dict[str, None] = {}
        at = 0
        while at < len(words):
            for length in range(self._longest.get(_bare(words[at]), 0), 0, -1):
                run = (
                    (*words[at : at + length - 1], _bare(words[at + length - 1]))
                    if (at + length <= len(words))
                    else ()
                )
                entity = self._by_words.get(run)
                if entity is not None:
                    found[entity] = None
                    at += length - 1
                    break
            at += 1
        return list(found)


def _bare(word: str) -> str:
    """A name's possessive "'s" is not part of it."""
    return word[:-2] if word.endswith(("'s", "’s")) else word


def weight(names: Names, entity_ids: Iterable[str], telling: bool) -> float:
    """Return how much a sentence matters: its entities' mentions on a log scale, and details."""
    from math import log1p

    return round(sum(log1p(names.frequency[i]) for i in entity_ids) + (1.0 if telling else 0.0), 6)
