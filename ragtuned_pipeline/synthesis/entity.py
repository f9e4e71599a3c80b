"""Overviews of entities: who or what something is, by every name it has."""

from __future__ import annotations

import re
from collections.abc import Collection

import pyarrow as pa

from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import ENTITY, Fact, Links, telling_part, up_to
from ragtuned_pipeline.synthesis.forms import entity_fields
from ragtuned_pipeline.synthesis.sources import Names, weight
from ragtuned_pipeline.synthesis.stated import DocumentsOf, taught_sentences

_GENERATOR = "template:entity@1"


def entity_facts(
    entities: pa.Table,
    names: Names,
    documents_of: DocumentsOf,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> list[Fact]:
    """Return one fact an entity: its most defining sentence (short), its description (long)."""
    facts: list[Fact] = []
    columns = ["id", "title", "type", "description", "text_unit_ids", "aliases"]
    for row in entities.select(columns).to_pylist():
        title, called = row["title"], [row["title"]]
        called += [
            alias
            for alias in row["aliases"] or ()
            if len(alias) > 2 and names.owner(alias) == row["id"] and alias != title
        ]
        sentences = taught_sentences([row["description"] or ""], held_out)
        if not sentences:
            stated = "held out" if (row["description"] or "").strip() else "no description"
        short = defining_sentence(sentences, called) if sentences else ""
        is_person = row["type"] == "person"
        facts.append(
            Fact(
                kind=ENTITY,
                key=row["id"],
                gold=telling_part(short, called),
                short=short,
                long=up_to(" ".join(sentences), settings.max_answer_characters),
                asked={"entity": tuple(entity_fields(name, is_person) for name in called)},
                links=Links(
                    documents_of(row["text_unit_ids"]), tuple(row["text_unit_ids"]), (row["id"],)
                ),
                generator=_GENERATOR,
                importance=weight(names, (row["id"],), telling=False),
                drop=None if sentences else stated,
            )
        )
    facts.sort(key=lambda fact: (-fact.importance, fact.id))
    return facts


def defining_sentence(sentences: Collection[str], called: Collection[str]) -> str:
    """Return the sentence that says what something is; the first that names it where none does."""
    names = "|".join(re.escape(name) for name in sorted(called, key=len, reverse=True))
    defining = re.compile(
        rf"(?:{names})(?:, (?:\d+, )?(?:the|a|an|who|which|whose) | (?:is|was) (?:a|an|the) )"
        rf"|(?:the|The|a|A) [a-z -]{{3,30}},? (?:{names})\b"
    )
    named = re.compile(names)
    return next(
        (s for s in sentences if defining.search(s)),
        next((s for s in sentences if named.search(s)), next(iter(sentences))),
    )
