"""How two entities are related, asked from either side.

A model that has learned A to B cannot answer B to A (the reversal curse, 2403.13799), so both
directions of every relationship are pairs.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import RELATIONSHIP, Fact, Links, telling_part, up_to
from ragtuned_pipeline.synthesis.sources import Names, weight
from ragtuned_pipeline.synthesis.stated import DocumentsOf, taught_sentences

_GENERATOR = "template:relationship@1"


def relationship_facts(
    relationships: pa.Table,
    names: Names,
    documents_of: DocumentsOf,
    settings: SynthesisSettings,
    held_out: Collection[str],
) -> list[Fact]:
    """Return two facts a relationship; both draw the same forms, so that a form held out for one
    direction is not taught by the other."""
    facts: list[Fact] = []
    for row in relationships.to_pylist():
        sentences = taught_sentences("\n".join(row["sentences"] or ()), held_out)
        long = up_to(" ".join(sentences), settings.max_answer_characters)
        ends = [(row["source"], row["target"]), (row["target"], row["source"])]
        for direction, (a, b) in zip(("forward", "backward"), ends, strict=True):
            short = sentences[0] if sentences else ""
            if direction == "backward" and row["inverse"] and sentences:
                short = f"{a} {row['inverse']} {b}."
            full = (
                long if short in long else up_to(f"{short} {long}", settings.max_answer_characters)
            )
            facts.append(
                Fact(
                    kind=RELATIONSHIP,
                    key=f"{row['id']}\n{direction}",
                    gold=telling_part(short, (a, b)),
                    short=short,
                    long=full,
                    asked={"pair": ({"a": a, "b": b},)},
                    links=Links(
                        documents_of(row["text_unit_ids"]),
                        tuple(row["text_unit_ids"]),
                        (row["source_id"], row["target_id"]),
                        (row["id"],),
                    ),
                    generator=_GENERATOR,
                    importance=weight(names, (row["source_id"], row["target_id"]), telling=False),
                    draw=row["id"],
                    drop=None if sentences else "held out",
                )
            )
    facts.sort(key=lambda fact: (-fact.importance, fact.id))
    return facts
