"""What a community's report is written from: its own rows, or its children's reports for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class ChildReport:
    """A written report as a parent's context tells it.

    Attributes:
        text: ends with a line break.
        rank: the report's rating; where not all reports fit, the highest stay.
        entities, relationships: the human_readable_ids that the text refers to.
    """

    text: str
    rank: float
    entities: frozenset[int]
    relationships: frozenset[int]


@dataclass(frozen=True)
class ReportContext:
    """What one report is written from.

    Attributes:
        community: its number.
        entities, relationships: the human_readable_ids in the text, which findings may refer to.
        reports: the children whose reports stand for the rows inside them.
        left_out: inner relationships, and entities without one, that are neither in the text nor
            inside such a child.
    """

    community: int
    text: str
    entities: frozenset[int]
    relationships: frozenset[int]
    reports: tuple[int, ...]
    left_out: int


@dataclass(frozen=True)
class _Lines:
    """The rows of a table as lines of text, each with its break, and their human_readable_ids."""

    text: list[str]
    number: list[int]


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
        # An item is a relationship with its ends, or an entity alone: items from len(edges) on.
        alone = np.arange(entities.num_rows)
        ends = [rows_of(relationships[end], entities["id"]) for end in ("source_id", "target_id")]
        self._ends = np.stack([np.r_[end, alone] for end in ends], axis=1)
        lengths = count_tokens([*self._entities.text, *self._edges.text])
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
        lengths[held] = self._count_tokens([reports[self._number[row]].text for row in held])
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
        entities = list(dict.fromkeys(self._ends[items].ravel().tolist()))
        edges = items[items < len(self._edges.text)].tolist()
        children = [reports[number] for number in told]
        parts = [_REPORTS, *(f"{child.text}\n" for child in children)] if told else []
        if entities:
            parts += [_ENTITIES, *(self._entities.text[i] for i in entities)]
        if edges:
            parts += [_RELATIONSHIPS, *(self._edges.text[i] for i in edges)]
        if left_out:
            parts.append(_LEFT_OUT.format(left_out))
        return ReportContext(
            self._number[row],
            "".join(parts),
            frozenset(self._entities.number[i] for i in entities).union(
                *(child.entities for child in children)
            ),
            frozenset(self._edges.number[i] for i in edges).union(
                *(child.relationships for child in children)
            ),
            tuple(told),
            left_out,
        )


def _lines(table: pa.Table, columns: Sequence[str]) -> _Lines:
    number = table["human_readable_id"]
    cells = [pc.fill_null(table[name], "") for name in columns]
    row = pc.binary_join_element_wise(number.cast(pa.string()), *cells, " | ")
    line = pc.binary_join_element_wise(pc.replace_substring_regex(row, r"\s+", " "), "\n", "")
    return _Lines(line.to_pylist(), number.to_pylist())


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
