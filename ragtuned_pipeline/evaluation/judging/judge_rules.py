"""Pairwise judgements by rules, where no model is at hand: they count words and read no meaning.

Each dimension is one number an answer, and the larger one wins unless it is nearly as small as the
other (`MARGIN`). Neither repetition nor invention gains anything: a content word counts once, and
only where the corpus has it too. An answer that is empty or a refusal has 0 everywhere.

usefulness_correctness             1 where the answer contains the reference, else the share of
                                   content words that both have (F1). 0 where there is no reference:
                                   the rules cannot tell then.
richness_diversity                 how many content words of the corpus it has that the question has
                                   not
insightfulness_deep_understanding  how many sentences of the corpus it takes, chosen greedily, to
                                   find all these words: 1 for one that is repeated from there,
                                   more where an answer joins what stands apart. It grows with
                                   richness, and says nothing about whether the join makes sense.
user_friendliness                  1, less for runs of four words that come again, for a sentence
                                   of more than 40 words, and for an end without an end mark; 0
                                   without any word of the corpus
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import sentences_of, split_sentences
from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, ORDERS, Pairing, judgements_table
from ragtuned_pipeline.evaluation.metrics import alternatives, contains, is_refusal, tokens
from ragtuned_pipeline.evaluation.retrieval import terms

RULES_VERSION = "1"  # changes with what the rules say of any pair
JUDGE = f"rules {RULES_VERSION}"
MARGIN = 0.1  # of the larger number: two that are nearer are a tie

_RUN = 4  # words
_RUNS_THAT_HALVE = 10  # so many runs that come again make an answer half as good to read
_LONG_SENTENCE = 40  # words
_LONGEST_WITHOUT_END = 12  # words; a longer answer without an end mark has been cut off
_CUT_OFF = 0.5
_END = re.compile(r"[.!?…:;][\"'”’»)\]*_]*$")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s")


def judge_by_rules(pairings: Sequence[Pairing], documents: pa.Table) -> pa.Table:
    """Return the judgements table of the rules, both orders, which never differ.

    The reason of a verdict is the two numbers.
    """
    corpus = _Corpus(documents)
    places: dict[tuple[str, str], int] = {}
    numbers: list[tuple[float, ...]] = []
    sides = np.empty((len(pairings), 2), np.int64)
    asked: dict[str, _Question] = {}
    for row, pairing in enumerate(pairings):
        query = pairing.query
        for side, answer in enumerate((pairing.answer_a, pairing.answer_b)):
            key = query["id"], answer
            if key not in places:
                if query["id"] not in asked:
                    asked[query["id"]] = _Question(
                        query["question"], query["reference_answer"] or ""
                    )
                places[key] = len(numbers)
                numbers.append(asked[query["id"]].numbers(answer, corpus))
            sides[row, side] = places[key]
    table = np.array(numbers).reshape(-1, len(DIMENSIONS))
    a, b = table[sides[:, 0]], table[sides[:, 1]]
    verdicts = np.where(better(a, b), "a", np.where(better(b, a), "b", "tie"))
    reasons = [f"{x:.3g} against {y:.3g}" for x, y in zip(a.flat, b.flat, strict=True)]
    return judgements_table(
        pairings,
        np.repeat(verdicts, len(ORDERS)).tolist(),
        [reason for reason in reasons for _ in ORDERS],
        JUDGE,
    )


def better(numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return where `numbers` are above `others`, and by more than the margin; both at least 0."""
    wins: np.ndarray = numbers - others > MARGIN * numbers
    return wins


class _Corpus:
    """The sentences of the corpus that each content word stands in."""

    def __init__(self, documents: pa.Table) -> None:
        places: dict[str, list[int]] = defaultdict(list)
        columns = (documents.column(name).to_pylist() for name in ("text", "format"))
        count = 0
        for text, form in zip(*columns, strict=True):
            for sentence in sentences_of(text or "", form):
                for word in set(terms(sentence.text)):
                    places[word].append(count)
                count += 1
        self._places = {word: np.array(at) for word, at in places.items()}

    def known(self, words: set[str]) -> set[str]:
        """Return those of `words` that the corpus has."""
        return words & self._places.keys()

    def spread(self, words: set[str]) -> int:
        """Return how many sentences, the one with the most words left first, hold all `words`."""
        left = [self._places[word] for word in sorted(words)]
        taken = 0
        while left:
            sentences, counts = np.unique(np.concatenate(left), return_counts=True)
            best = sentences[counts.argmax()]
            left = [at for at in left if best not in at]
            taken += 1
        return taken


class _Question:
    """A question, and the numbers of the answers to it."""

    def __init__(self, question: str, reference: str) -> None:
        self._asked = set(terms(question))
        self._golds = [
            (tokens(gold), set(terms(gold))) for gold in alternatives(reference) if tokens(gold)
        ]

    def numbers(self, answer: str, corpus: _Corpus) -> tuple[float, ...]:
        """Return one number a dimension, in the order of DIMENSIONS."""
        if is_refusal(answer):
            return (0.0,) * len(DIMENSIONS)
        words = set(terms(answer))
        known = corpus.known(words)
        new = known - self._asked
        agreement = self._agreement(answer, words)
        return (
            agreement,
            float(len(new)),
            float(corpus.spread(new)),
            friendliness(answer) if known or agreement else 0.0,
        )

    def _agreement(self, answer: str, words: set[str]) -> float:
        said = tokens(answer)
        return max(
            (
                1.0 if contains(said, gold) else _f1(words, gold_words)
                for gold, gold_words in self._golds
            ),
            default=0.0,
        )


def _f1(words: set[str], others: set[str]) -> float:
    return 2 * len(words & others) / (len(words) + len(others)) if words else 0.0


def friendliness(answer: str) -> float:
    """Return how easily an answer reads, between 0 and 1, by its form alone."""
    words = tokens(answer)
    runs = list(zip(*(words[start:] for start in range(_RUN)), strict=False))
    again = len(runs) - len(set(runs))
    longest = max((len(answer[s:e].split()) for s, e in split_sentences(answer)), default=0)
    last = answer.strip().rsplit("\n", 1)[-1]
    ends = _END.search(last) or _LIST_ITEM.match(last) or len(words) <= _LONGEST_WITHOUT_END
    return (
        1
        / (1 + again / _RUNS_THAT_HALVE)
        * min(1.0, _LONG_SENTENCE / max(longest, 1))
        * (1.0 if ends else _CUT_OFF)
    )
