"""An extractive reader: it quotes what it is given, where no model can read.

The embedded base model knows questions and answers only; systems that retrieve are read by this in
its place, and say so.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.retrieval import terms

# How near to the best a sentence must come to be quoted with it. On the samples' gold questions
# 0.8 finds more answers than 0.9 or 1.0 (news: 0.74, 0.67, 0.62 of the single facts).
READER_NEAR_BEST = 0.8
UNKNOWN = "I do not know."

# Capitals within a sentence: a name.
_NAME = re.compile(r"(?<=[\w,] )[A-Z]\w+(?: [A-Z]\w+)*")
_WORD = re.compile(r"\w+")


class Reader:
    """Finds, in given texts, the sentences that hold most of a question's information.

    A word's information is its inverse document frequency among the sentences of all texts,
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

    def weigh(self, question: str, texts: Sequence[str]) -> dict[str, float]:
        """Return the sentences of `texts` that share a word with the question, in their order, each
        with the share of the question's information that it holds: above 0, at most 1.

        None where the question names what no text ever does. `texts` are among those that the
        reader was made with.
        """
        if any(_spaced(name) not in self._said for name in _NAME.findall(question)):
            return {}
        asked = {word: self._information(word) for word in terms(question)}
        whole = sum(asked.values())
        held = {
            sentence: sum(asked[word] for word in words & asked.keys())
            for text in texts
            for sentence, words in self._terms[text]
            if not words <= asked.keys()  # what only repeats the question does not answer it
        }
        return {sentence: share / whole for sentence, share in held.items() if share > 0}

    def read(self, question: str, texts: Sequence[str]) -> str:
        """Return the sentences that hold about as much as the best one, in the order of `texts`, or
        UNKNOWN where there is none."""
        held = self.weigh(question, texts)
        best = max(held.values(), default=0.0)
        quoted = [s for s, share in held.items() if share >= READER_NEAR_BEST * best]
        return " ".join(quoted) or UNKNOWN

    def _information(self, word: str) -> float:
        return math.log((self._sentences + 1) / (self._counts[word] + 1))


def _spaced(text: str) -> str:
    """The words of `text`, each between single spaces: "Ada Renk's" is " ada renk s "."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _sentences(text: str) -> list[str]:
    return [" ".join(text[start:end].split()) for start, end in split_sentences(text)]
