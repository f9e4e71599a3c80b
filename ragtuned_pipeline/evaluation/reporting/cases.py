"""Cases for a reader to judge, side by side (after the paper's Fig. 4 and 5): what was asked, what
each system said, what the judge made of it, and what lies behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.provenance import Provenance
from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.reporting.case_sources import CaseSources
from ragtuned_pipeline.evaluation.reporting.case_verdicts import (
    Verdict,
    disagreeing,
    grade_reasons,
    points,
    verdicts_by_query,
)
from ragtuned_pipeline.evaluation.reporting.findings import ordered
from ragtuned_pipeline.evaluation.scorecard import Scored

PER_GROUP = 4
PER_LONG_GROUP = 2  # where answers are long, or the judge's reasons are
RIGHT = 0.5  # an answer read by F1 counts as right from here on; other scores are 0 or 1
# Its reference is a description of the whole corpus: nothing is right or wrong by it.
_NOT_BY_REFERENCE = "generated_global"
_WHOLE_CORPUS = ("generated_global", "gold_global")


@dataclass(frozen=True)
class Case:
    """One question with every system's answer, the tuned model's first.

    `evidence` is what the corpus says (empty where nothing is known), `lineage` where the tuned
    model's answer comes from, `verdicts` the judge's by other system, `grade_reasons` the grader's
    words by system.
    """

    query: Mapping[str, Any]
    answers: Sequence[Scored]
    evidence: str
    lineage: Provenance
    verdicts: Mapping[str, Sequence[Verdict]]
    grade_reasons: Mapping[str, str]


@dataclass(frozen=True)
class CaseGroup:
    """`cases` chosen by one rule, stated in `title`."""

    title: str
    cases: Sequence[Case]


def choose_cases(
    cells: Iterable[Scored],
    sources: CaseSources,
    judgements: pa.Table,
    grades: pa.Table,
) -> list[CaseGroup]:
    """Return the groups of cases that are not empty; no question stands in two of them.

    Within a group the question sets take turns, so that no set fills it alone.
    """
    by_query: dict[str, dict[str, Scored]] = defaultdict(dict)
    for cell in cells:
        by_query[cell.query["id"]][cell.system] = cell
    verdicts = verdicts_by_query(judgements)
    asked = [
        _Asked([group[system] for system in ordered(group)], verdicts.get(query_id, []))
        for query_id, group in sorted(by_query.items())
    ]
    with_tuned = [each for each in asked if each.tuned.system == "tuned"]
    reasons = grade_reasons(grades)
    chosen: set[str] = set()
    groups = []
    for rule in _RULES:
        taken = _chosen(rule, [each for each in with_tuned if each.id not in chosen])
        chosen |= {each.id for each in taken}
        if taken:
            groups.append(CaseGroup(rule.title, [_case(each, sources, reasons) for each in taken]))
    return groups


def is_right(cell: Scored) -> bool:
    """Whether an answer counts as right, by the score that its question set is read by."""
    return cell.quality >= RIGHT


@dataclass(frozen=True)
class _Asked:
    """A question as the rules of choice see it."""

    answers: Sequence[Scored]
    verdicts: Sequence[Verdict]

    @property
    def tuned(self) -> Scored:
        return self.answers[0]

    @property
    def id(self) -> str:
        return str(self.tuned.query["id"])

    @property
    def by_reference(self) -> bool:
        return bool(self.tuned.query["question_set"] != _NOT_BY_REFERENCE)

    @property
    def whole_corpus(self) -> bool:
        return self.tuned.query["question_set"] in _WHOLE_CORPUS

    @cached_property
    def points(self) -> float | None:
        return points(self.verdicts)

    @cached_property
    def right(self) -> bool:
        return is_right(self.tuned)

    @cached_property
    def others_right(self) -> bool:
        return any(map(is_right, self.answers[1:]))

    @property
    def best_of_others(self) -> float:
        return max((cell.quality for cell in self.answers[1:]), default=0.0)


@dataclass(frozen=True)
class _Rule:
    """Which questions belong to a group, which of them come first (lowest value), and how many of
    them are shown."""

    title: str
    fits: Callable[[_Asked], bool]
    order: Callable[[_Asked], Any]
    shown: int = PER_GROUP


_RULES = (
    _Rule(
        "Best: the tuned model is right and no other system is",
        lambda asked: asked.by_reference and asked.right and not asked.others_right,
        lambda asked: (-asked.tuned.quality, -asked.tuned.scores["f1"]),
    ),
    _Rule(
        "Disagreements: another system is right and the tuned model is not",
        lambda asked: asked.by_reference and not asked.right and asked.others_right,
        lambda asked: (asked.tuned.quality - asked.best_of_others, asked.tuned.scores["f1"]),
    ),
    _Rule(
        "Worst: the tuned model and all others are wrong",
        lambda asked: asked.by_reference and not asked.right and not asked.others_right,
        lambda asked: (asked.tuned.quality, asked.tuned.scores["f1"]),
    ),
    _Rule(
        "The corpus as a whole: the judge prefers the tuned model most",
        lambda asked: asked.whole_corpus and asked.points is not None and asked.points >= 0.5,
        lambda asked: -(asked.points or 0),
        PER_LONG_GROUP,
    ),
    _Rule(
        "The corpus as a whole: the judge prefers the others most",
        lambda asked: asked.whole_corpus and asked.points is not None and asked.points < 0.5,
        lambda asked: asked.points,
        PER_LONG_GROUP,
    ),
    _Rule(
        "The corpus as a whole: compared by no judge",
        lambda asked: asked.whole_corpus and asked.points is None,
        lambda asked: -asked.tuned.quality,
        PER_LONG_GROUP,
    ),
    _Rule(
        "In two minds: the judge contradicts itself with the order most often",
        lambda asked: disagreeing(asked.verdicts) > 0,
        lambda asked: -disagreeing(asked.verdicts) / len(asked.verdicts),
        PER_LONG_GROUP,
    ),
    _Rule(
        "Agreement: the tuned model and another system are right",
        lambda asked: asked.by_reference and asked.right and asked.others_right,
        lambda asked: -asked.tuned.scores["f1"],
    ),
)


def _chosen(rule: _Rule, asked: Iterable[_Asked]) -> list[_Asked]:
    fitting = sorted(filter(rule.fits, asked), key=lambda each: (rule.order(each), each.id))
    return _in_turn(fitting)[: rule.shown]


def _in_turn(asked: Sequence[_Asked]) -> list[_Asked]:
    turns: dict[str, int] = defaultdict(int)
    keyed = []
    for place, each in enumerate(asked):
        question_set = each.tuned.query["question_set"]
        keyed.append(((turns[question_set], QUESTION_SETS.index(question_set)), place))
        turns[question_set] += 1
    return [asked[place] for _, place in sorted(keyed)]


def _case(asked: _Asked, sources: CaseSources, reasons: Mapping[tuple[str, str], str]) -> Case:
    query = asked.tuned.query
    by_other: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in asked.verdicts:
        by_other[verdict.other].append(verdict)
    return Case(
        query=query,
        answers=asked.answers,
        evidence=sources.evidence(query),
        lineage=sources.lineage(query, asked.tuned.answer),
        verdicts={other: by_other[other] for other in ordered(by_other)},
        grade_reasons={
            cell.system: reasons[cell.system, asked.id]
            for cell in asked.answers
            if reasons.get((cell.system, asked.id))
        },
    )
