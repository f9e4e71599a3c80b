"""Communities, their reports, and the graph's pictures."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.network import draw, to_networkx, write_graphml
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline_tests.graph.corpora import GOLDEN, corpus

GOLDEN_TITLE = "Rurik Pell, Saltwick, Brannock Harbour Trust and Grey Plover"
GOLDEN_SUMMARY = (
    "The Trust was founded by Judge Ilse Corran. Yesterday the BHT thanked Pell. "
    "Captain Rurik Pell sailed the Grey Plover from Saltwick. Corran lives in Saltwick."
)
GRAPH = Settings().graph.model_copy(update={"max_cluster_size": 4})


def graph_tables(size: int, edges: list[tuple[int, int, float]]) -> tuple[pa.Table, pa.Table]:
    """Return entities E000... and relationships, each with a sentence and a text unit."""
    entities = [
        {
            "id": f"ent-{i:03}",
            "human_readable_id": i,
            "title": f"E{i:03}",
            "type": "person",
            "description": f"E{i:03} is here.",
            "text_unit_ids": [],
            "frequency": 1,
            "degree": sum(i in edge[:2] for edge in edges),
            "aliases": [],
            "type_votes": [],
        }
        for i in range(size)
    ]
    relationships = [
        {
            "id": f"rel-{a:03}-{b:03}",
            "human_readable_id": n,
            "source": f"E{a:03}",
            "target": f"E{b:03}",
            "description": f"E{a:03} met E{b:03}.",
            "weight": weight,
            "combined_degree": 0,
            "text_unit_ids": [f"tu-{a:03}"],
            "source_id": f"ent-{a:03}",
            "target_id": f"ent-{b:03}",
            "sentences": [f"E{a:03} met E{b:03}."],
            "inverse": None,
        }
        for n, (a, b, weight) in enumerate(edges)
    ]
    return tables.table("entities", entities), tables.table("relationships", relationships)


def cliques(*sizes: int, bridges: bool) -> tuple[pa.Table, pa.Table]:
    edges: list[tuple[int, int, float]] = []
    start = 0
    for size in sizes:
        edges += [(a, b, 2.0) for a, b in combinations(range(start, start + size), 2)]
        if bridges and start:
            edges.append((start - 1, start, 1.0))
        start += size
    return graph_tables(start, edges)


def towns() -> tuple[pa.Table, pa.Table]:
    """Return twelve rings of three triangles each, tied into one ring."""
    edges: list[tuple[int, int, float]] = []
    for town in range(0, 108, 9):
        for street in range(town, town + 9, 3):
            edges += [(a, b, 3.0) for a, b in combinations(range(street, street + 3), 2)]
            edges += [(street + i, town + (street - town + 3 + i) % 9, 1.0) for i in range(3)]
        edges.append((town, (town + 9) % 108, 1.0))
    return graph_tables(108, edges)


def units_of(relationships: pa.Table) -> pa.Table:
    names = sorted({unit for units in relationships["text_unit_ids"].to_pylist() for unit in units})
    empty: dict[str, Any] = {
        "human_readable_id": 0,
        "text": "",
        "n_tokens": 0,
        "document_id": "doc-0",
        "entity_ids": [],
        "relationship_ids": [],
        "covariate_ids": [],
        "start": 0,
        "end": 0,
    }
    return tables.table("text_units", [{"id": name} | empty for name in names])


def test_every_component_is_clustered_and_isolated_entities_are_not() -> None:
    entities, relationships = cliques(4, 3, bridges=False)
    lonely = entities.slice(0, 1).to_pylist()[0] | {"id": "ent-999", "title": "Lonely"}
    entities = pa.concat_tables([entities, tables.table("entities", [lonely])])
    communities = cluster(entities, relationships, GRAPH).to_pylist()
    assert [row["entity_ids"] for row in communities] == [
        ["ent-000", "ent-001", "ent-002", "ent-003"],
        ["ent-004", "ent-005", "ent-006"],
    ]
    assert [(row["level"], row["parent"], row["children"]) for row in communities] == [
        (0, -1, []),
        (0, -1, []),
    ]


def test_large_clusters_are_split_and_hold_together() -> None:
    entities, relationships = towns()
    communities = cluster(entities, relationships, GRAPH).to_pylist()
    by_number = {row["community"]: row for row in communities}
    assert max(row["level"] for row in communities) >= 1
    edges = {row["id"]: row for row in relationships.to_pylist()}
    for row in communities:
        members = set(row["entity_ids"])
        assert row["size"] == len(members)
        inner = {
            edge
            for edge, ends in edges.items()
            if {ends["source_id"], ends["target_id"]} <= members
        }
        assert set(row["relationship_ids"]) == inner
        if row["parent"] == -1:
            assert row["level"] == 0
        else:
            parent = by_number[row["parent"]]
            assert row["level"] == parent["level"] + 1
            assert row["community"] in parent["children"]
            assert members < set(parent["entity_ids"])
        if row["children"]:
            below = [set(by_number[child]["entity_ids"]) for child in row["children"]]
            assert set().union(*below) == members
            assert sum(map(len, below)) == len(members)
    roots = [row["entity_ids"] for row in communities if row["level"] == 0]
    assert sorted(entity for root in roots for entity in root) == entities["id"].to_pylist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 11), st.sampled_from([1.0, 2.0])),
        min_size=1,
        max_size=40,
        unique_by=lambda edge: edge[:2],
    ),
    st.randoms(use_true_random=False),
)
def test_order_and_direction_of_edges_do_not_matter(edges, random) -> None:  # type: ignore[no-untyped-def]
    edges = [edge for edge in edges if edge[0] != edge[1]]
    entities, relationships = graph_tables(12, edges)
    once = cluster(entities, relationships, GRAPH)
    random.shuffle(edges)
    turned = [(b, a, weight) for a, b, weight in edges]
    again = cluster(entities, graph_tables(12, turned)[1], GRAPH)
    assert once["id"].to_pylist() == again["id"].to_pylist()
    linked = {f"ent-{end:03}" for edge in edges for end in edge[:2]}
    held = {
        entity
        for level, entities in zip(
            once["level"].to_pylist(), once["entity_ids"].to_pylist(), strict=True
        )
        if level == 0
        for entity in entities
    }
    assert held == linked


def test_no_relationships_no_communities_no_reports() -> None:
    entities, relationships = graph_tables(2, [])
    communities = cluster(entities, relationships, GRAPH)
    reports = extractive_reports(
        communities, entities, relationships, units_of(relationships), GRAPH
    )
    tables.check_schema("communities", communities)
    tables.check_schema("community_reports", reports)
    assert communities.num_rows == reports.num_rows == 0
    assert "<svg" in draw(*graph_tables(0, []), communities)


def test_golden_report() -> None:
    graph = extract(*corpus(GOLDEN), Settings().graph)
    communities = cluster(graph.entities, graph.relationships, Settings().graph)
    reports = extractive_reports(
        communities, graph.entities, graph.relationships, graph.text_units, Settings().graph
    )
    tables.check_schema("community_reports", reports)
    assert reports["community"].to_pylist() == communities["community"].to_pylist()
    first = reports.to_pylist()[0]
    text = " ".join(GOLDEN.values())
    assert first["title"] == GOLDEN_TITLE
    assert first["summary"] == GOLDEN_SUMMARY
    assert first["rank"] == 2.7  # of eleven entities and statements
    assert first["full_content"].startswith(f"# {first['title']}\n\n{first['summary']}\n\n## ")
    assert json.loads(first["full_content_json"])["findings"] == first["findings"]
    for finding in first["findings"]:
        assert all(part in text for part in finding["explanation"].split(". "))


def test_a_parent_is_told_by_its_children_and_its_own_edges() -> None:
    entities, relationships = towns()
    many = GRAPH.model_copy(update={"report_findings": 50})
    communities = cluster(entities, relationships, many)
    reports = {
        row["community"]: row
        for row in extractive_reports(
            communities, entities, relationships, units_of(relationships), many
        ).to_pylist()
    }
    edges = {row["id"]: row for row in relationships.to_pylist()}
    parents = [row for row in communities.to_pylist() if row["children"]]
    assert parents
    held = {row["community"]: set(row["relationship_ids"]) for row in communities.to_pylist()}
    for row in parents:
        report = reports[row["community"]]
        told = {finding["summary"]: finding["explanation"] for finding in report["findings"]}
        for child in row["children"]:
            assert told[reports[child]["title"]] == reports[child]["summary"]
        own = held[row["community"]] - set().union(*(held[child] for child in row["children"]))
        assert own
        for edge in own:
            assert edges[edge]["sentences"][0] in report["full_content"]


def test_findings_keep_to_their_number() -> None:
    entities, relationships = cliques(6, bridges=False)
    few = GRAPH.model_copy(update={"report_findings": 2})
    communities = cluster(entities, relationships, few)
    (report, *_) = extractive_reports(
        communities, entities, relationships, units_of(relationships), few
    ).to_pylist()
    assert len(report["findings"]) == 2


def test_an_unknown_text_unit_is_an_error() -> None:
    entities, relationships = cliques(3, bridges=False)
    communities = cluster(entities, relationships, GRAPH)
    no_units = units_of(relationships.slice(0, 0))
    with pytest.raises(ValueError, match="tu-000 is not in text_units"):
        extractive_reports(communities, entities, relationships, no_units, GRAPH)


def test_networkx_and_graphml_keep_both_directions(tmp_path: Path) -> None:
    entities, relationships = graph_tables(3, [(0, 1, 1.0), (1, 0, 2.0), (1, 2, 1.0)])
    graph = to_networkx(entities, relationships)
    assert sorted(graph.edges) == [
        ("ent-000", "ent-001"),
        ("ent-001", "ent-000"),
        ("ent-001", "ent-002"),
    ]
    write_graphml(entities, relationships, tmp_path / "graph.graphml")
    back = nx.read_graphml(tmp_path / "graph.graphml")
    assert back.nodes["ent-001"]["title"] == "E001"
    assert back.edges["ent-001", "ent-000"]["weight"] == 2.0


def test_the_picture_is_whole_and_always_the_same() -> None:
    entities, relationships = cliques(*[4] * 20, bridges=True)
    communities = cluster(entities, relationships, GRAPH)
    picture = draw(entities, relationships, communities)
    assert picture == draw(entities, relationships, communities)
    root = ElementTree.fromstring(picture)
    labels = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(labels) == 60
    assert 'href="http' not in picture
