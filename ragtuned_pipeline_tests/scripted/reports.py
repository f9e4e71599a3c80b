"""A scripted teacher's community reports: made of the rows in the prompt, always the same."""

from __future__ import annotations

import re
from typing import Any

_ROW = re.compile(r"^\d+ \| .*$", re.MULTILINE)
_CHILD = re.compile(r"^## (.+)\n(.+)$", re.MULTILINE)
_CHILD_FINDING = re.compile(
    r"^- (.+?)(?: \[(?:entities ([\d, ]+))?(?:; )?(?:relationships ([\d, ]+))?\])?$", re.MULTILINE
)
_AT_MOST = re.compile(r"at most (\d+)")
_ROWS_A_FINDING = 3
_FINDINGS = 5


def reply(name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the report that the conversation asks for, as the schema `name` has it."""
    if name != "CommunityReport":
        raise ValueError(f"no script for {name}")
    system, context = (message["content"] for message in messages[:2])
    before, _, after = context.partition("# Relationships\n")
    reports, _, rows = before.partition("# Entities\n")
    entities = [line.split(" | ") for line in _ROW.findall(rows)]
    relationships = [line.split(" | ") for line in _ROW.findall(after)]
    children = _CHILD.findall(reports)
    titles = [title for title, _ in children] + [row[1] for row in entities]
    stated = [summary for _, summary in children] + [row[-1] for row in relationships or entities]
    findings = _of_children(reports) + _of_rows(entities, relationships)
    return {
        "title": ", ".join(titles[:3])[:300],
        "summary": " ".join(filter(None, stated[:4]))[:600] or titles[0],
        "rating": min(10.0, 2.0 + len(entities) + len(children)),
        "rating_explanation": (
            f"It tells of {len(entities)} entities, {len(relationships)} relationships and "
            f"{len(children)} sub-communities."
        ),
        "findings": findings[: min(_FINDINGS, int(_AT_MOST.findall(system)[0]))],
    }


def _of_children(reports: str) -> list[dict[str, Any]]:
    """Return the first finding of each child again, with what it refers to."""
    made = []
    for child in reports.split("\n## ")[1:]:
        for text, entities, relationships in _CHILD_FINDING.findall(child)[:1]:
            title = child.splitlines()[0]
            made.append(_finding(title, text, _numbers(entities), _numbers(relationships)))
    return made


def _of_rows(entities: list[list[str]], relationships: list[list[str]]) -> list[dict[str, Any]]:
    numbers = {row[1]: int(row[0]) for row in entities}
    made = []
    for start in range(0, len(relationships), _ROWS_A_FINDING):
        rows = relationships[start : start + _ROWS_A_FINDING]
        ends = [numbers[end] for row in rows for end in row[1:3] if end in numbers]
        about = f"{rows[0][1]} and {rows[0][2]}"
        told = " ".join(row[3] for row in rows)
        made.append(_finding(about, told, ends, [int(row[0]) for row in rows]))
    # A community of one has no relationships.
    return made or [_finding(row[1], row[3], [int(row[0])], []) for row in entities[:1]]


def _finding(
    about: str, told: str, entities: list[int], relationships: list[int]
) -> dict[str, Any]:
    return {
        "summary": f"How {about[:300]} are linked.",
        "explanation": told[:350] or about,
        "entities": list(dict.fromkeys(entities)),
        "relationships": relationships,
    }


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",") if number.strip()]
