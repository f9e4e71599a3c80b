"""What the teacher is asked about, before anything is paid: chosen within the row limits.

A *local* item is a text unit and an entity or a relationship that it speaks of; a *global* one is
an entity, a relationship from one side, or a community, with all that is known of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import (
    COMMUNITY,
    ENTITY,
    LOCAL,
    RELATIONSHIP,
    Fact,
    Links,
    is_held_out,
    normalised,
    up_to,
)
from ragtuned_pipeline.synthesis.local import called, lead, written
from ragtuned_pipeline.synthesis.sources import Line, Names, Source, weight
from ragtuned_pipeline.synthesis.stated import (
    taught_sentences,
    telling_words,
    without_restated,
)

_EVIDENCE_CHARACTERS = 12_000  # of one call, about 3000 tokens; what is more makes another call
_ABOUT_CHARACTERS = 300  # of a description that only tells who is meant
_WORDS_PER_CHARACTER = 1 / 8  # asked for, where 1/6 would fit: answers run over
_MOST_MEMBERS = 20  # of a community, named in the prompt
_MOST_WORDS, _FEWEST_WORDS = 500, 25  # of a long answer

# How the rows within the limits are shared where not all fit; rows.py shares the time budget.
LOCAL_STREAM, PASSAGE_STREAM = "local", "passage"
_SHARES: Mapping[str, float] = {
    LOCAL_STREAM: 0.5,
    PASSAGE_STREAM: 0.1,
    ENTITY: 0.15,
    RELATIONSHIP: 0.2,
    COMMUNITY: 0.05,
}


@dataclass(frozen=True)
class Item:
    """What one question and its answers are to be about.

    Attributes:
        id: what a failure names.
        subjects: the names in the prompt.
        named: a question names one of each.
        source: what the evidence is called, for local items; which part it is of what is known,
            for others.
        evidence: what the question, the answers and the judge go by, without held-out sentences.
        about: what is known of the subjects, to tell who or what is meant.
        draw: as of a fact; items that share it are taken together.
        type: of an entity.
        members: of a community, the first of them.
        long_words: about so many are asked for in the long answer of a global item.
    """

    kind: str
    id: str
    subjects: tuple[str, ...]
    named: tuple[frozenset[str], ...]
    source: str
    evidence: str
    links: Links
    importance: float
    about: tuple[str, ...] = ()
    held_out: bool = False
    draw: str = ""
    type: str = ""
    members: tuple[str, ...] = ()
    long_words: int = 0


@dataclass(frozen=True)
class _Spoken:
    """One sentence with its document and the entities that it names, or tells of by a pronoun."""

    line: Line
    source: Source
    entities: tuple[str, ...]
    key: str  # the normalised sentence
    held_out: bool


class Memory:
    """The corpus and its graph as the items are made from it, with held-out sentences marked.

    A sentence tells of the entities that it names and of both ends of a relationship that it
    states, which it may call "he" or "I".

    A sentence that names an entity may be drawn for `settings.held_out_fact_share`: then no
    evidence for tuning holds it, and what a model wrote loses the sentences that restate it:
    `entities` and `descriptions` are without them, `emptied` are the entities that have none left.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Names,
        entities: pa.Table,
        relationships: pa.Table,
        settings: SynthesisSettings,
    ) -> None:
        self.names = names
        columns = ["id", "source_id", "target_id", "sentences"]
        related = relationships.select(columns).to_pylist()
        self.stating = {
            row["id"]: frozenset(map(normalised, row["sentences"] or ())) for row in related
        }
        ends: dict[str, dict[str, None]] = defaultdict(dict)
        for row in related:
            for sentence in self.stating[row["id"]]:
                ends[sentence] |= {row["source_id"]: None, row["target_id"]: None}
        self.spoken = [
            _spoken(line, source, names, ends, settings)
            for source in sources
            for line in source.lines
            if not line.heading
        ]
        self.held_out = frozenset(one.key for one in self.spoken if one.held_out)
        self._held_out_words: dict[str, list[frozenset[str]]] = defaultdict(list)
        self.by_unit: dict[str, list[_Spoken]] = defaultdict(list)
        self.by_entity: dict[str, list[_Spoken]] = defaultdict(list)
        for one in self.spoken:
            for unit in one.line.units:
                self.by_unit[unit].append(one)
                if one.held_out:
                    self._held_out_words[unit].append(telling_words(one.line.text))
            for entity in one.entities:
                self.by_entity[entity].append(one)
        columns = entities.select(["id", "title", "aliases"]).to_pylist()
        self.names_of = {
            row["id"]: frozenset(
                [row["title"], *(a for a in row["aliases"] or () if names.owner(a) == row["id"])]
            )
            for row in columns
        }
        given = entities.select(["id", "description", "text_unit_ids"]).to_pylist()
        self.descriptions = {
            row["id"]: self.without_held_out(row["description"], row["text_unit_ids"])
            for row in given
        }
        self.emptied = frozenset(
            row["id"] for row in given if row["description"] and not self.descriptions[row["id"]]
        )
        place = entities.schema.get_field_index("description")
        self.entities = entities.set_column(
            place, entities.schema.field(place), pa.array(self.descriptions.values(), pa.string())
        )

    def without_held_out(self, text: str | None, units: Iterable[str]) -> str:
        """Return `text` without sentences that hold a held-out one, or restate one of `units`."""
        held = {words for unit in units for words in self._held_out_words.get(unit, ())}
        return " ".join(taught_sentences([without_restated(text or "", held)], self.held_out))

    def about(self, entity: str) -> str:
        """Return the opening of what is known of the entity."""
        return up_to(self.descriptions[entity], _ABOUT_CHARACTERS)


def _spoken(
    line: Line,
    source: Source,
    names: Names,
    ends: Mapping[str, Iterable[str]],
    settings: SynthesisSettings,
) -> _Spoken:
    """Args: ends: of the relationships that a normalised sentence states."""
    key = normalised(line.text)
    said = f"{line.speaker}: {line.text}" if line.speaker else line.text
    entities = tuple(dict.fromkeys([*names.in_text(said), *ends.get(key, ())]))
    held = bool(entities) and is_held_out(settings.seed, key, settings.held_out_fact_share)
    return _Spoken(line, source, entities, key, held)


# ---- local ----


def local_items(memory: Memory, text_units: pa.Table, relationships: pa.Table) -> list[Item]:
    """Return an item for every entity and relationship that a unit speaks of in its own sentences.

    A sentence that two overlapping units share belongs to the first. The order is the one in which
    to ask: every unit once before any twice, documents in turns, the most important first.
    """
    related = {row["id"]: row for row in relationships.to_pylist()}

    @cache  # a relationship is told in many units
    def about(relationship: str) -> str:
        row = related[relationship]
        told = memory.without_held_out(row["description"], row["text_unit_ids"])
        return up_to(told, _ABOUT_CHARACTERS)

    columns = ["id", "document_id", "entity_ids", "relationship_ids"]
    made: list[Item] = []
    for unit in text_units.select(columns).to_pylist():
        spoken = memory.by_unit.get(unit["id"], [])
        taught = [one for one in spoken if not one.held_out]
        own = [one for one in taught if one.line.units[0] == unit["id"]]
        if not own:
            continue
        evidence = _evidence(taught)
        for entity in unit["entity_ids"] or ():
            naming = [one for one in spoken if entity in one.entities]
            # Where no sentence names it, the teacher must look whether one speaks of it.
            if not naming or any(one in own for one in naming):
                made.append(_local_entity(memory, unit, entity, own[0].source, evidence))
        pairs: set[frozenset[str]] = set()
        for row in (related[r] for r in unit["relationship_ids"] or ()):
            ends = frozenset((row["source_id"], row["target_id"]))
            stating = memory.stating[row["id"]]
            if ends not in pairs and (not stating or any(one.key in stating for one in own)):
                pairs.add(ends)
                item = _local_relationship(memory, unit, row, own[0].source, evidence)
                made.append(replace(item, about=(about(row["id"]),)))
    return _in_turns(made)


def _local_entity(
    memory: Memory, unit: Mapping[str, Any], entity: str, source: Source, evidence: str
) -> Item:
    return Item(
        kind=LOCAL,
        id=f"local {unit['id']} {entity}",
        subjects=(memory.names.titles[entity],),
        about=(memory.about(entity),),
        named=(memory.names_of[entity],),
        source=called(source),
        evidence=evidence,
        links=Links((unit["document_id"],), (unit["id"],), (entity,)),
        importance=weight(memory.names, (entity,), telling=False),
    )


def _local_relationship(
    memory: Memory,
    unit: Mapping[str, Any],
    relationship: Mapping[str, Any],
    source: Source,
    evidence: str,
) -> Item:
    ends = (relationship["source_id"], relationship["target_id"])
    return Item(
        kind=LOCAL,
        id=f"local {unit['id']} {relationship['id']}",
        subjects=(relationship["source"], relationship["target"]),
        named=(memory.names_of[ends[0]] | memory.names_of[ends[1]],),
        source=called(source),
        evidence=evidence,
        links=Links((unit["document_id"],), (unit["id"],), ends, (relationship["id"],)),
        importance=weight(memory.names, ends, telling=True),
    )


def held_out_items(memory: Memory, most: int, settings: SynthesisSettings) -> list[Item]:
    """Return at most `most` items, one a held-out sentence, which is all of its evidence."""
    once = {one.key: one for one in reversed(memory.spoken) if one.held_out and one.line.units}
    drawn = sorted(once, key=lambda key: (seeded_int(settings.seed, "held_out_item", key), key))
    made: list[Item] = []
    for key in drawn[:most]:
        one = once[key]
        # The name said most often is the one that a question can best be about.
        entity = max(one.entities, key=lambda e: (memory.names.frequency[e], e))
        made.append(
            Item(
                kind=LOCAL,
                id=f"local {one.line.units[0]} {entity} held out at {one.line.start}",
                subjects=(memory.names.titles[entity],),
                about=("",),
                named=(memory.names_of[entity],),
                source=called(one.source),
                evidence=_evidence([one]),
                links=Links((one.source.id,), one.line.units, one.entities),
                importance=weight(memory.names, one.entities, telling=True),
                held_out=True,
            )
        )
    return made


def _in_turns(items: Sequence[Item]) -> list[Item]:
    """Order by the turn within the unit, then within the document, then by importance."""
    ranked = sorted(items, key=lambda item: (-item.importance, item.id))
    in_unit = _turns(ranked, [item.links.text_units for item in ranked])
    rounds = [(turn, item.links.documents) for turn, item in zip(in_unit, ranked, strict=True)]
    in_document = _turns(ranked, rounds)
    # Stable: the order by importance stays within a turn.
    places = sorted(range(len(ranked)), key=lambda i: (in_unit[i], in_document[i]))
    return [ranked[i] for i in places]


def _turns(items: Sequence[Item], groups: Sequence[Any]) -> list[int]:
    """Return for each item how many of its group stand before it."""
    seen: dict[Any, int] = defaultdict(int)
    turns = []
    for group, _ in zip(groups, items, strict=True):
        turns.append(seen[group])
        seen[group] += 1
    return turns


# ---- global ----


def entity_items(memory: Memory, facts: Iterable[Fact], settings: SynthesisSettings) -> list[Item]:
    """Return the items of the entities that the template `facts` are about, in their order.

    All sentences that tell of the entity are evidence. Where they are too long for one call there
    is an item for each part, so that nothing of a hub is cut off.
    """
    made: list[Item] = []
    kinds = memory.names.kinds
    units_of = dict(
        zip(
            memory.entities["id"].to_pylist(),
            memory.entities["text_unit_ids"].to_pylist(),
            strict=True,
        )
    )
    for fact in facts:
        (entity,) = fact.links.entities
        spoken = memory.by_entity.get(entity) or [
            one for unit in units_of[entity] for one in memory.by_unit.get(unit, ())
        ]
        told = list({(o.source.id, o.line.start): o for o in spoken if not o.held_out}.values())
        described = " ".join(_beside([memory.descriptions[entity]], {one.key for one in told}))
        runs = _runs([len(one.line.text) + 20 for one in told]) or [(0, 0)] * bool(described)
        title = memory.names.titles[entity]
        for number, (start, end) in enumerate(runs, 1):
            part = told[start:end]
            about = [f"{title}: {described}"] if described and number == 1 else []
            evidence = "\n\n".join([*about, *([_evidence(part)] if part else [])])
            made.append(
                Item(
                    kind=ENTITY,
                    id=f"{ENTITY} {entity}{_part_id(number)}",
                    subjects=(title,),
                    about=(memory.about(entity),),
                    named=(memory.names_of[entity],),
                    source=_part(number, len(runs)),
                    evidence=evidence,
                    links=fact.links if len(runs) == 1 else _links_of(part, entity),
                    importance=fact.importance / number,
                    type=kinds.get(title, ""),
                    long_words=_long_words(evidence, settings),
                )
            )
    return made


def relationship_items(
    memory: Memory,
    facts: Iterable[Fact],
    relationships: pa.Table,
    settings: SynthesisSettings,
) -> list[Item]:
    """Return the items of the template `facts`: each relationship from both of its sides."""
    rows = {row["id"]: row for row in relationships.to_pylist()}
    made: list[Item] = []
    for fact in facts:
        (sides,) = fact.asked["pair"]
        direction = fact.key.rpartition("\n")[2]
        first, second = fact.links.entities[:: 1 if direction == "forward" else -1]
        told = [rows[r] for r in fact.links.relationships]
        stated = taught_sentences(
            (s for row in told for s in row["sentences"] or ()), memory.held_out
        )
        described = [
            memory.without_held_out(row["description"], row["text_unit_ids"]) for row in told
        ]
        texts = [*stated, *_beside(described, set(map(normalised, stated)))]
        made += [
            Item(
                kind=RELATIONSHIP,
                id=f"{RELATIONSHIP} {fact.links.relationships[0]} {direction}{_part_id(number)}",
                subjects=(sides["a"], sides["b"]),
                about=(memory.about(first), memory.about(second)),
                named=(memory.names_of[first], memory.names_of[second]),
                source=part,
                evidence=evidence,
                links=fact.links,
                importance=fact.importance,
                draw=fact.draw,
                long_words=_long_words(evidence, settings),
            )
            for number, part, evidence in _cut_in_parts(texts)
        ]
    return made


def community_items(
    memory: Memory,
    facts: Iterable[Fact],
    reports: Mapping[str, Sequence[str]],
    settings: SynthesisSettings,
) -> list[Item]:
    """Return the items of the template `facts` that are about one community.

    Args:
        reports: community id -> the paragraphs of its report.
    """
    made: list[Item] = []
    for fact in facts:
        if "theme" not in fact.asked:
            continue  # the memory as a whole
        (fields,) = fact.asked["theme"]
        (community,) = fact.links.communities
        members = sorted(fact.links.entities, key=lambda e: (-memory.names.frequency[e], e))
        names = frozenset[str]().union(*(memory.names_of[e] for e in members))
        made += [
            Item(
                kind=COMMUNITY,
                id=f"{COMMUNITY} {community}{_part_id(number)}",
                subjects=(fields["topic"],),
                members=tuple(memory.names.titles[e] for e in members[:_MOST_MEMBERS]),
                named=(names | {fields["topic"]},),
                source=part,
                evidence=evidence,
                links=fact.links,
                importance=fact.importance,
                long_words=_long_words(evidence, settings),
            )
            for number, part, evidence in _cut_in_parts(reports[community])
        ]
    return made


def _beside(described: Iterable[str], said: Collection[str]) -> list[str]:
    """Return the sentences of descriptions that are more than the normalised sentences `said`."""
    return [s for s in taught_sentences(described, ()) if normalised(s) not in said]


def _long_words(evidence: str, settings: SynthesisSettings) -> int:
    """As long as the evidence carries and the setting allows: longer answers pad or invent."""
    allowed = min(_MOST_WORDS, int(settings.max_answer_characters * _WORDS_PER_CHARACTER))
    return max(min(allowed, len(evidence.split())), min(allowed, _FEWEST_WORDS))


def _links_of(spoken: Sequence[_Spoken], entity: str) -> Links:
    return Links(
        tuple(dict.fromkeys(one.source.id for one in spoken)),
        tuple(dict.fromkeys(unit for one in spoken for unit in one.line.units)),
        (entity,),
    )


def _evidence(spoken: Sequence[_Spoken]) -> str:
    """Return sentences as text, under the name and date of their document."""
    return "\n\n".join(
        written(lead(source), (one.line for one in ones))
        for source, ones in groupby(spoken, key=lambda one: one.source)
    )


def _cut_in_parts(texts: Sequence[str]) -> list[tuple[int, str, str]]:
    """Return (number, which part of what is known, evidence) for each call that is needed."""
    runs = _runs([len(text) for text in texts])
    parts = ["\n".join(texts[start:end]) for start, end in runs]
    return [(n, _part(n, len(parts)), part) for n, part in enumerate(parts, 1)]


def _part(number: int, parts: int) -> str:
    return "" if parts == 1 else f"part {number} of {parts}"


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) of runs of about equal length within the limit of one call."""
    if not lengths:
        return []
    total = sum(lengths)
    share = total / math.ceil(total / _EVIDENCE_CHARACTERS)
    cuts, seen = [0], 0.0
    for place, length in enumerate(lengths):
        if seen and seen + length > share * len(cuts) and place > cuts[-1]:
            cuts.append(place)
        seen += length
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))


def _part_id(number: int) -> str:
    return "" if number == 1 else f" part {number}"


# ---- row limits ----


def within_limits(
    streams: Mapping[str, Sequence[Item | Fact]], settings: SynthesisSettings
) -> dict[str, list[bool]]:
    """Say for each stream which of its items and facts may become training rows.

    A stream is in the order of its importance. Each of its members costs
    `settings.train_wordings` rows, a passage one; they count for the one of its documents that has
    fewest. No document gets more than `settings.rows_per_document`, all together no more than
    `settings.max_rows` less the share of refusals. Both sides of a relationship are taken or
    neither is. Streams take turns by their shares (weighted fair queueing, Demers, Keshav,
    Shenker 1989).
    """
    offers: list[tuple[float, str, list[int], int]] = []
    for stream, ones in streams.items():
        cost = 1 if stream == PASSAGE_STREAM else settings.train_wordings
        offered = 0
        for places in _taken_together(ones):
            rows = cost * len(places)
            offered += rows
            offers.append((offered / _SHARES[stream], stream, places, rows))
    left = int(settings.max_rows * (1 - settings.unanswerable_share))
    taken: dict[str, int] = defaultdict(int)
    chosen = {stream: [False] * len(ones) for stream, ones in streams.items()}
    for _, stream, places, rows in sorted(offers):
        documents = streams[stream][places[0]].links.documents
        document = min(documents, key=taken.__getitem__, default="")
        if rows <= left and taken[document] + rows <= settings.rows_per_document:
            left -= rows
            taken[document] += rows
            for place in places:
                chosen[stream][place] = True
    return chosen


def _taken_together(ones: Sequence[Item | Fact]) -> list[list[int]]:
    """Return the places of `ones`, grouped by what they draw their forms by and share."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(ones):
        part = one.source if isinstance(one, Item) else ""
        groups[type(one).__name__, one.draw or one.id, part].append(place)
    return list(groups.values())
