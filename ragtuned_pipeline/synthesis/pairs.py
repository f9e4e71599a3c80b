"""From facts to the tables qa_pairs and queries: every fact in its wordings, each question once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import Fact, Links, Wording, normalised
from ragtuned_pipeline.synthesis.forms import Form, choose, choose_new
from ragtuned_pipeline.tables import SCHEMAS


@dataclass
class Rows:
    """The columns of qa_pairs that differ within a fact; `fact` links to the rest."""

    facts: Sequence[Fact]
    fact: list[int] = field(default_factory=list)
    asked: list[Wording] = field(default_factory=list)
    wording: list[int] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    drop: list[str | None] = field(default_factory=list)

    def add(self, fact: int, asked: Wording, wording: int, split: str) -> None:
        owner = self.facts[fact]
        lost = owner.subject and owner.subject.casefold() not in asked.question.casefold()
        self.fact.append(fact)
        self.asked.append(asked)
        self.wording.append(wording)
        self.split.append(split)
        lacks = "question without its subject" if lost else None
        self.drop.append(owner.drop or asked.drop or lacks)


def worded(facts: Sequence[Fact], settings: SynthesisSettings) -> Rows:
    """Word every fact; a dropped one is worded once, so that its row can say why."""
    rows = Rows(facts)
    for number, fact in enumerate(facts):
        train, held = _wordings(fact, settings)
        if fact.drop is not None:
            chosen = [(wording, "train") for wording in [*train, *held][:1]]
        elif fact.held_out:
            chosen = [(wording, "held_out_fact") for wording in held or train[:1]]
        else:
            chosen = [(wording, "train") for wording in train]
            chosen += [(wording, "held_out_wording") for wording in held]
        for turn, (wording, split) in enumerate(chosen):
            rows.add(number, wording, turn, split)
    return rows


def asked_once(fact: Fact, settings: SynthesisSettings) -> Fact:
    """Return the fact with a single wording, for tuning."""
    train, _ = _wordings(fact, settings)
    return replace(fact, wordings=(train[0],))


def _wordings(
    fact: Fact, settings: SynthesisSettings
) -> tuple[Sequence[Wording], Sequence[Wording]]:
    """Return the wordings for tuning and those held out."""
    if fact.wordings and fact.held_out:
        return (), fact.wordings[: max(1, settings.held_out_wordings)]
    if fact.wordings:
        held = min(settings.held_out_wordings, len(fact.wordings) - 1)
        taught = len(fact.wordings) - held
        return fact.wordings[: min(taught, settings.train_wordings)], fact.wordings[taught:]
    train, held_forms = choose(
        settings.seed,
        fact.draw or fact.id,
        fact.asked.keys(),
        settings.train_wordings,
        settings.held_out_wordings,
    )
    first = 0 if fact.held_out else len(train)
    return _filled(fact, train, 0), _filled(fact, held_forms, first)


def _filled(fact: Fact, forms: Sequence[Form], first: int) -> list[Wording]:
    return [
        Wording(_ask(fact, form, turn), form.style, form.name)
        for turn, form in enumerate(forms, first)
    ]


def _ask(fact: Fact, form: Form, turn: int) -> str:
    """Fill the form; ways to fill it take turns."""
    ways = fact.asked[form.needs]
    return form.ask(ways[turn % len(ways)])


def drop_equal_questions(rows: Rows) -> None:
    """Keep a question once.

    Equal ones are duplicates where the gold is equal, or where they ask for an overview of the same
    entities: then all their answers are right. Else they are ambiguous, and none is kept.
    """
    askers: dict[str, list[int]] = defaultdict(list)
    for row, wording in enumerate(rows.asked):
        if rows.drop[row] is None:
            askers[normalised(wording.question)].append(row)
    for same in askers.values():
        if len(same) == 1:
            continue
        facts = [rows.facts[rows.fact[row]] for row in same]
        golds = {normalised(fact.gold) for fact in facts}
        overviews = {
            (fact.kind, frozenset(fact.links.entities)) if fact.kind.startswith("global") else None
            for fact in facts
        }
        alike = len(golds) == 1 or (len(overviews) == 1 and None not in overviews)
        for row in same[1:] if alike else same:
            rows.drop[row] = "exact duplicate" if alike else "ambiguous"


def _answer(fact: Fact, style: str) -> str:
    return fact.short if style == "short" else fact.long


def pairs_table(rows: Rows) -> pa.Table:
    """Return the table qa_pairs; a fact's tokens stand in its first row, so that they add up."""
    facts = [rows.facts[number] for number in rows.fact]
    first = [wording == 0 for wording in rows.wording]
    columns: dict[str, Any] = {
        "id": [
            content_id("qa", fact.id, asked.name, asked.question)
            for fact, asked in zip(facts, rows.asked, strict=True)
        ],
        "kind": [fact.kind for fact in facts],
        "question": [asked.question for asked in rows.asked],
        "answer": [
            _answer(fact, asked.style) for fact, asked in zip(facts, rows.asked, strict=True)
        ],
        "wording": rows.wording,
        "fact_id": [fact.id for fact in facts],
        "split": rows.split,
        "kept": [drop is None for drop in rows.drop],
        "drop_reason": rows.drop,
        "generator": [fact.generator for fact in facts],
        "prompt_tokens": [
            fact.prompt_tokens * counted for fact, counted in zip(facts, first, strict=True)
        ],
        "completion_tokens": [
            fact.completion_tokens * counted for fact, counted in zip(facts, first, strict=True)
        ],
        "gold": [fact.gold for fact in facts],
        "form": [asked.name for asked in rows.asked],
        "style": [asked.style for asked in rows.asked],
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


def new_wording(facts: Sequence[Fact], rows: Rows, settings: SynthesisSettings) -> pa.Table:
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
                "long_answer": _answer(fact, form.style),
                "evidence": None,  # found by the evaluation, where it stands in a document
                "source_ids": source_ids(fact.links),
                "generator": fact.generator,
                "seed": settings.seed,
            }
    return _columns("queries", (row for key, row in asked.items() if key not in clashing))


def source_ids(links: Links) -> list[str]:
    """Return the ids of the text units and elements of the graph that a fact comes from."""
    return [*links.text_units, *links.entities, *links.relationships, *links.communities]


def _columns(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    schema, made = SCHEMAS[name], list(rows)
    arrays = [pa.array([row[n] for row in made], schema.field(n).type) for n in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)
