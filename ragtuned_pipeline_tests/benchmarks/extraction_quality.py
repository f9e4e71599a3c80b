"""Print precision, recall and F1 of the offline extractor against the samples' gold.

    python ragtuned_pipeline_tests/benchmarks/extraction_quality.py [SAMPLE ...] [--errors]

An entity is right if its title or an alias equals a gold name or alias, case and leading article
aside, one to one. A pair of things is right, whatever its direction, if the gold relates them.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.extraction_offline import GraphTables, extract
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import Settings

SAMPLES = Path(__file__).parents[2] / "ragtuned_pipeline" / "samples"


@dataclass(frozen=True)
class Score:
    right: int
    found: int
    gold: int

    @property
    def precision(self) -> float:
        return self.right / max(self.found, 1)

    @property
    def recall(self) -> float:
        return self.right / max(self.gold, 1)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(self.found + self.gold, 1)

    def __str__(self) -> str:
        return f"P {self.precision:.3f}  R {self.recall:.3f}  F1 {self.f1:.3f}"


def read_sample(folder: Path, unit_characters: int = 2000) -> tuple[pa.Table, pa.Table]:
    """Return a folder's text files as documents and text units of a set length.

    The units do not matter to what is measured here, and need no tokenizer this way.
    """
    documents: list[dict[str, Any]] = []
    units: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()):
        text = path.read_text(encoding="utf-8")
        name = content_id("doc", path.name)
        documents.append(
            {
                "id": name,
                "human_readable_id": len(documents),
                "title": path.stem,
                "text": text,
                "text_unit_ids": [],
                "creation_date": None,
                "raw_data": None,
                "path": path.name,
                "format": "chat" if path.suffix == ".txt" else "markdown",
            }
        )
        for start in range(0, max(len(text), 1), unit_characters):
            units.append(
                {
                    "id": content_id("tu", name, str(start)),
                    "human_readable_id": len(units),
                    "text": text[start : start + unit_characters],
                    "n_tokens": 0,
                    "document_id": name,
                    "entity_ids": [],
                    "relationship_ids": [],
                    "covariate_ids": [],
                    "start": start,
                    "end": min(start + unit_characters, len(text)),
                }
            )
    return tables.table("documents", documents), tables.table("base_text_units", units)


def _fold(name: str) -> str:
    folded = name.casefold().replace("’", "'").strip()
    return folded.removeprefix("the ")


def match(graph: GraphTables, gold: list[dict[str, Any]]) -> dict[str, str]:
    """Return entity id -> gold name, one to one; names before aliases."""
    entities = graph.entities.to_pylist()
    known: dict[str, str] = {}
    for found_aliases, gold_aliases in ((0, 0), (1, 0), (0, 1), (1, 1)):
        taken = set(known.values())
        open_gold = defaultdict(list)
        for row in gold:
            for name in [row["name"], *row["aliases"] * gold_aliases]:
                open_gold[_fold(name)].append(row["name"])
        for entity in entities:
            names = [entity["title"], *entity["aliases"] * found_aliases]
            fits = [g for name in names for g in open_gold[_fold(name)] if g not in taken]
            if entity["id"] not in known and fits:
                known[entity["id"]] = fits[0]
                taken.add(fits[0])
    return known


def measure(sample: str, errors: bool = False) -> tuple[Score, Score]:
    """Print and return the scores of entities and of related pairs on one sample."""
    folder = SAMPLES / sample
    documents, units = read_sample(folder / "documents")
    started = time.perf_counter()
    graph = extract(documents, units, Settings().graph)
    seconds = time.perf_counter() - started
    gold = [json.loads(line) for line in (folder / "gold" / "entities.jsonl").open()]
    related = [json.loads(line) for line in (folder / "gold" / "relationships.jsonl").open()]
    known = match(graph, gold)
    entities = Score(len(known), graph.entities.num_rows, len(gold))
    pairs = defaultdict(list)
    for row in graph.relationships.to_pylist():
        ends = frozenset(known.get(row[end], row[end]) for end in ("source_id", "target_id"))
        pairs[ends].append(row)
    gold_pairs = {frozenset((row["source"], row["target"])) for row in related}
    relations = Score(len(gold_pairs & pairs.keys()), len(pairs), len(gold_pairs))
    kinds = {row["name"]: row["type"] for row in gold}
    typed = sum(
        kinds[known[row["id"]]] == row["type"]
        for row in graph.entities.to_pylist()
        if row["id"] in known
    )
    types = Score(typed, len(known), len(known)).precision
    print(
        f"{sample:8} entities {entities}   pairs {relations}   types {types:.3f}   {seconds:.2f} s"
    )
    if errors:
        print(" missed:", sorted(set(kinds) - set(known.values())))
        print(
            " spurious:",
            sorted(
                f"{row['title']} {row['frequency']} {row['type']}"
                for row in graph.entities.to_pylist()
                if row["id"] not in known
            ),
        )
        print(
            " wrong type:",
            sorted(
                f"{row['title']} {row['type']}/{kinds[known[row['id']]]}"
                for row in graph.entities.to_pylist()
                if row["id"] in known and row["type"] != kinds[known[row["id"]]]
            ),
        )
        print(" missed pairs:")
        for pair in sorted(map(sorted, gold_pairs - pairs.keys())):
            print(
                "   ",
                pair,
                [r["relation"] for r in related if {r["source"], r["target"]} == set(pair)],
            )
        print(" spurious pairs:")
        for ends in sorted(pairs.keys() - gold_pairs, key=lambda e: pairs[e][0]["id"]):
            row = pairs[ends][0]
            print("   ", [row["source"], row["target"]], row["sentences"][:1])
    return entities, relations


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")]
    for name in chosen or ["news", "podcast", "journal"]:
        measure(name, "--errors" in sys.argv)
