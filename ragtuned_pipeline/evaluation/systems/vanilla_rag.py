"""VanillaRAG: character chunks, BM25, and a reader of what was found.

Chunks of 1000 characters with 100 in common and the ten best chunks are the paper's code's; BM25
stands in for its embeddings where nothing can be downloaded. The paper's cap of three sentences is
not applied: every system has the same limit of answer tokens.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.retrieval import Bm25Index, terms
from ragtuned_pipeline.evaluation.systems.interface import (
    Answer,
    Answerer,
    Setup,
    SkippedSystem,
    replies,
    with_texts,
)
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.base_models import load_fast_tokenizer
from ragtuned_pipeline.inference.engine import ChatEngine

# How near to the best a sentence must come to be quoted with it. On the samples' gold questions
# 0.8 finds more answers than 0.9 or 1.0 (news: 0.74, 0.67, 0.62 of the single facts).
READER_NEAR_BEST = 0.8
UNKNOWN = "I do not know."

# Capitals within a sentence: a name.
_NAME = re.compile(r"(?<=[\w,] )[A-Z]\w+(?: [A-Z]\w+)*")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document; `id` is content_id("chunk", document id, start)."""

    id: str
    text: str


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return VanillaRAG over the corpus: with the base model, or with the extractive reader where
    the base model is the embedded one, which cannot read a text."""
    chunks = cut(
        setup.documents,
        setup.settings.vanilla_rag_chunk_characters,
        setup.settings.vanilla_rag_overlap_characters,
    )
    if not chunks:
        return SkippedSystem("The corpus has no text to retrieve from.")
    retriever = Retriever(chunks, setup.settings.vanilla_rag_top_k)
    found = f"BM25, the {setup.settings.vanilla_rag_top_k} best chunks"
    if setup.follows_instructions:
        engine = setup.load_engine(setup.base_model, None, setup.settings.batch_size)
        return GeneratingRag(f"{found}, read by the base model", setup, retriever, engine)
    return ExtractiveRag(
        f"{found}, read by an extractive reader (it quotes the sentences that hold most of the "
        "question's words; no model)",
        setup,
        retriever,
    )


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
    """Finds the chunks nearest to a question."""

    def __init__(self, chunks: Sequence[Chunk], top_k: int) -> None:
        self.chunks = chunks
        self._top_k = top_k
        self._index = Bm25Index([chunk.text for chunk in chunks])

    def find(self, question: str) -> list[Chunk]:
        return [self.chunks[place] for place in self._index.nearest(question, self._top_k)]


@dataclass(frozen=True)
class GeneratingRag:
    """The base model reads the chunks found."""

    description: str
    setup: Setup
    retriever: Retriever
    engine: ChatEngine

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        found = [self.retriever.find(question) for question in questions]
        return replies(
            self.engine,
            [
                self.setup.conversation(with_texts(question, [chunk.text for chunk in chunks]))
                for question, chunks in zip(questions, found, strict=True)
            ],
            self.setup.settings.max_answer_tokens,
            [tuple(chunk.id for chunk in chunks) for chunks in found],
        )


class ExtractiveRag:
    """A reader that quotes the chunks found; its tokens are counted as a model's would be."""

    def __init__(self, description: str, setup: Setup, retriever: Retriever) -> None:
        self.description = description
        self._retriever = retriever
        self._max_tokens = setup.settings.max_answer_tokens
        self._tokenizer = load_fast_tokenizer(setup.base_model)
        self._reader = Reader([chunk.text for chunk in retriever.chunks])

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: str) -> Answer:
        started = time.perf_counter()
        chunks = self._retriever.find(question)
        texts = [chunk.text for chunk in chunks]
        text = self._cut(self._reader.read(question, texts))
        seconds = time.perf_counter() - started
        return Answer(
            text,
            self._count(with_texts(question, texts)),
            self._count(text),
            seconds,
            tuple(chunk.id for chunk in chunks),
        )

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def _cut(self, text: str) -> str:
        """At most the answer tokens that a generating system may use."""
        ends = [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        return text if len(ends) <= self._max_tokens else text[: ends[self._max_tokens - 1]]


class Reader:
    """Quotes, from given texts, the sentences that hold most of a question's information.

    A word's information is its inverse document frequency among the sentences of the corpus,
    ln((N + 1) / (n + 1)) (Spärck Jones 1972, smoothed), so that a name weighs more than "open".
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._terms: dict[str, list[tuple[str, frozenset[str]]]] = {
            text: [(sentence, frozenset(terms(sentence))) for sentence in _sentences(text)]
            for text in texts
        }
        distinct = {sentence: words for text in texts for sentence, words in self._terms[text]}
        self._sentences = len(distinct)
        self._counts = Counter(word for words in distinct.values() for word in words)
        self._said = "".join(map(_spaced, texts))

    def read(self, question: str, texts: Sequence[str]) -> str:
        """Return the quoted sentences in the order of `texts`, or UNKNOWN where no sentence shares
        a word with the question or the question names what the corpus never does.

        `texts` are among those that the reader was made with.
        """
        if any(_spaced(name) not in self._said for name in _NAME.findall(question)):
            return UNKNOWN
        asked = {word: self._information(word) for word in terms(question)}
        held = {
            sentence: sum(asked[word] for word in words & asked.keys())
            for text in texts
            for sentence, words in self._terms[text]
            if not words <= asked.keys()  # what only repeats the question does not answer it
        }
        best = max(held.values(), default=0.0)
        if best <= 0:
            return UNKNOWN
        return " ".join(s for s, share in held.items() if share >= READER_NEAR_BEST * best)

    def _information(self, word: str) -> float:
        return math.log((self._sentences + 1) / (self._counts[word] + 1))


def _spaced(text: str) -> str:
    """The words of `text`, each between single spaces: "Ada Renk's" is " ada renk s "."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _sentences(text: str) -> list[str]:
    return [" ".join(text[start:end].split()) for start, end in split_sentences(text)]
