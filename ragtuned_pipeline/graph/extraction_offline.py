"""Entities and relationships without a language model.

The text is read once into sentences; names are found by what the whole corpus shows of each word
(mentions.py), made one thing where they name one (resolution.py), and linked where a sentence
links them (statements.py). Descriptions are sentences of the corpus, word for word.
"""

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
from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.coreference import Reading, refer
from ragtuned_pipeline.graph.mentions import Evidence, Mention, Tokens, find_mentions, tokenise
from ragtuned_pipeline.graph.resolution import NamedThing, resolve
from ragtuned_pipeline.graph.statements import Link, Place, links
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import GraphSettings

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
class _Line:
    """A sentence of the corpus, or a header line that lists people (`head`)."""

    document: int
    start: int
    end: int
    text: str
    speaker: str | None
    head: bool = False


def extract(
    documents: pa.Table, base_text_units: pa.Table, settings: GraphSettings | None = None
) -> GraphTables:
    """Return the graph of a corpus; the same whatever the order of `documents`.

    Args:
        documents: table `documents`.
        base_text_units: table `base_text_units` of the same documents.
        settings: `description_sentences` bounds an entity's description.

    A document with text but without text units is a row of failures, stage "graph".
    """
    settings = settings or GraphSettings()
    rows = sorted(
        documents.select(["id", "path", "text", "format", "creation_date"]).to_pylist(),
        key=lambda row: (row["creation_date"] or "", row["path"] or "", row["id"]),
    )
    lines = [line for number, row in enumerate(rows) for line in _lines(number, row)]
    units = _Units(base_text_units, [row["id"] for row in rows])
    failures = [
        tables.Failure("graph", row["id"], f"{row['path']}: the document has no text units")
        for number, row in enumerate(rows)
        if (row["text"] or "").strip() and not units.has(number)
    ]
    parsed, mentions = _read_names(lines)
    things, places = _places(rows, lines, parsed, mentions)
    stated = _stated(lines, parsed, places)
    return _tables(
        things, places, stated, lines, parsed, units, base_text_units, failures, settings
    )


def _lines(number: int, row: dict[str, Any]) -> list[_Line]:
    text = row["text"] or ""
    sentences = sentences_of(text, row["format"])
    found = [_Line(number, s.start, s.end, s.text, s.speaker) for s in sentences]
    # What no sentence holds is header lines; some of them list people.
    edges = [0, *(edge for s in sentences for edge in (s.start, s.end)), len(text)]
    for a, b in zip(edges[::2], edges[1::2], strict=True):
        if b - a > 4 and "\n" in text[a:b] or a == 0:
            found += _people_lines(number, text, a, b)
    return sorted(found, key=lambda line: line.start)


def _people_lines(number: int, text: str, start: int, end: int) -> Iterable[_Line]:
    for match in _LINE.finditer(text, start, end):
        key = _PEOPLE_KEY.match(match[0])
        if key:
            words = " ".join(match[0][key.end() :].split())
            if words:
                at = match.start() + key.end()
                yield _Line(number, at, match.end(), words, None, head=True)


def _read_names(lines: Sequence[_Line]) -> tuple[list[Tokens], list[list[Mention]]]:
    """Return each line's tokens and mentions; equal sentences are read once."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(line.text for line in lines))}
    tokens = [tokenise(text) for text in distinct]
    speakers = {line.speaker for line in lines if line.speaker}
    evidence = Evidence.of(tokens, speakers)
    mentions = [find_mentions(one, evidence) for one in tokens]
    where = [distinct[line.text] for line in lines]
    return [tokens[i] for i in where], [mentions[i] for i in where]


def _places(
    rows: Sequence[dict[str, Any]],
    lines: Sequence[_Line],
    parsed: Sequence[Tokens],
    mentions: Sequence[Sequence[Mention]],
) -> tuple[list[NamedThing], list[list[Place]]]:
    """Resolve names to things, and give each line the places of the things it speaks of."""
    per_document: list[list[Mention]] = [[] for _ in rows]
    address: list[list[int]] = []  # for each line: positions in its document's list; speaker first
    for line, found in zip(lines, mentions, strict=True):
        whole = per_document[line.document]
        positions = []
        if line.speaker and _is_personal(line.speaker):
            whole.append(Mention(0, 0, line.speaker, "", False, False, ((w.PERSON, 5),)))
        positions.append(len(whole) - 1 if line.speaker and _is_personal(line.speaker) else -1)
        for mention in found:
            if line.head:
                mention = mention._replace(votes=((w.PERSON, 5),))
            positions.append(len(whole))
            whole.append(mention)
        address.append(positions)
    resolution = resolve(per_document)
    honorifics: list[list[str]] = [[] for _ in resolution.things]
    readings: list[Reading] = []
    for line, found, tokens, positions in zip(lines, mentions, parsed, address, strict=True):
        owners = resolution.owners[line.document]
        named = []
        for mention, position in zip(found, positions[1:], strict=True):
            if owners[position] >= 0:
                named.append(Place(mention.first, mention.last, owners[position]))
                honorifics[owners[position]].append(mention.honorific)
        speaker = owners[positions[0]] if positions[0] >= 0 else -1
        readings.append(Reading(line.document, tokens, tuple(named), speaker, line.head))
    types = [thing.type for thing in resolution.things]
    places = refer(readings, types, [" ".join(each) for each in honorifics])
    return resolution.things, places


def _is_personal(speaker: str) -> bool:
    return speaker.lower().rstrip(" 0123456789") not in {
        "user",
        "assistant",
        "system",
        "speaker",
        "me",
        "you",
        "host",
        "guest",
        "unknown",
        "narrator",
    }


def _stated(
    lines: Sequence[_Line], parsed: Sequence[Tokens], places: Sequence[Sequence[Place]]
) -> list[tuple[int, Link]]:
    """Return (line, link) for every link that a sentence states, in the order of the corpus."""
    return [
        (number, link)
        for number, (line, tokens, here) in enumerate(zip(lines, parsed, places, strict=True))
        if not line.head and len(here) > 1
        for link in links(tokens, here)
    ]


class _Units:
    """The text units of each document, by their offsets."""

    def __init__(self, units: pa.Table, document_ids: Sequence[str]) -> None:
        number = {document: i for i, document in enumerate(document_ids)}
        order: dict[int, list[int]] = defaultdict(list)
        for row, document in enumerate(units["document_id"].to_pylist()):
            if document in number:
                order[number[document]].append(row)
        starts = units["start"].to_numpy(zero_copy_only=False)
        ends = units["end"].to_numpy(zero_copy_only=False)
        self._rows: dict[int, np.ndarray[Any, Any]] = {}
        for document, listed in order.items():
            rows = np.array(listed)
            self._rows[document] = rows[np.lexsort((ends[rows], starts[rows]))]
        self._starts, self._ends = starts, ends

    def has(self, document: int) -> bool:
        return document in self._rows

    def of(self, lines: Sequence[_Line]) -> list[range | np.ndarray[Any, Any]]:
        """Return for each line the rows of the units that hold it whole, else of those it touches."""
        found: list[Any] = [np.array([], dtype=np.int64)] * len(lines)
        by_document: dict[int, list[int]] = defaultdict(list)
        for i, line in enumerate(lines):
            by_document[line.document].append(i)
        for document, members in by_document.items():
            rows = self._rows.get(document)
            if rows is None:
                continue
            starts, ends = self._starts[rows], self._ends[rows]
            first = np.array([lines[i].start for i in members])
            last = np.array([lines[i].end for i in members])
            low = np.searchsorted(ends, last, "left")
            high = np.searchsorted(starts, first, "right")
            split = low >= high
            low = np.where(split, np.searchsorted(ends, first, "right"), low)
            high = np.where(split, np.searchsorted(starts, last, "left"), high)
            for i, a, b in zip(members, low.tolist(), high.tolist(), strict=True):
                found[i] = rows[a:b]
        return found


def _tables(
    things: Sequence[NamedThing],
    places: Sequence[Sequence[Place]],
    stated: Sequence[tuple[int, Link]],
    lines: Sequence[_Line],
    parsed: Sequence[Tokens],
    units: _Units,
    base_text_units: pa.Table,
    failures: list[tables.Failure],
    settings: GraphSettings,
) -> GraphTables:
    unit_ids = base_text_units["id"].to_pylist()
    line_units = units.of(lines)
    spoken: dict[int, list[int]] = defaultdict(list)  # thing -> lines
    for number, here in enumerate(places):
        for thing in sorted({place.thing for place in here}):
            spoken[thing].append(number)
    # ...speakers whose every line lacks an "I" are things too: their first line carries them.
    pairs: dict[tuple[int, int], list[tuple[int, str | None]]] = defaultdict(list)
    for number, link in stated:
        pairs[link.source, link.target].append((number, link.inverse))
    neighbours: dict[int, set[int]] = defaultdict(set)
    for source, target in pairs:
        neighbours[source].add(target)
        neighbours[target].add(source)
    ids = [content_id("ent", thing.title.casefold()) for thing in things]
    in_unit: tuple[dict[int, set[str]], dict[int, set[str]]] = (defaultdict(set), defaultdict(set))

    def unit_rows(numbers: Iterable[int]) -> list[int]:
        return sorted({int(row) for number in numbers for row in line_units[number]})

    entity_rows = []
    for i, thing in enumerate(things):
        held = unit_rows(spoken[i])
        for row in held:
            in_unit[0][row].add(ids[i])
        entity_rows.append(
            {
                "id": ids[i],
                "human_readable_id": i,
                "title": thing.title,
                "type": thing.type,
                "description": _description(
                    i, spoken[i], lines, places, settings.description_sentences
                ),
                "text_unit_ids": [unit_ids[row] for row in held],
                "frequency": len(held),
                "degree": len(neighbours[i]),
                "aliases": list(thing.aliases),
                "type_votes": list(thing.votes),
            }
        )
    relationship_rows = []
    for number, ((source, target), said) in enumerate(sorted(pairs.items())):
        held = unit_rows(line for line, _ in said)
        identity = content_id("rel", ids[source], ids[target])
        for row in held:
            in_unit[1][row].add(identity)
        sentences = list(dict.fromkeys(lines[line].text for line, _ in said))
        relationship_rows.append(
            {
                "id": identity,
                "human_readable_id": number,
                "source": things[source].title,
                "target": things[target].title,
                "description": " ".join(sentences),
                "weight": float(len(said)),
                "combined_degree": len(neighbours[source]) + len(neighbours[target]),
                "text_unit_ids": [unit_ids[row] for row in held],
                "source_id": ids[source],
                "target_id": ids[target],
                "sentences": sentences,
                "inverse": next((inverse for _, inverse in said if inverse), None),
            }
        )
    linked = base_text_units
    for column, held_ids in zip(("entity_ids", "relationship_ids"), in_unit, strict=True):
        values = [sorted(held_ids[row]) for row in range(len(unit_ids))]
        position = linked.schema.get_field_index(column)
        linked = linked.set_column(
            position, linked.schema.field(column), pa.array(values, pa.list_(pa.string()))
        )
    return GraphTables(
        tables.table("entities", entity_rows),
        tables.table("relationships", relationship_rows),
        linked,
        tables.failures_table(failures),
    )


def _description(
    thing: int,
    spoken: Sequence[int],
    lines: Sequence[_Line],
    places: Sequence[Sequence[Place]],
    most: int,
) -> str:
    """Return the sentences that say most about a thing, in time order."""
    first: dict[str, int] = {}
    for number in spoken:
        if not lines[number].head:
            first.setdefault(lines[number].text, number)

    def weight(number: int) -> tuple[float, int]:
        line, here = lines[number], places[number]
        score = min(len({place.thing for place in here}), 4)
        score += 2 * (here[0].thing == thing) + any(c.isdigit() for c in line.text)
        score -= 3 * line.text.endswith("?") + 2 * (len(line.text) < 30)
        return -score, number

    chosen = sorted(sorted(first.values(), key=weight)[:most])
    return " ".join(lines[number].text for number in chosen)
