"""Graphs by hand for the systems that answer from one, and the graphs of the samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.corpus.chunking import chunk_documents
from ragtuned_pipeline.corpus.readers import read_folder
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.tables import SCHEMAS, table
from ragtuned_pipeline_tests.evaluation import world

SAMPLES = Path(__file__).parents[2] / "ragtuned_pipeline" / "samples"


@dataclass(frozen=True)
class Entity:
    title: str
    description: str
    units: Sequence[int] = ()


@dataclass(frozen=True)
class Edge:
    source: int
    target: int
    description: str = "knows"
    weight: float = 1.0
    units: Sequence[int] = ()


@dataclass(frozen=True)
class Community:
    """Its number is its place; `content` None where it has no report."""

    level: int
    entities: Sequence[int]
    content: str | None = "what is reported"
    summary: str = "in short"
    rank: float = 5.0


def graph(
    entities: Sequence[Entity],
    edges: Sequence[Edge],
    communities: Sequence[Community],
    units: Sequence[str],
) -> dict[str, pa.Table]:
    """Return the tables of a graph; ids are ent-0, rel-0, com-0, tu-0 and so on, in order."""
    degrees = [sum(i in (e.source, e.target) for e in edges) for i in range(len(entities))]
    reported = [i for i, each in enumerate(communities) if each.content is not None]
    return {
        "documents": world.documents(),
        "text_units": _table(
            "text_units",
            [{"id": f"tu-{i}", "human_readable_id": i, "text": t} for i, t in enumerate(units)],
        ),
        "entities": _table(
            "entities",
            [
                {
                    "id": f"ent-{i}",
                    "human_readable_id": i,
                    "title": each.title,
                    "description": each.description,
                    "text_unit_ids": [f"tu-{unit}" for unit in each.units],
                    "degree": degrees[i],
                }
                for i, each in enumerate(entities)
            ],
        ),
        "relationships": _table(
            "relationships",
            [
                {
                    "id": f"rel-{i}",
                    "human_readable_id": i,
                    "source": entities[each.source].title,
                    "target": entities[each.target].title,
                    "description": each.description,
                    "weight": each.weight,
                    "combined_degree": degrees[each.source] + degrees[each.target],
                    "text_unit_ids": [f"tu-{unit}" for unit in each.units],
                    "source_id": f"ent-{each.source}",
                    "target_id": f"ent-{each.target}",
                }
                for i, each in enumerate(edges)
            ],
        ),
        "communities": _table(
            "communities",
            [
                {
                    "id": f"com-{i}",
                    "community": i,
                    "level": each.level,
                    "entity_ids": [f"ent-{entity}" for entity in each.entities],
                }
                for i, each in enumerate(communities)
            ],
        ),
        "community_reports": _table(
            "community_reports",
            [
                {
                    "id": f"report-{i}",
                    "community": i,
                    "level": communities[i].level,
                    "title": f"Community {i}",
                    "summary": communities[i].summary,
                    "full_content": communities[i].content,
                    "rank": communities[i].rank,
                }
                for i in reported
            ],
        ),
    }


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    blank = {field.name: [] if pa.types.is_list(field.type) else None for field in SCHEMAS[name]}
    return table(name, [blank | dict(row) for row in rows])


def sample(name: str) -> tuple[dict[str, pa.Table], list[str]]:
    """Return the tables of a sample's graph by the offline extraction, and its gold questions."""
    settings, folder = Settings(), SAMPLES / name
    read, _ = read_folder(folder / "documents", settings.corpus.max_file_megabytes)
    documents, units = chunk_documents(
        read,
        load_fast_tokenizer("embedded"),
        settings.corpus.chunk_tokens,
        settings.corpus.overlap_tokens,
    )
    found = extract(documents, units, settings.graph)
    nodes = found.entities, found.relationships
    communities = cluster(*nodes, settings.graph)
    reports = extractive_reports(communities, *nodes, found.text_units, settings.graph)
    lines = (folder / "gold" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "documents": documents,
        "text_units": found.text_units,
        "entities": found.entities,
        "relationships": found.relationships,
        "communities": communities,
        "community_reports": reports,
    }, [json.loads(line)["question"] for line in lines]
