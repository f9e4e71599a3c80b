"""Pairwise judgements: which answers are compared, and how a model compares them.

Every pair of answers is shown twice, in both orders, and the judge never sees the names of the
systems. The dimensions are the paper's (Wei et al., 2503.16071).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.judging.verdicts import (
    Comparison,
    material,
    prompt,
    prompt_version,
    replies_of,
    right_answers,
    shown_answer,
)
from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.inference.calls import Call, Teacher
from ragtuned_pipeline.settings import JudgeSettings
from ragtuned_pipeline.tables import SCHEMAS, Failure

DIMENSIONS = (
    "usefulness_correctness",
    "richness_diversity",
    "insightfulness_deep_understanding",
    "user_friendliness",
)
ORDERS = ("ab", "ba")
PROMPT_VERSION = prompt_version("judge")
SAME = "the answers are the same"

_REPLY_TOKENS = 1200
# The paper judges generated questions; a corpus without them is judged on what there is.
_SETS = (
    "generated_local",
    "generated_global",
    "gold_local",
    "gold_global",
    "held_out_wording",
    "new_wording",
    "held_out_fact",
)
_VERDICTS = {
    "ab": {"first": "a", "second": "b", "tie": "tie"},
    "ba": {"first": "b", "second": "a", "tie": "tie"},
}


@dataclass(frozen=True)
class Pairing:
    """Two systems' answers to one query (a row of the queries table); system_a < system_b."""

    query: Mapping[str, Any]
    system_a: str
    system_b: str
    answer_a: str
    answer_b: str

    @property
    def same(self) -> bool:
        """Whether there is nothing to compare."""
        return self.answer_a.strip() == self.answer_b.strip()

    def item(self, order: str) -> str:
        """Return what names the comparison in one order."""
        return f"{self.query['id']} {self.system_a} {self.system_b} {order}"


def pairs_to_judge(
    queries: pa.Table, answers: pa.Table, settings: JudgeSettings, seed: int
) -> list[Pairing]:
    """Return the pairs of answers to compare: local queries first, by query and systems.

    Of each scope at most `settings.queries_per_scope` queries, drawn by `seed`: generated ones
    first, then the user's own, then other wordings of trained facts. Unanswerable ones are not
    compared, since of two refusals neither is better. A system that left a query without an answer
    takes part with an empty one.

    Raises:
        ValueError: a system answers one query twice.
    """
    given: dict[tuple[str, str], str] = {}
    columns = (answers.column(name).to_pylist() for name in ("system", "query_id", "answer"))
    for system, query_id, answer in zip(*columns, strict=True):
        if (system, query_id) in given:
            raise ValueError(f"answers: {system} answers {query_id} twice")
        given[system, query_id] = answer or ""
    systems = sorted({system for system, _ in given})
    pairs = [
        pair for pair in combinations(systems, 2) if settings.pairs == "all" or "tuned" in pair
    ]
    return [
        Pairing(query, a, b, given.get((a, query["id"]), ""), given.get((b, query["id"]), ""))
        for query in _drawn(queries, settings.queries_per_scope, seed)
        for a, b in pairs
    ]


def _drawn(queries: pa.Table, count: int, seed: int) -> Iterator[dict[str, Any]]:
    rows = [row for row in queries.to_pylist() if row["question_set"] in _SETS]
    rows.sort(
        key=lambda row: (
            _SETS.index(row["question_set"]),
            seeded_int(seed, "judged", row["id"]),
            row["id"],
        )
    )
    for scope in ("local", "global"):
        of_scope = [row for row in rows if row["scope"] == scope]
        yield from sorted(of_scope[:count], key=lambda row: row["id"])


def judge_with_teacher(
    pairings: Sequence[Pairing], teacher: Teacher, identity: str
) -> tuple[pa.Table, list[Failure]]:
    """Return the judgements table of a model's verdicts, and the comparisons that failed.

    One call a pairing and order. A call without a valid reply is four rows without a verdict, and
    a failure. Equal answers are ties without a call.

    Args:
        identity: of the judging model.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    calls = (_call(pairing, order) for pairing in pairings if not pairing.same for order in ORDERS)
    replies = replies_of(teacher, calls)
    verdicts: list[str | None] = []
    reasons: list[str] = []
    for pairing in pairings:
        for dimension in DIMENSIONS:
            for order in ORDERS:
                verdict, reason = _verdict(replies.get(pairing.item(order)), dimension, order)
                verdicts.append(verdict)
                reasons.append(reason)
    judge = f"{identity}, prompt {PROMPT_VERSION}"
    failures = [
        reply
        for pairing in pairings
        for order in ORDERS
        if isinstance(reply := replies.get(pairing.item(order)), Failure)
    ]
    return judgements_table(pairings, verdicts, reasons, judge), failures


def _verdict(
    reply: Comparison | Failure | None, dimension: str, order: str
) -> tuple[str | None, str]:
    if reply is None:
        return "tie", SAME
    if isinstance(reply, Failure):
        return None, reply.reason
    said = getattr(reply, dimension)
    return _VERDICTS[order][said.verdict], said.reason


def _call(pairing: Pairing, order: str) -> Call[Comparison]:
    query = pairing.query
    texts = pairing.answer_a, pairing.answer_b
    first, second = map(shown_answer, texts if order == "ab" else reversed(texts))
    describes = query["question_set"] == "generated_global"
    messages = prompt("judge").messages(
        question=query["question"],
        evidence=material(query["evidence"] or ""),
        references=right_answers(query),
        description=material(query["reference_answer"] or "") if describes else "",
        first=first,
        second=second,
    )
    return Call("judging", pairing.item(order), messages, Comparison, _REPLY_TOKENS)


def judgements_table(
    pairings: Sequence[Pairing],
    verdicts: Sequence[str | None],
    reasons: Sequence[str],
    judge: str,
) -> pa.Table:
    """Return the judgements table.

    Args:
        verdicts, reasons: one a row: by pairing, then dimension, then order.
    """
    rows = [
        (pairing.query["id"], pairing.system_a, pairing.system_b, dimension, order)
        for pairing in pairings
        for dimension in DIMENSIONS
        for order in ORDERS
    ]
    ids = [content_id("judgement", *row, judge) for row in rows]
    named = list(zip(*rows, strict=True)) or [()] * 5
    columns = [ids, *named, verdicts, reasons, [judge] * len(rows)]
    schema = SCHEMAS["judgements"]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
