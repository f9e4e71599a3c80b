"""Local questions without a teacher: facts of synthesis, in wordings that tuning has not seen.

They measure the corpus, not the training rows: facts that the time budget left out, or that were
held out, are among them. A fact is asked in a wording that stands in no training row: a held-out
or a new one, or one that was left out with its fact. A fifth, as far as there are such facts, are
reverse (the source of a relationship is asked for from its target), and a fifth need two hops: the
question goes round the name of an entity by another fact, whose answer that name is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.questions.corpus_description import STAGE
from ragtuned_pipeline.evaluation.questions.local_samples import LOCAL, MULTI_HOP, REVERSE, Rows
from ragtuned_pipeline.evaluation.questions.queries import (
    longest_answers,
    plain_question,
    query_row,
)
from ragtuned_pipeline.evaluation.questions.query_draw import evenly
from ragtuned_pipeline.evaluation.questions.quotes import flat, statement
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.synthesis.facts import RELATIONSHIP
from ragtuned_pipeline.synthesis.forms import FORMS, Form
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.synthesis.questions import gives_away
from ragtuned_pipeline.synthesis.sources import Names
from ragtuned_pipeline.tables import Failure

SET = "generated_local"
GENERATOR = "templates"
_OTHER = "other"  # of a relationship's overview: asked for where a unit has nothing else
_SHARES: Mapping[str, float] = {LOCAL: 0.6, MULTI_HOP: 0.2, REVERSE: 0.2, _OTHER: 0.0}
_FORMS: Mapping[str, Form] = {form.name: form for form in FORMS}
_NATURAL = ("direct", "indirect", "pair")  # a question as people ask, no gap and no key words
_WORDING = ("question", "form", "generator")
_TRIED = 8  # second facts that are looked at for a first one
_CALLED = {"person": "person", "organization": "organisation", "geo": "place", "event": "event"}


def questions_of_facts(
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    new_wording: pa.Table,
    settings: EvaluationSettings,
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Return `settings.local_queries` rows of the queries table, or as many as can be made.

    Text units give one question each before any gives a second. No fact is asked twice before all
    are asked; then it is asked in another wording.
    """
    wanted = settings.local_queries
    facts = _Facts(
        text_units, entities, relationships, qa_pairs, training_rows, new_wording, settings.seed
    )
    made: dict[str, dict[str, Any]] = {}
    for turn in count() if wanted else ():
        drawn = evenly(
            facts.units,
            partial(facts.of_unit, turn),
            _SHARES,
            key=lambda one: one.fact,
            once=True,
            seed=settings.seed,
        )
        before = len(made)
        for one in drawn:
            row = facts.query(one, turn)
            made.setdefault(plain_question(row["question"]), row)
            if len(made) == wanted:
                return list(made.values()), []
        if len(made) == before:
            break
    reason = f"{len(made)} of {wanted} questions: there are no more facts and wordings"
    return list(made.values()), [Failure(STAGE, SET, reason)] if wanted else []


@dataclass(frozen=True)
class _Stated:
    """A fact as one text unit states it; `over` is the one that leads to it, with its own unit."""

    fact: int
    kind: str
    unit: str
    evidence: tuple[str, ...]
    over: _Stated | None = None
    question: str = ""  # where it is no wording of the fact


class _Facts:
    """The facts of synthesis by the text unit that states them, read when they are asked for."""

    def __init__(
        self,
        text_units: pa.Table,
        entities: pa.Table,
        relationships: pa.Table,
        qa_pairs: pa.Table,
        training_rows: pa.Table,
        new_wording: pa.Table,
        seed: int,
    ) -> None:
        self._seed = seed
        self._names = Names(entities)
        columns = (entities[name].to_pylist() for name in ("id", "title", "aliases"))
        self._called = {
            key: frozenset([title, *(aliases or ())])
            for key, title, aliases in zip(*columns, strict=True)
        }
        ends = (relationships[name].to_pylist() for name in ("source_id", "target_id"))
        self._related = frozenset(zip(*ends, strict=True))
        self._trained = frozenset(map(plain_question, training_rows["prompt"].to_pylist()))
        self._units = Rows(text_units, "text")
        asked = pc.field("kind").isin([LOCAL, RELATIONSHIP])
        passage = pc.field("generator") == PASSAGE_GENERATOR
        pairs = qa_pairs.filter(pc.field("kept") & asked & ~passage)
        pairs = pairs.sort_by([("fact_id", "ascending"), ("id", "ascending")]).combine_chunks()
        self._pairs = pairs
        ids = pairs["fact_id"].to_numpy(zero_copy_only=False)
        self._starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
        self._ends = np.r_[self._starts[1:], len(ids)]
        first = pairs.take(pa.array(self._starts))
        self._by_unit = _inverted(first["text_unit_ids"])
        self._answering = self._by_answer(first)
        self.units = [unit for unit in self._by_unit if unit in self._units]
        renewed = new_wording.select(["fact_id", *_WORDING]).to_pylist()
        self._renewed = {row["fact_id"]: row for row in renewed}
        self._rows = cache(self._rows_of)
        self._wordings = cache(self._fresh_wordings)
        self._stated = cache(self._stated_in)

    def _by_answer(self, facts: pa.Table) -> dict[str, list[int]]:
        """Return entity -> the facts of sentences whose answer it is."""
        found: dict[str, list[int]] = defaultdict(list)
        for fact, (kind, gold) in enumerate(
            zip(facts["kind"].to_pylist(), facts["gold"].to_pylist(), strict=True)
        ):
            if kind == LOCAL and (entity := self._owner(gold)):
                found[entity].append(fact)
        return found

    def of_unit(self, turn: int, unit: str) -> dict[str, list[_Stated]]:
        """Return the facts of the unit that have a wording for this turn, by kind."""
        found: dict[str, list[_Stated]] = defaultdict(list)
        for one in self._stated(unit):
            if turn < len(self._wordings(one.fact)):
                overview = self._row(one.fact)["kind"] == RELATIONSHIP
                found[_OTHER if overview else one.kind].append(one)
        if turn == 0:
            hops = (self._with_a_hop(one) for kind in (LOCAL, REVERSE) for one in found[kind])
            found[MULTI_HOP] = [one for one in hops if one is not None]
        return found

    def query(self, one: _Stated, turn: int) -> dict[str, Any]:
        """Return the row of the queries table that asks it in its wording number `turn`."""
        row, asked = self._row(one.fact), self._wordings(one.fact)[turn]
        leads = [one.over] if one.over else []
        sources = [row, *(self._row(lead.fact) for lead in leads)]
        made = {"question": one.question, "form": one.kind, "generator": GENERATOR}
        return query_row(
            **(made if leads else asked),
            question_set=SET,
            scope="local",
            kind=one.kind,
            reference_answer=flat(row["gold"]),
            long_answer=self._answer(one.fact),
            document_ids=_distinct(sources, "document_ids"),
            fact_id=row["fact_id"],
            evidence="\n".join(s for each in (*leads, one) for s in each.evidence),
            source_ids=[
                *dict.fromkeys(each.unit for each in (one, *leads)),
                *_distinct(sources, "entity_ids"),
                *_distinct(sources, "relationship_ids"),
            ],
            seed=self._seed,
        )

    def _row(self, fact: int) -> dict[str, Any]:
        """Return the first of the fact's pairs: what all of them share."""
        return self._rows(fact)[0]

    def _rows_of(self, fact: int) -> list[dict[str, Any]]:
        start, end = self._starts[fact], self._ends[fact]
        rows: list[dict[str, Any]] = self._pairs.slice(start, end - start).to_pylist()
        return rows

    def _answer(self, fact: int) -> str:
        (answer,) = longest_answers(self._rows(fact)).values()
        return answer

    def _fresh_wordings(self, fact: int) -> list[dict[str, Any]]:
        """Return the wordings that stand in no training row, what people would ask first."""
        rows = self._rows(fact)
        renewed = self._renewed.get(rows[0]["fact_id"])
        wordings = [
            {name: row[name] for name in _WORDING}
            for row in [*rows, *([renewed] if renewed else [])]
            if plain_question(row["question"]) not in self._trained
        ]
        return sorted(wordings, key=self._order)

    def _order(self, wording: Mapping[str, Any]) -> tuple[bool, int, str]:
        form = _FORMS.get(wording["form"])
        drawn = seeded_int(self._seed, "wording", wording["question"])
        return form is not None and form.needs not in _NATURAL, drawn, wording["question"]

    def _stated_in(self, unit: str) -> list[_Stated]:
        """Return the facts that stand in the unit word for word, in a seeded order."""
        text = self._units[unit]["text"]
        found = []
        for fact in self._by_unit[unit]:
            row = self._row(fact)
            evidence = statement(row["question"], row["gold"], self._answer(fact), [text])
            if row["kind"] == LOCAL:  # a relationship's answer may be told the other way round
                evidence = [one for one in evidence if flat(row["gold"]) in one]
            if evidence:
                found.append(_Stated(fact, self._kind(row), unit, tuple(evidence)))
        found.sort(key=lambda one: seeded_int(self._seed, "fact", self._row(one.fact)["fact_id"]))
        return found

    def _kind(self, row: Mapping[str, Any]) -> str:
        """Say whether the fact is asked backwards: from the target of a relationship."""
        named = self._names.in_text(_unplaced(row["question"]))
        if row["kind"] == RELATIONSHIP:
            _, target = row["entity_ids"]
            return REVERSE if named and named[0] == target else LOCAL
        answer = self._owner(row["gold"])
        there = self._related.intersection((answer, one) for one in named)
        back = self._related.intersection((one, answer) for one in named)
        return REVERSE if there and not back else LOCAL

    def _owner(self, gold: str) -> str | None:
        bare = gold.removeprefix("the ").removeprefix("The ")
        return self._names.owner(gold) or self._names.owner(bare)

    def _with_a_hop(self, asked: _Stated) -> _Stated | None:
        """Return the fact with an entity of its question told by another fact, or None."""
        gold = self._row(asked.fact)["gold"]
        core = self._core(asked.fact) or ""
        for entity in self._names.in_text(_unplaced(core)):
            leads = self._answering.get(entity, ())
            turned = seeded_int(self._seed, "hop", gold, entity)
            for step in range(min(len(leads), _TRIED)):
                lead = self._lead(leads[(turned + step) % len(leads)])
                if lead is None or lead.evidence == asked.evidence:
                    continue
                question = self._over(core, entity, self._core(lead.fact))
                if question is not None and not gives_away(question, gold):
                    return replace(asked, kind=MULTI_HOP, over=lead, question=question)
        return None

    def _lead(self, fact: int) -> _Stated | None:
        """Return the fact in the first unit that states it."""
        units = sorted(unit for unit in self._row(fact)["text_unit_ids"] if unit in self._units)
        stated = (one for unit in units for one in self._stated(unit) if one.fact == fact)
        return next(stated, None)

    def _over(self, core: str, entity: str, lead: str | None) -> str | None:
        """Return the question that asks `core` with the name of the entity told by `lead`."""
        if lead is None:
            return None
        kind = self._names.kinds[self._names.titles[entity]]
        names = sorted(self._called[entity], key=lambda name: (-len(name), name))
        pattern = rf"(?<!\w)(?:the )?(?:{'|'.join(map(re.escape, names))})(?!\w)"
        told = re.sub(pattern, f"that {_CALLED.get(kind, 'thing')}", core, count=1)
        question = f"First find out {lead}, then say {told}."
        # The name may stand twice, or in the title of the document that is named.
        return None if re.search(pattern, question) else question

    def _core(self, fact: int) -> str | None:
        """Return the fact's indirect question ("who leads the campaign"), where one is asked."""
        for row in self._rows(fact):
            form = _FORMS.get(row["form"])
            if form is not None and form.needs == "indirect":
                before, _, after = form.pattern.partition("{indirect}")
                core = row["question"].removeprefix(before).removesuffix(after)
                return str(core).rstrip(".")
        return None


def _inverted(lists: pa.ChunkedArray | pa.Array) -> dict[str, np.ndarray]:
    """Return value -> the places of the lists that hold it, int64 of shape (n,)."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    values = pc.list_flatten(lists).dictionary_encode()
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    codes = values.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    cuts = np.searchsorted(codes[order], np.arange(1, len(values.dictionary)))
    groups = np.split(owners[order], cuts) if len(values.dictionary) else []
    return dict(zip(values.dictionary.to_pylist(), groups, strict=True))


def _unplaced(question: str) -> str:
    """Return the question without the document that places it, whose title may hold names."""
    return question.partition(", according to ")[0]


def _distinct(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    return list(dict.fromkeys(one for row in rows for one in row[column]))
