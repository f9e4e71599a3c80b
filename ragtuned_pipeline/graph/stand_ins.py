"""What a plan takes for a teacher's replies on the graph: as long as a good LLM's.

They are made from the offline extractor's graph, so that later steps (gleaning after extraction,
summaries after merging) are planned on a graph of the right size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.graph.aliases import SameEntity
from ragtuned_pipeline.graph.descriptions import Description
from ragtuned_pipeline.graph.extraction_replies import (
    Claims,
    ExtractedClaim,
    ExtractedEntity,
    ExtractedRelationship,
    Extraction,
    Gleaning,
)
from ragtuned_pipeline.graph.lines import GraphTables
from ragtuned_pipeline.graph.names import fold, name_key, names_in
from ragtuned_pipeline.inference.calls import Call

_SENTENCE = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)
# Averages of 84 replies of a hosted model to GraphRAG's prompt; descriptions in characters.
_OF_AN_ENTITY, _OF_A_RELATIONSHIP = 125, 108
_RELATIONSHIPS_AN_ENTITY = 0.8
_GLEANED = 10  # one of so many entities is gleaned again
_CLAIMED = 4  # one of so many relationships makes a claim
_REASON = "The two descriptions speak of different times, places and people, so they differ."


def extraction_stand_ins(
    offline: GraphTables,
) -> Mapping[type[BaseModel], Callable[[Call[Any]], BaseModel]]:
    """Return, for each reply schema of the extraction, what a reply to a call may look like.

    Args:
        offline: the graph that `extraction_offline.extract` reads off the same text units.
    """
    graph = _UnitGraph(offline)
    return {
        Extraction: graph.extraction,
        Gleaning: graph.gleaning,
        Claims: graph.claims,
        SameEntity: lambda call: SameEntity(reason=_REASON, same=False),
        Description: _description,
    }


class _UnitGraph:
    """The offline graph by text unit."""

    def __init__(self, offline: GraphTables) -> None:
        self._entities: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._relationships: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for by_unit, table, columns in (
            (self._entities, offline.entities, ["title", "type", "description", "aliases"]),
            (self._relationships, offline.relationships, ["source", "target", "sentences"]),
        ):
            for row in table.select([*columns, "text_unit_ids"]).to_pylist():
                for unit in row["text_unit_ids"]:
                    by_unit[unit].append(row)

    def extraction(self, call: Call[Extraction]) -> Extraction:
        shown = _shown(call)
        entities = [_entity(row, shown) for row in self._entities[call.item_id]]
        relationships = [
            related
            for row in self._relationships[call.item_id]
            for related in _relationship(row, shown)
        ]
        most = round(_RELATIONSHIPS_AN_ENTITY * len(entities))
        return Extraction(entities=entities, relationships=relationships[:most])

    def gleaning(self, call: Call[Gleaning]) -> Gleaning:
        shown = _shown(call)
        unit = call.item_id.split(" ")[0]
        return Gleaning(entities=[_entity(row, shown) for row in self._entities[unit][::_GLEANED]])

    def claims(self, call: Call[Claims]) -> Claims:
        shown = _shown(call)
        return Claims(
            claims=[
                ExtractedClaim(
                    subject=row["source"],
                    object=row["target"],
                    description=related.description,
                    sentences=related.sentences,
                )
                for row in self._relationships[call.item_id][::_CLAIMED]
                for related in _relationship(row, shown)
            ]
        )


def _shown(call: Call[Any]) -> dict[int, str]:
    """Return the numbered sentences of a call."""
    content = next(m["content"] for m in call.messages if m["role"] == "user")
    return {int(number): words for number, words in _SENTENCE.findall(content)}


def _entity(row: Mapping[str, Any], shown: Mapping[int, str]) -> ExtractedEntity:
    keys = [name_key(name) for name in (row["title"], *row["aliases"])]
    naming = [
        number for number, words in shown.items() if any(names_in(fold(words), k) for k in keys)
    ]
    told = " ".join(shown[number] for number in naming) or row["description"]
    return ExtractedEntity(
        name=row["title"], type=row["type"], description=told[:_OF_AN_ENTITY], sentences=naming
    )


def _relationship(row: Mapping[str, Any], shown: Mapping[int, str]) -> list[ExtractedRelationship]:
    """Return the relationship as these sentences state it; none where they do not."""
    stating = [number for number, words in shown.items() if words.endswith(tuple(row["sentences"]))]
    if not stating:
        return []
    told = " ".join(shown[number] for number in stating)[:_OF_A_RELATIONSHIP]
    return [
        ExtractedRelationship(
            source=row["source"],
            target=row["target"],
            description=told,
            strength=7,
            sentences=stating,
        )
    ]


def _description(call: Call[Description]) -> Description:
    """Return a summary of the length that is asked for."""
    content = call.messages[-1]["content"]
    words = int(re.findall(r"at most (\d+) words", content)[-1])
    told = " ".join(text for _, text in _SENTENCE.findall(content)).split()
    return Description(description=" ".join(told[:words]))
