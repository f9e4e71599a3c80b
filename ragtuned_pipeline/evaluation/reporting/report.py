"""The report on one corpus: one HTML page that holds everything it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.provenance import NEAR, MemoryTables
from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.reporting import findings, trust, wins
from ragtuned_pipeline.evaluation.reporting import report_sections as sections
from ragtuned_pipeline.evaluation.reporting.case_sources import CaseSources
from ragtuned_pipeline.evaluation.reporting.cases import choose_cases, is_right
from ragtuned_pipeline.evaluation.reporting.page import picture_address, render_page, sentence_case
from ragtuned_pipeline.evaluation.reporting.report_sections import LossCurve
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET, score_each
from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.settings import EMBEDDED_MODEL

MAX_FAILURES = 200  # rows shown; all are in the failures tables

__all__ = ["LossCurve", "ReportInputs", "render", "write_report"]


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the page shows.

    Args:
        scorecard: of scorecard.score.
        queries, answers: the tables behind it.
        judgements, grades: the judge's and the grader's, empty where none was asked.
        memory: the tables that the cases point back to, coverage among them.
        failures: of all stages, one table.
        curves: of the tuned adapter first, then of the control.
        settings: section -> name -> value, as they were.
        promotion: "answers" and "trained" (adapters, or None), "compared" (the numbers that the
            gate compared), "reasons" and "remarks" (its sentences), and "decisions" (of the
            history, the latest first).
        trained_by: the id of the run that trained the tuned adapter; empty where none is recorded.
        graph_svg: the picture of the graph, or None.
        planned: (what, planned, measured) of the training; empty where no plan is recorded.
    """

    scorecard: Mapping[str, Any]
    queries: pa.Table
    answers: pa.Table
    judgements: pa.Table
    grades: pa.Table
    memory: MemoryTables
    failures: pa.Table
    curves: Sequence[LossCurve]
    settings: Mapping[str, Mapping[str, Any]]
    promotion: Mapping[str, Any]
    trained_by: str
    graph_svg: str | None = None
    planned: Sequence[tuple[str, str, str]] = ()


def render(inputs: ReportInputs) -> str:
    """Return the page."""
    card = inputs.scorecard
    about = findings.headline_set(card)
    remarks = trust.judge_remarks(card["judge"])
    return render_page(
        "report.html.j2",
        card=card,
        headline=findings.headline(card),
        basis=f"{sentence_case(findings.basis(card, about))}." if about else "",
        sentences=_sentences(card, remarks),
        verdicts=findings.verdicts(card),
        control_sentence=findings.control_sentence(card),
        sets=[name for name in QUESTION_SETS if any(name in s for s in card["systems"].values())],
        measures=MEASURE_OF_SET,
        systems=findings.ordered(card["systems"]),
        parts=sections.parts,
        has_ages=any("by_age" in s for sets in card["systems"].values() for s in sets.values()),
        shown_costs=_shown_costs(card),
        has_grades=any("graded" in s for sets in card["systems"].values() for s in sets.values()),
        score_plots=sections.score_plots(card),
        cost_plots=sections.cost_plots(card),
        win_views=sections.win_views(card),
        matrices=sections.matrices(card),
        scope_labels=wins.SCOPE_LABELS,
        dimension_label=wins.dimension_label,
        judge_remarks=remarks,
        judge_doubted=any(remark.doubt for remark in remarks),
        judge_asked=card["judge"].get("engine", "none") != "none",
        length_plot=sections.length_plot(card["judge"]),
        ablation=sections.ablation_view(card["ablation"]),
        variant_label=sections.variant_label,
        ability_remarks=trust.ability_remarks(card["general_ability"]),
        doubts=trust.doubts(card),
        loss_plot=sections.loss_plot(inputs.curves),
        curves=inputs.curves,
        planned=inputs.planned,
        promotion=inputs.promotion,
        compared_rows=sections.compared_rows(inputs.promotion["compared"]),
        coverage_rows=sections.coverage_rows(inputs.memory.coverage),
        failures=inputs.failures.slice(0, MAX_FAILURES).to_pylist(),
        failures_total=inputs.failures.num_rows,
        failures_by_stage=dict(sorted(Counter(inputs.failures["stage"].to_pylist()).items())),
        groups=choose_cases(
            score_each(inputs.queries, inputs.answers, inputs.grades),
            CaseSources(inputs.memory),
            inputs.judgements,
            inputs.grades,
        ),
        is_right=is_right,
        near=NEAR,
        trained_by=inputs.trained_by,
        embedded=inputs.settings.get("tuning", {}).get("base_model") == EMBEDDED_MODEL,
        settings=inputs.settings,
        seeds={name: each["seed"] for name, each in inputs.settings.items() if "seed" in each},
        graph=picture_address(inputs.graph_svg) if inputs.graph_svg else None,
    )


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Render the page and write it to `path` at once."""
    write_text(path, render(inputs))


def _sentences(card: Mapping[str, Any], remarks: Sequence[trust.Remark]) -> list[str]:
    """What follows the headline: the sets it does not speak of, and what the judge says."""
    tuned = card["systems"].get("tuned", {})
    told = [
        f"{findings.sentence(card, name)[:-1]} ({findings.basis(card, name)})."
        for name in ("new_wording", "gold_local", "generated_local")
        if name in tuned and name != findings.headline_set(card)
    ]
    compared = [wins.win_sentence(card, scope) for scope in wins.SCOPES]
    told += [sentence for sentence in compared if sentence]
    if any(compared):
        doubtful = sum(remark.doubt for remark in remarks)
        told.append(
            f"Of the checks on the judge, {doubtful} speak{'s' if doubtful == 1 else ''} against "
            "trusting its win rates."
            if doubtful
            else "None of the checks on the judge speaks against its win rates."
        )
    worse = [
        remark.text for remark in trust.ability_remarks(card["general_ability"]) if remark.doubt
    ]
    if worse:
        told.append(f"Tuning made the model forget. {' '.join(map(sentence_case, worse))}")
    return told


def _shown_costs(card: Mapping[str, Any]) -> dict[str, str]:
    """Cost -> its column's head; calls and money only where they tell systems apart."""
    summaries = [summary for sets in card["systems"].values() for summary in sets.values()]
    shown = {"prompt_tokens": "Prompt tokens", "completion_tokens": "Answer tokens"}
    if any(summary.get("calls", 1) != 1 for summary in summaries):
        shown["calls"] = "Calls"
    shown["seconds"] = "Seconds"
    if any(summary.get("money") for summary in summaries):
        shown["money"] = "Money"
    return shown
