"""Community reports made of the corpus's own sentences, children first."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import GraphSettings

_SUMMARY_SENTENCES = 4
_FINDING_SENTENCES = 6
_NAMES = 4


def extractive_reports(
    communities: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    text_units: pa.Table,
    settings: GraphSettings,
) -> pa.Table:
    """Return the table `community_reports`, one a community, in the communities' order.

    A report's summary is the two to four most central statements of the community, its findings
    the statements about its most linked entities. A community with children is told through them:
    a finding a child, from the child's report, then the edges that join the children. Statements
    are weighed by their relationships' weights and by the links of their ends in the community.

    Raises:
        ValueError: a community names a text unit that `text_units` lacks.
    """
    _check_units(communities, text_units)
    edges = {row["id"]: row for row in relationships.to_pylist()}
    titles = dict(zip(entities["id"].to_pylist(), entities["title"].to_pylist(), strict=True))
    rows = communities.to_pylist()
    by_number = {row["community"]: row for row in rows}
    largest = max((_mass(row, edges) for row in rows), default=1.0)
    reports: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (-row["level"], row["community"])):
        below = [reports[child] for child in row["children"]]
        in_children = {
            edge for child in row["children"] for edge in by_number[child]["relationship_ids"]
        }
        own = [edges[edge] for edge in row["relationship_ids"] if edge not in in_children]
        reports[row["community"]] = _report(row, own, below, edges, titles, largest, settings)
    return tables.table("community_reports", [reports[row["community"]] for row in rows])


def _check_units(communities: pa.Table, text_units: pa.Table) -> None:
    known = set(text_units["id"].to_pylist())
    for row in communities.select(["id", "text_unit_ids"]).to_pylist():
        for unit in row["text_unit_ids"]:
            if unit not in known:
                raise ValueError(f"community {row['id']}: text unit {unit} is not in text_units")


def _mass(row: Mapping[str, Any], edges: Mapping[str, Mapping[str, Any]]) -> float:
    return float(row["size"] + sum(edges[edge]["weight"] for edge in row["relationship_ids"]))


def _report(
    row: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    below: Sequence[Mapping[str, Any]],
    edges: Mapping[str, Mapping[str, Any]],
    titles: Mapping[str, str],
    largest: float,
    settings: GraphSettings,
) -> dict[str, Any]:
    inner = [edges[edge] for edge in row["relationship_ids"]]
    links = Counter(end for edge in inner for end in (edge["source_id"], edge["target_id"]))
    central = sorted(row["entity_ids"], key=lambda entity: (-links[entity], titles[entity]))
    title = _and([titles[entity] for entity in central[:_NAMES]])
    scores = _sentence_scores(inner, links)
    summary = " ".join(_top(scores, _SUMMARY_SENTENCES))
    findings = [{"summary": each["title"], "explanation": each["summary"]} for each in below]
    findings += _entity_findings(central, own, links, titles)
    findings = findings[: settings.report_findings]
    mass = _mass(row, edges)
    rank = round(10 * math.log1p(mass) / math.log1p(largest), 2)
    statements = sum(edge["weight"] for edge in inner)
    explanation = (
        f"{row['size']} entities and {statements:g} statements that link them; the largest "
        f"community of the corpus counts {largest:g} of both and has rank 10."
    )
    parts = [f"# {title}", summary]
    parts += [f"## {each['summary']}\n\n{each['explanation']}" for each in findings]
    content = {
        "title": title,
        "summary": summary,
        "findings": findings,
        "rating": rank,
        "rating_explanation": explanation,
    }
    return {
        "id": content_id("rep", row["id"], title, summary),
        "human_readable_id": row["community"],
        "community": row["community"],
        "level": row["level"],
        "parent": row["parent"],
        "children": row["children"],
        "title": title,
        "summary": summary,
        "full_content": "\n\n".join(parts),
        "rank": rank,
        "rating_explanation": explanation,
        "findings": findings,
        "full_content_json": json.dumps(content, ensure_ascii=False, sort_keys=True),
        "period": row["period"],
        "size": row["size"],
    }


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
