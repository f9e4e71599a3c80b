"""Question-answer pairs of every kind from a corpus and its graph, offline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.community import community_facts
from ragtuned_pipeline.synthesis.entity import entity_facts
from ragtuned_pipeline.synthesis.facts import KINDS, Fact, normalised
from ragtuned_pipeline.synthesis.forms import Form, choose, choose_new
from ragtuned_pipeline.synthesis.local import passages, sentence_facts
from ragtuned_pipeline.synthesis.relationship import relationship_facts
from ragtuned_pipeline.synthesis.sources import Names, read_sources
from ragtuned_pipeline.synthesis.stated import DocumentsOf
from ragtuned_pipeline.synthesis.unanswerable import unanswerable_facts
from ragtuned_pipeline.tables import SCHEMAS, Failure, failures_table


@dataclass(frozen=True)
class Synthesis:
    """Tables qa_pairs, queries (question set new_wording) and failures.

    qa_pairs: by kind (facts.KINDS), within a kind facts in order of importance.
    """

    qa_pairs: pa.Table
    queries_new_wording: pa.Table
    failures: pa.Table


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
    silent = [
        Failure("synthesis", source.id, f"{source.label}: no sentence found, so nothing to ask")
        for source in sources
        if not source.lines
    ]
    rows = _worded(facts, settings)
    _drop_equal_questions(rows)
    return Synthesis(
        _pairs_table(rows), _new_wording(facts, rows, settings), failures_table(silent)
    )


@dataclass
class _Rows:
    """The columns of qa_pairs that differ within a fact; `fact` links to the rest."""

    facts: Sequence[Fact]
    fact: list[int] = field(default_factory=list)
    question: list[str] = field(default_factory=list)
    form: list[Form] = field(default_factory=list)
    wording: list[int] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    drop: list[str | None] = field(default_factory=list)

    def add(self, fact: int, question: str, form: Form, wording: int, split: str) -> None:
        owner = self.facts[fact]
        lost = owner.subject and owner.subject.casefold() not in question.casefold()
        self.fact.append(fact)
        self.question.append(question)
        self.form.append(form)
        self.wording.append(wording)
        self.split.append(split)
        self.drop.append(owner.drop or ("question without its subject" if lost else None))


def _worded(facts: Sequence[Fact], settings: SynthesisSettings) -> _Rows:
    """Word every fact; a dropped one is worded once, so that its row can say why."""
    rows = _Rows(facts)
    for number, fact in enumerate(facts):
        train, held = choose(
            settings.seed,
            fact.draw or fact.id,
            fact.asked.keys(),
            settings.train_wordings,
            settings.held_out_wordings,
        )
        if fact.drop is not None:
            worded = [(train[0], "train")]
        elif fact.held_out:
            worded = [(form, "held_out_fact") for form in held or train[:1]]
        else:
            worded = [(form, "train") for form in train]
            worded += [(form, "held_out_wording") for form in held]
        for wording, (form, split) in enumerate(worded):
            rows.add(number, _ask(fact, form, wording), form, wording, split)
    return rows


def _ask(fact: Fact, form: Form, turn: int) -> str:
    """Fill the form; ways to fill it take turns."""
    ways = fact.asked[form.needs]
    return form.ask(ways[turn % len(ways)])


def _drop_equal_questions(rows: _Rows) -> None:
    """Keep a question once: equal ones are duplicates where the gold is equal, else ambiguous."""
    askers: dict[str, list[int]] = defaultdict(list)
    for row, question in enumerate(rows.question):
        if rows.drop[row] is None:
            askers[normalised(question)].append(row)
    for same in askers.values():
        if len(same) == 1:
            continue
        golds = {normalised(rows.facts[rows.fact[row]].gold) for row in same}
        for row in same[1:] if len(golds) == 1 else same:
            rows.drop[row] = "exact duplicate" if len(golds) == 1 else "ambiguous"


def _answer(fact: Fact, form: Form) -> str:
    return fact.short if form.style == "short" else fact.long


def _pairs_table(rows: _Rows) -> pa.Table:
    facts = [rows.facts[number] for number in rows.fact]
    count = len(facts)
    columns: dict[str, Any] = {
        "id": [
            content_id("qa", fact.id, form.name, question)
            for fact, form, question in zip(facts, rows.form, rows.question, strict=True)
        ],
        "kind": [fact.kind for fact in facts],
        "question": rows.question,
        "answer": [_answer(fact, form) for fact, form in zip(facts, rows.form, strict=True)],
        "wording": rows.wording,
        "fact_id": [fact.id for fact in facts],
        "split": rows.split,
        "kept": [drop is None for drop in rows.drop],
        "drop_reason": rows.drop,
        "generator": [fact.generator for fact in facts],
        "prompt_tokens": [0] * count,
        "completion_tokens": [0] * count,
        "gold": [fact.gold for fact in facts],
        "form": [form.name for form in rows.form],
        "style": [form.style for form in rows.form],
    }
    indices = pa.array(rows.fact, pa.int64())
    schema = SCHEMAS["qa_pairs"]
    for name, links in (
        ("document_ids", [fact.links.documents for fact in rows.facts]),
        ("text_unit_ids", [fact.links.text_units for fact in rows.facts]),
        ("entity_ids", [fact.links.entities for fact in rows.facts]),
        ("relationship_ids", [fact.links.relationships for fact in rows.facts]),
        ("community_ids", [fact.links.communities for fact in rows.facts]),
    ):
        # One list a fact, taken once a row: Arrow copies faster than Python builds.
        columns[name] = pa.array(links, schema.field(name).type).take(indices)
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, schema.field(name).type)
        for name, column in ((name, columns[name]) for name in schema.names)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _new_wording(facts: Sequence[Fact], rows: _Rows, settings: SynthesisSettings) -> pa.Table:
    """Ask every trained fact once in a form that neither tuning nor the base model knows."""
    trained = {
        number
        for number, split, drop in zip(rows.fact, rows.split, rows.drop, strict=True)
        if split == "train" and drop is None
    }
    asked: dict[str, dict[str, Any]] = {}
    clashing: set[str] = set()
    for number in sorted(trained):
        fact = facts[number]
        for form in choose_new(settings.seed, fact.draw or fact.id, fact.asked.keys(), 1):
            turn = seeded_int(settings.seed, "turn", fact.id) % 997
            question = _ask(fact, form, turn)
            key = normalised(question)
            if key in asked:
                clashing.add(key)
            asked[key] = {
                "id": content_id("query", "new_wording", fact.id, form.name, question),
                "scope": "local" if fact.kind in ("local", "unanswerable") else "global",
                "question": question,
                "reference_answer": fact.gold,
                "persona": None,
                "task": None,
                "document_ids": list(fact.links.documents),
                "question_set": "new_wording",
                "kind": fact.kind,
                "fact_id": fact.id,
                "form": form.name,
                "long_answer": _answer(fact, form),
            }
    return _columns("queries", (row for key, row in asked.items() if key not in clashing))


def _columns(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    schema, made = SCHEMAS[name], list(rows)
    arrays = [pa.array([row[n] for row in made], schema.field(n).type) for n in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)
