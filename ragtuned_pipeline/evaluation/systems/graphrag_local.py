"""GraphRAG's local search: the entities nearest to a question, and what the graph has around them.

The number of entities, the tokens and their shares are GraphRAG's; see graph_contexts. Where no
entity shares a word with the question, those with the most relationships are taken, as GraphRAG
does for an empty question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.retrieval import text_index
from ragtuned_pipeline.evaluation.systems.graph_contexts import LocalContext, LocalContexts
from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup, SkippedSystem
from ragtuned_pipeline.evaluation.systems.reading import Found, read_by_base
from ragtuned_pipeline.evaluation.systems.tokens import Tokens

LEAST_TOKENS = 500  # of a context that is worth its name

# What a context is made of: the table, its column, and the part of a LocalContext with the rows.
_PARTS = (
    ("community_reports", "full_content", "reports"),
    ("community_reports", "summary", "summaries"),
    ("entities", "description", "entities"),
    ("relationships", "description", "relationships"),
    ("text_units", "text", "text_units"),
)


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return local search with the base model, or with the extractive reader where the base model
    is the embedded one, which cannot read a context."""
    if not setup.tables["entities"].num_rows:
        return SkippedSystem("The corpus's graph has no entity to search from.")
    most = setup.settings.graphrag_context_tokens
    room = min(most, setup.room) if setup.follows_instructions else most
    if room < LEAST_TOKENS:
        return SkippedSystem(no_room(room))
    return read_by_base(setup, LocalSearch(setup, room), room)


def no_room(room: int) -> str:
    """Return why a GraphRAG system is skipped."""
    return (
        f"The base model's context has {max(room, 0):,} tokens left for what the graph says; "
        f"GraphRAG's searches need {LEAST_TOKENS} at least."
    )


def of_tokens(room: int, most: int) -> str:
    """Return how many tokens a context has, and why they are fewer than set."""
    fewer = f" (all that the base model's context holds of the {most:,} set)" if room < most else ""
    return f"{room:,} tokens{fewer}"


class LocalSearch:
    """Finds the entities whose descriptions are nearest to a question, and what is around them."""

    def __init__(self, setup: Setup, max_tokens: int) -> None:
        settings, tables = setup.settings, setup.tables
        entities = tables["entities"]
        titles, described = _texts(entities, "title"), _texts(entities, "description")
        self._nearest = text_index(
            [f"{title}: {text}" for title, text in zip(titles, described, strict=True)], setup.embed
        )
        self._count = settings.graphrag_entities
        degrees = np.array(entities["degree"], dtype=np.int64)
        self._hubs = np.argsort(-degrees, kind="stable")[: self._count].tolist()
        level = settings.graphrag_community_level
        self._contexts = LocalContexts(tables, level, max_tokens, Tokens(setup.base_model).count)
        self._ids = [tables[name]["id"].to_pylist() for name, _, _ in _PARTS]
        self._texts = [_texts(tables[name], column) for name, column, _ in _PARTS]
        self.all_texts = [text for texts in self._texts for text in texts]
        how = f"embeddings by {settings.embedding_model}" if setup.embed else "BM25"
        self.description = (
            f"GraphRAG's local search: the {self._count} nearest entities by {how}, with the "
            f"reports of level {level}, relationships and text units around them in "
            + of_tokens(max_tokens, settings.graphrag_context_tokens)
        )

    def find(self, questions: Sequence[str]) -> list[Found]:
        """Return the context of each question."""
        nearest = self._nearest(questions, self._count)
        return [self._found(self._contexts.of(rows or self._hubs)) for rows in nearest]

    def _found(self, context: LocalContext) -> Found:
        rows: list[tuple[int, ...]] = [getattr(context, part) for _, _, part in _PARTS]
        ids, quotable = (
            [column[row] for column, part in zip(columns, rows, strict=True) for row in part]
            for columns in (self._ids, self._texts)
        )
        lacking = f"{context.left_out} relationships between the selected entities do not fit"
        return Found([context.text], tuple(ids), quotable, (lacking,) if context.left_out else ())


def _texts(table: pa.Table, column: str) -> list[str]:
    texts: list[str] = pc.fill_null(table[column], "").to_pylist()
    return texts
