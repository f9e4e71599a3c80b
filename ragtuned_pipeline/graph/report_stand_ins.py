"""What a plan takes for a teacher's reports: as long as such replies are, and otherwise empty."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.graph.reports_llm import CommunityReport, ReportFinding
from ragtuned_pipeline.inference.calls import Call

_ROW = re.compile(r"^(\d+) \| ", re.MULTILINE)
_ROWS_A_FINDING = 6
_TITLE = "The keeper, the harbour and the council of the town"
_SENTENCE = (
    "The members of this group are linked by what they did together in the years before the "
    "council met, and by the places where that happened. "
)


def report_stand_ins() -> Mapping[type[BaseModel], Callable[[Call[Any]], BaseModel]]:
    """Return, for the schema of reports, what a reply to a call may look like.

    It is 300 to 500 tokens long, by the number of rows in the call, and names ids of those rows.
    """
    return {CommunityReport: _report}


def _report(call: Call[CommunityReport]) -> CommunityReport:
    before, _, after = call.messages[-1]["content"].partition("# Relationships\n")
    entities = [int(number) for number in _ROW.findall(before)]
    relationships = [int(number) for number in _ROW.findall(after)]
    rows = len(entities) + len(relationships)
    findings = [
        ReportFinding(
            summary=_SENTENCE[:90],
            explanation=(_SENTENCE * 2)[:240],
            entities=entities[2 * n : 2 * n + 3],
            relationships=relationships[2 * n : 2 * n + 2],
        )
        for n in range(min(2 + rows // _ROWS_A_FINDING, 4))
    ]
    return CommunityReport(
        title=_TITLE,
        summary=_SENTENCE * 2,
        rating=5.0,
        rating_explanation=_SENTENCE[:120],
        findings=findings,
    )
