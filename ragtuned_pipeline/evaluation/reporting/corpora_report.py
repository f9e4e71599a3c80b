"""The report across corpora: one page that sets the scorecards of a home side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.reporting import findings, trust, wins
from ragtuned_pipeline.evaluation.reporting.page import render_page
from ragtuned_pipeline.evaluation.reporting.report_sections import MEASURE_LABELS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET
from ragtuned_pipeline.files import write_text

Scorecards = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class CorpusRow:
    """One corpus: `page` is its report's address from this page, `question_set` what its headline
    is about (None where nothing was asked), `tuned` and `others` the scores on it."""

    name: str
    page: str
    headline: str
    question_set: str | None
    tuned: Mapping[str, Any] | None
    others: Sequence[tuple[str, float]]  # best first
    judged: Mapping[str, Mapping[str, int]]  # scope -> verdict -> how many other systems
    doubts: int


@dataclass(frozen=True)
class SystemRow:
    """One system's score in each corpus, None where it has none; `mean` is over those it has, and
    `whole` says whether these are all in which any system was asked."""

    system: str
    cells: Sequence[Mapping[str, Any] | None]
    mean: float
    lowest: float
    highest: float
    whole: bool

    @property
    def corpora(self) -> int:
        """In how many corpora the system was asked."""
        return sum(cell is not None for cell in self.cells)


@dataclass(frozen=True)
class WinRow:
    """The tuned model's overall win rate over `other` in each corpus."""

    other: str
    cells: Sequence[wins.Win | None]
    mean: float


def write_corpora_report(scorecards: Scorecards, folder: Path) -> Path:
    """Write the page across `scorecards` (corpus -> scorecard) to folder/index.html, at once.

    Each corpus's own page is linked as <corpus>/index.html beside it.

    Returns:
        The page's path.
    """
    page = folder / "index.html"
    write_text(page, render_corpora(scorecards))
    return page


def render_corpora(scorecards: Scorecards) -> str:
    """Return the page."""
    names = sorted(scorecards)
    set_tables = [
        (name, MEASURE_OF_SET[name], rows)
        for name in QUESTION_SETS
        if (rows := _system_rows(scorecards, name, MEASURE_OF_SET[name]))
    ]
    return render_page(
        "corpora.html.j2",
        names=names,
        headline=_headline(scorecards),
        corpora=[_corpus_row(name, scorecards[name]) for name in names],
        set_tables=set_tables,
        win_tables=[
            (scope, compared) for scope in wins.SCOPES if (compared := _win_rows(scorecards, scope))
        ],
        rules=[name for name in names if wins.by_rules(scorecards[name])],
        measure_labels=MEASURE_LABELS,
        measure_of_set=MEASURE_OF_SET,
        scope_labels=wins.SCOPE_LABELS,
        systems=findings.ordered(s for card in scorecards.values() for s in card["systems"]),
    )


def _headline(scorecards: Scorecards) -> str:
    """The sentence of findings on the means over corpora, of the systems that took part in all."""
    of_tuned: dict[str, Any] = {}
    for card in scorecards.values():
        of_tuned |= card["systems"].get("tuned", {})
    about = findings.headline_set({"systems": {"tuned": of_tuned}})
    if about is None:
        return "The tuned model was evaluated on no corpus."
    asked = {
        name: card for name, card in scorecards.items() if about in card["systems"].get("tuned", {})
    }
    measure = MEASURE_OF_SET[about]
    means = {
        row.system: {about: {measure: row.mean}}
        for row in _system_rows(asked, about, measure)
        if row.whole
    }
    sentence = findings.sentence({"systems": means}, about)
    over = "On one corpus" if len(asked) == 1 else f"On average over {len(asked)} corpora"
    return f"{over}: {sentence[:1].lower()}{sentence[1:]}"


def _corpus_row(name: str, card: Mapping[str, Any]) -> CorpusRow:
    about = findings.headline_set(card)
    others: list[tuple[str, float]] = []
    if about is not None:
        measure = MEASURE_OF_SET[about]
        scores = {
            system: sets[about][measure]
            for system, sets in card["systems"].items()
            if system != "tuned" and about in sets
        }
        others = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return CorpusRow(
        name=name,
        page=f"{quote(name)}/index.html",
        headline=findings.headline(card),
        question_set=about,
        tuned=card["systems"]["tuned"][about] if about else None,
        others=others,
        judged={scope: _verdicts(card, scope) for scope in wins.SCOPES},
        doubts=len(trust.doubts(card)),
    )


def _verdicts(card: Mapping[str, Any], scope: str) -> dict[str, int]:
    counts = {"ahead": 0, "behind": 0, "open": 0}
    for win in _overall(card, scope):
        counts[win.verdict] += 1
    return counts


def _overall(card: Mapping[str, Any], scope: str) -> list[wins.Win]:
    return [
        win
        for win in wins.seen_from(card.get("win_rates", ()), "tuned")
        if win.scope == scope and win.dimension == wins.OVERALL and win.rate is not None
    ]


def _system_rows(scorecards: Scorecards, question_set: str, measure: str) -> list[SystemRow]:
    cards = [scorecards[name] for name in sorted(scorecards)]
    asked = sum(any(question_set in sets for sets in card["systems"].values()) for card in cards)
    rows = []
    for system in findings.ordered(name for card in cards for name in card["systems"]):
        cells = [card["systems"].get(system, {}).get(question_set) for card in cards]
        values = [cell[measure] for cell in cells if cell]
        if values:
            rows.append(
                SystemRow(
                    system=system,
                    cells=cells,
                    mean=fmean(values),
                    lowest=min(values),
                    highest=max(values),
                    whole=len(values) == asked,
                )
            )
    return rows


def _win_rows(scorecards: Scorecards, scope: str) -> list[WinRow]:
    by_corpus: list[dict[str, wins.Win]] = [
        {win.other: win for win in _overall(scorecards[name], scope)} for name in sorted(scorecards)
    ]
    rows = []
    for other in findings.ordered(name for found in by_corpus for name in found):
        cells = [found.get(other) for found in by_corpus]
        rows.append(WinRow(other, cells, fmean(_rates(cells))))
    return rows


def _rates(cells: Iterable[wins.Win | None]) -> list[float]:
    return [cell.rate for cell in cells if cell is not None and cell.rate is not None]
