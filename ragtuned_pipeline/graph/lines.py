"""What both extractors share: the lines of a corpus, the text units that hold them, the tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.corpus.sentences import sentences_of
from ragtuned_pipeline.graph.coreference import inside_quotes

_LINE = re.compile(r"[^\n]+")
_PEOPLE_KEY = re.compile(
    r"(?i)\W*(?:(?:participants?|hosts?|guests?|authors?|speakers?|from|to|cc)\s*:|by\s)\s*"
)


@dataclass(frozen=True)
class GraphTables:
    """The tables `entities`, `relationships`, `text_units` (linked to both) and `failures`."""

    entities: pa.Table
    relationships: pa.Table
    text_units: pa.Table
    failures: pa.Table


@dataclass(frozen=True)
class Line:
    """A sentence of the corpus, or a header line that lists people (`head`)."""

    document: int
    start: int
    end: int
    text: str
    speaker: str | None
    head: bool = False
    quoted: bool = False  # starts inside quotation marks


def in_corpus_order(documents: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of `documents` by date, then path: the order that every table goes by."""
    columns = ["id", "path", "title", "text", "format", "creation_date"]
    return sorted(
        documents.select(columns).to_pylist(),
        key=lambda row: (row["creation_date"] or "", row["path"] or "", row["id"]),
    )


def lines_of(number: int, row: dict[str, Any]) -> list[Line]:
    """Return the lines of the document `row`, the `number`-th of the corpus."""
    text = row["text"] or ""
    sentences = sentences_of(text, row["format"])
    found: list[Line] = []
    quoted, last = False, 0
    for s in sentences:
        # A quotation may go on from sentence to sentence, not from paragraph to paragraph.
        quoted = quoted and "\n" not in text[last : s.start]
        found.append(Line(number, s.start, s.end, s.text, s.speaker, quoted=quoted))
        quoted, last = inside_quotes(s.text, quoted), s.end
    # What no sentence holds is header lines; some of them list people.
    edges = [0, *(edge for s in sentences for edge in (s.start, s.end)), len(text)]
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        if (b - a > 4 and "\n" in text[a:b]) or a == 0:
            found += _people_lines(number, text, a, b)
    return sorted(found, key=lambda line: line.start)


def _people_lines(number: int, text: str, start: int, end: int) -> Iterable[Line]:
    for match in _LINE.finditer(text, start, end):
        if _PEOPLE_KEY.match(match[0]):
            words = " ".join(match[0].split())
            yield Line(number, match.start(), match.end(), words, None, head=True)


@dataclass(frozen=True)
class Unit:
    """A text unit: characters `start` to `end` of a document's text."""

    id: str
    document: int
    start: int
    end: int


class Units:
    """The text units in the order of the corpus: by document, then by offset."""

    def __init__(self, units: pa.Table, document_ids: Sequence[str]) -> None:
        number = {document: i for i, document in enumerate(document_ids)}
        documents = np.array(
            [number.get(name, -1) for name in units["document_id"].to_pylist()], dtype=np.int64
        )
        starts = units["start"].to_numpy(zero_copy_only=False)
        ends = units["end"].to_numpy(zero_copy_only=False)
        order = np.lexsort((ends, starts, documents))
        order = order[documents[order] >= 0]
        self._starts, self._ends = starts[order], ends[order]
        self._bounds = np.searchsorted(documents[order], np.arange(len(document_ids) + 1))
        self._documents = documents[order]
        ids = units["id"].to_pylist()
        self._ids = [ids[row] for row in order.tolist()]

    def all(self) -> list[Unit]:
        """Return the units of the documents that were given; the i-th has the number i."""
        columns = (self._documents.tolist(), self._starts.tolist(), self._ends.tolist())
        return [Unit(*row) for row in zip(self._ids, *columns, strict=True)]

    def has(self, document: int) -> bool:
        return bool(self._bounds[document] < self._bounds[document + 1])

    def of(self, lines: Sequence[Line]) -> list[range]:
        """Return for each line the units that hold it whole, else those that touch it."""
        found = [range(0)] * len(lines)
        for document, members in by_document(lines).items():
            base, stop = self._bounds[document : document + 2].tolist()
            starts, ends = self._starts[base:stop], self._ends[base:stop]
            first = np.array([lines[i].start for i in members])
            last = np.array([lines[i].end for i in members])
            low = np.searchsorted(ends, last, "left")
            high = np.searchsorted(starts, first, "right")
            cut = low >= high
            low = np.where(cut, np.searchsorted(ends, first, "right"), low)
            high = np.where(cut, np.searchsorted(starts, last, "left"), high)
            for i, a, b in zip(members, low.tolist(), high.tolist(), strict=True):
                found[i] = range(base + a, base + b)
        return found

    def ids(self, held: Iterable[range]) -> list[str]:
        """Return the ids of all units in `held`, each once, in the order of the corpus."""
        return [self._ids[i] for i in sorted({i for each in held for i in each})]


def by_document(lines: Sequence[Line]) -> dict[int, list[int]]:
    """Return document -> the numbers of its lines."""
    found: dict[int, list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        found[line.document].append(number)
    return found


def without_units(rows: Sequence[dict[str, Any]], units: Units) -> list[tables.Failure]:
    """Return a failure, stage "graph", for each document with text but without text units."""
    return [
        tables.Failure("graph", row["id"], f"{row['path']}: the document has no text units")
        for number, row in enumerate(rows)
        if (row["text"] or "").strip() and not units.has(number)
    ]


def linked(text_units: pa.Table, column: str, rows: pa.Table) -> pa.Table:
    """Return `text_units` with, in `column`, the ids of the `rows` that name each unit, sorted."""
    held: dict[str, list[str]] = defaultdict(list)
    for identity, units in zip(
        rows["id"].to_pylist(), rows["text_unit_ids"].to_pylist(), strict=True
    ):
        for unit in units:
            held[unit].append(identity)
    values = [sorted(held[unit]) for unit in text_units["id"].to_pylist()]
    at = text_units.schema.get_field_index(column)
    return text_units.set_column(
        at, text_units.schema.field(at), pa.array(values, pa.list_(pa.string()))
    )


def degrees_of(pairs: Iterable[tuple[int, int]], things: int) -> list[int]:
    """Return for each thing with how many others it stands in `pairs`, whatever the direction."""
    neighbours: list[set[int]] = [set() for _ in range(things)]
    for source, target in pairs:
        neighbours[source].add(target)
        neighbours[target].add(source)
    return [len(each) for each in neighbours]


def ended(text: str) -> str:
    """Return a line that does not end as a sentence with a full stop."""
    return text if is_ended(text) else f"{text}."


def is_ended(text: str) -> bool:
    """Tell whether a line ends as a sentence, closing marks aside."""
    return text.rstrip("\"'”’)*_ ").endswith((".", "!", "?", "…"))
