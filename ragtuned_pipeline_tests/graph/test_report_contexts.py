"""What a community's report is written from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.report_contexts import (
    ChildReport,
    ReportContext,
    ReportContexts,
    ReportLine,
)
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline_tests.graph.test_communities_and_reports import graph_tables, towns

GRAPH = Settings().graph.model_copy(update={"max_cluster_size": 4})
PLENTY = 10**6


def words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows_in(text: str, heading: str) -> list[int]:
    """Return the numbers of the rows under `heading`."""
    below = text.partition(f"# {heading}\nid")[2].split("\n\n")[0].split("\n")[1:]
    return [int(line.split(" | ")[0]) for line in below if line]


def entities_in(context: ReportContext) -> list[str]:
    return [context.entities[number - 1] for number in rows_in(context.text, "Entities")]


def relationships_in(context: ReportContext) -> list[str]:
    return [context.relationships[number - 1] for number in rows_in(context.text, "Relationships")]


def child_report(number: int, length: int = 5) -> ChildReport:
    lines = ReportLine(f"## Report {number}"), ReportLine("word " * length)
    return ChildReport(lines, float(number))


def all_contexts(
    communities: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    max_tokens: int,
    report_length: int = 5,
) -> dict[int, ReportContext]:
    """Return every community's context, children with a made-up report."""
    contexts = ReportContexts(communities, entities, relationships, max_tokens, words)
    made: dict[int, ReportContext] = {}
    below: dict[int, ChildReport] = {}
    for level in sorted(set(communities["level"].to_pylist()), reverse=True):
        at_level = {each.community: each for each in contexts.at_level(level, below)}
        below = {number: child_report(number, report_length) for number in at_level}
        made |= at_level
    return made


def inner_edges(community: dict[str, Any], relationships: pa.Table) -> set[str]:
    """Return the ids of the relationships with both ends in the community."""
    members = set(community["entity_ids"])
    return {
        row["id"]
        for row in relationships.to_pylist()
        if {row["source_id"], row["target_id"]} <= members
    }


def test_peers_defect_3_all_inner_edges_reach_the_prompt_and_no_others() -> None:
    entities, relationships = towns()
    communities = cluster(entities, relationships, GRAPH)
    contexts = all_contexts(communities, entities, relationships, PLENTY)
    assert len(contexts) == communities.num_rows
    for row in communities.to_pylist():
        context = contexts[row["community"]]
        assert set(relationships_in(context)) == inner_edges(row, relationships)
        assert set(entities_in(context)) == set(row["entity_ids"])
        assert rows_in(context.text, "Entities") == [*range(1, len(context.entities) + 1)]
        assert rows_in(context.text, "Relationships") == [*range(1, len(context.relationships) + 1)]
        assert (context.left_out, context.reports) == (0, ())
        assert "left out" not in context.text


def test_peers_defect_3_children_are_told_by_their_reports_where_rows_do_not_fit() -> None:
    entities, relationships = towns()
    communities = cluster(entities, relationships, GRAPH)
    contexts = all_contexts(communities, entities, relationships, max_tokens=260)
    by_number = {row["community"]: row for row in communities.to_pylist()}
    parents = [context for context in contexts.values() if context.reports]
    assert parents
    for context in parents:
        row = by_number[context.community]
        told = [by_number[child] for child in context.reports]
        inside = set().union(*(inner_edges(child, relationships) for child in told))
        shown = set(relationships_in(context))
        assert set(context.reports) <= set(row["children"])
        assert all(f"## Report {child}\nword" in context.text for child in context.reports)
        assert not shown & inside
        assert shown | inside == inner_edges(row, relationships)
        assert context.left_out == 0


def ring_of_rings(sizes: Iterable[int]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return a root community whose children are cliques of the `sizes`, tied into a chain."""
    groups, edges, start = [], [], 0
    for size in sizes:
        groups.append(list(range(start, start + size)))
        edges += [(a, b, 1.0) for a in groups[-1] for b in groups[-1] if a < b]
        if start:
            edges.append((start - 1, start, 1.0))
        start += size
    entities, relationships = graph_tables(start, edges)
    every = [list(range(start)), *groups]
    rows = [
        {
            "id": f"com-{n}",
            "human_readable_id": n,
            "community": n,
            "level": int(n > 0),
            "parent": 0 if n else -1,
            "children": [] if n else list(range(1, len(every))),
            "title": f"C{n}",
            "entity_ids": [f"ent-{i:03}" for i in group],
            "relationship_ids": [
                f"rel-{a:03}-{b:03}" for a, b, _ in edges if a in group and b in group
            ],
            "text_unit_ids": [],
            "period": None,
            "size": len(group),
        }
        for n, group in enumerate(every)
    ]
    return tables.table("communities", rows), entities, relationships


def test_the_largest_children_are_replaced_first_and_no_more_than_needed() -> None:
    communities, entities, relationships = ring_of_rings([6, 3, 5])
    contexts = [
        all_contexts(communities, entities, relationships, limit)[0]
        for limit in (1000, 300, 200, 120)
    ]
    assert [context.reports for context in contexts] == [(), (1,), (3, 1), (3, 2, 1)]
    assert [context.left_out for context in contexts] == [0, 0, 0, 0]


def test_a_report_longer_than_its_rows_replaces_nothing() -> None:
    communities, entities, relationships = ring_of_rings([6, 3, 5])
    fitting, cut = (
        all_contexts(communities, entities, relationships, limit, report_length=90)[0]
        for limit in (320, 290)
    )
    assert fitting.reports == cut.reports == (3, 1)
    assert (fitting.left_out, cut.left_out > 0) == (0, True)
    of_the_small = inner_edges(communities.to_pylist()[2], relationships)
    assert of_the_small <= set(relationships_in(fitting))


def test_reports_that_do_not_fit_are_cut_by_rank_and_their_rows_counted() -> None:
    communities, entities, relationships = ring_of_rings([6, 6, 6])
    context = all_contexts(communities, entities, relationships, 200, report_length=60)[0]
    assert context.reports == (3, 2)
    assert context.left_out == 15 + 2 - len(relationships_in(context))


def test_what_is_still_too_long_is_cut_by_rank_and_counted() -> None:
    entities, relationships = graph_tables(6, [(0, i, float(i)) for i in range(1, 6)])
    degrees = pa.array([9, 1, 1, 1, 7], pa.int64())
    place = relationships.schema.get_field_index("combined_degree")
    relationships = relationships.set_column(place, "combined_degree", degrees)
    communities, _, _ = ring_of_rings([6])
    communities = communities.slice(0, 1)
    ids = pa.array([relationships["id"].to_pylist()], communities.schema.field(8).type)
    communities = communities.set_column(8, communities.schema.field(8), ids)
    whole = all_contexts(communities, entities, relationships, PLENTY)[0]
    by_rank = [f"rel-000-{i:03}" for i in (1, 5, 4, 3, 2)]
    assert relationships_in(whole) == by_rank
    cut = all_contexts(communities, entities, relationships, 120)[0]
    shown = relationships_in(cut)
    assert shown == by_rank[: len(shown)]
    assert 0 < len(shown) < 5
    assert entities_in(cut) == [f"ent-{i:03}" for i in (0, 1, 5, 4, 3, 2)][: len(shown) + 1]
    assert cut.left_out == 5 - len(shown)
    assert f"{cut.left_out} further rows" in cut.text


def test_a_member_without_an_inner_relationship_is_told_too() -> None:
    communities, entities, relationships = ring_of_rings([1, 3])
    contexts = all_contexts(communities, entities, relationships, PLENTY)
    assert entities_in(contexts[1]) == ["ent-000"]
    assert contexts[1].relationships == ()
    assert entities_in(contexts[0]).count("ent-000") == 1


def test_a_row_stays_one_line() -> None:
    communities, entities, relationships = ring_of_rings([2])
    place = entities.schema.get_field_index("description")
    entities = entities.set_column(place, "description", pa.array(["one\n\ntwo", None]))
    context = all_contexts(communities, entities, relationships, PLENTY)[0]
    assert "1 | E000 | person | one two\n2 | E001 | person | \n" in context.text


def test_dangling_ids_are_named() -> None:
    communities, entities, relationships = ring_of_rings([3])
    with pytest.raises(ValueError, match="ent-002 is named"):
        ReportContexts(communities, entities.slice(0, 2), relationships, 1000, words)
    with pytest.raises(ValueError, match="rel-001-002 is named"):
        ReportContexts(communities, entities, relationships.slice(0, 2), 1000, words)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 23), st.integers(0, 23), st.sampled_from([1.0, 2.0, 5.0])),
        min_size=1,
        max_size=120,
        unique_by=lambda edge: edge[:2],
    ),
    st.integers(60, 700),
    st.integers(1, 60),
)
def test_every_inner_edge_is_shown_or_stood_for_or_counted(edges, limit, length) -> None:  # type: ignore[no-untyped-def]
    entities, relationships = graph_tables(24, [edge for edge in edges if edge[0] != edge[1]])
    communities = cluster(entities, relationships, GRAPH)
    by_number = {row["community"]: row for row in communities.to_pylist()}
    contexts = all_contexts(communities, entities, relationships, limit, length)
    assert contexts.keys() == by_number.keys()
    ends = {row["id"]: (row["source_id"], row["target_id"]) for row in relationships.to_pylist()}
    for number, row in by_number.items():
        context = contexts[number]
        assert words([context.text])[0] <= limit
        inner, shown = inner_edges(row, relationships), relationships_in(context)
        told = [by_number[child] for child in context.reports]
        inside = set().union(*(inner_edges(child, relationships) for child in told))
        assert len(set(shown)) == len(shown)
        assert set(shown) <= inner - inside
        alone = [
            entity
            for entity in row["entity_ids"]
            if all(entity not in ends[edge] for edge in inner)
        ]
        named = set(entities_in(context))
        held = {entity for child in told for entity in child["entity_ids"]}
        missing = [entity for entity in alone if entity not in named | held]
        assert context.left_out == len(inner - inside - set(shown)) + len(missing)
        assert {end for edge in shown for end in ends[edge]} <= named <= set(row["entity_ids"])
        assert (f"{context.left_out} further rows" in context.text) == (context.left_out > 0)


def test_a_row_that_the_graph_gains_elsewhere_changes_no_other_context() -> None:
    communities, entities, relationships = ring_of_rings([4, 5, 3])
    before = all_contexts(communities, entities, relationships, 200)
    # A first row: all that were there move down by one.
    new_entities, _ = graph_tables(1, [])
    new = new_entities.set_column(0, "id", pa.array(["ent-new"]))
    after = all_contexts(communities, pa.concat_tables([new, entities]), relationships, 200)
    assert after == before


def test_a_parent_numbers_what_its_childrens_reports_refer_to_after_its_own_rows() -> None:
    communities, entities, relationships = ring_of_rings([6, 3])
    lines = (ReportLine("## Big"), ReportLine("- told", ("ent-005", "ent-002"), ("rel-000-001",)))
    contexts = ReportContexts(communities, entities, relationships, 150, words)
    [context] = contexts.at_level(0, {1: ChildReport(lines, 1.0), 2: child_report(2)})
    assert context.reports == (1,)
    told = [line for line in context.text.split("\n") if line.startswith("- told")]
    shown, linked = len(entities_in(context)), len(relationships_in(context))
    assert "ent-005" in entities_in(context)  # the end of the link to the other child
    assert "ent-002" not in entities_in(context)
    at = context.entities.index("ent-005") + 1
    assert told == [f"- told [entities {at}, {shown + 1}; relationships {linked + 1}]"]
    assert (context.entities[shown], context.relationships[linked]) == ("ent-002", "rel-000-001")
