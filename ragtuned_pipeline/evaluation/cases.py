"""Cases for a reader to judge: what was asked, what each system said, and what lies behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.retrieval import Bm25Index, terms
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET, Scored

PER_GROUP = 4
TRAINING_ROWS = 3
RIGHT = 0.5  # an answer read by F1 counts as right from here on; other scores are 0 or 1


@dataclass(frozen=True)
class Case:
    """One question with every system's answer, the tuned model's first.

    `evidence` is the stating sentence of the corpus (empty where there is none), `training_rows`
    the (prompt, completion) pairs of tuning that are nearest to the question.
    """

    query: Mapping[str, Any]
    answers: Sequence[Scored]
    evidence: str
    training_rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class CaseGroup:
    """`cases` chosen by one rule, stated in `title`."""

    title: str
    cases: Sequence[Case]


def choose_cases(
    cells: Iterable[Scored], documents: pa.Table, training_rows: pa.Table
) -> list[CaseGroup]:
    """Return the groups of cases that are not empty; no question stands in two of them.

    Within a group the question sets take turns, so that no set fills it alone.
    """
    by_query: dict[str, list[Scored]] = defaultdict(list)
    for cell in cells:
        by_query[cell.query["id"]].append(cell)
    answered = [
        sorted(group, key=lambda cell: (cell.system != "tuned", cell.system))
        for _, group in sorted(by_query.items())
    ]
    with_tuned = [group for group in answered if group[0].system == "tuned"]
    chosen: set[str] = set()
    behind = _Behind(documents, training_rows)
    groups = []
    for title, fits, order in _GROUPS:
        fitting = [g for g in with_tuned if g[0].query["id"] not in chosen and fits(g)]
        taken = _in_turn(sorted(fitting, key=lambda g: (order(g), g[0].query["id"])))[:PER_GROUP]
        chosen |= {group[0].query["id"] for group in taken}
        if taken:
            groups.append(CaseGroup(title, [behind.case(group) for group in taken]))
    return groups


def is_right(cell: Scored) -> bool:
    """Whether an answer counts as right, by the score that its question set is read by."""
    return cell.quality >= RIGHT


def _others(group: Sequence[Scored]) -> list[Scored]:
    return [cell for cell in group if cell.system != "tuned"]


def _quality_of_others(group: Sequence[Scored]) -> float:
    return max((cell.quality for cell in _others(group)), default=0.0)


# Title, which questions belong, and which of them come first (lowest value).
_Group = Sequence[Scored]
_GROUPS: tuple[tuple[str, Callable[[_Group], bool], Callable[[_Group], Any]], ...] = (
    (
        "Best: the tuned model is right and no other system is",
        lambda group: is_right(group[0]) and not any(map(is_right, _others(group))),
        lambda group: (-group[0].quality, -group[0].scores["f1"]),
    ),
    (
        "Disagreements: another system is right and the tuned model is not",
        lambda group: not is_right(group[0]) and any(map(is_right, _others(group))),
        lambda group: (group[0].quality - _quality_of_others(group), group[0].scores["f1"]),
    ),
    (
        "Worst: the tuned model and all others are wrong",
        lambda group: not any(map(is_right, group)),
        lambda group: (group[0].quality, group[0].scores["f1"]),
    ),
    (
        "Agreement: the tuned model and another system are right",
        lambda group: is_right(group[0]) and any(map(is_right, _others(group))),
        lambda group: -group[0].scores["f1"],
    ),
)


def _in_turn(groups: Sequence[Sequence[Scored]]) -> list[Sequence[Scored]]:
    turns: dict[str, int] = defaultdict(int)
    keyed = []
    for place, group in enumerate(groups):
        question_set = group[0].query["question_set"]
        keyed.append(((turns[question_set], QUESTION_SETS.index(question_set)), place))
        turns[question_set] += 1
    return [groups[place] for _, place in sorted(keyed)]


class _Behind:
    """Looks up what lies behind a question."""

    def __init__(self, documents: pa.Table, training_rows: pa.Table) -> None:
        columns = documents.select(["id", "text"]).to_pydict()
        self._texts = dict(zip(columns["id"], columns["text"], strict=True))
        self._rows = [
            (row["prompt"], row["completion"])
            for row in training_rows.select(["prompt", "completion"]).to_pylist()
        ]
        texts = [f"{prompt} {completion}" for prompt, completion in self._rows]
        self._index = Bm25Index(texts) if texts else None

    def case(self, group: Sequence[Scored]) -> Case:
        query = group[0].query
        near = self._index.nearest(query["question"], TRAINING_ROWS) if self._index else []
        return Case(query, group, self._evidence(query), [self._rows[place] for place in near])

    def _evidence(self, query: Mapping[str, Any]) -> str:
        """The long answer, or the sentence of the documents nearest to question and reference."""
        if MEASURE_OF_SET[query["question_set"]] != "contains":
            return ""
        if query["long_answer"]:
            return str(query["long_answer"])
        wanted = set(terms(f"{query['question']} {query['reference_answer']}"))
        gold = set(terms(query["reference_answer"]))
        best, sentence = (0, 0), ""
        for document_id in query["document_ids"]:
            text = self._texts.get(document_id, "")
            for start, end in split_sentences(text):
                words = set(terms(text[start:end]))
                shared = (len(words & gold), len(words & wanted))
                if shared > best:
                    best, sentence = shared, " ".join(text[start:end].split())
        return sentence
