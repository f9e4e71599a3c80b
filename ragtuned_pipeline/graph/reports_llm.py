"""Community reports written by the teacher, children first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.descriptions import CountTokens
from ragtuned_pipeline.graph.report_contexts import (
    ChildReport,
    ReportContext,
    ReportContexts,
    ReportLine,
)
from ragtuned_pipeline.graph.reports import extractive_report, read_sources, report_row
from ragtuned_pipeline.inference.calls import Call, Completed, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.settings import GraphSettings

STEP = "report"
_PROMPT = Path(__file__).parent / "prompts" / "report.md.j2"
_TOO_LONG = "its first row alone is longer than graph.max_report_context_tokens; raise it"
_REPLY_TOKENS = 3000  # 2000 words, as the paper's code asks
# Ids belong in their lists, but models put them in the text too: [Data: Entities (5, 7)], [3, 4],
# (Relationships 2). A year in round brackets is no id.
_KINDS = r"(?:data|entit(?:y|ies)|relationships?|reports?|sources?|ids?)"
_REFERENCES = re.compile(
    rf" ?(?:\[(?=[^\[\]]*\d)(?:{_KINDS}|and|more|[\d\s,;:()+#])+\]"
    rf"|\({_KINDS}\b[\s:]*\d[\d\s,;+]*\))",
    re.IGNORECASE,
)


def _clean(text: Any) -> Any:
    """Take bracketed ids such as "[Data: Entities (5, 7)]" or "[3, 4]" out of a text."""
    return _REFERENCES.sub("", text).strip() if isinstance(text, str) else text


_Ids = Annotated[list[int], Field(max_length=50)]
_Sentence = Annotated[str, Field(min_length=1, max_length=500), BeforeValidator(_clean)]
_Paragraph = Annotated[str, Field(min_length=1, max_length=4000), BeforeValidator(_clean)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReportFinding(_Reply):
    """One insight, and the ids of the rows that it rests on."""

    summary: _Sentence
    explanation: _Paragraph
    entities: _Ids
    relationships: _Ids


class CommunityReport(_Reply):
    """A report on a community of entities."""

    title: _Sentence
    summary: _Paragraph
    rating: float = Field(ge=0, le=10)
    rating_explanation: _Sentence
    findings: Annotated[list[ReportFinding], Field(max_length=30)]


def reports_with_teacher(
    communities: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    text_units: pa.Table,
    teacher: Teacher,
    settings: GraphSettings,
    count_tokens: CountTokens,
) -> tuple[pa.Table, pa.Table]:
    """Return the tables community_reports, in the communities' order, and failures.

    Levels are written from the deepest to the roots, each in one go, so that a community's context
    can hold its children's reports. Where the teacher gives no report, the community gets its
    extractive one and a row in failures. Findings come the most important first: those beyond
    settings.report_findings are cut.

    full_content_json holds for each of the teacher's findings the ids (entity_ids,
    relationship_ids) that it refers to; extractive findings have none.

    Args:
        count_tokens: texts to their token counts, int64 of shape (n,).

    Raises:
        ValueError: the tables name something that is in none of them.
        TeacherStopped: see Teacher.complete.
    """
    sources = read_sources(communities, entities, relationships, text_units)
    contexts = ReportContexts(
        communities, entities, relationships, settings.max_report_context_tokens, count_tokens
    )
    reports: dict[int, dict[str, Any]] = {}
    failures: list[tables.Failure] = []
    below: dict[int, ChildReport] = {}
    for level in sorted(set(communities["level"].to_pylist()), reverse=True):
        rows = [row for row in sources.communities.values() if row["level"] == level]
        by_id = {row["id"]: row for row in rows}
        failed: dict[int, tables.Failure] = {}
        given: dict[str, ReportContext] = {}
        calls = _calls(contexts.at_level(level, below), sources.communities, settings, given)
        for outcome in teacher.complete(calls):
            row, context = by_id[outcome.call.item_id], given[outcome.call.item_id]
            if isinstance(outcome, Completed):
                reports[row["community"]] = _row(row, outcome.value, context, settings)
            else:
                failed[row["community"]] = _failure(row, outcome.reason, outcome.attempts)
        for row in rows:
            if row["community"] not in reports:
                children = [reports[child] for child in row["children"]]
                made = extractive_report(row, children, sources, settings)
                reports[row["community"]] = made
                failures.append(failed.get(row["community"]) or _failure(row, _TOO_LONG, 0))
        below = {row["community"]: _child_report(reports[row["community"]]) for row in rows}
    ordered = [reports[number] for number in sources.communities]
    return tables.table("community_reports", ordered), tables.failures_table(failures)


def _calls(
    contexts: Iterable[ReportContext],
    communities: Mapping[int, Mapping[str, Any]],
    settings: GraphSettings,
    given: dict[str, ReportContext],
) -> Iterator[Call[CommunityReport]]:
    """Yield a call a context; an empty one, whose first row is too long, has none.

    Args:
        given: gets the context of each call by its item, without the text.
    """
    prompt = load_prompt(_PROMPT)
    for context in contexts:
        if context.entities or context.reports:
            item = communities[context.community]["id"]
            given[item] = replace(context, text="")
            yield Call(
                step=STEP,
                item_id=item,
                messages=prompt.messages(context=context.text, findings=settings.report_findings),
                schema=CommunityReport,
                max_tokens=_REPLY_TOKENS,
                check=partial(_wrong, len(context.entities), len(context.relationships)),
            )


def _wrong(entities: int, relationships: int, report: CommunityReport) -> str | None:
    """Return why the report cannot be used, or None.

    Args:
        entities, relationships: how many were given; they are numbered from 1 on.
    """
    if not report.findings:
        return "the report has no findings; give at least one"
    wrong = []
    for kind, given in (("entities", entities), ("relationships", relationships)):
        named = {number for each in report.findings for number in getattr(each, kind)}
        unknown = sorted(number for number in named if not 1 <= number <= given)
        if unknown:
            wrong.append(f"{kind} {', '.join(map(str, unknown))}")
    if not wrong:
        return None
    return f"the findings name ids that were not given: {'; '.join(wrong)}; use given ids only"


def _failure(community: Mapping[str, Any], reason: str, attempts: int) -> tables.Failure:
    instead = f"{reason}; the report is made of the corpus's own sentences instead"
    return tables.Failure(STEP, community["id"], instead, attempts)


def _row(
    community: Mapping[str, Any],
    report: CommunityReport,
    context: ReportContext,
    settings: GraphSettings,
) -> dict[str, Any]:
    findings = [
        {
            "summary": finding.summary,
            "explanation": finding.explanation,
            "entity_ids": _ids(context.entities, finding.entities),
            "relationship_ids": _ids(context.relationships, finding.relationships),
        }
        for finding in report.findings[: settings.report_findings]
    ]
    return report_row(
        community,
        report.title,
        report.summary,
        report.rating,
        report.rating_explanation,
        findings,
    )


def _ids(given: Sequence[str], numbers: Iterable[int]) -> list[str]:
    """Return the ids behind a context's numbers, each once."""
    return [given[number - 1] for number in dict.fromkeys(numbers)]


def _child_report(report: Mapping[str, Any]) -> ChildReport:
    lines = [ReportLine(f"## {report['title']}"), ReportLine(report["summary"])]
    for finding in json.loads(report["full_content_json"])["findings"]:
        lines.append(
            ReportLine(
                f"- {finding['summary']} {finding['explanation']}",
                tuple(finding.get("entity_ids", ())),
                tuple(finding.get("relationship_ids", ())),
            )
        )
    return ChildReport(tuple(lines), report["rank"])
