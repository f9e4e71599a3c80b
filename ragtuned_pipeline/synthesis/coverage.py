"""For every sentence of the corpus: the facts whose training answer holds it, or why none does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.synthesis.facts import LOCAL, RELATIONSHIP, TEACHER, normalised
from ragtuned_pipeline.synthesis.sources import Line, read_sources
from ragtuned_pipeline.synthesis.stated import restates, telling_words
from ragtuned_pipeline.tables import SCHEMAS

QUESTION = "states nothing: a question"
NO_WORDS = "states nothing: no words"
HEADING = "a heading, which names the document in the questions"
HELD_OUT = "held out of tuning, for evaluation"
LEFT_OUT = "left out: by the time budget, or longer than a training row"
NO_ANSWER = "no pair's answer holds it"


def coverage(
    documents: pa.Table, text_units: pa.Table, qa_pairs: pa.Table, training_rows: pa.Table
) -> pa.Table:
    """Return the coverage table: one row a sentence, in the order of the corpus.

    A sentence is covered where a training answer holds it word for word, case, punctuation and
    white space aside. A teacher's pair about one fact or relationship, written in words of its own,
    also covers a sentence of its text units that question and answer together restate.
    """
    kept = qa_pairs.filter(pc.field("kept"))
    trained = pc.field("id").isin(training_rows["id"].combine_chunks())
    taught = _answers_by_document(kept.filter(trained))
    retold = _retold_by_unit(kept.filter(trained))
    untaught = _answers_by_document(kept.filter(~trained & (pc.field("split") == "train")))
    held_out = _answers_by_document(qa_pairs.filter(pc.field("split") == "held_out_fact"))
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMAS["coverage"].names}
    for source in read_sources(documents, text_units):
        for line in source.lines:
            plain = f" {normalised(line.text)} "
            facts = _holding(taught[source.id], plain)
            facts = _distinct([*facts, *_restating(retold, line)])
            reason = None
            if not facts:
                reason = _why(line, plain, untaught[source.id], held_out[source.id])
            row = {
                "document_id": source.id,
                "text_unit_id": line.units[0] if line.units else None,
                "sentence": line.text,
                "start": line.start,
                "end": line.end,
                "fact_ids": facts,
                "covered": reason is None,
                "reason": reason,
            }
            for name, value in row.items():
                columns[name].append(value)
    return pa.table(columns, schema=SCHEMAS["coverage"])


def _why(line: Line, plain: str, untaught: Mapping[str, str], held_out: Mapping[str, str]) -> str:
    if not plain.strip():
        return NO_WORDS
    if line.heading:
        return HEADING
    if _holding(held_out, plain):
        return HELD_OUT
    if line.text.rstrip().endswith("?"):
        return QUESTION
    if _holding(untaught, plain):
        return LEFT_OUT
    # A held-out fact that is asked for short answers only does not repeat its sentence.
    return HELD_OUT if any(answer in plain for answer in held_out) else NO_ANSWER


def _answers_by_document(pairs: pa.Table) -> defaultdict[str, dict[str, str]]:
    """Return document id -> normalised answer, blanks around it -> a fact that it answers."""
    columns = pairs.select(["document_ids", "answer", "fact_id"]).to_pydict()
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    plain: dict[str, str] = {}
    for document_ids, answer, fact in zip(*columns.values(), strict=True):
        if answer not in plain:
            plain[answer] = f" {normalised(answer)} "
        for document in document_ids:
            found[document].setdefault(plain[answer], fact)
    return found


def _retold_by_unit(pairs: pa.Table) -> defaultdict[str, dict[str, frozenset[str]]]:
    """Return text unit id -> fact -> the telling words of a teacher's rows about it."""
    detailed = pc.field("kind").isin([LOCAL, RELATIONSHIP])
    columns = pairs.filter(detailed & pc.starts_with(pc.field("generator"), TEACHER)).select(
        ["text_unit_ids", "question", "answer", "fact_id"]
    )
    found: defaultdict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for units, question, answer, fact in zip(*columns.to_pydict().values(), strict=True):
        words = telling_words(f"{question} {answer}")
        for unit in units:
            found[unit][fact] = found[unit].get(fact, frozenset()) | words
    return found


def _restating(retold: Mapping[str, Mapping[str, frozenset[str]]], line: Line) -> list[str]:
    words = telling_words(line.text)
    return [
        fact
        for unit in line.units
        for fact, told in retold.get(unit, {}).items()
        if restates(told, words)
    ]


def _holding(answers: Mapping[str, str], plain: str) -> list[str]:
    if not plain.strip():
        return []
    return _distinct(fact for answer, fact in answers.items() if plain in answer)


def _distinct(facts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(facts))
