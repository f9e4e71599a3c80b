"""Entities and relationships without a language model.

The text is read once into sentences; names are found by what the whole corpus shows of each word
(mentions.py), made one thing where they name one (resolution.py), and linked where a sentence
links them (statements.py). Descriptions are sentences of the corpus, word for word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.coreference import Reading, refer
from ragtuned_pipeline.graph.lines import (
    GraphTables,
    Line,
    Units,
    by_document,
    degrees_of,
    ended,
    in_corpus_order,
    is_ended,
    lines_of,
    linked,
    without_units,
)
from ragtuned_pipeline.graph.mentions import Evidence, Mention, Tokens, find_mentions, tokenise
from ragtuned_pipeline.graph.resolution import NamedThing, resolve
from ragtuned_pipeline.graph.statements import Place, links
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import GraphSettings

_PARTS = w.word_set("user assistant system speaker me you host guest unknown narrator interviewer")
_OPENING = 4  # sentences in which a transcript may announce its programme
_ANNOUNCED = ("this is", "welcome to", "back to", "listening to", "here on", "evening from")


@dataclass(frozen=True)
class _Read:
    """The corpus as read: its lines, each with its tokens, places and speaker (-1 for none)."""

    lines: list[Line]
    tokens: list[Tokens]
    things: list[NamedThing]
    places: list[list[Place]]
    speakers: list[int]


def extract(documents: pa.Table, base_text_units: pa.Table, settings: GraphSettings) -> GraphTables:
    """Return the graph of a corpus; the same whatever the order of `documents`.

    Args:
        documents: table `documents`.
        base_text_units: table `base_text_units` of the same documents.
        settings: `description_sentences` is the most that an entity's description holds.

    A document with text but without text units is a row of failures, stage "graph".
    """
    rows = in_corpus_order(documents)
    units = Units(base_text_units, [row["id"] for row in rows])
    failures = without_units(rows, units)
    read = _read(rows)
    line_units = units.of(read.lines)
    pairs = _pairs(read)
    entities = _entities(read, pairs, line_units, units, settings)
    relationships = _relationships(read, pairs, line_units, units, entities)
    text_units = linked(base_text_units, "entity_ids", entities)
    text_units = linked(text_units, "relationship_ids", relationships)
    return GraphTables(entities, relationships, text_units, tables.failures_table(failures))


def _read(rows: Sequence[dict[str, Any]]) -> _Read:
    """Read names off every line, resolve them to things, and add what pronouns stand for."""
    lines = [line for number, row in enumerate(rows) for line in lines_of(number, row)]
    tokens, mentions = _read_names(lines)
    # A document's mentions in reading order; a turn's speaker stands before its words.
    spoken: list[list[Mention]] = [[] for _ in rows]
    first: list[int] = []
    for line, found in zip(lines, mentions, strict=True):
        if _is_personal(line.speaker):
            spoken[line.document].append(_person_mention(str(line.speaker)))
        first.append(len(spoken[line.document]))
        spoken[line.document] += [_as_person(each) for each in found] if line.head else found
    resolution = resolve(spoken)
    honorifics: list[list[str]] = [[] for _ in resolution.things]
    readings: list[Reading] = []
    for line, found, own, at in zip(lines, mentions, tokens, first, strict=True):
        owners = resolution.owners[line.document]
        named = []
        for mention, owner in zip(found, owners[at:], strict=False):
            if owner >= 0:
                named.append(Place(mention.first, mention.last, owner))
                honorifics[owner].append(mention.honorific)
        speaker = owners[at - 1] if _is_personal(line.speaker) else -1
        readings.append(Reading(line.document, own, tuple(named), speaker, line.head, line.quoted))
    types = [thing.type for thing in resolution.things]
    places = refer(readings, types, [" ".join(each) for each in honorifics])
    return _Read(lines, tokens, resolution.things, places, [each.speaker for each in readings])


def _read_names(lines: Sequence[Line]) -> tuple[list[Tokens], list[list[Mention]]]:
    """Return each line's tokens and mentions; equal sentences are read once."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(line.text for line in lines))}
    tokens = [tokenise(text) for text in distinct]
    speakers = {line.speaker for line in lines if line.speaker}
    evidence = Evidence.of(tokens, speakers)
    mentions = [find_mentions(one, evidence) for one in tokens]
    where = [distinct[line.text] for line in lines]
    return [tokens[i] for i in where], [mentions[i] for i in where]


def _is_personal(speaker: str | None) -> bool:
    """Tell whether a speaker's label is a name and not a part in the talk."""
    return speaker is not None and speaker.lower().rstrip(" 0123456789") not in _PARTS


def _person_mention(name: str) -> Mention:
    return Mention(0, 0, name, "", False, False, ((w.PERSON, 5),))


def _as_person(mention: Mention) -> Mention:
    return mention._replace(votes=((w.PERSON, 5),))


# (source, target) -> the statements: (line, phrase from target to source)
_Pairs = dict[tuple[int, int], list[tuple[int, str | None]]]


def _pairs(read: _Read) -> _Pairs:
    pairs: _Pairs = defaultdict(list)
    for number, (line, tokens, here) in enumerate(
        zip(read.lines, read.tokens, read.places, strict=True)
    ):
        if line.head or len(here) < 2:
            continue
        for link in links(tokens, here):
            pairs[link.source, link.target].append((number, link.inverse))
    for members in by_document(read.lines).values():
        _link_programme(read, members, pairs)
    return pairs


def _link_programme(read: _Read, members: Sequence[int], pairs: _Pairs) -> None:
    """Link all who speak in a transcript to the programme that its opening turn announces."""
    turns = [number for number in members if not read.lines[number].head]
    speakers = dict.fromkeys(read.speakers[n] for n in turns if read.speakers[n] >= 0)
    for number in turns[:_OPENING]:
        words = read.tokens[number].words
        for place in read.places[number]:
            if place.named and read.things[place.thing].type != w.PERSON and speakers:
                before = " ".join(words[: place.first]).lower().removesuffix(" the")
                if before.endswith(_ANNOUNCED):
                    for speaker in speakers:
                        stated = pairs[speaker, place.thing]
                        if all(line != number for line, _ in stated):
                            stated.append((number, None))
                    return


def _entities(
    read: _Read,
    pairs: _Pairs,
    line_units: Sequence[range],
    units: Units,
    settings: GraphSettings,
) -> pa.Table:
    told: list[list[int]] = [[] for _ in read.things]  # lines that speak of the thing
    said: list[list[int]] = [[] for _ in read.things]  # lines that it speaks
    for number, (here, speaker) in enumerate(zip(read.places, read.speakers, strict=True)):
        for one in sorted({place.thing for place in here}):
            told[one].append(number)
        if speaker >= 0:
            said[speaker].append(number)
    degrees = degrees_of(pairs, len(read.things))
    rows = []
    for i, thing in enumerate(read.things):
        held = units.ids(line_units[number] for number in (*told[i], *said[i]))
        rows.append(
            {
                "id": content_id("ent", thing.title.casefold()),
                "human_readable_id": i,
                "title": thing.title,
                "type": thing.type,
                "description": _description(
                    i, told[i] or said[i], read, settings.description_sentences
                ),
                "text_unit_ids": held,
                "frequency": len(held),
                "degree": degrees[i],
                "aliases": list(thing.aliases),
                "type_votes": list(thing.votes),
            }
        )
    return tables.table("entities", rows)


def _description(thing: int, told: Sequence[int], read: _Read, most: int) -> str:
    """Return the sentences that say most about a thing, in time order.

    Header lines and bylines only if there is no other.

    A sentence says more the more other things it names, if the thing is its subject and named,
    and if it gives a number or date; a question or a few words say less.
    """
    stated = [
        number
        for number in told
        if not read.lines[number].head
        and (
            is_ended(read.lines[number].text)
            or any(tag[:2] in {"VB", "MD"} for tag in read.tokens[number].tags)
        )
    ] or told
    first: dict[str, int] = {}
    for number in stated:
        first.setdefault(read.lines[number].text, number)

    def order(number: int) -> tuple[int, int]:
        text, here = read.lines[number].text, read.places[number]
        score = min(len({place.thing for place in here}), 4)
        score += 2 * bool(here and here[0].thing == thing) + any(c.isdigit() for c in text)
        score += 2 * any(place.named and place.thing == thing for place in here)
        score -= 3 * text.endswith("?") + 2 * (len(text) < 30)
        return -score, number

    chosen = sorted(sorted(first.values(), key=order)[:most])
    return " ".join(ended(read.lines[number].text) for number in chosen)


def _relationships(
    read: _Read,
    pairs: _Pairs,
    line_units: Sequence[range],
    units: Units,
    entities: pa.Table,
) -> pa.Table:
    ids, titles = entities["id"].to_pylist(), entities["title"].to_pylist()
    degrees = entities["degree"].to_pylist()
    rows = []
    for number, ((source, target), stated) in enumerate(sorted(pairs.items())):
        sentences = list(dict.fromkeys(read.lines[line].text for line, _ in stated))
        rows.append(
            {
                "id": content_id("rel", ids[source], ids[target]),
                "human_readable_id": number,
                "source": titles[source],
                "target": titles[target],
                "description": " ".join(map(ended, sentences)),
                "weight": float(len(stated)),
                "combined_degree": degrees[source] + degrees[target],
                "text_unit_ids": units.ids(line_units[line] for line, _ in stated),
                "source_id": ids[source],
                "target_id": ids[target],
                "sentences": sentences,
                "inverse": next((inverse for _, inverse in stated if inverse), None),
            }
        )
    return tables.table("relationships", rows)
