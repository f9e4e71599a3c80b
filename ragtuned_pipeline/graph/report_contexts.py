"""What a community's report is written from: its own rows, or its children's reports for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.graph.descriptions import CountTokens
from ragtuned_pipeline.graph.references import rows_of, rows_of_lists

_REPORTS = "# Reports of sub-communities\n\n"
_ENTITIES = "# Entities\nid | name | type | description\n"
_RELATIONSHIPS = "\n# Relationships\nid | source | target | description\n"
_LEFT_OUT = "\n{} further rows of this community are left out for length.\n"
_LONGEST_NUMBER = 99_999  # rows are counted with it, before they have their own


@dataclass(frozen=True)
class ReportLine:
    """A line of a written report, and the ids of the rows that it refers to."""

    text: str
    entities: tuple[str, ...] = ()
    relationships: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChildReport:
    """A written report as a parent's context tells it.

    Attributes:
        rank: the report's rating; where not all reports fit, the highest stay.
    """

    lines: tuple[ReportLine, ...]
    rank: float


@dataclass(frozen=True)
class ReportContext:
    """What one report is written from.

    Rows are numbered within the context, from 1 on: a row that the graph gains elsewhere changes no
    context that it is not in, and so no report.

    Attributes:
        community: its number.
        entities, relationships: the ids of what the text numbers 1, 2, 3, ..., which findings may
            refer to.
        reports: the children whose reports stand for the rows inside them.
        left_out: inner relationships, and entities without one, that are neither in the text nor
            inside such a child.
    """

    community: int
    text: str
    entities: tuple[str, ...]
    relationships: tuple[str, ...]
    reports: tuple[int, ...]
    left_out: int


class ReportContexts:
    """The contexts of all communities of a graph, within `max_tokens` each.

    A context holds the community's inner relationships by rank (combined degree, then weight, then
    id) and their ends, then the members that have no inner relationship; nothing of any other
    community. Every row is worded and its tokens are counted once. A context is as long as its
    parts together: with tokenisers that split at line breaks that is its length as one text.

    Args:
        count_tokens: texts to their token counts, int64 of shape (n,).

    Raises:
        ValueError: a community names an entity or a relationship, or a relationship names an
            entity, that is not in its table.
    """

    def __init__(
        self,
        communities: pa.Table,
        entities: pa.Table,
        relationships: pa.Table,
        max_tokens: int,
        count_tokens: CountTokens,
    ) -> None:
        self._count_tokens = count_tokens
        frame = _REPORTS + _ENTITIES + _RELATIONSHIPS + _LEFT_OUT.format(10**9)
        self._room = max_tokens - int(count_tokens([frame])[0])
        self._number: list[int] = communities["community"].to_pylist()
        self._level = np.array(communities["level"], dtype=np.int64)
        self._entities = _lines(entities, ["title", "type", "description"])
        self._edges = _lines(relationships, ["source", "target", "description"])
        self._entity_ids: list[str] = entities["id"].to_pylist()
        self._edge_ids: list[str] = relationships["id"].to_pylist()
        # An item is a relationship with its ends, or an entity alone: items from len(edges) on.
        alone = np.arange(entities.num_rows)
        ends = [rows_of(relationships[end], entities["id"]) for end in ("source_id", "target_id")]
        self._ends = np.stack([np.r_[end, alone] for end in ends], axis=1)
        every = [_numbered(_LONGEST_NUMBER, line) for line in (*self._entities, *self._edges)]
        lengths = count_tokens(every)
        self._entity_tokens, edge_tokens = np.split(lengths, [entities.num_rows])
        self._item_tokens = np.r_[edge_tokens, np.zeros_like(self._entity_tokens)]
        self._owner, self._items, linked = _items(communities, entities, relationships, self._ends)
        self._starts = np.searchsorted(self._owner, np.arange(communities.num_rows + 1))
        # Tokens of all rows of each community.
        size = communities.num_rows
        self._tokens = np.bincount(self._owner, self._item_tokens[self._items], size)
        owner, entity = np.divmod(linked, max(entities.num_rows, 1))
        self._tokens += np.bincount(owner, self._entity_tokens[entity], size)

    def at_level(self, level: int, reports: Mapping[int, ChildReport]) -> Iterator[ReportContext]:
        """Yield the contexts of the communities of `level`, in the table's order.

        Where a community's rows are too long, its children are replaced by their `reports` (by
        community number), the child with the longest rows first, until all fits; a child whose
        report is longer than its rows stays. What is still too long is cut: reports by rank first,
        then rows by rank, and the context says how many rows are missing.
        """
        below = np.flatnonzero(self._level[self._owner] == level + 1)
        child_of = np.full(len(self._ends), -1)
        child_of[self._items[below]] = self._owner[below]
        lengths = np.full(len(self._number), np.inf)
        held = [row for row, number in enumerate(self._number) if number in reports]
        told = [_told(reports[self._number[row]], _Numbers(), _Numbers()) for row in held]
        lengths[held] = self._count_tokens(told)
        for row in np.flatnonzero(self._level == level).tolist():
            yield self._context(row, child_of, reports, lengths)

    def _context(
        self,
        row: int,
        child_of: np.ndarray,
        reports: Mapping[int, ChildReport],
        lengths: np.ndarray,
    ) -> ReportContext:
        every = items = self._items[self._starts[row] : self._starts[row + 1]]
        told = np.zeros(0, dtype=np.int64)
        if self._tokens[row] > self._room:
            told = self._replaced(every, child_of, lengths)
            items = every[~np.isin(child_of[every], told)]
            rank = [reports[self._number[child]].rank for child in told]
            told = told[np.lexsort((told, -self._tokens[told], -np.array(rank)))]
            told = told[np.cumsum(lengths[told]) <= self._room]
            within = self._room - lengths[told].sum()
            items = items[np.cumsum(self._costs(items)) <= within]
        covered = int(np.isin(child_of[every], told).sum())
        left_out = len(every) - len(items) - covered
        return self._written(row, items, [self._number[child] for child in told], reports, left_out)

    def _replaced(self, items: np.ndarray, child_of: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the children to replace by their reports: as few as make the rest fit, or all."""
        child = child_of[items]
        children = np.unique(child[child >= 0])
        children = children[lengths[children] < self._tokens[children]]
        children = children[np.lexsort((children, -self._tokens[children]))]
        count = len(children)
        # The turn in which each item goes, and the turn in which an entity's last item goes;
        # `count` is never.
        turns = np.full(len(self._number), count)
        turns[children] = np.arange(count)
        turn = np.where(child >= 0, turns[child], count)
        entity, place = np.unique(self._ends[items], return_inverse=True)
        last = np.zeros(len(entity), dtype=np.int64)
        np.maximum.at(last, place.ravel(), np.repeat(turn, 2))
        gone = np.bincount(turn, self._item_tokens[items], count + 1)
        gone += np.bincount(last, self._entity_tokens[entity], count + 1)
        left = gone.sum() + np.cumsum(lengths[children] - gone[:count])
        fits = np.flatnonzero(left <= self._room)
        return np.asarray(children[: fits[0] + 1] if len(fits) else children)

    def _costs(self, items: np.ndarray) -> np.ndarray:
        """Return the tokens that each item adds to those before it: itself and its new ends."""
        ends = self._ends[items].ravel()
        entity, first = np.unique(ends, return_index=True)
        added = np.zeros(len(ends), dtype=np.int64)
        added[first] = self._entity_tokens[entity]
        return np.asarray(self._item_tokens[items] + added.reshape(-1, 2).sum(axis=1))

    def _written(
        self,
        row: int,
        items: np.ndarray,
        told: Sequence[int],
        reports: Mapping[int, ChildReport],
        left_out: int,
    ) -> ReportContext:
        named = list(dict.fromkeys(self._ends[items].ravel().tolist()))
        linked = items[items < len(self._edges)].tolist()
        entities = _Numbers(self._entity_ids[i] for i in named)
        edges = _Numbers(self._edge_ids[i] for i in linked)
        rows = [_numbered(n, self._entities[i]) for n, i in enumerate(named, 1)]
        links = [_numbered(n, self._edges[i]) for n, i in enumerate(linked, 1)]
        # What only a child's report names gets the numbers after those of the rows.
        parts = [_REPORTS] if told else []
        parts += [f"{_told(reports[number], entities, edges)}\n" for number in told]
        parts += [_ENTITIES, *rows] if rows else []
        parts += [_RELATIONSHIPS, *links] if links else []
        if left_out:
            parts.append(_LEFT_OUT.format(left_out))
        return ReportContext(
            self._number[row],
            "".join(parts),
            tuple(entities),
            tuple(edges),
            tuple(told),
            left_out,
        )


class _Numbers(dict[str, int]):
    """The number of each id, from 1 on; an id that has none gets the next."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        super().__init__((identity, number) for number, identity in enumerate(ids, 1))

    def __missing__(self, identity: str) -> int:
        self[identity] = len(self) + 1
        return self[identity]


def _numbered(number: int, line: str) -> str:
    return f"{number} | {line}"


def _told(report: ChildReport, entities: _Numbers, relationships: _Numbers) -> str:
    """Return a report as text: a line each, with the numbers of what it refers to in brackets."""
    lines = []
    for line in report.lines:
        kinds = {
            "entities": [entities[each] for each in line.entities],
            "relationships": [relationships[each] for each in line.relationships],
        }
        named = "; ".join(f"{kind} {', '.join(map(str, of))}" for kind, of in kinds.items() if of)
        text = " ".join(line.text.split())
        lines.append(f"{text} [{named}]\n" if named else f"{text}\n")
    return "".join(lines)


def _lines(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Return the rows of a table as lines of text, each with its break."""
    cells = [pc.fill_null(table[name], "") for name in columns]
    row = pc.binary_join_element_wise(*cells, " | ")
    line = pc.binary_join_element_wise(pc.replace_substring_regex(row, r"\s+", " "), "\n", "")
    return list(line.to_pylist())


def _items(
    communities: pa.Table, entities: pa.Table, relationships: pa.Table, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the communities' items, by community and rank, each beside its community's row.

    The third array holds row * number of entities + entity, once for each entity of a community.
    """
    holder, edge = rows_of_lists(communities["relationship_ids"], relationships["id"])
    owner, member = rows_of_lists(communities["entity_ids"], entities["id"])
    size = max(entities.num_rows, 1)
    linked = np.unique(holder[:, None] * size + ends[edge])
    alone = ~np.isin(owner * size + member, linked)
    by_rank = [("combined_degree", "descending"), ("weight", "descending"), ("id", "ascending")]
    rank = np.arange(len(ends))
    rank[np.array(pc.sort_indices(relationships, by_rank))] = np.arange(relationships.num_rows)
    items = np.r_[edge, relationships.num_rows + member[alone]]
    of = np.r_[holder, owner[alone]]
    order = np.lexsort((rank[items], of))
    named = np.union1d(linked, (owner * size + member)[alone])
    return of[order], items[order], named
