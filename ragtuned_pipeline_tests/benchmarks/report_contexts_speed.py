"""Print the seconds that the contexts of all community reports take on a large graph.

    python ragtuned_pipeline_tests/benchmarks/report_contexts_speed.py [ENTITIES]

The graph is drawn at random in groups of groups, 57 relationships to 20 entities, with
descriptions of 5 to 30 words. Reports of children are made up, as long as an LLM's are. The floor
is one more tokenisation pass of all the text that was counted: no context within a number of
tokens can be made without one.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.report_contexts import ChildReport, ReportContexts, ReportLine
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.settings import EMBEDDED_MODEL, Settings

SEED = 11
GROUP = 25
EDGES_AN_ENTITY = 57 / 20
REPORT_WORDS = 300
PROSE = (
    "the harbour council letter of a ship and captain in winter before keeper island who wrote to "
    "her brother about mill fire bridge market song year house that was sold by new owner when"
)
WORDS = PROSE.split()


def write_graph(size: int) -> tuple[pa.Table, pa.Table]:
    """Return entities and relationships, most of them inside groups and groups of groups."""
    draw = np.random.default_rng(SEED)
    count = round(size * EDGES_AN_ENTITY)
    source = draw.integers(size, size=count * 2)
    near = np.array([GROUP, GROUP**2, size])[draw.choice(3, p=[0.75, 0.2, 0.05], size=count * 2)]
    target = np.minimum(source // near * near + draw.integers(near), size - 1)
    pairs = np.stack([source, target], axis=1)[source != target]
    _, first = np.unique(pairs, axis=0, return_index=True)
    pairs = pairs[np.sort(first)[:count]]
    degree = np.bincount(pairs.ravel(), minlength=size)

    def text() -> str:
        return " ".join(draw.choice(WORDS, draw.integers(5, 30)))

    entities = [
        {
            "id": f"ent-{i:06}",
            "human_readable_id": i,
            "title": f"ENTITY {i}",
            "type": "person",
            "description": text(),
            "text_unit_ids": [],
            "frequency": 1,
            "degree": int(degree[i]),
            "aliases": [],
            "type_votes": [],
        }
        for i in range(size)
    ]
    relationships = [
        {
            "id": f"rel-{n:06}",
            "human_readable_id": n,
            "source": f"ENTITY {a}",
            "target": f"ENTITY {b}",
            "description": text(),
            "weight": float(1 + n % 5),
            "combined_degree": int(degree[a] + degree[b]),
            "text_unit_ids": [],
            "source_id": f"ent-{a:06}",
            "target_id": f"ent-{b:06}",
            "sentences": [],
            "inverse": None,
        }
        for n, (a, b) in enumerate(pairs.tolist())
    ]
    return tables.table("entities", entities), tables.table("relationships", relationships)


class Counter:
    """Counts tokens; keeps the texts and the seconds that it took."""

    def __init__(self) -> None:
        self._tokenizer = load_fast_tokenizer(EMBEDDED_MODEL)
        self.texts: list[Sequence[str]] = []
        self.seconds = 0.0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        started = time.perf_counter()
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.array([len(each) for each in encoded], dtype=np.int64)
        self.seconds += time.perf_counter() - started
        self.texts.append(texts)
        return lengths


def main(size: int) -> None:
    settings = Settings().graph
    entities, relationships = write_graph(size)
    communities = cluster(entities, relationships, settings)
    print(
        f"{entities.num_rows} entities, {relationships.num_rows} relationships, "
        f"{communities.num_rows} communities on {max(communities['level'].to_pylist()) + 1} levels"
    )
    told = " ".join((WORDS * REPORT_WORDS)[:REPORT_WORDS])
    by_level: dict[int, dict[int, ChildReport]] = defaultdict(dict)
    numbers, levels = communities["community"].to_pylist(), communities["level"].to_pylist()
    for number, level in zip(numbers, levels, strict=True):
        report = ChildReport((ReportLine(f"## {number}"), ReportLine(told)), 5.0)
        by_level[level][number] = report
    count = Counter()

    started = time.perf_counter()
    contexts = ReportContexts(
        communities, entities, relationships, settings.max_report_context_tokens, count
    )
    read = time.perf_counter()
    made = left_out = replaced = 0
    for level in range(max(levels), -1, -1):
        for context in contexts.at_level(level, by_level[level + 1]):
            made += 1
            left_out += context.left_out
            replaced += len(context.reports)
    done = time.perf_counter()
    counting, texts = count.seconds, list(count.texts)
    tokens = sum(int(count(each).sum()) for each in texts)
    floor = count.seconds - counting
    for step, seconds in (
        ("rows worded and counted", read - started),
        ("contexts of all levels", done - read),
        ("ours, whole", done - started),
        ("of it, counting tokens", counting),
        ("floor: one pass of the same text", floor),
    ):
        print(f"{step:34} {seconds:6.2f} s")
    print(f"{tokens} tokens counted; {made} contexts, {replaced} children told by their reports,")
    print(f"{left_out} rows left out")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
