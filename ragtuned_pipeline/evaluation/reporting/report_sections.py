"""What the report's sections show, made from the scorecard: plots, tables and their captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.reporting import findings, plots
from ragtuned_pipeline.evaluation.reporting.page import sentence_case, style
from ragtuned_pipeline.evaluation.reporting.wins import (
    OVERALL,
    SCOPE_LABELS,
    SCOPES,
    Win,
    dimension_label,
    dimensions,
    matrix,
    seen_from,
)
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET

if TYPE_CHECKING:
    from markupsafe import Markup

MEASURE_LABELS = {
    "contains": "right words",
    "f1": "F1",
    "refused": "declined",
    "graded": "graded right",
}
VARIANT_LABELS = {
    "local": "local rows only",
    "global": "global rows only",
    "both": "both",
    "one_wording": "one wording a fact",
    "one_direction": "one direction",
    "no_refusals": "no refusals",
    "no_replay": "no replay",
}
AGE_LABELS = {"new": "new facts", "old": "facts known before"}
# Cost is shown on the facts that were trained, on one local set, and on one of the whole corpus.
_COST_SETS = (
    ("held_out_wording",),
    ("gold_local", "generated_local"),
    ("gold_global", "generated_global"),
)
_COMPARED_WITH = {
    "base": "the base",
    "promoted": "the promoted adapter",
    "limit": "the limit",
}
_COSTS = {"prompt_tokens": "prompt tokens", "seconds": "seconds", "money": "money"}
# The paper's Fig. 3: what each group of queries is read by, and the adapters beside one another.
_FIG_3 = ("local", "global", "both")
_ABLATION_MEASURE = {"local": "contains", "global": "f1"}


@dataclass(frozen=True)
class Plot:
    """A figure with its caption: what it shows in bold, how it is read in grey."""

    title: str
    note: str
    drawing: Markup


def score_plots(card: Mapping[str, Any]) -> list[Plot]:
    """Return the systems side by side, for every set that was asked; the grader's view of a set
    follows the references'."""
    found = []
    for name in QUESTION_SETS:
        for measure in (MEASURE_OF_SET[name], "graded"):
            rows, n = [], 0
            for system in findings.ordered(card["systems"]):
                summary = card["systems"][system].get(name, {})
                if measure in summary:
                    n = summary["n"]
                    rows.append(_bar(findings.label(system), summary, measure, style(system)))
            if rows:
                what = MEASURE_LABELS[measure]
                drawn = plots.bars(rows, f"{what}, {findings.SET_LABELS[name]}, by system")
                found.append(_plot(findings.SET_LABELS[name], f"{what}, {n:,} questions", drawn))
    return found


def parts(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the parts of a question set with their labels: scopes, kinds, and facts by age."""
    return [
        (AGE_LABELS[value] if column == "age" else value.replace("_", " "), numbers)
        for column in ("scope", "kind", "age")
        for value, numbers in sorted(summary.get(f"by_{column}", {}).items())
    ]


def cost_plots(card: Mapping[str, Any]) -> list[list[Plot]]:
    """Return quality against what an answer costs, a row a question set; money where any system
    costs some."""
    systems = card["systems"]
    found = []
    for alternatives in _COST_SETS:
        name = next((s for s in alternatives if any(s in sets for sets in systems.values())), None)
        if name is None:
            continue
        measure = MEASURE_OF_SET[name]
        asked = [s for s in findings.ordered(systems) if name in systems[s]]
        row = []
        for cost, cost_label in _COSTS.items():
            if not any(systems[s][name].get(cost) for s in asked):
                continue
            marks = [
                plots.Mark(
                    findings.label(system),
                    systems[system][name][cost],
                    systems[system][name][measure],
                    style(system),
                )
                for system in asked
            ]
            x_label = f"{cost_label} an answer, by powers of ten"
            set_label, what = findings.SET_LABELS[name], MEASURE_LABELS[measure]
            drawn = plots.plane(marks, f"{set_label}: {what} (%) against {x_label}", x_label)
            row.append(_plot(set_label, f"{what}, %, against {cost_label}", drawn))
        found.append(row)
    return found


@dataclass(frozen=True)
class WinView:
    """The tuned model against each other system in one scope: `rows` is (system, dimension ->
    Win), in the order of `dimensions`; `overall` and `by_dimension` are its plots."""

    scope: str
    dimensions: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Win]]]
    overall: Plot | None
    by_dimension: Sequence[Plot]


def win_views(card: Mapping[str, Any]) -> list[WinView]:
    """Return what the judge says of the tuned model, local and global apart."""
    views = []
    for scope in SCOPES:
        in_scope = [row for row in card["win_rates"] if row["scope"] == scope]
        wins: dict[str, dict[str, Win]] = defaultdict(dict)
        for win in seen_from(in_scope, "tuned"):
            wins[win.other][win.dimension] = win
        if wins:
            names = dimensions(in_scope)
            rows = [(other, wins[other]) for other in findings.ordered(wins)]
            drawn = [_win_plot(rows, n, dimension_label(n)) for n in names if n != OVERALL]
            views.append(
                WinView(
                    scope,
                    names,
                    rows,
                    _win_plot(rows, OVERALL, SCOPE_LABELS[scope]),
                    [plot for plot in drawn if plot is not None],
                )
            )
    return views


def _win_plot(
    rows: Sequence[tuple[str, Mapping[str, Win]]], dimension: str, title: str
) -> Plot | None:
    bars = [
        plots.Bar(findings.label(other), win.rate, win.low, win.high, style(other))
        for other, by_dimension in rows
        if (win := by_dimension.get(dimension)) is not None and win.rate is not None
    ]
    if not bars:
        return None
    drawn = plots.bars(bars, f"Win rate of the tuned model, {title}", origin=0.5)
    return _plot(title, "wins of the tuned model over …, %", drawn)


def matrices(card: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[Win | None]]]]:
    """Return (scope, systems, cells) where systems other than the tuned one were compared too."""
    found = []
    for scope in SCOPES:
        in_scope = [
            row
            for row in card["win_rates"]
            if row["scope"] == scope and row["dimension"] == OVERALL
        ]
        if any("tuned" not in (row["system_a"], row["system_b"]) for row in in_scope):
            systems = findings.ordered(
                row[end] for row in in_scope for end in ("system_a", "system_b")
            )
            found.append((scope, systems, matrix(in_scope, scope, systems)))
    return found


def length_plot(judge: Mapping[str, Any]) -> Plot | None:
    """Return how often an answer wins by how much longer than the other one it is."""
    bins = [each for each in judge.get("length", {}).get("bins", ()) if each["n"]]
    if not bins:
        return None
    rows = [plots.Bar(_range(each), each["win_rate"], None, None, "s-judge") for each in bins]
    drawn = plots.bars(rows, "Win rate by the difference in length", 0.5)
    return _plot(
        "Win rate by difference in length",
        "wins of an answer, %, by how many words longer than the other it is (below 0: shorter)",
        drawn,
    )


def _range(each: Mapping[str, Any]) -> str:
    low, high = each["low"], each["high"]
    if low is None or high is None:
        return f"below {_signed(high)}" if low is None else f"over {_signed(low)}"
    return f"{_signed(low)} to {_signed(high)}"


def _signed(words: float) -> str:
    return f"{words:,.0f}".replace("-", "−")


@dataclass(frozen=True)
class AblationView:
    """`variants` are in the order of the tables; `figure_3` has the adapters of the paper's Fig. 3,
    `others` the further ones beside "both"; `wins` are of "both" over each other variant, (label,
    scope -> Win)."""

    variants: Mapping[str, Mapping[str, Any]]
    figure_3: Plot | None
    others: Sequence[Plot]
    wins: Sequence[tuple[str, Mapping[str, Win]]]


def ablation_view(ablation: Mapping[str, Any]) -> AblationView:
    """Return what the adapters tuned on parts of the rows reached."""
    found = ablation.get("variants", {})
    in_figure = [name for name in _FIG_3 if name in found]
    further = sorted(set(found) - set(_FIG_3))
    variants = {name: found[name] for name in [*in_figure, *further]}
    wins: dict[str, dict[str, Win]] = defaultdict(dict)
    for win in seen_from(ablation.get("win_rates", ()), "both"):
        if win.dimension == OVERALL and win.rate is not None:
            wins[win.other][win.scope] = win
    return AblationView(
        variants=variants,
        figure_3=_figure_3(variants, in_figure) if in_figure else None,
        others=[
            plot
            for scope in SCOPES
            if further and (plot := _variant_plot(variants, further, scope)) is not None
        ],
        wins=[(variant_label(name), wins[name]) for name in variants if name in wins],
    )


def variant_label(name: str) -> str:
    """Return an ablation's variant as a reader sees it."""
    return VARIANT_LABELS.get(name, name.replace("_", " "))


def _variant_style(name: str) -> str:
    return f"v-{name if name in _FIG_3 else 'other'}"


def _figure_3(variants: Mapping[str, Any], names: Sequence[str]) -> Plot:
    groups = []
    for scope, measure in _ABLATION_MEASURE.items():
        bars = [
            _bar(name, variants[name]["scores"][scope], measure, _variant_style(name))
            for name in names
            if scope in variants[name]["scores"]
        ]
        if bars:
            groups.append((f"{scope} queries ({MEASURE_LABELS[measure]})", bars))
    return _plot(
        "Trained on local rows, global rows, both",
        "%, with 95 % intervals",
        plots.groups(groups, "Scores by what the adapter was trained on"),
    )


def _variant_plot(variants: Mapping[str, Any], further: Sequence[str], scope: str) -> Plot | None:
    measure = _ABLATION_MEASURE[scope]
    bars = [
        _bar(variant_label(name), variants[name]["scores"][scope], measure, _variant_style(name))
        for name in ["both"] * ("both" in variants) + list(further)
        if scope in variants[name]["scores"]
    ]
    if not bars:
        return None
    what = MEASURE_LABELS[measure]
    return _plot(f"{scope} queries", what, plots.bars(bars, f"{what}, {scope} queries, by variant"))


@dataclass(frozen=True)
class LossCurve:
    """One training: (step, loss) points on its rows and on held-out wordings (may be empty)."""

    name: str
    losses: Sequence[tuple[int, float]]
    held_out_losses: Sequence[tuple[int, float]]


def loss_plot(curves: Sequence[LossCurve]) -> Markup | None:
    """Return the curves in one plane; None where no loss was recorded."""
    from markupsafe import Markup

    drawn = [
        plots.Line(f"{curve.name}, {kind}", points, f"l-{place}-{kind.replace(' ', '-')}")
        for place, curve in enumerate(curves)
        for kind, points in (("rows", curve.losses), ("held out", curve.held_out_losses))
        if points
    ]
    if not drawn:
        return None
    return Markup(plots.lines(drawn, "Loss by training step", "training step", "loss"))


def compared_rows(
    compared: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (number, what it was compared with, the gate's row), both as a reader sees them."""
    return [
        (
            findings.SET_LABELS.get(each["number"], each["number"].replace("_", " ")),
            _COMPARED_WITH[each["against"]],
            each,
        )
        for each in compared
    ]


def coverage_rows(coverage: pa.Table) -> list[tuple[str, int, str]]:
    """Return (reason, sentences, an example) for what no training answer holds, most frequent
    first."""
    missed = coverage.filter(~pc.field("covered")).select(["reason", "sentence"]).to_pylist()
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in missed:
        by_reason[row["reason"] or "no reason given"].append(row["sentence"])
    return sorted(
        ((reason, len(found), found[0]) for reason, found in by_reason.items()),
        key=lambda row: (-row[1], row[0]),
    )


def _bar(label: str, summary: Mapping[str, Any], measure: str, css: str) -> plots.Bar:
    low, high = summary[f"{measure}_interval"]
    return plots.Bar(label, summary[measure], low, high, css)


def _plot(title: str, note: str, drawing: str) -> Plot:
    from markupsafe import Markup

    return Plot(sentence_case(title), note, Markup(drawing))
