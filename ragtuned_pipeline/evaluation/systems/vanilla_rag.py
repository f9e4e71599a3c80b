"""VanillaRAG: character chunks, the nearest of them, and a reader of what was found.

Chunks of 1000 characters with 100 in common, the ten best of them and the five best of those after
reranking are the paper's code's; BM25 stands in for its embeddings where no embedding model is set,
and nothing is reranked where no reranking model is. The paper's cap of three sentences is not
applied: every system has the same limit of answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.evaluation.retrieval import text_index
from ragtuned_pipeline.evaluation.systems.interface import (
    USUAL_TOKENS,
    Answerer,
    Rerank,
    Setup,
    SkippedSystem,
)
from ragtuned_pipeline.evaluation.systems.reading import Found, read_by_base
from ragtuned_pipeline.ids import content_id

NO_TEXT = SkippedSystem("The corpus has no text to retrieve from.")

_RERANKED_AT_ONCE = 8  # questions


@dataclass(frozen=True)
class Chunk:
    """A piece of a document; `id` is content_id("chunk", document id, start)."""

    id: str
    text: str


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return VanillaRAG over the corpus: with the base model, or with the extractive reader where
    the base model is the embedded one, which cannot read a text."""
    retriever = corpus_retriever(setup)
    return NO_TEXT if retriever is None else read_by_base(setup, retriever, USUAL_TOKENS)


def corpus_retriever(setup: Setup) -> Retriever | None:
    """Return what finds chunks of the corpus, or None where the corpus has no text."""
    settings = setup.settings
    chunks = cut(
        setup.documents,
        settings.vanilla_rag_chunk_characters,
        settings.vanilla_rag_overlap_characters,
    )
    return Retriever(setup, chunks) if chunks else None


def cut(documents: pa.Table, size: int, overlap: int) -> list[Chunk]:
    """Cut each document into chunks of at most `size` characters, at white space where there is
    any, each beginning about `overlap` characters before the last one's end."""
    chunks = []
    for document_id, text in zip(
        documents.column("id").to_pylist(), documents.column("text").to_pylist(), strict=True
    ):
        start = 0
        while start < len(text):
            end = _at_space(text, start + size, start + size // 2)
            piece = text[start:end].strip()
            if piece:
                chunks.append(Chunk(content_id("chunk", document_id, str(start)), piece))
            if end == len(text):
                break
            start = _at_space(text, end - overlap, start + 1)
    return chunks


def _at_space(text: str, place: int, earliest: int) -> int:
    """Return the place after the last white space before `place`, or `place` if none is near."""
    if place >= len(text):
        return len(text)
    for candidate in range(place, earliest, -1):
        if text[candidate - 1].isspace():
            return candidate
    return place


class Retriever:
    """Finds the chunks nearest to questions; `description` says how."""

    def __init__(self, setup: Setup, chunks: Sequence[Chunk]) -> None:
        self.all_texts = [chunk.text for chunk in chunks]
        self._chunks = chunks
        self._rerank = setup.rerank
        self._settings = settings = setup.settings
        self._nearest = text_index(self.all_texts, setup.embed)
        how = f"embeddings by {settings.embedding_model}" if setup.embed else "BM25"
        self.description = f"{how}, the {settings.vanilla_rag_top_k} best chunks"
        if setup.rerank:
            self.description += (
                f", reranked by {settings.reranking_model} to the {settings.rerank_to} best"
            )

    def find(self, questions: Sequence[str]) -> list[Found]:
        """Return the chunks for each question, best first."""
        nearest = self._nearest(questions, self._settings.vanilla_rag_top_k)
        if self._rerank is not None:
            with ThreadPoolExecutor(_RERANKED_AT_ONCE) as pool:
                nearest = list(pool.map(partial(self._reranked, self._rerank), questions, nearest))
        return [self._found([self._chunks[place] for place in places]) for places in nearest]

    def _reranked(self, rerank: Rerank, question: str, places: Sequence[int]) -> list[int]:
        relevances = rerank(question, [self.all_texts[place] for place in places])
        best = np.argsort(-relevances, kind="stable")[: self._settings.rerank_to]
        return [places[rank] for rank in best]

    def _found(self, chunks: Sequence[Chunk]) -> Found:
        texts = [chunk.text for chunk in chunks]
        return Found(texts, tuple(chunk.id for chunk in chunks), texts)
