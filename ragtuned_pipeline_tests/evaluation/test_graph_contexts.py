"""The contexts of GraphRAG's searches: shares, orders, and peers' defects that ours do not have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.retrieval import text_index
from ragtuned_pipeline.evaluation.systems.graph_contexts import (
    LocalContext,
    LocalContexts,
    ReportBatch,
    report_batches,
)
from ragtuned_pipeline.evaluation.systems.tokens import Tokens
from ragtuned_pipeline_tests.evaluation.graph_world import (
    Community,
    Edge,
    Entity,
    graph,
    sample,
)


class Words:
    """A tokenizer of words."""

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(text.split()) for text in texts], dtype=np.int64)

    def cut(self, text: str, most: int) -> str:
        return " ".join(text.split()[:most])


WORDS = Words()

# Four people of a bakery and a mill: 0 and 1 are the bakery's, 2 and 3 the mill's, 4 is nowhere.
PEOPLE = [
    Entity("Ada", "Ada bakes.", [0, 1]),
    Entity("Bo", "Bo sells\nbread.", [1, 2]),
    Entity("Cy", "Cy mills.", [2]),
    Entity("Di", "Di owns the mill.", [3]),
    Entity("Ed", "Ed walks by.", [3]),
]
TIES = [
    Edge(0, 1, "employs", 1.0, [1]),
    Edge(1, 2, "buys from", 2.0, [2]),
    Edge(2, 3, "works for", 1.0, [3]),
    Edge(0, 3, "is a friend of", 1.0, [1]),
    Edge(1, 3, "owes", 9.0, [1, 2]),
]
CIRCLES = [
    Community(0, [0, 1, 2, 3], "All the valley.", "The valley.", 7.5),
    Community(1, [0, 1], "The bakery.", "Bakery.", 6.0),
    Community(1, [2, 3], "The mill.", "Mill.", 8.0),
]
UNITS = ["Flour.", "Ada\nand Bo.", "Bo and Cy.", "Di and Ed."]

GOLDEN = """\
-----Reports-----
id|title|content
1|Community 1|The bakery.
2|Community 2|The mill.

-----Entities-----
id|entity|description|number of relationships
1|Bo|Bo sells bread.|3
0|Ada|Ada bakes.|2
2|Cy|Cy mills.|2

-----Relationships-----
id|source|target|description|weight
1|Bo|Cy|buys from|2
0|Ada|Bo|employs|1
4|Bo|Di|owes|9
2|Cy|Di|works for|1
3|Ada|Di|is a friend of|1

-----Sources-----
id|text
1|Ada
and Bo.
2|Bo and Cy.
0|Flour.
"""


def valley() -> dict[str, pa.Table]:
    return graph(PEOPLE, TIES, CIRCLES, UNITS)


def local(tables: Mapping[str, pa.Table], level: int, most: int) -> LocalContexts:
    return LocalContexts(tables, level, most, WORDS.count)


def sections(text: str) -> dict[str, str]:
    """The parts of a context by their headings, each with its heading."""
    found = re.split(r"^-----(\w+)-----\n", text, flags=re.MULTILINE)
    return {
        name: f"-----{name}-----\n{body}"
        for name, body in zip(found[1::2], found[2::2], strict=True)
    }


def test_a_golden_context() -> None:
    # Text units 1 and 2 state two relationships of Bo each; Bo's list has unit 1 first.
    context = local(valley(), 2, 1000).of([1, 0, 2])
    assert context.text == GOLDEN
    assert context == LocalContext(
        GOLDEN, (1, 2), (), (1, 0, 2), (1, 0, 4, 2, 3), (1, 2, 0), left_out=0
    )


@pytest.mark.parametrize(
    ("level", "selected", "reports"),
    [
        (0, [0, 2], (0,)),  # the roots report on both
        (1, [0, 2], (2, 1)),  # equally many entities: the higher rank first
        (1, [0, 2, 1], (1, 2)),  # more entities first, whatever the rank
        (5, [3], (2,)),  # no community is so deep: the deepest there is
        (1, [4], ()),  # in no community
    ],
)
def test_an_entity_is_reported_on_by_its_deepest_community(
    level: int, selected: list[int], reports: tuple[int, ...]
) -> None:
    assert local(valley(), level, 1000).of(selected).reports == reports


def test_a_community_without_a_report_leaves_its_parents() -> None:
    circles = [CIRCLES[0], Community(1, [0, 1], None), CIRCLES[2]]
    context = local(graph(PEOPLE, TIES, circles, UNITS), 1, 1000).of([0, 2])
    assert context.text.startswith("-----Reports-----\nid|title|content\n2|Community 2|")
    assert context.reports == (1, 0)  # rows: report-2 is the second report


def test_reports_that_do_not_fit_are_told_by_their_summaries() -> None:
    long = " ".join(["word"] * 40)
    circles = [Community(0, [0, 1], long, "All of it."), Community(0, [2], "Short.", "It.")]
    tables = graph(PEOPLE, TIES, circles, UNITS)
    context = local(tables, 0, 200).of([0, 1, 2])
    assert (context.reports, context.summaries) == ((), (0, 1))
    assert sections(context.text)["Reports"].splitlines()[2:4] == [
        "0|Community 0|All of it.",
        "1|Community 1|It.",
    ]
    assert local(tables, 0, 400).of([0, 1, 2]).reports == (0, 1)


def test_summaries_have_the_room_that_whole_reports_leave() -> None:
    circles = [
        Community(0, [0, 1], " ".join(["word"] * 20), "All.", 5.0),
        Community(0, [2], " ".join(["word"] * 90), " ".join(["word"] * 12), 5.0),
    ]
    tables = graph(PEOPLE, TIES, circles, UNITS)
    enough = local(tables, 0, 245).of([0, 1, 2])
    assert (enough.reports, enough.summaries) == ((0,), (1,))
    short = local(tables, 0, 230).of([0, 1, 2])
    assert (short.reports, short.summaries) == ((0,), ())


def test_relationships_between_the_selected_come_first_when_room_is_short() -> None:
    # 12 entities that all know each other, with much to say of each: 66 relationships.
    many = [Entity(f"E{i}", "long " * 30) for i in range(12)]
    ties = [Edge(a, b, "knows of long") for a in range(12) for b in range(a)]
    outside = [Edge(0, 12, "met", 99.0), Edge(12, 13, "met", 99.0)]
    tables = graph(
        [*many, Entity("Out", "there"), Entity("Far", "away")], [*ties, *outside], [], UNITS
    )
    context = local(tables, 0, 800).of(range(12))
    assert set(context.relationships[:66]) == set(range(66))
    assert context.left_out == 0
    assert len(context.entities) == 2
    # What lacks room is not made up for by relationships with others, however short.
    for most in range(100, 140):
        short = local(tables, 0, most).of(range(12))
        assert set(short.relationships) < set(range(66))
        assert len(short.relationships) + short.left_out == 66


def test_an_outside_entity_that_more_of_the_selected_know_comes_first() -> None:
    names = [Entity(name, name) for name in ("Ada", "Bo", "Known to both", "Known to Bo")]
    ties = [Edge(1, 3, "often", 99.0), Edge(0, 2), Edge(2, 1), Edge(1, 3, "again", 99.0)]
    context = local(graph(names, ties, [], UNITS), 0, 1000).of([0, 1])
    # Bo's two ties with one entity are one link; by degree alone they would be first.
    assert context.relationships == (2, 1, 0, 3)


def test_a_tie_of_an_entity_with_itself_counts_once() -> None:
    names = [Entity("Ada", "Ada", [1, 0]), Entity("Bo", "Bo")]
    ties = [Edge(0, 0, units=[0]), Edge(0, 1, units=[1])]
    context = local(graph(names, ties, [], UNITS), 0, 1000).of([0])
    assert context.text_units == (1, 0)


def test_at_most_ten_outside_relationships_an_entity() -> None:
    hub = [Entity("Hub", "middle"), *(Entity(f"E{i}", "leaf") for i in range(30))]
    ties = [Edge(0, i + 1, weight=float(i)) for i in range(30)]
    context = local(graph(hub, ties, [], UNITS), 0, 10_000).of([0])
    assert context.relationships == tuple(range(29, 19, -1))  # the heaviest
    ties += [Edge(1, i + 1) for i in range(1, 30)]
    context = local(graph(hub, ties, [], UNITS), 0, 10_000).of([0, 1])
    assert len(context.relationships) == 1 + 20  # the one between them is beside


def test_dangling_ids_are_named() -> None:
    tables = valley()
    tables["text_units"] = tables["text_units"].slice(0, 3)
    with pytest.raises(ValueError, match=r"tu-3 is named in the graph but is not in its table"):
        local(tables, 0, 1000)


# Against a plain reading of the rules, on graphs of any shape.


def plain(tables: Mapping[str, pa.Table], level: int, selected: Sequence[int]) -> dict[str, Any]:
    """The rows of each part in order, without a limit, by loops over the rows."""
    entities, edges, communities, reports = (
        tables[name].to_pylist()
        for name in ("entities", "relationships", "communities", "community_reports")
    )
    unit_rows = {unit: row for row, unit in enumerate(tables["text_units"]["id"].to_pylist())}
    report_rows = {report["community"]: row for row, report in enumerate(reports)}
    chosen = [entities[row]["id"] for row in selected]

    matches: dict[int, int] = {}
    for entity in chosen:
        its = [
            (each["level"], each["community"])
            for each in communities
            if entity in each["entity_ids"]
            and each["level"] <= level
            and each["community"] in report_rows
        ]
        if its:
            row = report_rows[max(its)[1]]
            matches[row] = matches.get(row, 0) + 1

    def rank(row: int) -> Any:
        return -edges[row]["combined_degree"], -edges[row]["weight"], edges[row]["id"]

    ends = [(each["source_id"], each["target_id"]) for each in edges]
    inside = [row for row, pair in enumerate(ends) if set(pair) <= set(chosen)]
    across = [row for row, (a, b) in enumerate(ends) if (a in chosen) != (b in chosen)]
    partners: dict[str, set[str]] = {}
    other = {row: next(end for end in ends[row] if end not in chosen) for row in across}
    for row in across:
        partners.setdefault(other[row], set()).update(set(ends[row]) - {other[row]})

    units: list[int] = []
    for row in selected:
        entity = entities[row]
        stated = {
            unit: sum(
                entity["id"] in pair and unit in edges[number]["text_unit_ids"]
                for number, pair in enumerate(ends)
            )
            for unit in entity["text_unit_ids"]
        }
        ordered = sorted(stated, key=lambda unit: -stated[unit])
        units += [unit_rows[unit] for unit in ordered if unit_rows[unit] not in units]
    return {
        "reports": sorted(matches, key=lambda row: (-matches[row], -reports[row]["rank"], row)),
        "inside": sorted(inside, key=rank),
        "outside": sorted(across, key=lambda r: (-len(partners[other[r]]), *rank(r)))[
            : 10 * len(selected)
        ],
        "units": units,
    }


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, pa.Table], list[int]]:
    size = draw(st.integers(1, 7))
    some_units = st.lists(st.integers(0, 4), unique=True, max_size=4)
    text = st.integers(1, 12).map(lambda n: " ".join(["word"] * n))
    entities = [Entity(f"E{i}", draw(text), draw(some_units)) for i in range(size)]
    node = st.integers(0, size - 1)
    edge = st.builds(Edge, node, node, text, st.integers(1, 3).map(float), some_units)
    edges = draw(st.lists(edge, max_size=14))
    report = st.one_of(st.none(), text)
    communities = []
    for level in range(draw(st.integers(0, 3))):
        side = [draw(st.integers(0, 2)) for _ in range(size)]
        communities += [
            Community(level, members, draw(report), draw(text), float(draw(st.integers(0, 9))))
            for number in range(3)
            if (members := [i for i in range(size) if side[i] == number])
        ]
    units = [draw(text) for _ in range(5)]
    selected = draw(st.lists(node, unique=True, min_size=1))
    return graph(entities, edges, communities, units), selected


@settings(deadline=None)
@given(graphs(), st.integers(0, 3), st.integers(10, 300))
def test_shares_are_kept_and_rows_are_in_their_order(
    given_graph: tuple[dict[str, pa.Table], list[int]], level: int, most: int
) -> None:
    tables, selected = given_graph
    context = local(tables, level, most).of(selected)
    expected = plain(tables, level, selected)

    told = sections(context.text)
    tokens = {name: int(WORDS.count([part])[0]) for name, part in told.items()}
    assert tokens.get("Reports", 0) <= 0.15 * most
    assert tokens.get("Sources", 0) <= 0.5 * most
    graph_tokens = tokens.get("Entities", 0) + tokens.get("Relationships", 0)
    assert graph_tokens < 0.35 * most + 2  # what the other shares lose to rounding is the graph's

    reports = context.reports + context.summaries
    assert list(reports) == expected["reports"][: len(reports)]
    assert list(context.entities) == selected[: len(context.entities)]
    assert list(context.text_units) == expected["units"][: len(context.text_units)]
    # Every relationship between the selected entities is there or counted as left out, and no
    # relationship of others with each other is.
    here = len(expected["inside"]) - context.left_out
    assert list(context.relationships[:here]) == expected["inside"][:here]
    outside = context.relationships[here:]
    assert list(outside) == expected["outside"][: len(outside)]
    assert not (context.left_out and outside)

    # Each row of the text is one that is counted, and the other way round.
    shown = {name: len(re.findall(r"^\d+\|", part, re.M)) for name, part in told.items()}
    assert shown == {
        name: len(rows)
        for name, rows in {
            "Reports": reports,
            "Entities": context.entities,
            "Relationships": context.relationships,
            "Sources": context.text_units,
        }.items()
        if rows
    }


@settings(deadline=None)
@given(graphs(), st.integers(0, 2))
def test_with_room_for_all_nothing_is_missing(
    given_graph: tuple[dict[str, pa.Table], list[int]], level: int
) -> None:
    tables, selected = given_graph
    context = local(tables, level, 10_000).of(selected)
    expected = plain(tables, level, selected)
    assert list(context.reports) == expected["reports"]
    assert list(context.entities) == selected
    assert list(context.relationships) == expected["inside"] + expected["outside"]
    assert list(context.text_units) == expected["units"]
    assert (context.summaries, context.left_out) == ((), 0)


@pytest.mark.parametrize("name", ["journal", "news", "podcast"])
def test_on_a_sample_all_relationships_between_the_selected_are_present(name: str) -> None:
    tables, questions = sample(name)
    tokens = Tokens("embedded")
    contexts = LocalContexts(tables, 2, 12_000, tokens.count)
    titles, texts = (tables["entities"][c].to_pylist() for c in ("title", "description"))
    nearest = text_index([f"{a}: {b}" for a, b in zip(titles, texts, strict=True)], None)
    found = nearest(questions, 10)
    made = [contexts.of(rows) for rows in found]
    ids = tables["entities"]["id"].to_pylist()
    ends = [tables["relationships"][c].to_pylist() for c in ("source_id", "target_id")]
    inside = 0
    for rows, context in zip(found, made, strict=True):
        chosen = {ids[row] for row in rows}
        touching = [len({a, b} & chosen) + (a == b) for a, b in zip(*ends, strict=True)]
        between = {edge for edge, count in enumerate(touching) if count == 2}
        inside += len(between)
        assert between <= set(context.relationships)
        assert all(touching[edge] for edge in context.relationships)
        assert context.reports
    assert inside > 100
    assert tokens.count([context.text for context in made]).max() <= 12_000


# Global search.


def batches(tables: Mapping[str, pa.Table], level: int, most: int, seed: int = 1) -> Any:
    return report_batches(tables, level, most, seed, WORDS)  # type: ignore[arg-type]


def test_a_golden_batch() -> None:
    # The bakery's entities are in three text units, the mill's in two.
    [batch] = batches(valley(), 1, 1000)
    assert batch == ReportBatch(
        "-----Reports-----\n"
        "id|title|occurrence weight|rank|content\n"
        "1|Community 1|1.00|6|The bakery.\n"
        "2|Community 2|0.67|8|The mill.\n",
        (1, 2),
        0,
    )


def test_no_report_makes_no_batch() -> None:
    assert batches(graph(PEOPLE, TIES, [], UNITS), 0, 1000) == []


def test_a_report_longer_than_a_batch_is_cut_and_counted() -> None:
    circles = [Community(0, [i], "word " * (50 if i == 2 else 3)) for i in range(4)]
    made = batches(graph(PEOPLE, TIES, circles, UNITS), 0, 20)
    assert sum(batch.cut for batch in made) == 1
    assert all(len(batch.text.split()) <= 20 for batch in made)
    assert sorted(row for batch in made for row in batch.reports) == [0, 1, 2, 3]


def test_the_seed_shuffles_and_nothing_else_does() -> None:
    circles = [Community(0, [i], f"Report {i}.") for i in range(5)]
    tables = graph(PEOPLE, TIES, circles, UNITS)
    orders = {
        seed: tuple(row for batch in batches(tables, 0, 8, seed) for row in batch.reports)
        for seed in range(20)
    }
    assert len(set(orders.values())) > 5
    assert batches(tables, 0, 8, 3) == batches(tables, 0, 8, 3)


@settings(deadline=None)
@given(graphs(), st.integers(0, 3), st.integers(12, 60), st.integers(0, 5))
def test_every_report_of_the_level_is_in_one_batch_within_the_budget(
    given_graph: tuple[dict[str, pa.Table], list[int]], level: int, most: int, seed: int
) -> None:
    tables, _ = given_graph
    made = batches(tables, level, most, seed)
    everyone = range(tables["entities"].num_rows)
    rows = [row for batch in made for row in batch.reports]
    assert sorted(rows) == sorted(plain(tables, level, everyone)["reports"])
    assert all(len(batch.text.split()) <= most for batch in made)
    assert all(batch.reports for batch in made)
    for batch in made:
        cells = [line.split("|") for line in batch.text.splitlines()[2:]]
        keys = [(-float(line[2]), -float(line[3])) for line in cells]
        assert keys == sorted(keys)
