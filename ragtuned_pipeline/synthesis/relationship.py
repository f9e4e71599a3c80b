"""How two entities are related, asked from either side.

A model that has learned A to B cannot answer B to A (the reversal curse, 2403.13799), so both
directions of every relationship are pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

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
    """Return two facts a pair of related entities, one for each way of asking.

    A pair that is stated from both sides is two rows of the table and one pair here: a question
    about it could not say which of them it means. Both facts draw the same forms, so that a form
    held out for one direction is not taught by the other.
    """
    pairs: dict[frozenset[str], list[dict[str, Any]]] = defaultdict(list)
    for row in relationships.to_pylist():
        pairs[frozenset((row["source_id"], row["target_id"]))].append(row)
    facts: list[Fact] = []
    for rows in pairs.values():
        first = rows[0]
        said = [sentence for row in rows for sentence in row["sentences"] or ()]
        sentences = taught_sentences(said, held_out)
        # The inverse phrase retells one of the sentences, so none of them may be held out.
        whole = sentences == taught_sentences(said, ())
        long = up_to(" ".join(sentences), settings.max_answer_characters)
        units = tuple(dict.fromkeys(unit for row in rows for unit in row["text_unit_ids"]))
        ends = [(first["source"], first["target"]), (first["target"], first["source"])]
        for direction, (a, b) in zip(("forward", "backward"), ends, strict=True):
            short = sentences[0] if sentences else ""
            if direction == "backward" and first["inverse"] and sentences and whole:
                short = f"{a} {first['inverse']} {b}."
            full = (
                long if short in long else up_to(f"{short} {long}", settings.max_answer_characters)
            )
            facts.append(
                Fact(
                    kind=RELATIONSHIP,
                    key=f"{first['id']}\n{direction}",
                    gold=telling_part(short, (a, b)),
                    short=short,
                    long=full,
                    asked={"pair": ({"a": a, "b": b},)},
                    links=Links(
                        documents_of(units),
                        units,
                        (first["source_id"], first["target_id"]),
                        tuple(row["id"] for row in rows),
                    ),
                    generator=_GENERATOR,
                    importance=weight(
                        names, (first["source_id"], first["target_id"]), telling=False
                    ),
                    draw=first["id"],
                    drop=None if sentences else "held out",
                )
            )
    facts.sort(key=lambda fact: (-fact.importance, fact.id))
    return facts
