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
