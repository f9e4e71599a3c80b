"""What GraphRAG's two searches give a model to read, within token budgets.

Shares, orders and columns are those of GraphRAG 3.1 (query/structured_search: mixed_context.py of
local search, community_context.py of global search), with its settings' defaults. Other than there

- a community level means what its documentation and its releases up to 0.4 mean by it: an entity is
  reported on by its deepest community of at most that level. Later releases give the reports of
  all its communities up to the level, so that the roots, which hold the most entities, come first
  whatever the level;
- the reports that do not fit local search's share whole are told by their summaries: reports as
  long as GraphRAG asks for often leave it without any;
- relationships between the selected entities come before all else of their share, so that those of
  the later entities are not lost where the earlier ones have many;
- a report that is longer than a batch of global search is cut, not sent over the budget.

A context is as long as its rows together: with tokenisers that split at line breaks that is its
length as one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.systems.tokens import Tokens
from ragtuned_pipeline.graph.descriptions import CountTokens
from ragtuned_pipeline.graph.references import rows_of, rows_of_lists
from ragtuned_pipeline.ids import seeded_int

REPORT_SHARE, TEXT_SHARE = 0.15, 0.5  # of local search's tokens; the rest is the graph's
OUTSIDE_RELATIONSHIPS = 10  # at most, for each selected entity

_REPORTS = "-----Reports-----\nid|title|content\n"
_ENTITIES = "\n-----Entities-----\nid|entity|description|number of relationships\n"
_RELATIONSHIPS = "\n-----Relationships-----\nid|source|target|description|weight\n"
_SOURCES = "\n-----Sources-----\nid|text\n"
_BATCH = "-----Reports-----\nid|title|occurrence weight|rank|content\n"


@dataclass(frozen=True)
class LocalContext:
    """What local search gives for one question.

    Attributes:
        reports, entities, relationships, text_units: rows in their tables, as the text has them.
        summaries: rows of the reports that are told by their summaries, after the others.
        left_out: relationships between the selected entities that have no room in their share.
    """

    text: str
    reports: tuple[int, ...]
    summaries: tuple[int, ...]
    entities: tuple[int, ...]
    relationships: tuple[int, ...]
    text_units: tuple[int, ...]
    left_out: int


class LocalContexts:
    """Local search's contexts for any selected entities, within `max_tokens` each.

    Every row is worded and its tokens are counted once.

    Args:
        tables: text_units, entities, relationships, communities and community_reports.
        level: of the communities, at most; 0 is the roots.
        count_tokens: texts to their token counts, int64 of shape (n,).

    Raises:
        ValueError: a table names a row of another one that is not there.
    """

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        level: int,
        max_tokens: int,
        count_tokens: CountTokens,
    ) -> None:
        reports, units = tables["community_reports"], tables["text_units"]
        entities, relationships = tables["entities"], tables["relationships"]
        whole, short = (
            _joined(reports["community"], reports["title"], reports[name])
            for name in ("full_content", "summary")
        )
        parts = [
            (_REPORTS, whole + short),
            (_ENTITIES, _one_line(entities, "title", "description", "degree")),
            (_RELATIONSHIPS, _one_line(relationships, "source", "target", "description", "weight")),
            (_SOURCES, _joined(units["human_readable_id"], units["text"])),
        ]
        counts = count_tokens([text for head, lines in parts for text in (head, *lines)])
        ends = np.cumsum([1 + len(lines) for _, lines in parts])
        self._reports, self._entities, self._relationships, self._sources = (
            _Part(head, lines, int(of[0]), of[1:])
            for (head, lines), of in zip(parts, np.split(counts, ends[:-1]), strict=True)
        )
        self._report_room = int(max_tokens * REPORT_SHARE)
        self._source_room = int(max_tokens * TEXT_SHARE)
        self._graph_room = max_tokens - self._report_room - self._source_room
        self._report_of = _reports_of_entities(tables, level)
        self._report_rank = np.array(pc.fill_null(reports["rank"], 0.0), dtype=np.float64)
        self._ends = np.stack(
            [rows_of(relationships[end], entities["id"]) for end in ("source_id", "target_id")],
            axis=1,
        )
        self._edges_of = _Lists.of_pairs(
            self._ends.T.ravel(), np.tile(np.arange(len(self._ends)), 2), entities.num_rows
        )
        by_rank = [("combined_degree", "descending"), ("weight", "descending"), ("id", "ascending")]
        self._edge_rank = np.empty(len(self._ends), dtype=np.int64)
        self._edge_rank[np.array(pc.sort_indices(relationships, by_rank))] = np.arange(
            len(self._ends)
        )
        self._units_of = _units_by_relationships(tables, self._ends)

    def of(self, selected: Sequence[int]) -> LocalContext:
        """Return the context of the entities in the rows `selected`, the nearest to a question
        first."""
        chosen = np.array(selected, dtype=np.int64)
        reports, summaries = self._reportrows_of(chosen)
        entities, edges, left_out = self._graphrows_of(chosen)
        units = _distinct(self._units_of.of(chosen))
        room = self._source_room - self._sources.head_tokens
        units = units[: self._sources.count_fitting(units, room)]
        return LocalContext(
            self._reports.text(np.r_[reports, summaries + len(self._report_rank)])
            + self._entities.text(entities)
            + self._relationships.text(edges)
            + self._sources.text(units),
            tuple(reports.tolist()),
            tuple(summaries.tolist()),
            tuple(entities.tolist()),
            tuple(edges.tolist()),
            tuple(units.tolist()),
            left_out,
        )

    def _reportrows_of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the reports that fit their share whole, and the next ones whose summaries do."""
        ordered = self._reports_by_matches(chosen)
        room = self._report_room - self._reports.head_tokens
        count = self._reports.count_fitting(ordered, room)
        whole, rest = ordered[:count], ordered[count:]
        room -= self._reports.length(whole)
        return whole, rest[: self._reports.count_fitting(rest + len(self._report_rank), room)]

    def _graphrows_of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the entities and relationships that fit the graph's share: the relationships
        between the entities, the entities, then other relationships; and how many of the first
        do not fit."""
        inside, outside = self._edges_by_place(chosen)
        room = self._graph_room - self._entities.head_tokens - self._relationships.head_tokens
        edges = inside[: self._relationships.count_fitting(inside, room)]
        room -= self._relationships.length(edges)
        entities = chosen[: self._entities.count_fitting(chosen, room)]
        left_out = len(inside) - len(edges)
        if not left_out:
            room -= self._entities.length(entities)
            more = outside[: self._relationships.count_fitting(outside, room)]
            edges = np.r_[edges, more]
        return entities, edges, left_out

    def _reports_by_matches(self, chosen: np.ndarray) -> np.ndarray:
        """Return the reports on the entities, by how many of them each is on, then by its rank."""
        found = self._report_of[chosen]
        reports, matches = np.unique(found[found >= 0], return_counts=True)
        order = np.lexsort((reports, -self._report_rank[reports], -matches))
        return np.asarray(reports[order])

    def _edges_by_place(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the relationships between the entities, by rank, and those with others: by the
        number of selected entities that the other is related to, then by rank."""
        edges = np.unique(self._edges_of.of(chosen))
        ends = self._ends[edges]
        is_chosen = np.isin(ends, chosen)
        within = is_chosen.all(axis=1)
        inside = edges[within]
        # Of a relationship with another entity the selected end, then the other one.
        pairs = np.take_along_axis(ends, np.argsort(~is_chosen, axis=1), axis=1)[~within]
        linked = np.unique(pairs[:, ::-1], axis=0)[:, 0]
        others, links = np.unique(linked, return_counts=True)
        outside, rank = edges[~within], self._edge_rank[edges[~within]]
        order = np.lexsort((rank, -links[np.searchsorted(others, pairs[:, 1])]))
        most = OUTSIDE_RELATIONSHIPS * len(chosen)
        return inside[np.argsort(self._edge_rank[inside])], outside[order][:most]


@dataclass(frozen=True)
class ReportBatch:
    """What one map call of global search reads.

    Attributes:
        reports: rows in their table, as the text has them.
        cut: how many of them are cut to fit.
    """

    text: str
    reports: tuple[int, ...]
    cut: int


def report_batches(
    tables: Mapping[str, pa.Table], level: int, max_tokens: int, seed: int, tokens: Tokens
) -> list[ReportBatch]:
    """Return global search's batches of reports: shuffled by `seed`, each of at most `max_tokens`.

    The reports are those that report on any entity at `level`. Within a batch they are sorted by
    occurrence weight (the text units of a community's entities, as a share of the most that any of
    these communities has), then by rank.

    Args:
        tables: text_units, entities, communities and community_reports.

    Raises:
        ValueError: a table names a row of another one that is not there.
    """
    reports = tables["community_reports"]
    used = np.unique(_reports_of_entities(tables, level))
    used = used[used >= 0]
    if not len(used):
        return []
    ids = reports["id"].to_pylist()
    used = np.array(sorted(used, key=lambda row: seeded_int(seed, "graphrag_global", ids[row])))
    weight = _occurrence_weights(tables, used)
    rank = np.array(pc.fill_null(reports["rank"], 0.0), dtype=np.float64)[used]
    chosen = reports.take(used)
    lines = _joined(
        chosen["community"],
        chosen["title"],
        pa.array([f"{value:.2f}" for value in weight]),
        pa.array([f"{value:g}" for value in rank]),
        chosen["full_content"],
    )
    counts = tokens.count([_BATCH, *lines])
    room, lengths = max_tokens - int(counts[0]), counts[1:]
    too_long = np.flatnonzero(lengths > room)
    for place in too_long.tolist():
        lines[place] = tokens.cut(lines[place], room - 1) + "\n"
    lengths[too_long] = room
    batches = []
    for places in _packed(lengths, room):
        order = places[np.lexsort((places, -rank[places], -weight[places]))]
        text = _BATCH + "".join(lines[place] for place in order)
        cut = int(np.isin(places, too_long).sum())
        batches.append(ReportBatch(text, tuple(used[order].tolist()), cut))
    return batches


@dataclass(frozen=True)
class _Part:
    """A section of a context: its heading, and a line of text a row of its table."""

    head: str
    lines: list[str]
    head_tokens: int
    tokens: np.ndarray

    def count_fitting(self, rows: np.ndarray, room: int) -> int:
        """Return how many of `rows`, from the first on, fit `room` tokens without the heading."""
        return int(np.searchsorted(np.cumsum(self.tokens[rows]), room, side="right"))

    def length(self, rows: np.ndarray) -> int:
        return int(self.tokens[rows].sum())

    def text(self, rows: np.ndarray) -> str:
        return "".join([self.head, *(self.lines[row] for row in rows)]) if len(rows) else ""


@dataclass(frozen=True)
class _Lists:
    """A list of numbers for each row of a table: those of row i from starts[i] to starts[i + 1]."""

    starts: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of_pairs(cls, owner: np.ndarray, number: np.ndarray, size: int) -> _Lists:
        """Make the lists of `size` rows from pairs of a row and a number, in the pairs' order."""
        order = np.argsort(owner, kind="stable")
        return cls(np.searchsorted(owner[order], np.arange(size + 1)), number[order])

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.starts[rows + 1] - self.starts[rows])

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the lists of `rows`, one after the other."""
        lengths = self.lengths(rows)
        before = np.cumsum(lengths) - lengths
        return np.asarray(
            self.numbers[np.repeat(self.starts[rows] - before, lengths) + np.arange(lengths.sum())]
        )


def _reports_of_entities(tables: Mapping[str, pa.Table], level: int) -> np.ndarray:
    """Return for each entity the row of its report, -1 where it has none: that on its deepest
    community of at most `level`, of those that have a report."""
    communities, reports = tables["communities"], tables["community_reports"]
    report = pc.index_in(communities["community"], value_set=reports["community"])
    usable = communities.append_column("report", report).filter(
        pc.and_(pc.is_valid(report), pc.less_equal(communities["level"], level))
    )
    usable = usable.sort_by([("level", "ascending"), ("community", "ascending")])
    owner, entity = rows_of_lists(usable["entity_ids"], tables["entities"]["id"])
    found = np.full(tables["entities"].num_rows, -1)
    found[entity] = np.array(usable["report"], dtype=np.int64)[owner]  # the last one stays
    return found


def _units_by_relationships(tables: Mapping[str, pa.Table], ends: np.ndarray) -> _Lists:
    """Return each entity's text units, those with the most relationships of the entity first."""
    units, entities = tables["text_units"], tables["entities"]
    size = max(units.num_rows, 1)
    edge, where = rows_of_lists(tables["relationships"]["text_unit_ids"], units["id"])
    loop = ends[edge, 0] == ends[edge, 1]
    keys = np.r_[ends[edge, 0] * size + where, (ends[edge, 1] * size + where)[~loop]]
    keys.sort()
    owner, unit = rows_of_lists(entities["text_unit_ids"], units["id"])
    wanted = owner * size + unit
    relationships = np.searchsorted(keys, wanted, "right") - np.searchsorted(keys, wanted, "left")
    order = np.lexsort((np.arange(len(owner)), -relationships, owner))
    return _Lists.of_pairs(owner[order], unit[order], entities.num_rows)


def _occurrence_weights(tables: Mapping[str, pa.Table], used: np.ndarray) -> np.ndarray:
    """Return for each report the text units of its community's entities, by the most of any."""
    units, entities = tables["text_units"], tables["entities"]
    owner, unit = rows_of_lists(entities["text_unit_ids"], units["id"])
    units_of = _Lists.of_pairs(owner, unit, entities.num_rows)
    communities = tables["communities"]
    community, entity = rows_of_lists(communities["entity_ids"], entities["id"])
    holder = np.repeat(community, units_of.lengths(entity))
    size = max(units.num_rows, 1)
    held = np.unique(holder * size + units_of.of(entity)) // size
    counts = np.bincount(held, minlength=communities.num_rows)
    reported = tables["community_reports"]["community"].take(used)
    counted = counts[rows_of(reported, communities["community"])]
    return np.asarray(counted / max(counted.max(), 1))


def _packed(lengths: np.ndarray, room: int) -> list[np.ndarray]:
    """Return the places of `lengths` in runs of at most `room` together; none alone is longer."""
    ends = np.cumsum(lengths)
    runs, start = [], 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, before + room, side="right"))
        runs.append(np.arange(start, end))
        start = end
    return runs


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers without repetitions, in the order of their first places."""
    _, first = np.unique(numbers, return_index=True)
    return np.asarray(numbers[np.sort(first)])


def _joined(*columns: Any) -> list[str]:
    cells = [pc.fill_null(pc.cast(column, pa.string()), "") for column in columns]
    joined = pc.binary_join_element_wise(*cells, "|")
    lines: list[str] = pc.binary_join_element_wise(joined, "\n", "").to_pylist()
    return lines


def _one_line(table: pa.Table, *names: str) -> list[str]:
    """Return the rows' human_readable_id and cells, each row without line breaks inside."""
    cells = [table["human_readable_id"], *(table[name] for name in names)]
    return [" ".join(line.split()) + "\n" for line in _joined(*cells)]
