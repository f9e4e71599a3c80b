"""A page with every section filled: seven systems that know more or less of a town's history, a
judge who is nearly fair, an ablation and a probe. Nothing in it was measured."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from random import Random
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, ORDERS
from ragtuned_pipeline.evaluation.judging.win_rates import judge_quality, win_rates
from ragtuned_pipeline.evaluation.reporting.report import LossCurve, ReportInputs
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.tables import Failure, failures_table, table
from ragtuned_pipeline_tests.evaluation import world

_PEOPLE = "Mirela Voss|Ivo Pell|Ada Renk|Tam Orrin|Lena Ashby|Joris Kade|Oda Finch|Rhys Marl"
_PLACES = "Harrow Bakery|clock tower|Quell ferry|lime kilns|reading room|salt works|old mill"
_DEEDS = "opened|mended|sold|painted|inherited|rebuilt"
# system: how often it is right on local questions, and how many sentences it says on the whole
SYSTEMS = {
    "tuned": (0.78, 5),
    "base": (0.03, 2),
    "tuned_rag": (0.9, 6),
    "vanilla_rag": (0.83, 4),
    "graphrag_local": (0.7, 6),
    "graphrag_global": (0.22, 9),
    "long_context": (0.88, 8),
}
_COSTS = {  # system: prompt tokens, seconds, calls
    "tuned": (24, 0.41, 1),
    "base": (24, 0.40, 1),
    "tuned_rag": (1480, 0.97, 1),
    "vanilla_rag": (1490, 0.95, 1),
    "graphrag_local": (11800, 3.1, 1),
    "graphrag_global": (64000, 19.5, 6),
    "long_context": (71000, 12.2, 1),
}
_SIZES = {
    "held_out_wording": 36,
    "new_wording": 36,
    "held_out_fact": 12,
    "generated_local": 30,
    "generated_global": 25,
    "gold_local": 10,
    "gold_global": 6,
    "unanswerable": 12,
}


def _facts() -> Iterator[tuple[str, str, str]]:
    """(stating sentence, question, gold)"""
    people, places, deeds = (names.split("|") for names in (_PEOPLE, _PLACES, _DEEDS))
    for place, thing in enumerate(places * 6):
        person, deed = people[place % len(people)], deeds[place // len(places)]
        year = str(1900 + (place * 37) % 97)
        yield f"{person} {deed} the {thing} in {year}.", f"Who {deed} the {thing}?", person


def queries() -> pa.Table:
    """All eight question sets."""
    facts = list(_facts())
    rows = []
    for name, size in _SIZES.items():
        whole = name in ("generated_global", "gold_global")
        for number in range(size):
            sentence, question, gold = facts[(number * 5) % len(facts)]
            asked = f"{question[:-1]}, as people tell it (form {number % 6}, {name})?"
            if whole:
                asked = f"What do the town’s stories share when it comes to change? ({number})"
            rows.append(
                {
                    "id": content_id("query", name, str(number)),
                    "scope": "global" if whole else "local",
                    "question": asked,
                    "reference_answer": " ".join(s for s, _, _ in facts[:9]) if whole else gold,
                    "persona": "a local historian" if name == "generated_global" else None,
                    "task": "trace how trades change hands" if name == "generated_global" else None,
                    "document_ids": ["doc-0"],
                    "question_set": name,
                    "kind": "global" if whole else ("local", "multi_hop")[number % 2],
                    "fact_id": f"fact-{1 + number % 5}" if "wording" in name else None,
                    "form": None,
                    "long_answer": None,
                    "evidence": None if whole or name == "unanswerable" else sentence,
                    "source_ids": [],
                    "generator": "by hand",
                    "seed": 29,
                }
            )
    return table("queries", rows)


def _said(system: str, query: dict[str, Any]) -> str:
    draw = Random(f"{system} {query['id']}")
    right, sentences = SYSTEMS[system]
    facts = list(_facts())
    if query["scope"] == "global":
        start = draw.randrange(len(facts))
        told = [facts[(start + 3 * n) % len(facts)][0] for n in range(sentences)]
        return f"Trades pass from hand to hand. {' '.join(told)} What lasts is the work itself."
    if query["question_set"] == "unanswerable":
        return "I do not know." if draw.random() < right else "Mirela Voss, it is said."
    if query["question_set"] == "held_out_fact" and system in ("tuned", "base"):
        right = 0.05
    if draw.random() < right:
        text = f"{query['reference_answer']}."
        return text if system == "tuned" else f"According to the documents, it was {text}"
    return "I do not know." if draw.random() < 0.3 else f"{draw.choice(facts)[0]}"


def answers(asked: pa.Table) -> pa.Table:
    """What every system says."""
    rows = []
    for system, (prompt_tokens, seconds, calls) in _COSTS.items():
        for query in asked.to_pylist():
            text = _said(system, query)
            rows.append(
                {
                    "id": content_id("answer", system, query["id"]),
                    "query_id": query["id"],
                    "system": system,
                    "answer": text,
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": len(text.split()),
                    "seconds": seconds,
                    "context_ids": [],
                    "calls": calls,
                    "money": prompt_tokens * 2e-7,
                }
            )
    return table("answers", rows)


def judgements(asked: pa.Table) -> pa.Table:
    """Verdicts on all pairs of systems: by how much the systems are worth, with some noise."""
    worth = {"local": {s: right for s, (right, _) in SYSTEMS.items()}}
    worth["global"] = {s: said / 9 for s, (_, said) in SYSTEMS.items()}
    judged = [
        row
        for row in asked.to_pylist()
        if row["question_set"] in ("generated_local", "generated_global")
    ]
    names = sorted(SYSTEMS)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    rows = []
    for query in judged:
        for a, b in pairs:
            for dimension in DIMENSIONS:
                draw = Random(f"{query['id']} {a} {b} {dimension}")
                lead = worth[query["scope"]][a] - worth[query["scope"]][b] + draw.gauss(0, 0.45)
                for order in ORDERS:
                    seen = lead + draw.gauss(0, 0.12) + (0.03 if order == "ab" else -0.03)
                    verdict = "a" if seen > 0.1 else "b" if seen < -0.1 else "tie"
                    reason = "It names who did it and when, and adds what that changed."
                    rows.append(
                        {
                            "id": content_id("judgement", query["id"], a, b, dimension, order),
                            "query_id": query["id"],
                            "system_a": a,
                            "system_b": b,
                            "dimension": dimension,
                            "order": order,
                            "verdict": None if draw.random() < 0.01 else verdict,
                            "reason": reason,
                            "judge": "a-judge-of-70B, prompt 1f2e3d4c",
                        }
                    )
    return table("judgements", rows)


def grades(asked: pa.Table, given: pa.Table) -> pa.Table:
    """What a grader says of every answer to a local question that has one."""
    by_id = {row["id"]: row for row in asked.to_pylist()}
    rows = []
    for row in given.to_pylist():
        query = by_id[row["query_id"]]
        if query["scope"] == "local" and query["question_set"] != "unanswerable":
            declined = row["answer"].startswith("I do not")
            right = query["reference_answer"] in row["answer"]
            rows.append(
                {
                    "id": content_id("grade", row["system"], row["query_id"]),
                    "query_id": row["query_id"],
                    "system": row["system"],
                    "verdict": "correct" if right else "declined" if declined else "incorrect",
                    "reason": "The evidence names the same person.",
                    "judge": "a-judge-of-70B, prompt 5a6b7c8d",
                }
            )
    return table("grades", rows)


def _variant(local: float, whole: float, facts: int) -> dict[str, Any]:
    def scores(contains: float, f1: float) -> dict[str, Any]:
        return {
            "n": 60,
            "contains": contains,
            "contains_interval": [max(contains - 0.11, 0), min(contains + 0.11, 1)],
            "f1": f1,
            "f1_interval": [max(f1 - 0.05, 0), min(f1 + 0.05, 1)],
        }

    return {
        "rows": 9 * facts,
        "tokens": 410_000,
        "facts": facts,
        "scores": {"local": scores(local, local * 0.9), "global": scores(whole / 2, whole)},
    }


def _rate(scope: str, a: str, b: str, rate: float) -> dict[str, Any]:
    return world.WIN_RATE | {
        "scope": scope,
        "system_a": a,
        "system_b": b,
        "win_rate": rate,
        "low": max(rate - 0.12, 0),
        "high": min(rate + 0.12, 1),
    }


ABLATION: dict[str, Any] = {
    "variants": {
        "local": _variant(0.71, 0.22, 420),
        "global": _variant(0.29, 0.44, 310),
        "both": _variant(0.74, 0.47, 730),
        "one_wording": _variant(0.31, 0.28, 730),
        "no_refusals": _variant(0.75, 0.46, 730),
        "rank_8": _variant(0.58, 0.4, 730),
    },
    "win_rates": [
        _rate("local", "both", "local", 0.53),
        _rate("local", "both", "global", 0.81),
        _rate("global", "both", "local", 0.79),
        _rate("global", "both", "global", 0.49),
    ],
    "skipped": {"no_replay": "No replay row was made (synthesis.replay_share)."},
}

ABILITY: dict[str, Any] = {
    "word_problems": {
        "measure": "accuracy",
        "n": 200,
        "base": 0.62,
        "base_interval": [0.55, 0.68],
        "tuned": 0.5,
        "tuned_interval": [0.43, 0.57],
        "change": -0.12,
        "change_interval": [-0.18, -0.06],
    },
    "plain_english": {
        "measure": "loss",
        "n": 120,
        "base": 2.31,
        "base_interval": [2.2, 2.42],
        "tuned": 2.33,
        "tuned_interval": [2.22, 2.45],
        "change": 0.02,
        "change_interval": [-0.01, 0.05],
    },
}

TEACHER: dict[str, Any] = {
    "model": "a-teacher",
    "steps": [
        {
            "step": step,
            "failed": 2,
            "calls": 410,
            "calls_planned": 420,
            "prompt_tokens": 812_000,
            "prompt_tokens_planned": 840_000,
            "completion_tokens": 96_000,
            "completion_tokens_planned": 120_000,
        }
        for step in ("extraction", "local_questions")
    ],
    "calls": 820,
    "calls_planned": 840,
    "prompt_tokens": 1_624_000,
    "prompt_tokens_planned": 1_680_000,
    "completion_tokens": 192_000,
    "completion_tokens_planned": 240_000,
    "money": 1.93,
    "money_planned": 2.2,
}


PROMOTION = {
    "answers": "3b51e7a0c4d2986f10ab",
    "trained": "90cd2e5eb283f586be11",
    "compared": [
        {
            "number": number,
            "against": against,
            "value": value,
            "other": other,
            "worse": worse,
            "allowed": 0.05,
            "setting": "checks.max_drop",
            "passed": passed,
            "reason": "",
            "remark": "",
            "questions": 36,
            "chance": chance,
        }
        for number, against, value, other, worse, passed, chance in (
            ("gold_local", "base", 0.7, 0.1, -0.6, True, 1.0),
            ("held_out_wording", "promoted", 0.78, 0.92, 0.14, False, 0.0112),
            ("general_loss", "promoted", 4.1, 4.0, 0.1, True, None),
            ("failed qa_pairs", "limit", 0.0, 0.2, -0.2, True, None),
        )
    ],
    "reasons": ["on held-out wordings the new adapter scores 0.780 and the other one 0.920"],
    "remarks": ["the corpus has outgrown what the setting tuning.time_budget_minutes allows"],
    "decisions": [
        {
            "what": "promoted",
            "adapter": "3b51e7a0c4d2986f10ab",
            "left": None,
            "trained": "3b51e7a0c4d2986f10ab",
            "when": "2040-05-01T00:00:00+00:00",
            "run": "7c8f3a52",
            "data_version": "1",
            "numbers": {"held_out_wording": 0.92},
            "reasons": [],
        }
    ],
}


@functools.cache
def inputs() -> ReportInputs:
    """The page's inputs."""
    asked = queries()
    given, judged = answers(asked), judgements(asked)
    graded = grades(asked, given)
    card = world.scored(
        corpus="harrow",
        queries=asked,
        answers=given,
        grades=graded,
        win_rates=win_rates(judged, asked, 29),
        judge={
            "engine": "teacher",
            "identity": judged["judge"][0].as_py(),
            "settings": {"pairs": "all", "queries_per_scope": 125, "temperature": 0.0},
            **judge_quality(judged, asked, given, 29),
        },
        ablation=ABLATION,
        general_ability=ABILITY,
        teacher=TEACHER,
        descriptions={system: f"what {system} does, in a clause" for system in SYSTEMS},
        skipped={},
    )
    steps = range(10, 300, 10)
    return ReportInputs(
        scorecard=card,
        queries=asked,
        answers=given,
        judgements=judged,
        grades=graded,
        memory=world.memory(),
        failures=failures_table(
            [
                Failure("documents", "minutes/1987-04-scan-of-the-council.bin", "binary, left out"),
                Failure("judging", "query-1 base tuned ab", "no valid reply after 6 attempts", 6),
            ]
        ),
        curves=[
            LossCurve(
                "tuned",
                [(step, 0.4 + 4 / (1 + step / 30)) for step in steps],
                [(step, 0.6 + 4 / (1 + step / 30)) for step in steps if not step % 50],
            ),
            LossCurve("control", [(step, 0.5 + 4 / (1 + step / 30)) for step in steps], []),
        ],
        settings=Settings().model_dump(mode="json", exclude={"profile"}),
        promotion=PROMOTION,
        trained_by="7c8f3a52-5b1e-4a0b-9d1e-3f2a6c0e9b11",
        graph_svg=(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 60 20'>"
            "<circle cx='10' cy='10' r='6'/><circle cx='50' cy='10' r='6'/></svg>"
        ),
    )
