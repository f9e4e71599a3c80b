"""Print the seconds and the memory that it takes to aggregate a million judgements.

    python -m ragtuned_pipeline_tests.benchmarks.judgement_aggregation [JUDGEMENTS]

Seven systems, every pair judged on four dimensions in both orders, local and global queries in
equal parts. The floor is one group_by of Arrow over the columns that are aggregated, in the same
run.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, ORDERS, Pairing, judgements_table
from ragtuned_pipeline.evaluation.judging.win_rates import judge_quality, win_rates
from ragtuned_pipeline_tests.evaluation.judging import answers, queries, query

SYSTEMS = [f"system_{number}" for number in range(7)]
PAIRS = [(a, b) for a in SYSTEMS for b in SYSTEMS if a < b]
A_QUERY = len(PAIRS) * len(DIMENSIONS) * len(ORDERS)


def write(count: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return queries, answers of 10 to 100 words, and at least `count` judgements at random."""
    draw = np.random.default_rng(1)
    rows = [query(n, ("local", "global")[n % 2]) for n in range(-(-count // A_QUERY))]
    given = {
        system: {
            row["id"]: "word " * int(draw.integers(10, 100)) + ("gold" + str(n)) * (n % 7 > place)
            for n, row in enumerate(rows)
        }
        for place, system in enumerate(SYSTEMS)
    }
    pairings = [Pairing(row, a, b, "", "") for row in rows for a, b in PAIRS]
    size = len(rows) * A_QUERY
    verdicts = np.array(["a", "b", "tie"], object)[draw.choice(3, size, p=(0.5, 0.3, 0.2))]
    verdicts[draw.random(size) < 0.01] = None
    judgements = judgements_table(pairings, verdicts.tolist(), ["because"] * size, "at random")
    return queries(rows), answers(given), judgements


def peak() -> float:
    """Return the most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(count: int) -> None:
    asked, given, judgements = write(count)
    print(
        f"{judgements.num_rows:,} judgements of {asked.num_rows:,} queries and {len(PAIRS)} pairs, "
        f"{given.num_rows:,} answers"
    )
    before = peak()
    started = time.perf_counter()
    columns = ["query_id", "system_a", "system_b", "dimension", "order", "verdict"]
    groups = judgements.group_by(columns).aggregate([([], "count_all")])
    floor = time.perf_counter()
    rates = win_rates(judgements, asked, 1)
    counted = time.perf_counter()
    found = judge_quality(judgements, asked, given, 1)
    done = time.perf_counter()
    for step, seconds in (
        ("floor: group_by of six columns", floor - started),
        ("win_rates", counted - floor),
        ("judge_quality", done - counted),
        ("ours, whole", done - floor),
    ):
        print(f"{step:32} {seconds:6.2f} s")
    print(f"peak memory {peak():,.0f} MiB, before aggregating {before:,.0f} MiB")
    print(f"{groups.num_rows:,} groups, {rates.num_rows} rows, {found['order']['n']:,} items")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
