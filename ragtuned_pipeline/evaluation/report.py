"""The report: one HTML page that holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation import findings, plots
from ragtuned_pipeline.evaluation.cases import choose_cases, is_right
from ragtuned_pipeline.evaluation.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET, score_each, write_text

TEMPLATES = Path(__file__).parent / "templates"
MAX_FAILURES = 200  # rows shown; all are in the failures tables

_MEASURE_LABELS = {"contains": "right words", "f1": "F1", "refused": "declined"}
_SCATTER_SETS = ("held_out_wording", "gold_local")
_LISTED_STYLES = ("tuned", "base", "vanilla_rag", "long_context")


@dataclass(frozen=True)
class LossCurve:
    """One training: (step, loss) points on its rows and on held-out wordings (may be empty)."""

    name: str
    losses: Sequence[tuple[int, float]]
    held_out_losses: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the page shows.

    Args:
        scorecard: of scorecard.score.
        queries, answers: the tables behind it.
        documents, training_rows: what the cases point back to.
        coverage: one row a sentence of the corpus.
        failures: of all stages, one table.
        curves: of the tuned adapter first, then of the control.
        settings: section -> name -> value, as they were.
        graph_svg: the picture of the graph, or None.
    """

    scorecard: Mapping[str, Any]
    queries: pa.Table
    answers: pa.Table
    documents: pa.Table
    training_rows: pa.Table
    coverage: pa.Table
    failures: pa.Table
    curves: Sequence[LossCurve]
    settings: Mapping[str, Mapping[str, Any]]
    graph_svg: str | None = None


def render(inputs: ReportInputs) -> str:
    """Return the page. Names, questions and answers come from documents nobody has vetted, so all
    text is escaped and the page's own script is the only one its policy lets run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": findings.percent,
        "label": findings.label,
        "style": _style,
        "figure": _figure,
    }
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    card = inputs.scorecard
    groups = choose_cases(
        score_each(inputs.queries, inputs.answers), inputs.documents, inputs.training_rows
    )
    about = findings.headline_set(card)
    return environment.get_template("report.html.j2").render(
        card=card,
        headline=findings.headline(card),
        basis=_capital(findings.basis(card, about)) if about else "",
        sentences=_sentences(card),
        control_sentence=findings.control_sentence(card),
        sets=[name for name in QUESTION_SETS if any(name in s for s in card["systems"].values())],
        set_labels=findings.SET_LABELS,
        measures=MEASURE_OF_SET,
        measure_labels=_MEASURE_LABELS,
        systems=_ordered(card["systems"]),
        bar_plots=_bar_plots(card),
        cost_plots=_cost_plots(card),
        loss_plot=_loss_plot(inputs.curves),
        curves=inputs.curves,
        coverage_rows=_coverage_rows(inputs.coverage),
        failures=inputs.failures.slice(0, MAX_FAILURES).to_pylist(),
        failures_total=inputs.failures.num_rows,
        failures_by_stage=dict(sorted(Counter(inputs.failures["stage"].to_pylist()).items())),
        groups=groups,
        is_right=is_right,
        embedded=inputs.settings.get("tuning", {}).get("base_model") == "embedded",
        settings=inputs.settings,
        graph=_data_address(inputs.graph_svg) if inputs.graph_svg else None,
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_content_policy_hash(script),
    )


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Render the page and write it to `path` at once."""
    write_text(render(inputs), path)


def _sentences(card: Mapping[str, Any]) -> list[str]:
    """What follows the headline: the sets it does not speak of, and the verdicts."""
    tuned = card["systems"].get("tuned", {})
    told = [
        f"{findings.sentence(card, name)[:-1]} ({findings.basis(card, name)})."
        for name in ("new_wording", "gold_local")
        if name in tuned and name != findings.headline_set(card)
    ]
    return told + findings.verdicts(card)


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _ordered(systems: Mapping[str, Any]) -> list[str]:
    listed = [name for name in _LISTED_STYLES if name in systems]
    return listed + sorted(set(systems) - set(listed))


def _style(system: str) -> str:
    """The class that gives a system its colour: the same wherever it is shown."""
    if system in _LISTED_STYLES:
        return f"s-{_LISTED_STYLES.index(system)}"
    return f"s-{len(_LISTED_STYLES) + int(hashlib.blake2b(system.encode()).hexdigest(), 16) % 4}"


def _figure(value: float) -> str:
    """A mean as a reader wants it: three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.5f}"


def _bar_plots(card: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(question set, measure, plot) for every set that was asked."""
    from markupsafe import Markup

    found = []
    for name in QUESTION_SETS:
        measure = MEASURE_OF_SET[name]
        rows = []
        for system in _ordered(card["systems"]):
            if name in card["systems"][system]:
                summary = card["systems"][system][name]
                low, high = summary[f"{measure}_interval"]
                label = findings.label(system)
                rows.append(plots.Bar(label, summary[measure], low, high, _style(system)))
        if rows:
            title = f"{_MEASURE_LABELS[measure]}, {findings.SET_LABELS[name]}, by system"
            found.append((name, measure, Markup(plots.bars(rows, title))))
    return found


def _cost_plots(card: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(caption, plot): quality against what an answer costs."""
    from markupsafe import Markup

    found = []
    for name in _SCATTER_SETS:
        asked = [s for s in _ordered(card["systems"]) if name in card["systems"][s]]
        for cost, x_label in (
            ("prompt_tokens", "prompt tokens an answer, by powers of ten"),
            ("seconds", "seconds an answer, by powers of ten"),
        ):
            if asked:
                marks = [
                    plots.Mark(
                        findings.label(system),
                        card["systems"][system][name][cost],
                        card["systems"][system][name][MEASURE_OF_SET[name]],
                        _style(system),
                    )
                    for system in asked
                ]
                title = f"{findings.SET_LABELS[name]}: right words (%) against {x_label}"
                caption = f"{findings.SET_LABELS[name]}: right words, %"
                found.append((caption, Markup(plots.plane(marks, title, x_label))))
    return found


def _loss_plot(curves: Sequence[LossCurve]) -> Any:
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


def _coverage_rows(coverage: pa.Table) -> list[tuple[str, int, str]]:
    """(reason, sentences, an example) for what no training answer holds, most frequent first."""
    missed = coverage.filter(~pc.field("covered")).select(["reason", "sentence"]).to_pylist()
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in missed:
        by_reason[row["reason"] or "no reason given"].append(row["sentence"])
    return sorted(
        ((reason, len(found), found[0]) for reason, found in by_reason.items()),
        key=lambda row: (-row[1], row[0]),
    )


def _data_address(svg: str) -> str:
    """The picture as an image of its own: an image's scripts never run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _content_policy_hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
