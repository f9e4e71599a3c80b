"""The texts nearest to a question: by BM25 and the words it counts, or by embeddings."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import bm25s

Embed = Callable[[Sequence[str]], np.ndarray]  # texts to unit vectors, float32 of shape (n, d)
# Questions, and how many texts for each at most, to the texts' places, best first.
Nearest = Callable[[Sequence[str], int], list[list[int]]]

_WORD = re.compile(r"\w+(?:'\w+)?")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about after again all also am an and any are as at be because been before being but by "
        "can could did do does doing done for from had has have having he her hers him his how i "
        "if in into is it its just me more most my no nor not of off on once only or other our out "
        "over own please remember say she should so some such tell than that the their them then "
        "there these they this those through to too under until up us very was we were what when "
        "where which while who whom whose why will with would you your know answer question"
    )
)


def terms(text: str) -> list[str]:
    """Return the content words of `text` in their dictionary form; all words if none is left."""
    words = [_lemma(word) for word in _WORD.findall(text.casefold().replace("’", "'"))]
    return [word for word in words if word not in _STOP_WORDS] or words


@functools.cache
def _lemma(word: str) -> str:
    if word in _STOP_WORDS:
        return word
    import simplemma

    return simplemma.lemmatize(word.removesuffix("'s"), lang="en").casefold()


class Bm25Index:
    """Finds the texts nearest to a question by BM25 (bm25s, Lucene's variant, k1 1.5, b 0.75)."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Index `texts`.

        Raises:
            ValueError: there is no text.
        """
        if not texts:
            raise ValueError("an index needs at least one text")
        import bm25s

        self._index: bm25s.BM25 = bm25s.BM25()
        self._index.index([terms(text) for text in texts], show_progress=False)

    def nearest(self, question: str, count: int) -> list[int]:
        """Return the places of at most `count` texts that share a word with `question`, best first;
        the earlier text first where two are equal."""
        words = terms(question)
        if not words:
            return []
        scores = np.asarray(self._index.get_scores(words))
        best = np.lexsort((np.arange(len(scores)), -scores))[:count]
        return [int(place) for place in best if scores[place] > 0]


class VectorIndex:
    """Finds the vectors nearest to another: an exact search by LanceDB, in memory."""

    def __init__(self, vectors: np.ndarray) -> None:
        """Index `vectors`, unit vectors, float32 of shape (n, d).

        Raises:
            ValueError: there is no vector.
        """
        if not len(vectors):
            raise ValueError("an index needs at least one vector")
        import lancedb

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        places = pa.array(np.arange(len(vectors)))
        self._table: Any = lancedb.connect("memory://").create_table(
            "vectors", pa.table({"place": places, "vector": column})
        )

    def nearest(self, vector: np.ndarray, count: int) -> list[int]:
        """Return the places of the `count` vectors with the largest dot product with `vector`, best
        first; the earlier one first where two are equal."""
        search = self._table.search(vector).distance_type("dot").limit(count)
        found = search.select(["place", "_distance"]).to_arrow()
        ordered = found.sort_by([("_distance", "ascending"), ("place", "ascending")])
        return [int(place) for place in ordered["place"].to_pylist()]


def text_index(texts: Sequence[str], embed: Embed | None) -> Nearest:
    """Index `texts`, none of them empty: by `embed` where there is one, else by their words.

    By words, a question gets fewer texts where fewer share a word with it.

    Raises:
        ValueError: there is no text.
    """
    if embed is None:
        words = Bm25Index(texts)
        return lambda questions, count: [words.nearest(each, count) for each in questions]
    vectors = VectorIndex(embed(texts))
    return lambda questions, count: [vectors.nearest(each, count) for each in embed(questions)]
