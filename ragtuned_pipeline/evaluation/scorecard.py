"""The scorecard: what every system reached on every question set, as one JSON object."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.metrics import MEASURES, interval, score_answers
from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.settings import TeacherSettings
from ragtuned_pipeline.tables import table

# What a set is read by: the gold answer of a whole-corpus question is several sentences long, which
# no other answer contains word for word; to an unanswerable question a refusal is right.
MEASURE_OF_SET = dict.fromkeys(QUESTION_SETS, "contains") | {
    "generated_global": "f1",  # its reference is a description of the whole corpus
    "gold_global": "f1",
    "unanswerable": "refused",
}
# What asks about facts that were tuned on: read apart for those that the promoted adapter knew.
SETS_BY_AGE = ("held_out_wording", "new_wording")
COSTS = ("prompt_tokens", "completion_tokens", "seconds", "calls", "money")
# What an LLM's grade counts as, where the corpus has an answer. An answer without a verdict is left
# out, and counted.
GRADES = {"correct": 1.0, "partly": 0.5, "incorrect": 0.0, "declined": 0.0}


@dataclass(frozen=True)
class Scored:
    """One system's answer to one query with its scores; an answer that is missing is empty.

    `grade` is the LLM grader's verdict, None where none was asked for or given.
    """

    query: Mapping[str, Any]
    system: str
    answer: str
    missing: bool
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    grade: str | None = None

    @property
    def quality(self) -> float:
        """The score that the query's set is read by, between 0 and 1."""
        return self.scores[MEASURE_OF_SET.get(self.query["question_set"], "contains")]

    @property
    def graded(self) -> float | None:
        """What the grade counts as, between 0 and 1; None without one."""
        if self.grade is None:
            return None
        if self.query["question_set"] == "unanswerable":
            return float(self.grade == "declined")
        return GRADES[self.grade]


def score_each(
    queries: pa.Table, answers: pa.Table, grades: pa.Table | None = None
) -> list[Scored]:
    """Return every query with every system's answer: systems by name, queries in table order.

    Args:
        grades: of an LLM, where one was asked.

    Raises:
        ValueError: a system answers one query twice, or a query that is not in `queries`.
    """
    asked = queries.to_pylist()
    given: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in answers.to_pylist():
        key = (row["system"], row["query_id"])
        if key in given:
            raise ValueError(f"answers: {row['system']} answers {row['query_id']} twice")
        given[key] = row
    unknown = {query_id for _, query_id in given} - {query["id"] for query in asked}
    if unknown:
        raise ValueError(f"answers: {len(unknown)} are to no query, e.g. to {min(unknown)}")
    graded = {
        (row["system"], row["query_id"]): row["verdict"]
        for row in (grades.to_pylist() if grades else [])
    }
    systems = sorted({system for system, _ in given})
    cells = [
        (system, query, given.get((system, query["id"]))) for system in systems for query in asked
    ]
    texts = [row["answer"] if row else "" for _, _, row in cells]
    scores = score_answers(texts, [query["reference_answer"] for _, query, _ in cells])
    return [
        Scored(
            query,
            system,
            text,
            row is None,
            {measure: float(getattr(scores, measure)[place]) for measure in MEASURES},
            {cost: float(row[cost]) if row else 0.0 for cost in COSTS},
            graded.get((system, query["id"])),
        )
        for place, ((system, query, row), text) in enumerate(zip(cells, texts, strict=True))
    ]


def score(
    *,
    corpus: str,
    queries: pa.Table,
    answers: pa.Table,
    control_queries: pa.Table,
    control_answers: pa.Table,
    descriptions: Mapping[str, str],
    skipped: Mapping[str, str],
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    earlier_facts: Set[str] | None = None,
    coverage: pa.Table,
    left_out: Mapping[str, int],
    teacher: Mapping[str, Any],
    grades: pa.Table,
    win_rates: pa.Table,
    judge: Mapping[str, Any],
    ablation: Mapping[str, Any],
    general_ability: Mapping[str, Any],
    versions: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Return the scorecard; its keys are those of the architecture's contract, and more.

    Each mean has beside it its 95 % interval ("contains_interval": [low, high]; see
    metrics.interval), and each set its kinds and scopes apart; after a re-tuning, SETS_BY_AGE also
    the facts that are new ("by_age": "new", "old"). A question that a system that took
    part left without an answer counts as an empty answer, and in "missing".

    Args:
        answers: of all systems that took part, one table.
        control_queries, control_answers: of the shuffled control, empty where there was none.
        descriptions: system -> what it is, in a clause.
        skipped: system -> why it took no part.
        earlier_facts: those that the adapter promoted before had learned; None where there was
            none.
        coverage: one row a sentence of the corpus.
        left_out: what the time budget kept out of tuning -> how many.
        teacher: of `teacher_account`, empty where no teacher was asked.
        grades: of an LLM, empty where none was asked.
        win_rates: the judge's, empty where none was asked; `judge` says who judged, and how far
            that can be trusted (win_rates.judge_quality).
        ablation: of ablation.ablation_scores, empty where none was made.
        general_ability: of probe.ability_summary.
        versions: of packages, models and data, by name.

    Raises:
        ValueError: as `score_each`.
    """
    by_system: dict[str, dict[str, list[Scored]]] = defaultdict(lambda: defaultdict(list))
    for cell in score_each(queries, answers, grades):
        by_system[cell.system][cell.query["question_set"]].append(cell)
    return {
        "corpus": corpus,
        "seed": seed,
        "versions": dict(versions),
        "systems": {
            system: {
                name: _summary_of_set(sets[name], seed)
                | (_ages(sets[name], seed, earlier_facts) if name in SETS_BY_AGE else {})
                for name in QUESTION_SETS
                if name in sets
            }
            for system, sets in by_system.items()
        },
        "descriptions": dict(descriptions),
        "skipped": dict(skipped),
        "control_shuffled": _control(control_queries, control_answers, seed),
        "coverage": _coverage(qa_pairs, training_rows, coverage, left_out),
        "teacher": dict(teacher),
        "win_rates": [_rounded_row(row) for row in win_rates.to_pylist()],
        "judge": dict(judge),
        "ablation": dict(ablation),
        "general_ability": dict(general_ability),
    }


def scores_table(scorecard: Mapping[str, Any]) -> pa.Table:
    """Return the table "scores": every number of the systems' question sets, one a row."""
    rows = [
        {
            "system": system,
            "question_set": name,
            "part": part,
            "measure": measure,
            "n": numbers["n"],
            "value": numbers[measure],
            **dict(
                zip(("low", "high"), numbers.get(f"{measure}_interval", (None, None)), strict=True)
            ),
        }
        for system, sets in scorecard["systems"].items()
        for name, whole in sets.items()
        for part, numbers in _parts(whole)
        for measure in (*MEASURES, "graded", *COSTS)
        if measure in numbers
    ]
    return table("scores", rows)


def _parts(whole: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "all", whole
    for column in ("kind", "scope", "age"):
        for value, numbers in whole.get(f"by_{column}", {}).items():
            yield f"{column}={value}", numbers


def _rounded_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _rounded(v) if isinstance(v, float) else v for k, v in row.items()}


def teacher_account(
    model: str, planned: pa.Table, asked: pa.Table, settings: TeacherSettings
) -> dict[str, Any]:
    """Return what the teacher was asked beside what was planned, by step and in all.

    Args:
        planned, asked: tables `teacher_usage`; of a step that stands in one only, the other counts
            as nothing.
        settings: the prices are read.
    """
    from ragtuned_pipeline.inference.teacher import price

    def column(rows: Mapping[str, Any], name: str) -> int:
        return sum(row[name] for row in rows.values())

    def money(rows: Mapping[str, Any]) -> float:
        tokens = column(rows, "prompt_tokens"), column(rows, "completion_tokens")
        return _rounded(price(settings, *tokens))

    plan = {row["step"]: row for row in planned.to_pylist()}
    real = {row["step"]: row for row in asked.to_pylist()}
    nothing = {"calls": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}
    steps = [
        {
            "step": step,
            "failed": real.get(step, nothing)["failed"],
            **{
                f"{name}{suffix}": rows.get(step, nothing)[name]
                for name in ("calls", "prompt_tokens", "completion_tokens")
                for suffix, rows in (("_planned", plan), ("", real))
            },
        }
        for step in dict.fromkeys([*plan, *real])
    ]
    totals = {
        f"{name}{suffix}": column(rows, name)
        for name in ("calls", "prompt_tokens", "completion_tokens")
        for suffix, rows in (("_planned", plan), ("", real))
    }
    return {
        "model": model,
        "steps": steps,
        **totals,
        "money_planned": money(plan),
        "money": money(real),
    }


def _summary_of_set(cells: Sequence[Scored], seed: int) -> dict[str, Any]:
    return summary(cells, seed) | {
        f"by_{column}": {
            value: summary([cell for cell in cells if cell.query[column] == value], seed)
            for value in sorted({cell.query[column] for cell in cells})
        }
        for column in ("kind", "scope")
    }


def _ages(cells: Sequence[Scored], seed: int, earlier: Set[str] | None) -> dict[str, Any]:
    if earlier is None:
        return {}
    ages: dict[str, list[Scored]] = {"new": [], "old": []}
    for cell in cells:
        ages["old" if cell.query["fact_id"] in earlier else "new"].append(cell)
    return {"by_age": {age: summary(each, seed) for age, each in ages.items() if each}}


def summary(cells: Sequence[Scored], seed: int) -> dict[str, Any]:
    """Return means with their intervals, and mean costs, over `cells` (at least one)."""
    facts = [cell.query["fact_id"] or cell.query["id"] for cell in cells]
    made: dict[str, Any] = {
        "n": len(cells),
        "facts": len(set(facts)),
        "missing": sum(cell.missing for cell in cells),
    }
    for measure in MEASURES:
        values = np.array([cell.scores[measure] for cell in cells])
        made[measure] = _rounded(values.mean())
        made[f"{measure}_interval"] = [_rounded(end) for end in interval(values, seed, facts)]
    answered = [cell for cell in cells if not cell.missing]
    grades = [cell.graded for cell in cells if cell.graded is not None]
    if grades:
        values = np.array(grades)
        made["graded"] = _rounded(values.mean())
        made["graded_interval"] = [_rounded(end) for end in interval(values, seed)]
        made["ungraded"] = len(cells) - len(grades)
    for cost in COSTS:
        values = np.array([cell.costs[cost] for cell in answered])
        made[cost] = _rounded(values.mean()) if answered else 0.0
    return made


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _control(queries: pa.Table, answers: pa.Table, seed: int) -> dict[str, Any]:
    cells = score_each(queries, answers)
    if not cells:
        return {}
    return summary(cells, seed) | {"facts": pc.count_distinct(queries.column("fact_id")).as_py()}


def _coverage(
    qa_pairs: pa.Table, training_rows: pa.Table, coverage: pa.Table, left_out: Mapping[str, int]
) -> dict[str, Any]:
    answerable = qa_pairs.filter(~pc.field("kind").isin(["unanswerable", "replay"]))
    facts = set(answerable.column("fact_id").to_pylist())
    dropped = qa_pairs.filter(~pc.field("kept")).column("drop_reason").to_pylist()
    open_sentences = coverage.filter(~pc.field("covered")).column("reason").to_pylist()
    return {
        "facts": len(facts),
        "asked": len(facts & set(training_rows.column("fact_id").to_pylist())),
        "pairs": qa_pairs.num_rows,
        "pairs_dropped": _counts(dropped),
        "training_rows": training_rows.num_rows,
        "left_out": dict(left_out),
        "sentences": coverage.num_rows,
        "sentences_covered": coverage.num_rows - len(open_sentences),
        "sentences_not_covered": _counts(open_sentences),
    }


def _counts(reasons: Sequence[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(reason or "no reason given" for reason in reasons).items()))


def write_scorecard(scorecard: Mapping[str, Any], path: Path) -> None:
    """Write `scorecard` as JSON with sorted keys, so that a reader sees the old or the new one.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(scorecard, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
