"""Question-answer pairs of every kind from a corpus and its graph, offline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.community import community_facts
from ragtuned_pipeline.synthesis.entity import entity_facts
from ragtuned_pipeline.synthesis.facts import KINDS
from ragtuned_pipeline.synthesis.local import passages, sentence_facts
from ragtuned_pipeline.synthesis.pairs import (
    drop_equal_questions,
    new_wording,
    pairs_table,
    worded,
)
from ragtuned_pipeline.synthesis.relationship import relationship_facts
from ragtuned_pipeline.synthesis.sources import Names, Source, read_sources
from ragtuned_pipeline.synthesis.stated import DocumentsOf
from ragtuned_pipeline.synthesis.unanswerable import unanswerable_facts
from ragtuned_pipeline.tables import Failure, failures_table


@dataclass(frozen=True)
class Synthesis:
    """Tables qa_pairs, queries (question set new_wording) and failures.

    qa_pairs: by kind (facts.KINDS), within a kind facts in order of importance.
    declined: how many items the teacher found nothing to ask about; they have no question, so no
        row, and are no failure.
    """

    qa_pairs: pa.Table
    queries_new_wording: pa.Table
    failures: pa.Table
    declined: int = 0


def synthesise(
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    communities: pa.Table,
    community_reports: pa.Table,
    settings: SynthesisSettings,
) -> Synthesis:
    """Return all pairs of the corpus, kept and dropped, deterministically in `settings.seed`.

    A sentence drawn for `held_out_fact_share` is held out as a whole: its facts are asked in
    evaluation only, and neither passages nor overviews repeat it.
    """
    sources = read_sources(documents, text_units)
    names = Names(entities)
    documents_of = DocumentsOf(text_units)
    stated = sentence_facts(sources, names, settings)
    held_out = frozenset(
        sentence
        for fact in stated
        if fact.held_out and fact.drop is None
        for sentence in fact.sentences
    )
    facts = [
        *stated,
        *passages(sources, names, settings, held_out),
        *entity_facts(entities, names, documents_of, settings, held_out),
        *relationship_facts(relationships, names, documents_of, settings, held_out),
        *community_facts(communities, community_reports, documents_of, settings, held_out),
    ]
    corpus_text = "\n".join(text or "" for text in documents.column("text").to_pylist())
    facts += unanswerable_facts(facts, names, corpus_text, settings)
    facts.sort(key=lambda fact: KINDS.index(fact.kind))  # stable: the order within a kind stays
    rows = worded(facts, settings)
    drop_equal_questions(rows)
    return Synthesis(
        pairs_table(rows), new_wording(facts, rows, settings), failures_table(silent(sources))
    )


def silent(sources: Iterable[Source]) -> list[Failure]:
    """Return a failure for every document without a sentence."""
    return [
        Failure("synthesis", source.id, f"{source.label}: no sentence found, so nothing to ask")
        for source in sources
        if not source.lines
    ]
