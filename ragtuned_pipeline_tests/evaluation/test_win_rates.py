"""Win rates against a count by hand and a slow one, their intervals against the truth, and judges
with planted faults against what is said of them."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from statistics import NormalDist, mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.judging.judge import (
    DIMENSIONS,
    ORDERS,
    SAME,
    judge_with_teacher,
    pairs_to_judge,
)
from ragtuned_pipeline.evaluation.judging.win_rates import judge_quality, win_rates
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.settings import JudgeSettings
from ragtuned_pipeline.tables import SCHEMAS, check_schema, content_hash, table
from ragtuned_pipeline_tests.evaluation.judging import (
    SWAPPED,
    answers,
    judging,
    queries,
    query,
    reply,
    shown,
)
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher

USEFUL, RICH, *_ = DIMENSIONS


def judgement(
    query_id: str,
    order: str,
    verdict: str | None,
    dimension: str = USEFUL,
    pair: tuple[str, str] = ("base", "tuned"),
) -> dict[str, Any]:
    return {
        "id": f"{query_id} {pair} {dimension} {order}",
        "query_id": query_id,
        "system_a": pair[0],
        "system_b": pair[1],
        "dimension": dimension,
        "order": order,
        "verdict": verdict,
        "reason": "",
        "judge": "by hand",
    }


def both(query_id: str, ab: str | None, ba: str | None, dimension: str = USEFUL) -> list[Any]:
    return [judgement(query_id, "ab", ab, dimension), judgement(query_id, "ba", ba, dimension)]


def local(number: int) -> str:
    return f"query-local-{number:04}"


def asked(count: int) -> pa.Table:
    return queries([query(n, scope) for scope in ("local", "global") for n in range(count)])


# ---- counting ----


def by_hand() -> pa.Table:
    return table(
        "judgements",
        [
            *both(local(0), "a", "a"),
            *both(local(0), "b", "b", RICH),
            *both(local(1), "a", "b"),  # the first one shown: a tie
            *both(local(1), "a", "tie", RICH),  # likewise
            *both(local(2), "tie", "tie"),
            *both(local(2), None, "a", RICH),
            *both(local(3), None, None),
            judgement(local(4), "ab", "a"),  # never asked in the other order
            *both("query-global-0000", "b", "b"),
        ],
    )


def test_a_count_by_hand() -> None:
    made = win_rates(by_hand(), asked(5), 0)
    check_schema("win_rates", made)
    counted = [
        tuple(row[name] for name in SCHEMAS["win_rates"].names[:-2]) for row in made.to_pylist()
    ]
    pair = ("base", "tuned")
    # scope, dimension, pair, n, wins_a, wins_b, ties, disagreements, unjudged, win_rate
    assert counted == [
        ("local", USEFUL, *pair, 3, 1, 0, 2, 1, 2, pytest.approx(2 / 3)),
        ("local", RICH, *pair, 2, 0, 1, 1, 1, 1, 0.25),
        ("local", "overall", *pair, 3, 0, 0, 3, 1, 2, 0.5),
        ("global", USEFUL, *pair, 1, 0, 1, 0, 0, 0, 0.0),
        ("global", "overall", *pair, 1, 0, 1, 0, 0, 0, 0.0),
    ]


def test_a_pair_that_was_never_judged_has_no_rate() -> None:
    made = win_rates(table("judgements", both(local(0), None, "a")), asked(1), 0)
    for row in made.to_pylist():
        assert (row["n"], row["unjudged"]) == (0, 1)
        assert row["win_rate"] is row["low"] is row["high"] is None
    assert made.num_rows == 2


def test_no_judgements_are_no_rows() -> None:
    made = win_rates(table("judgements", []), asked(1), 0)
    check_schema("win_rates", made)
    assert made.num_rows == 0


_VERDICT = st.sampled_from(["a", "b", "tie", None])
_CELL = st.tuples(
    st.sampled_from(["query-local-0000", "query-local-0001", "query-global-0000"]),
    st.sampled_from([("base", "tuned"), ("base", "vanilla_rag"), ("tuned", "vanilla_rag")]),
    st.sampled_from(DIMENSIONS),
    st.sampled_from(ORDERS),
)


def slowly(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """(scope, dimension, systems): (n, wins_a, wins_b, ties, disagreements, unjudged, win_rate)."""
    cells: dict[tuple[str, ...], dict[str, str | None]] = defaultdict(dict)
    for row in rows:
        pair = row["system_a"], row["system_b"]
        cells[(row["query_id"], row["dimension"], *pair)][row["order"]] = row["verdict"]
    worth: dict[tuple[str, ...], dict[str, list[float | None]]] = {}
    differ: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for (query_id, dimension, *pair), said in cells.items():
        ab, ba = said.get("ab"), said.get("ba")
        value = None
        if ab and ba:
            value = {"a": 1.0, "b": 0.0, "tie": 0.5}[ab] if ab == ba else 0.5
        for name in (dimension, "overall"):
            key = (query_id.split("-")[1], name, *pair)
            worth.setdefault(key, {}).setdefault(query_id, []).append(value)
            if ab and ba and ab != ba:
                differ[key].add(query_id)
    counted = {}
    for key, by_query in worth.items():
        values = [
            mean(known) if (known := [v for v in each if v is not None]) else None
            for each in by_query.values()
        ]
        judged = [v for v in values if v is not None]
        counted[key] = (
            len(judged),
            sum(v > 0.5 for v in judged),
            sum(v < 0.5 for v in judged),
            sum(v == 0.5 for v in judged),
            len(differ[key]),
            len(values) - len(judged),
            pytest.approx(mean(judged)) if judged else None,
        )
    return counted


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(_CELL, _VERDICT, max_size=40), st.randoms())
def test_it_counts_as_a_slow_count_does(
    said: dict[Any, str | None], shuffled: random.Random
) -> None:
    rows = [
        judgement(query_id, order, verdict, dimension, pair)
        for (query_id, pair, dimension, order), verdict in said.items()
    ]
    made = win_rates(table("judgements", rows), asked(2), 3)
    names = ("n", "wins_a", "wins_b", "ties", "disagreements", "unjudged", "win_rate")
    assert {
        (row["scope"], row["dimension"], row["system_a"], row["system_b"]): tuple(
            row[name] for name in names
        )
        for row in made.to_pylist()
    } == slowly(rows)
    for row in made.to_pylist():
        if row["n"]:
            assert 0 <= row["low"] <= row["win_rate"] <= row["high"] <= 1
    shuffled.shuffle(rows)
    assert content_hash(win_rates(table("judgements", rows), asked(2), 3)) == content_hash(made)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([judgement(local(0), "ab", "a")] * 2, "twice"),
        ([judgement(local(7), "ab", "a")], "not among the queries"),
        ([judgement(local(0), "ab", "A")], "'A'"),
        ([judgement(local(0), "abba", "a")], "'abba'"),
        ([judgement(local(0), "ab", "a", "beauty")], "'beauty'"),
    ],
)
def test_what_cannot_be_counted_is_an_error(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rates(table("judgements", rows), asked(1), 0)
    with pytest.raises(ValueError, match=message):
        judge_quality(table("judgements", rows), asked(1), answers({}), 0)


# ---- intervals ----


def won(count: int, of: int) -> dict[str, Any]:
    rows = [row for n in range(of) for row in both(local(n), *("aa" if n < count else "bb"))]
    made = win_rates(table("judgements", rows), asked(of), 11).to_pylist()
    return made[0]


def test_no_number_of_wins_claims_certainty() -> None:
    every, none = won(125, 125), won(0, 125)
    assert (every["win_rate"], every["high"]) == (1.0, 1.0)
    assert 0.95 < every["low"] < 0.985  # Clopper & Pearson: 0.971
    assert (none["win_rate"], none["low"]) == (0.0, 0.0)
    assert 0.015 < none["high"] < 0.05
    assert won(1, 1)["low"] < 0.5
    half = won(62, 125)
    assert half["low"] == pytest.approx(0.405, abs=0.02)  # Clopper & Pearson: 0.405, 0.587
    assert half["high"] == pytest.approx(0.587, abs=0.02)


def test_the_interval_is_the_seeds() -> None:
    rows = [
        row
        for n in range(50)
        for place, dimension in enumerate(DIMENSIONS)
        for row in both(local(n), *("ab"[n * (place + 3) % 7 % 2] * 2), dimension)
    ]
    once, again, other = (win_rates(table("judgements", rows), asked(50), s) for s in (1, 1, 2))
    assert content_hash(once) == content_hash(again)
    assert content_hash(once) != content_hash(other)


SIMULATIONS = 1000
# Mean qualities of three systems: near each other, far, further than any answer is bad.
WORLDS = ((0.0, 0.0, 0.3), (0.5, 1.0, 0.0), (3.0, 1.0, 0.0), (0.0, 2.0, 4.0), (5.0, 0.0, 0.1))
INDIFFERENCE = 0.4  # two answers of nearer qualities are a tie to the judge


def truth(difference: float) -> float:
    """The win rate of a system whose answers are better by this on average, each +- 1."""
    of = NormalDist(difference, math.sqrt(2))
    return 1 - of.cdf(INDIFFERENCE) + (of.cdf(INDIFFERENCE) - of.cdf(-INDIFFERENCE)) / 2


def test_a_perfect_judge_ranks_right_with_intervals_that_cover_the_truth() -> None:
    """Three systems answer 30 to 125 queries; how good each answer is is known, and the judge sees
    it. Of 1000 such evaluations (in one table, systems numbered by evaluation) at least 95 % of the
    intervals must hold the true rate, whatever that is. Every fourth judges a second dimension, in
    which the quality of an answer is partly the same."""
    draw = np.random.default_rng(5)
    columns: dict[str, list[Any]] = defaultdict(list)
    for number, size in enumerate(draw.integers(30, 126, SIMULATIONS).tolist()):
        dimensions = DIMENSIONS[: 1 + (number % 4 == 0)]
        common = draw.normal(size=(3, size)) * math.sqrt(0.5)
        own = draw.normal(size=(len(dimensions), 3, size)) * math.sqrt(0.5)
        quality = np.array(WORLDS[number % len(WORLDS)])[:, None] + common + own
        for a, b in ((0, 1), (0, 2), (1, 2)):
            apart = quality[:, a] - quality[:, b]
            verdict = np.where(
                apart > INDIFFERENCE, "a", np.where(apart < -INDIFFERENCE, "b", "tie")
            )
            rows = 2 * verdict.size
            columns["verdict"] += np.repeat(verdict.ravel(), 2).tolist()
            columns["system_a"] += [f"{number:04}-{a}"] * rows
            columns["system_b"] += [f"{number:04}-{b}"] * rows
            columns["query_id"] += [local(n) for n in range(size) for _ in ORDERS] * len(dimensions)
            columns["dimension"] += [name for name in dimensions for _ in range(2 * size)]
            columns["order"] += list(ORDERS) * verdict.size
    columns |= {name: [""] * len(columns["order"]) for name in ("id", "reason", "judge")}
    judgements = pa.table({name: columns[name] for name in SCHEMAS["judgements"].names})

    made = win_rates(judgements, asked(125), 23).to_pylist()
    covered: dict[tuple[str, float], list[bool]] = defaultdict(list)
    rates: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in made:
        number, a = map(int, row["system_a"].split("-"))
        b = int(row["system_b"].split("-")[1])
        means = WORLDS[number % len(WORLDS)]
        true = truth(means[a] - means[b])
        covered[row["dimension"], round(true, 3)].append(row["low"] <= true <= row["high"])
        if row["dimension"] == "overall":
            rates[number][a, b] = row["win_rate"]
    counts = {USEFUL: SIMULATIONS, RICH: SIMULATIONS / 4, "overall": SIMULATIONS}
    for dimension, count in counts.items():
        within = [each for key, found in covered.items() if key[0] == dimension for each in found]
        assert len(within) == 3 * count
        assert mean(within) >= 0.95
    # Whatever the true rate, give or take what so few simulations may be off by chance.
    assert {0.003, 0.5, 1.0} < {true for _, true in covered}
    for of_rate in covered.values():
        assert mean(of_rate) >= 0.95 - 2.6 * math.sqrt(0.95 * 0.05 / len(of_rate))

    right = []
    for number, of_pair in rates.items():
        means = WORLDS[number % len(WORLDS)]
        score = [of_pair[0, 1] + of_pair[0, 2], 1 - of_pair[0, 1] + of_pair[1, 2]]
        score.append(2 - of_pair[0, 2] - of_pair[1, 2])
        if min(abs(a - b) for a, b in combinations(means, 2)) >= 0.5:
            right.append(np.argsort(score).tolist() == np.argsort(means).tolist())
    assert len(right) > SIMULATIONS / 2
    assert mean(right) >= 0.95


# ---- the judge's quality ----

SYSTEMS = {"base": 0.2, "long_context": 0.6, "tuned": 0.9, "vanilla_rag": 0.7}  # share right
QUERIES = 60


@cache
def evaluation() -> tuple[pa.Table, pa.Table]:
    """Queries, and answers of known worth; how long one is has nothing to do with that."""
    rows = [query(n, scope) for scope in ("local", "global") for n in range(QUERIES)]
    given: dict[str, dict[str, str]] = defaultdict(dict)
    for system, share in SYSTEMS.items():
        for place, row in enumerate(rows):
            draw = np.random.default_rng(seeded_int(1, system, row["id"]))
            right = draw.random() < share
            gold = f"gold{place % QUERIES}" if right else "lead"
            padding = " word" * int(draw.integers(0, 40))
            given[system][row["id"]] = f"It is {gold} of worth {draw.random() + right:.6f}{padding}"
    return queries(rows), answers(given)


def worth(answer: str) -> float:
    return float(answer.split()[5])


def fair(first: str, second: str) -> str:
    """Right answers are worth more than 1, wrong ones less; no two are worth the same."""
    return "first" if worth(first) > worth(second) else "second"


def quality(teacher: InMemoryTeacher) -> tuple[dict[str, Any], pa.Table]:
    """judge_quality and win_rates of a judge, through the whole way of a judgement."""
    asked_of, given = evaluation()
    pairings = pairs_to_judge(asked_of, given, JudgeSettings(), 0)
    judgements, _ = judge_with_teacher(pairings, teacher, "m")
    return (
        judge_quality(judgements, asked_of, given, 3),
        win_rates(judgements, asked_of, 3).filter(pc.field("dimension") == "overall"),
    )


def contains(interval: Sequence[float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def test_a_perfect_judge_passes() -> None:
    found, rates = quality(judging(fair))
    items = 2 * QUERIES * 6 * 4
    assert (found["judgements"], found["unjudged"]) == (2 * items, 0)
    assert found["order"]["n"] == items
    assert found["order"]["disagreements"] == 0
    assert found["order"]["first_wins"] == 0.5
    assert contains(found["order"]["first_wins_interval"], 0.5)
    assert contains(found["length"]["longer_wins_interval"], 0.5)
    assert found["agreement"]["share"] == 1
    assert 0 < found["agreement"]["n"] < QUERIES * 6
    assert found["agreement"]["interval"][1] == 1
    order = sorted(SYSTEMS, key=SYSTEMS.__getitem__)
    for row in rates.to_pylist():
        better = max(row["system_a"], row["system_b"], key=order.index)
        assert (row["win_rate"] > 0.5) == (row["system_a"] == better)


def test_a_judge_who_takes_the_first_answer_is_exposed() -> None:
    found, rates = quality(judging(lambda first, second: "first"))
    assert found["order"]["first_wins"] == 1
    assert found["order"]["first_wins_interval"][0] > 0.9
    assert found["order"]["disagreements"] == 1
    assert found["order"]["disagreements_interval"][0] > 0.9
    assert found["agreement"]["share"] == 0.5
    # And gains nothing: all is a tie.
    assert rates["win_rate"].to_pylist() == [0.5] * 12
    assert rates["disagreements"].to_pylist() == [QUERIES] * 12


def test_a_judge_who_mostly_takes_the_first_answer_is_exposed() -> None:
    def said(call: Call[Any]) -> dict[str, Any]:
        lazy = seeded_int(4, call.item_id) % 10 < 2
        return reply("first" if lazy else fair(*shown(call)))

    found, _ = quality(InMemoryTeacher(said))
    assert found["order"]["first_wins_interval"][0] > 0.5
    assert found["order"]["first_wins"] == pytest.approx(0.6, abs=0.03)
    assert found["order"]["disagreements"] == pytest.approx(0.2, abs=0.03)


def test_a_judge_who_takes_the_longer_answer_is_exposed() -> None:
    def longer(first: str, second: str) -> str:
        apart = len(first.split()) - len(second.split())
        return "first" if apart > 0 else "second" if apart < 0 else "tie"

    found, _ = quality(judging(longer))
    assert found["length"]["longer_wins"] == 1
    assert found["length"]["longer_wins_interval"][0] > 0.9
    assert contains(found["order"]["first_wins_interval"], 0.5)
    assert {each["win_rate"] for each in found["length"]["bins"] if each["low"] > 0} == {1.0}
    assert {each["win_rate"] for each in found["length"]["bins"] if each["low"] < 0} == {0.0}
    assert found["agreement"]["share"] < 0.65


def test_a_noisy_judge_is_exposed() -> None:
    def said(call: Call[Any]) -> dict[str, Any]:
        verdict = fair(*shown(call))
        flips = [seeded_int(2, call.item_id, name) % 10 < 2 for name in DIMENSIONS]
        return reply(
            {
                n: SWAPPED[verdict] if flip else verdict
                for n, flip in zip(DIMENSIONS, flips, strict=True)
            }
        )

    found, rates = quality(InMemoryTeacher(said))
    assert found["order"]["disagreements"] == pytest.approx(2 * 0.2 * 0.8, abs=0.03)
    assert contains(found["order"]["disagreements_interval"], 2 * 0.2 * 0.8)
    assert contains(found["order"]["first_wins_interval"], 0.5)
    # Right in both orders 0.64, wrong in both 0.04, else a half.
    assert found["agreement"]["share"] == pytest.approx(0.8, abs=0.05)
    for row in rates.to_pylist():
        if {row["system_a"], row["system_b"]} == {"base", "tuned"}:
            assert row["high"] < 0.5  # of base: noise blurs, it does not turn


def test_failed_calls_are_counted_and_shift_nothing() -> None:
    def said(call: Call[Any]) -> dict[str, Any] | None:
        verdict = fair(*shown(call))
        # Fails only where the first one would win.
        fails = verdict == "first" and seeded_int(1, call.item_id) % 2
        return None if fails else reply(verdict)

    found, rates = quality(InMemoryTeacher(said))
    assert found["unjudged"] == 4 * sum(rates["unjudged"].to_pylist()) > 0
    assert found["order"]["n"] == 4 * sum(rates["n"].to_pylist())
    assert found["order"]["first_wins"] == 0.5
    n, unjudged = (np.array(rates[name].to_pylist()) for name in ("n", "unjudged"))
    assert (n + unjudged == QUERIES).all()


def test_rows_of_one_query_are_not_taken_for_independent_ones() -> None:
    """Forty pairs that all say the same of a query tell no more than one."""

    def found(pairs: int) -> list[float]:
        rows = [
            judgement(local(n), order, "a" if n % 2 else None, USEFUL, (f"s{p:02}", "t"))
            for n in range(20)
            for p in range(pairs)
            for order in ORDERS
        ]
        rows += [
            judgement(local(n), order, "ab"[order == "ba"], USEFUL, (f"s{p:02}", "t"))
            for n in range(20, 40)
            for p in range(pairs)
            for order in ORDERS
        ]
        made = judge_quality(table("judgements", rows), asked(40), answers({}), 0)
        assert made["order"]["disagreements"] == pytest.approx(2 / 3)
        return made["order"]["disagreements_interval"]

    assert found(40) == pytest.approx(found(1))


def test_bins_are_symmetric_and_hold_every_verdict_twice() -> None:
    rows = [row for n in range(8) for row in both(local(n), "a", "a" if n % 2 else "tie")]
    said = {
        "base": {local(n): " word" * (n + 1) for n in range(8)},
        "tuned": {local(n): "word" for n in range(7)},  # the last one is missing: no words
    }
    found = judge_quality(table("judgements", rows), asked(8), answers(said), 0)["length"]
    # Query 0 has equal lengths; the others differ by 1 to 6, and 8, in two verdicts each.
    assert [(each["low"], each["high"], each["n"]) for each in found["bins"]] == [
        (-8, -6, 4),
        (-5, -5, 2),
        (-4, -3, 4),
        (-2, -1, 4),
        (1, 2, 4),
        (3, 4, 4),
        (5, 5, 2),
        (6, 8, 4),
    ]
    rates = [each["win_rate"] for each in found["bins"]]
    assert rates == pytest.approx([1 - each for each in reversed(rates)])
    assert rates[-1] == pytest.approx((0.75 + 1) / 2)
    assert found["n"] == 11  # decisive: 7 in the first order, 4 in the second
    assert found["longer_wins"] == 1


def test_agreement_counts_pairs_of_which_one_is_right() -> None:
    rows = [
        *both(local(0), "a", "a"),  # right
        *both(local(1), "b", "b"),  # wrong
        *both(local(2), "a", "b"),  # the orders disagree: a half
        *both(local(3), "a", "a"),  # both are right
        *both(local(4), "a", "a"),  # neither is
        *both(local(5), "a", None),
        *both(local(0), "b", "b", RICH),  # not this dimension
        *both(local(6), "b", "b"),  # no reference
    ]
    asked_of = queries([query(n) for n in range(6)] + [query(6, reference_answer="")])
    said = {
        "base": {local(n): f"It is gold{n}." for n in (0, 1, 2, 3, 5, 6)},
        "tuned": {local(3): "gold3", local(4): "gold"},
    }
    found = judge_quality(table("judgements", rows), asked_of, answers(said), 0)["agreement"]
    assert found["n"] == 3
    assert found["share"] == 0.5
    assert contains(found["interval"], 0.5)


def test_nothing_judged_has_no_shares() -> None:
    nothing = {
        "judgements": 0,
        "unjudged": 0,
        "order": {
            "n": 0,
            "disagreements": None,
            "disagreements_interval": None,
            "first_wins": None,
            "first_wins_interval": None,
        },
        "length": {"n": 0, "longer_wins": None, "longer_wins_interval": None, "bins": []},
        "agreement": {"n": 0, "share": None, "interval": None},
    }
    assert judge_quality(table("judgements", []), asked(1), answers({}), 0) == nothing
    failed = table("judgements", both(local(0), None, None))
    assert judge_quality(failed, asked(1), answers({}), 0) == nothing | {
        "judgements": 2,
        "unjudged": 2,
    }


def test_it_is_plain_json_and_the_seeds() -> None:
    asked_of, given = evaluation()
    pairings = pairs_to_judge(asked_of, given, JudgeSettings(queries_per_scope=5), 0)
    judgements, _ = judge_with_teacher(pairings, judging(fair), "m")
    found = judge_quality(judgements, asked_of, given, 3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    backwards = judgements.take(list(range(judgements.num_rows))[::-1])
    assert judge_quality(backwards, asked_of, given, 3) == found


def test_equal_answers_say_nothing_of_a_judge() -> None:
    """A judge of positions is not hidden by pairs that it was never shown."""
    told = [both(local(n), "a", "b") for n in range(10)]
    same = [row | {"reason": SAME} for n in range(10, 50) for row in both(local(n), "tie", "tie")]
    rows = table("judgements", [row for pair in told for row in pair] + same)
    given = table("answers", [])
    order = judge_quality(rows, asked(50), given, 1)["order"]
    assert (order["n"], order["disagreements"]) == (10, 1)
