"""BM25 over short texts, and the words it counts."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import bm25s

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
        scores = np.asarray(self._index.get_scores(terms(question)))
        best = np.lexsort((np.arange(len(scores)), -scores))[:count]
        return [int(place) for place in best if scores[place] > 0]
