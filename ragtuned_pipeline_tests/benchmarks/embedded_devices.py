"""Whether a GPU teaches the embedded model what a CPU does.

    python -m ragtuned_pipeline_tests.benchmarks.embedded_devices FOLDER --prepare [--minutes 1]
    python -m ragtuned_pipeline_tests.benchmarks.embedded_devices FOLDER [--seeds 42 43]
        [--ask ADAPTER ...]

The first writes to FOLDER the rows and questions that the pipeline makes of the news sample. The
second trains on them on the device of this machine (CUDA_VISIBLE_DEVICES= hides a GPU), asks the
questions of the adapter, and of those given with --ask, and writes the adapters, the loss curves
and the scores to FOLDER/<device>-*.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning.sft import train
from ragtuned_pipeline_tests.benchmarks.embedded_recipe import folder_tables, is_right

NEWS = Path(__file__).parents[2] / "ragtuned_pipeline" / "samples" / "news" / "documents"
ANSWER_TOKENS = 160  # of an answer, at most
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def prepare(folder: Path, minutes: float) -> None:
    """Write rows.parquet and queries.parquet."""
    rows, asked = folder_tables(NEWS, TuningSettings(time_budget_minutes=minutes))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "rows.parquet")
    pq.write_table(asked, folder / "queries.parquet")
    print(f"{rows.num_rows} rows, {asked.num_rows} questions")


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Train with one seed, ask, and keep the adapter in `folder`."""
    run = folder / f"{DEVICE}-{seed}-run"
    shutil.rmtree(run, ignore_errors=True)
    settings = TuningSettings(seed=seed, checkpoint_steps=10_000)
    result = train(folder / "rows.parquet", None, settings, run, lambda _: None)
    adapter = folder / f"{DEVICE}-{seed}-adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    Path(result.adapter).rename(adapter)
    shutil.rmtree(run)
    return {
        "seed": seed,
        "steps": result.steps,
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "losses": result.losses,
        "scores": ask(folder, adapter),
    }


def ask(folder: Path, adapter: Path) -> dict[str, float]:
    """Return the share of answers that hold a line of their reference, by question set."""
    engine = TransformersEngine("embedded", adapter)
    right: dict[str, list[bool]] = {}
    queries = pq.read_table(folder / "queries.parquet").to_pylist()
    replies = engine.generate([chat(query["question"]) for query in queries], ANSWER_TOKENS)
    for query, reply in zip(queries, replies, strict=True):
        right.setdefault(query["question_set"], []).append(
            is_right(reply.text, query["reference_answer"])
        )
    return {name: round(sum(each) / len(each), 4) for name, each in sorted(right.items())}


def main(arguments: Sequence[str]) -> None:
    """Print the figures and write them to FOLDER/<device>.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[TuningSettings().seed])
    parser.add_argument("--ask", type=Path, nargs="*", default=[])
    options = parser.parse_args(arguments)
    if options.prepare:
        prepare(options.folder, options.minutes)
        return
    found: dict[str, Any] = {"torch": torch.__version__, "trained": [], "asked": {}}
    for seed in options.seeds:
        found["trained"].append(measure(options.folder, seed))
        print(json.dumps(found["trained"][-1]), flush=True)
    for adapter in options.ask:
        found["asked"][adapter.name] = ask(options.folder, adapter)
        print(adapter.name, json.dumps(found["asked"][adapter.name]), flush=True)
    (options.folder / f"{DEVICE}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
