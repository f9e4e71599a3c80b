"""Community reports made of the corpus's own sentences, children first."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import GraphSettings

_SUMMARY_SENTENCES = 4
_FINDING_SENTENCES = 6
_NAMES = 4
_RATING_A_DECADE = 2.5


@dataclass(frozen=True)
class Sources:
    """What extractive reports are made of.

    Attributes:
        edges: relationship id -> its row.
        titles: entity id -> title.
        communities: number -> the community's row, in the table's order.
    """

    edges: Mapping[str, Mapping[str, Any]]
    titles: Mapping[str, str]
    communities: Mapping[int, Mapping[str, Any]]


def read_sources(
    communities: pa.Table, entities: pa.Table, relationships: pa.Table, text_units: pa.Table
) -> Sources:
    """Return what extractive reports are made of.

    Raises:
        ValueError: a community names a text unit that `text_units` lacks.
    """
    _check_units(communities, text_units)
    edges = {row["id"]: row for row in relationships.to_pylist()}
    titles = dict(zip(entities["id"].to_pylist(), entities["title"].to_pylist(), strict=True))
    rows = {row["community"]: row for row in communities.to_pylist()}
    return Sources(edges, titles, rows)


def extractive_reports(
    communities: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    text_units: pa.Table,
    settings: GraphSettings,
) -> pa.Table:
    """Return the table `community_reports`, one a community, in the communities' order.

    Raises:
        ValueError: a community names a text unit that `text_units` lacks.
    """
    sources = read_sources(communities, entities, relationships, text_units)
    reports: dict[int, dict[str, Any]] = {}
    bottom_up = sorted(
        sources.communities.values(), key=lambda row: (-row["level"], row["community"])
    )
    for row in bottom_up:
        below = [reports[child] for child in row["children"]]
        reports[row["community"]] = extractive_report(row, below, sources, settings)
    return tables.table("community_reports", [reports[number] for number in sources.communities])


def extractive_report(
    row: Mapping[str, Any],
    below: Sequence[Mapping[str, Any]],
    sources: Sources,
    settings: GraphSettings,
) -> dict[str, Any]:
    """Return the report on the community `row`; `below` are its children's reports.

    Its summary is the two to four most central statements of the community, its findings the
    statements about its most linked entities. A community with children is told through them: a
    finding a child, from the child's report, then the edges that join the children. Statements
    are weighed by their relationships' weights and by the links of their ends in the community.
    """
    edges, titles = sources.edges, sources.titles
    in_children = {
        edge for child in row["children"] for edge in sources.communities[child]["relationship_ids"]
    }
    own = [edges[edge] for edge in row["relationship_ids"] if edge not in in_children]
    inner = [edges[edge] for edge in row["relationship_ids"]]
    links = Counter(end for edge in inner for end in (edge["source_id"], edge["target_id"]))
    central = sorted(row["entity_ids"], key=lambda entity: (-links[entity], titles[entity]))
    title = _and([titles[entity] for entity in central[:_NAMES]])
    scores = _sentence_scores(inner, links)
    summary = " ".join(_top(scores, _SUMMARY_SENTENCES))
    findings = [{"summary": each["title"], "explanation": each["summary"]} for each in below]
    findings += _entity_findings(central, own, links, titles)
    mass = _mass(row, edges)
    statements = sum(edge["weight"] for edge in inner)
    return report_row(
        row,
        title,
        summary,
        # Of the community alone, so that a larger one elsewhere changes no report.
        rating=round(min(10.0, _RATING_A_DECADE * math.log10(1 + mass)), 2),
        rating_explanation=(
            f"{row['size']} entities and {statements:g} statements that link them; "
            "10,000 of both have rank 10."
        ),
        findings=findings[: settings.report_findings],
    )


def report_row(
    community: Mapping[str, Any],
    title: str,
    summary: str,
    rating: float,
    rating_explanation: str,
    findings: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a row of community_reports.

    Args:
        findings: each with `summary` and `explanation`; what else it has is in full_content_json
            only.
    """
    content = {
        "title": title,
        "summary": summary,
        "findings": findings,
        "rating": rating,
        "rating_explanation": rating_explanation,
    }
    parts = [f"# {title}", summary]
    parts += [f"## {each['summary']}\n\n{each['explanation']}" for each in findings]
    return {
        "id": content_id("rep", community["id"], title, summary),
        "human_readable_id": community["community"],
        "community": community["community"],
        "level": community["level"],
        "parent": community["parent"],
        "children": community["children"],
        "title": title,
        "summary": summary,
        "full_content": "\n\n".join(parts),
        "rank": rating,
        "rating_explanation": rating_explanation,
        "findings": [{key: each[key] for key in ("summary", "explanation")} for each in findings],
        "full_content_json": json.dumps(content, ensure_ascii=False, sort_keys=True),
        "period": community["period"],
        "size": community["size"],
    }


def _check_units(communities: pa.Table, text_units: pa.Table) -> None:
    known = set(text_units["id"].to_pylist())
    for row in communities.select(["id", "text_unit_ids"]).to_pylist():
        for unit in row["text_unit_ids"]:
            if unit not in known:
                raise ValueError(f"community {row['id']}: text unit {unit} is not in text_units")


def _mass(row: Mapping[str, Any], edges: Mapping[str, Mapping[str, Any]]) -> float:
    """Return how many entities the community has and how many statements link them."""
    return float(row["size"] + sum(edges[edge]["weight"] for edge in row["relationship_ids"]))


def _sentence_scores(
    inner: Iterable[Mapping[str, Any]], links: Mapping[str, int]
) -> dict[str, float]:
    """Return sentence -> how much of the community hangs on what it states."""
    scores: dict[str, float] = defaultdict(float)
    for edge in inner:
        ends = math.log1p(links[edge["source_id"]]) + math.log1p(links[edge["target_id"]])
        for sentence in edge["sentences"]:
            scores[sentence] += ends * math.sqrt(edge["weight"])
    return {
        # A question states little, and a very long sentence wins by its length alone.
        sentence: score * (0.2 if sentence.endswith("?") else 1) / math.sqrt(40 + len(sentence))
        for sentence, score in scores.items()
    }


def _top(scores: Mapping[str, float], most: int) -> list[str]:
    """Return the best sentences in the order in which `scores` holds them."""
    best = set(sorted(scores, key=lambda sentence: (-scores[sentence], sentence))[:most])
    return [sentence for sentence in scores if sentence in best]


def _entity_findings(
    central: Sequence[str],
    own: Sequence[Mapping[str, Any]],
    links: Mapping[str, int],
    titles: Mapping[str, str],
) -> list[dict[str, str]]:
    """Return a finding an entity, the most linked first; each sentence is told once."""
    told: set[str] = set()
    of_entity: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for edge in own:
        of_entity[edge["source_id"]].append(edge)
        of_entity[edge["target_id"]].append(edge)
    findings = []
    for entity in central:
        scores = _sentence_scores(of_entity[entity], links)
        fresh = _top({s: v for s, v in scores.items() if s not in told}, _FINDING_SENTENCES)
        if not fresh:
            continue
        told.update(fresh)
        others = [
            titles[edge["target_id"] if edge["source_id"] == entity else edge["source_id"]]
            for edge in of_entity[entity]
        ]
        names = list(dict.fromkeys(others))[:_NAMES]
        findings.append(
            {"summary": f"{titles[entity]}: {_and(names)}", "explanation": " ".join(fresh)}
        )
    return findings


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
