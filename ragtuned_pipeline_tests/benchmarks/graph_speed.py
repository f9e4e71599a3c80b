"""Print the seconds that each step of the graph takes on a corpus of one megabyte.

    python ragtuned_pipeline_tests/benchmarks/graph_speed.py [MEGABYTES]

The corpus is the samples over and over, each copy with its own names: a capitalised word that
no lexicon knows gets the copy's letters.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.network import draw
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline_tests.benchmarks.extraction_quality import SAMPLES, read_sample

_NAME = re.compile(r"\b[A-Z][a-z]{3,}\b")


def write_corpus(folder: Path, megabytes: float) -> int:
    """Write renamed copies of the samples to `folder` until they hold that much; return bytes."""
    paths = sorted(path for sample in SAMPLES.glob("*/documents") for path in sample.iterdir())
    written = copy = 0
    while written < megabytes * 1e6:
        suffix = "".join(chr(ord("a") + int(digit)) for digit in str(copy)) if copy else ""

        def renamed(match: re.Match[str], suffix: str = suffix) -> str:
            return match[0] if w.is_common(match[0]) else match[0] + suffix

        for path in paths:
            text = _NAME.sub(renamed, path.read_text(encoding="utf-8"))
            (folder / f"{copy:03}-{path.parent.parent.name}-{path.name}").write_text(text)
            written += len(text)
        copy += 1
    return written


def main(megabytes: float) -> None:
    settings = Settings().graph
    with tempfile.TemporaryDirectory() as folder:
        size = write_corpus(Path(folder), megabytes)
        documents, units = read_sample(Path(folder))
    print(f"{size / 1e6:.2f} MB, {documents.num_rows} documents")
    started = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        now = time.perf_counter()
        print(f"{step:20} {now - started:6.2f} s")
        started = time.perf_counter()

    graph = extract(documents, units, settings)
    lap("extract")
    communities = cluster(graph.entities, graph.relationships, settings)
    lap("cluster")
    reports = extractive_reports(
        communities, graph.entities, graph.relationships, graph.text_units, settings
    )
    lap("extractive_reports")
    draw(graph.entities, graph.relationships, communities)
    lap("draw")
    for name, table in (
        ("entities", graph.entities),
        ("relationships", graph.relationships),
        ("communities", communities),
        ("reports", reports),
    ):
        print(f"{name:20} {table.num_rows:6}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
