"""What the judge said about one question: table judgements, seen from the tuned model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

Outcome = Literal["won", "lost", "tie", "orders disagree", "no verdict"]


@dataclass(frozen=True)
class Opinion:
    """One order's verdict: "tuned", the other system's name, "tie", or None where there is none."""

    shown_first: str
    preferred: str | None
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The tuned model against `other` on one dimension, by both orders."""

    other: str
    dimension: str
    opinions: Sequence[Opinion]

    @property
    def outcome(self) -> Outcome:
        """Both orders together: where they disagree, nobody has won."""
        said = {opinion.preferred for opinion in self.opinions}
        if None in said or len(self.opinions) < 2:
            return "no verdict"
        if len(said) > 1:
            return "orders disagree"
        if "tie" in said:
            return "tie"
        return "won" if "tuned" in said else "lost"


_POINTS = {"won": 1.0, "lost": 0.0, "tie": 0.5, "orders disagree": 0.5}


def verdicts_by_query(judgements: pa.Table) -> dict[str, list[Verdict]]:
    """Return query id -> the verdicts that concern the tuned model, by other system and dimension
    in the order of the table."""
    opinions: dict[tuple[str, str, str], list[Opinion]] = defaultdict(list)
    with_tuned = (pc.field("system_a") == "tuned") | (pc.field("system_b") == "tuned")
    for row in judgements.filter(with_tuned).to_pylist():
        pair = (row["system_a"], row["system_b"])
        other = pair[pair[0] == "tuned"]
        preferred = {"a": pair[0], "b": pair[1], "tie": "tie"}.get(row["verdict"])
        shown_first = pair[row["order"] == "ba"]
        opinion = Opinion(shown_first, preferred, row["reason"] or "")
        opinions[row["query_id"], other, row["dimension"]].append(opinion)
    found: dict[str, list[Verdict]] = defaultdict(list)
    for (query_id, other, dimension), said in opinions.items():
        found[query_id].append(Verdict(other, dimension, said))
    return dict(found)


def points(verdicts: Iterable[Verdict]) -> float | None:
    """Return the tuned model's share of wins with ties as half; None where nothing was decided."""
    values = [_POINTS[v.outcome] for v in verdicts if v.outcome in _POINTS]
    return sum(values) / len(values) if values else None


def disagreeing(verdicts: Iterable[Verdict]) -> int:
    """Return on how many comparisons the two orders disagree."""
    return sum(verdict.outcome == "orders disagree" for verdict in verdicts)


def grade_reasons(grades: pa.Table) -> Mapping[tuple[str, str], str]:
    """Return (system, query id) -> why the grader gave its verdict."""
    columns: dict[str, list[Any]] = grades.select(["system", "query_id", "reason"]).to_pydict()
    keys = zip(columns["system"], columns["query_id"], strict=True)
    return {key: reason or "" for key, reason in zip(keys, columns["reason"], strict=True)}
