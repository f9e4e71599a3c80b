"""Sentences that a description was drawn from, without those that are held out of tuning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.synthesis.facts import normalised


def taught_sentences(texts: Iterable[str], held_out: Collection[str]) -> list[str]:
    """Return the sentences of `texts` in order, each once, without those that hold a held-out one.

    A sentence that was written without its full stop runs into the next one here.
    """
    starts = _by_start(frozenset(held_out))
    found: dict[str, str] = {}
    for text in texts:
        for start, end in split_sentences(text):
            sentence = " ".join(text[start:end].split())
            key = normalised(sentence)
            if key and key not in found and not _holds_any(key.split(), starts):
                found[key] = sentence
    return list(found.values())


@lru_cache(maxsize=4)
def _by_start(sentences: frozenset[str]) -> Mapping[tuple[str, ...], list[list[str]]]:
    """Return the words of the sentences by their first two words."""
    starts: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for sentence in sorted(sentences):
        words = sentence.split()
        starts[tuple(words[:2])].append(words)
    return dict(starts)


def _holds_any(words: Sequence[str], starts: Mapping[tuple[str, ...], list[list[str]]]) -> bool:
    return any(
        words[at : at + len(sentence)] == sentence
        for at in range(len(words))
        for sentence in starts.get(tuple(words[at : at + 2]), ())
    )


class DocumentsOf:
    """From text unit ids to the ids of their documents, in order, each once."""

    def __init__(self, text_units: pa.Table) -> None:
        self._document = dict(
            zip(
                text_units.column("id").to_pylist(),
                text_units.column("document_id").to_pylist(),
                strict=True,
            )
        )

    def __call__(self, text_unit_ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._document[unit] for unit in text_unit_ids))


_RESTATED_SHARE = 2 / 3  # of a sentence's telling words
_FEWEST_WORDS = 3  # with fewer telling words a sentence is too plain to be recognised


def telling_words(text: str) -> frozenset[str]:
    """Return the words of `text` by which it can be recognised: the longer ones and numbers."""
    return frozenset(w for w in normalised(text).split() if len(w) > 3 or w.isdigit())


def restates(told: frozenset[str], sentence: frozenset[str]) -> bool:
    """Say whether a text with the telling words `told` says again, in other words or in the same,
    what the sentence with the telling words `sentence` says."""
    enough = len(sentence) >= _FEWEST_WORDS
    return enough and len(sentence & told) >= _RESTATED_SHARE * len(sentence)


def without_restated(text: str, held_out: Collection[frozenset[str]]) -> str:
    """Return `text`, written by a model, without the sentences that restate a held-out one."""
    if not held_out:
        return text
    sentences = [text[start:end] for start, end in split_sentences(text)]
    told = [telling_words(sentence) for sentence in sentences]
    return " ".join(
        sentence
        for sentence, words in zip(sentences, told, strict=True)
        if not any(restates(words, held) for held in held_out)
    )
