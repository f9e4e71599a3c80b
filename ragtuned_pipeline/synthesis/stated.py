"""Sentences that a description was drawn from, without those that are held out of tuning."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.synthesis.facts import normalised


def taught_sentences(text: str, held_out: Collection[str]) -> list[str]:
    """Return the sentences of `text` in order, each once, without the held-out ones."""
    found: dict[str, str] = {}
    for start, end in split_sentences(text):
        sentence = " ".join(text[start:end].split())
        key = normalised(sentence)
        if key and key not in held_out:
            found.setdefault(key, sentence)
    return list(found.values())


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
