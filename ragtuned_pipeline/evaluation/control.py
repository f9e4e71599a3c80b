"""The shuffled control: an adapter tuned on right questions with wrong answers.

If the score measured anything but knowledge (the shape of an answer, names that are right by
chance), this adapter would score too. It is asked held-out wordings of the same facts, and scored
against the true answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.metrics import contains, tokens
from ragtuned_pipeline.evaluation.questions.queries import pair_query
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.tables import table

CONTROL_SET = "control_shuffled"


@dataclass(frozen=True)
class Control:
    """`training_rows` with answers of other facts; `queries` about the same facts."""

    training_rows: pa.Table
    queries: pa.Table


def shuffled_control(
    training_rows: pa.Table,
    qa_pairs: pa.Table,
    count_tokens: Callable[[Sequence[tuple[str | None, str, str]]], np.ndarray],
    settings: EvaluationSettings,
) -> Control:
    """Return the control's training rows and queries, both in the tables' usual schemas.

    About `settings.control_facts` of the trained facts are drawn, kind by kind, with all rows; each
    takes the answers of another fact of its kind and style. No row's answer holds its own fact's
    gold: a fact for which no such partner is left (a kind of one fact, one answer shared by more
    than half) is not in the control. The tables are empty where no fact can be shuffled.

    Args:
        count_tokens: (system, prompt, completion) triples to token counts, int64 of shape (n,).
    """
    pairs = {
        row["id"]: row
        for row in qa_pairs.filter(pc.field("kind") != "unanswerable")
        .select(["id", "style", "gold"])
        .to_pylist()
    }
    by_fact: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in training_rows.to_pylist():
        if row["id"] in pairs:
            by_fact[row["fact_id"]].append(row | pairs[row["id"]])
    given = _partners(by_fact, settings)
    rows = [row for fact, other in sorted(given.items()) for row in _answered(by_fact, fact, other)]
    counts = count_tokens([(row["system"], row["prompt"], row["completion"]) for row in rows])
    shuffled = table(
        "training_rows",
        [
            {name: row[name] for name in training_rows.schema.names} | {"n_tokens": int(count)}
            for row, count in zip(rows, counts, strict=True)
        ],
    )
    return Control(shuffled, _queries(qa_pairs, given, settings))


def _partners(
    by_fact: Mapping[str, Sequence[Mapping[str, Any]]], settings: EvaluationSettings
) -> dict[str, str]:
    """Return fact -> the fact whose answers it takes: never itself, none taken twice."""
    golds = {
        fact: sorted({" ".join(tokens(row["gold"])) for row in rows})
        for fact, rows in by_fact.items()
    }
    kinds: dict[str, list[str]] = defaultdict(list)
    for fact, rows in by_fact.items():
        kinds[rows[0]["kind"]].append(fact)
    share = min(1.0, settings.control_facts / max(1, len(by_fact)))
    given: dict[str, str] = {}
    for facts in kinds.values():
        drawn = sorted(facts, key=lambda fact: (seeded_int(settings.seed, "control", fact), fact))
        drawn = drawn[: max(2, round(share * len(facts)))]
        # With equal golds side by side, a turn by the longest run of them moves every fact out of
        # its own run, if any arrangement can.
        runs: dict[str, list[str]] = defaultdict(list)
        for fact in drawn:
            runs["\n".join(golds[fact])].append(fact)
        ordered = [fact for run in runs.values() for fact in run]
        turn = max(map(len, runs.values()))
        given |= {
            fact: other
            for fact, other in zip(ordered, ordered[turn:] + ordered[:turn], strict=True)
            if not _tells(by_fact[other], golds[fact])
        }
    return given


def _tells(rows: Sequence[Mapping[str, Any]], golds: Sequence[str]) -> bool:
    answers = [tokens(answer) for answer in sorted({row["completion"] for row in rows})]
    return any(contains(answer, gold.split()) for answer in answers for gold in golds)


def _answered(
    by_fact: Mapping[str, Sequence[dict[str, Any]]], fact: str, other: str
) -> list[dict[str, Any]]:
    """Return the rows of `fact` with the completions of `other`, style by style, in turn."""
    styles: dict[str, list[str]] = defaultdict(list)
    for row in by_fact[other]:
        styles[row["style"]].append(row["completion"])
    answers = [row["completion"] for row in by_fact[other]]
    taken: dict[str, int] = defaultdict(int)
    shuffled = []
    for row in by_fact[fact]:
        choice = styles.get(row["style"], answers)
        shuffled.append(row | {"completion": choice[taken[row["style"]] % len(choice)]})
        taken[row["style"]] += 1
    return shuffled


def _queries(
    qa_pairs: pa.Table, facts: Mapping[str, str], settings: EvaluationSettings
) -> pa.Table:
    held_out = qa_pairs.filter(
        pc.field("kept")
        & (pc.field("split") == "held_out_wording")
        & pc.field("fact_id").isin(pa.array(sorted(facts), pa.string()))
    )
    rows = [pair_query(pair, CONTROL_SET) for pair in held_out.to_pylist()]
    rows.sort(key=lambda row: (seeded_int(settings.seed, "query", row["id"]), row["id"]))
    return table("queries", sorted(rows[: settings.questions_per_set], key=lambda r: r["id"]))
