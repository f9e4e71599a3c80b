"""What local questions can be about: a text unit with entities and relationships that it states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.questions.quotes import flat
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.synthesis.facts import up_to
from ragtuned_pipeline.synthesis.sources import spoken_date

LOCAL, MULTI_HOP, REVERSE = "local", "multi_hop", "reverse"
_ABOUT_CHARACTERS = 300  # of a description that only tells who is meant
_BRIDGES_TRIED = 8  # second relationships that are looked at for a first one


@dataclass(frozen=True)
class Sample:
    """What one question is to be about.

    Attributes:
        kind: "local": on an entity or on both ends of a relationship; "reverse": on a relationship,
            its source asked for from its target; "multi_hop": on two that share an entity.
        entities: ids, by their part in it: the subjects | source, target | start, bridge, end.
        relationships: ids, none where the question is on one entity.
        units: ids of the text units that state it, the drawn one first.
    """

    kind: str
    entities: tuple[str, ...]
    relationships: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def elements(self) -> tuple[str, ...]:
        """What the question is about, whichever unit tells of it."""
        return self.relationships or self.entities

    @property
    def id(self) -> str:
        """What a failure names."""
        return " ".join([self.kind, *self.units, *self.elements])


class Rows:
    """A table's rows by id, read when they are asked for."""

    def __init__(self, data: pa.Table, *columns: str) -> None:
        self._data = data.select(columns).combine_chunks()
        self._places = {key: place for place, key in enumerate(data["id"].to_pylist())}

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._data.slice(self._places[key], 1).to_pylist()[0]
        return row

    def __contains__(self, key: str) -> bool:
        return key in self._places


class Samples:
    """The corpus and its graph as samples are drawn from it; the order depends on `seed` alone."""

    def __init__(
        self,
        documents: pa.Table,
        text_units: pa.Table,
        entities: pa.Table,
        relationships: pa.Table,
        seed: int,
    ) -> None:
        self._seed = seed
        self._units = Rows(text_units, "document_id", "text", "entity_ids", "relationship_ids")
        self._documents = Rows(documents, "title", "creation_date")
        self._entities = Rows(entities, "title", "aliases", "description")
        self._relationships = Rows(relationships, "text_unit_ids")
        columns = ("id", "source_id", "target_id")
        keys, sources, targets = (relationships[name].to_pylist() for name in columns)
        self._ends = dict(zip(keys, zip(sources, targets, strict=True), strict=True))
        self._pairs = frozenset(self._ends.values())
        self._of_entity: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            for end in self._ends[key]:
                self._of_entity[end].append(key)

    def of_unit(self, unit: str) -> dict[str, list[Sample]]:
        """Return what can be asked of the unit, by kind."""
        row = self._units[unit]
        related = self._shuffled(unit, row["relationship_ids"] or ())
        alone = [
            Sample(LOCAL, (entity,), (), (unit,))
            for entity in self._shuffled(unit, row["entity_ids"] or ())
        ]
        both = [Sample(LOCAL, self._ends[one], (one,), (unit,)) for one in related]
        # In turn, so that neither entities nor relationships crowd the others out.
        turns = zip_longest(alone, both)
        reverse = (self._reverse(unit, one) for one in related)
        hops = (self._multi_hop(unit, one) for one in related)
        return {
            LOCAL: [sample for turn in turns for sample in turn if sample is not None],
            MULTI_HOP: [sample for sample in hops if sample is not None],
            REVERSE: [sample for sample in reverse if sample is not None],
        }

    def title(self, entity: str) -> str:
        return str(self._entities[entity]["title"])

    def names(self, *entities: str) -> frozenset[str]:
        """Return the titles and aliases of the entities."""
        rows = [self._entities[entity] for entity in entities]
        return frozenset(name for row in rows for name in (row["title"], *(row["aliases"] or ())))

    def about(self, entity: str) -> str:
        """Return the name of the entity and the opening of what is known of it; "" for nothing."""
        row = self._entities[entity]
        known = flat(row["description"] or "")
        return f"{row['title']}: {up_to(known, _ABOUT_CHARACTERS)}" if known else ""

    def document(self, unit: str) -> str:
        """Return the id of the document that the unit is a piece of."""
        return str(self._units[unit]["document_id"])

    def text(self, unit: str) -> str:
        return str(self._units[unit]["text"])

    def written_in(self, unit: str) -> str:
        """Return the title and the date of the unit's document, as far as they are known."""
        row = self._documents[self.document(unit)]
        return ", ".join(filter(None, (row["title"], spoken_date(row["creation_date"]))))

    def _shuffled(self, unit: str, ids: Iterable[str]) -> list[str]:
        return sorted(set(ids), key=lambda one: (seeded_int(self._seed, "draw", unit, one), one))

    def _reverse(self, unit: str, relationship: str) -> Sample | None:
        source, target = self._ends[relationship]
        if (target, source) in self._pairs:
            return (
                None  # stated from both sides (or of a thing with itself): no side is the far one
            )
        return Sample(REVERSE, (source, target), (relationship,), (unit,))

    def _multi_hop(self, unit: str, first: str) -> Sample | None:
        """Go on from either end of the relationship `first` by another one."""
        turned = seeded_int(self._seed, "bridge", unit, first)
        ways = [self._ends[first], self._ends[first][::-1]]
        for start, bridge in ways[:: 1 if turned % 2 else -1]:
            onwards = self._shuffled(unit, self._of_entity[bridge])
            for second in onwards[:_BRIDGES_TRIED]:
                (end,) = {*self._ends[second]} - {bridge} or {bridge}
                if len({start, bridge, end}) == 3:
                    units = dict.fromkeys((unit, self._stating(second, unit)))
                    return Sample(MULTI_HOP, (start, bridge, end), (first, second), tuple(units))
        return None

    def _stating(self, relationship: str, unit: str) -> str:
        """Return a unit that states the relationship, `unit` where it does."""
        units = self._shuffled(unit, self._relationships[relationship]["text_unit_ids"])
        return unit if unit in units else units[0]
