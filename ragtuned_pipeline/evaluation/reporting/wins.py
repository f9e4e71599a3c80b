"""Win rates as a reader meets them: seen from one system, by scope and dimension, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ragtuned_pipeline.evaluation.reporting.findings import listed, percent, the

OVERALL = "overall"
SCOPES = ("local", "global")
SCOPE_LABELS = {"local": "local questions", "global": "questions on the whole corpus"}
DIMENSION_LABELS = {
    OVERALL: "overall",
    "usefulness_correctness": "usefulness, correctness",
    "richness_diversity": "richness, diversity",
    "insightfulness_deep_understanding": "insight, deep understanding",
    "user_friendliness": "user-friendliness",
}


def dimension_label(name: str) -> str:
    """Return a dimension of the judge's as a reader sees it."""
    return DIMENSION_LABELS.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Win:
    """How often a judge preferred one system to `other`, over `n` questions.

    `rate` counts a tie as half a win; it and its 95 % interval are None where n is 0.
    """

    scope: str
    dimension: str
    other: str
    n: int
    wins: int
    losses: int
    ties: int
    disagreements: int
    unjudged: int
    rate: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Literal["ahead", "behind", "open"]:
        """Where the interval lies beside one half."""
        if self.low is not None and self.low > 0.5:
            return "ahead"
        if self.high is not None and self.high < 0.5:
            return "behind"
        return "open"


def seen_from(rows: Iterable[Mapping[str, Any]], system: str) -> list[Win]:
    """Return the rows of table win_rates in which `system` is one of the two, from its side."""
    found = []
    for row in rows:
        if system == row["system_a"]:
            other, wins, losses = row["system_b"], row["wins_a"], row["wins_b"]
            rate, low, high = row["win_rate"], row["low"], row["high"]
        elif system == row["system_b"]:
            other, wins, losses = row["system_a"], row["wins_b"], row["wins_a"]
            rate, low, high = map(_turned, (row["win_rate"], row["high"], row["low"]))
        else:
            continue
        found.append(
            Win(
                scope=row["scope"],
                dimension=row["dimension"],
                other=other,
                n=row["n"],
                wins=wins,
                losses=losses,
                ties=row["ties"],
                disagreements=row["disagreements"],
                unjudged=row["unjudged"],
                rate=rate,
                low=low,
                high=high,
            )
        )
    return found


def _turned(share: float | None) -> float | None:
    return None if share is None else 1 - share


def dimensions(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the dimensions that stand in `rows`: overall first, the others as they come."""
    found = dict.fromkeys(row["dimension"] for row in rows)
    return [OVERALL] * (OVERALL in found) + [name for name in found if name != OVERALL]


def win_sentence(scorecard: Mapping[str, Any], scope: str) -> str | None:
    """Return whom the judge prefers the tuned model to in `scope`, and who is preferred to it;
    None where it compared nothing there. Clearly means that the interval excludes one half."""
    wins = [
        win
        for win in seen_from(scorecard.get("win_rates", ()), "tuned")
        if win.scope == scope and win.dimension == OVERALL and win.rate is not None
    ]
    if not wins:
        return None
    names: dict[str, list[str]] = {"ahead": [], "behind": [], "open": []}
    for win in wins:
        names[win.verdict].append(f"{the(win.other)} ({percent(win.rate or 0)})")
    told = [
        f"{words} {listed(names[verdict])}"
        for verdict, words in (
            ("ahead", "is clearly preferred to"),
            ("behind", "clearly loses to"),
            ("open", "is not clearly apart from"),
        )
        if names[verdict]
    ]
    judged = "By rules that read no meaning" if by_rules(scorecard) else "Judged in pairs"
    return f"{judged}, on {SCOPE_LABELS[scope]}, the tuned model {'; '.join(told)} (win rates)."


def by_rules(scorecard: Mapping[str, Any]) -> bool:
    """Whether the verdicts are of rules, which read no meaning."""
    return bool(scorecard.get("judge", {}).get("engine") == "rules")


def matrix(
    rows: Sequence[Mapping[str, Any]], scope: str, systems: Sequence[str]
) -> list[list[Win | None]]:
    """Return the overall win rates of each system (row) over each (column); None where the two
    were not compared."""
    cells = []
    for system in systems:
        by_other = {
            win.other: win
            for win in seen_from(rows, system)
            if win.scope == scope and win.dimension == OVERALL and win.rate is not None
        }
        cells.append([by_other.get(other) for other in systems])
    return cells
