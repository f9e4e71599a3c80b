"""A judge with a planted fault is exposed by its own numbers, and a fair one is not."""

from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, ORDERS
from ragtuned_pipeline.evaluation.judging.win_rates import judge_quality, win_rates
from ragtuned_pipeline.evaluation.reporting.trust import (
    ability_remarks,
    doubts,
    judge_remarks,
)
from ragtuned_pipeline.evaluation.reporting.wins import matrix, seen_from, win_sentence
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import showcase, world

# (query, system, order, draw) -> which of system_a and system_b, or a tie
Judge = Callable[[dict[str, Any], str, Random], str]

SEED = 29


def asked() -> pa.Table:
    queries = showcase.queries()
    return queries.filter(pa.compute.field("question_set") == "generated_local")


def answers(queries: pa.Table) -> pa.Table:
    """One system is right in two questions of three, the other in one of three; which of them says
    more has nothing to do with it."""
    good, bad = [], []
    for place, row in enumerate(queries.to_pylist()):
        draw = Random(place)
        padding = " as people there like to tell" * draw.randrange(3)
        other = " or so they say" * draw.randrange(3)
        right, wrong = row["reference_answer"], "Zorn Quill"
        good.append(f"{right if place % 3 else wrong}{padding}.")
        bad.append(f"{wrong if place % 3 else right}{other}.")
    return pa.concat_tables(
        [world.answers("tuned", queries, good), world.answers("base", queries, bad)]
    )


def judged(judge: Judge) -> dict[str, Any]:
    """The judge's part of a scorecard, after it has judged."""
    queries = asked()
    given = answers(queries)
    said = {(row["query_id"], row["system"]): row["answer"] for row in given.to_pylist()}
    rows = []
    for query in queries.to_pylist():
        texts = {system: said[query["id"], system] for system in ("base", "tuned")}
        for dimension in DIMENSIONS:
            for order in ORDERS:
                draw = Random(f"{query['id']} {dimension} {order}")
                verdict = judge(query | texts, order, draw)
                rows.append(
                    {
                        "id": content_id("judgement", query["id"], dimension, order),
                        "query_id": query["id"],
                        "system_a": "base",
                        "system_b": "tuned",
                        "dimension": dimension,
                        "order": order,
                        "verdict": verdict or None,
                        "reason": "",
                        "judge": "planted, prompt 1",
                    }
                )
    judgements = table("judgements", rows)
    return {
        "engine": "teacher",
        "identity": "planted, prompt 1",
        **judge_quality(judgements, queries, given, SEED),
    }


def fair(query: dict[str, Any], order: str, draw: Random) -> str:
    return "b" if query["reference_answer"] in query["tuned"] else "a"


def always_first(query: dict[str, Any], order: str, draw: Random) -> str:
    return "a" if order == "ab" else "b"


def always_second(query: dict[str, Any], order: str, draw: Random) -> str:
    return "b" if order == "ab" else "a"


def always_longer(query: dict[str, Any], order: str, draw: Random) -> str:
    lead = len(query["base"].split()) - len(query["tuned"].split())
    return "a" if lead > 0 else "b" if lead < 0 else "tie"


def noisy(query: dict[str, Any], order: str, draw: Random) -> str:
    said = fair(query, order, draw)
    return said if draw.random() >= 0.2 else {"a": "b", "b": "a"}[said]


def contrary(query: dict[str, Any], order: str, draw: Random) -> str:
    return {"a": "b", "b": "a"}[fair(query, order, draw)]


def silent(query: dict[str, Any], order: str, draw: Random) -> str:
    return fair(query, order, draw) if draw.random() >= 0.1 else ""


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (always_first, ["contradicted itself", "leans to the answer shown first"]),
        (always_second, ["contradicted itself", "leans to the answer shown second"]),
        (always_longer, ["longer answers win because of their length"]),
        (noisy, ["much of what it says is order or chance"]),
        (contrary, ["not clearly better than tossing a coin"]),
        (silent, ["so many may change the picture"]),
    ],
)
def test_a_planted_fault_is_told(judge: Judge, told: list[str]) -> None:
    said = " ".join(remark.text for remark in judge_remarks(judged(judge)) if remark.doubt)
    for words in told:
        assert words in said


def test_a_fair_judge_raises_no_doubt() -> None:
    remarks = judge_remarks(judged(fair))
    assert not [remark.text for remark in remarks if remark.doubt]
    assert "planted, prompt 1" in remarks[0].text


def test_rules_are_doubted_whatever_their_numbers() -> None:
    remarks = judge_remarks(judged(fair) | {"engine": "rules"})
    assert [r.doubt for r in remarks].count(True) == 1
    assert "read no meaning" in next(r.text for r in remarks if r.doubt)


@pytest.mark.parametrize("judge", [{}, {"engine": "none"}])
def test_without_a_judge_the_page_says_so(judge: dict[str, Any]) -> None:
    [remark] = judge_remarks(judge)
    assert remark.text.startswith("No judge was asked")


def test_numbers_that_are_not_there_are_said_not_to_be() -> None:
    queries, nothing = asked(), table("judgements", [])
    empty = judge_quality(nothing, queries, answers(queries), SEED)
    [remark] = judge_remarks({"engine": "teacher", "identity": "x", **empty})
    assert "No two answers" in remark.text
    ties = judged(lambda query, order, draw: "tie")
    said = " ".join(remark.text for remark in judge_remarks(ties))
    assert "preferred no answer" in said
    assert "not clearly better than tossing a coin" in said


@pytest.mark.parametrize(
    ("measure", "change", "state"),
    [
        ("accuracy", [-0.2, -0.05], "clearly worse"),
        ("accuracy", [0.05, 0.2], "clearly better"),
        ("accuracy", [-0.1, 0.1], "not clearly changed"),
        ("loss", [0.05, 0.2], "clearly worse"),
        ("loss", [-0.2, -0.05], "clearly better"),
    ],
)
def test_forgetting_is_a_fall_of_accuracy_and_a_rise_of_loss(
    measure: str, change: list[float], state: str
) -> None:
    row = showcase.ABILITY["plain_english"] | {"measure": measure, "change_interval": change}
    [remark] = ability_remarks({"suite": row})
    assert state in remark.text
    assert remark.doubt == (state == "clearly worse")


def test_doubts_are_those_of_the_whole_run() -> None:
    given = showcase.inputs().scorecard
    # The showcase has five facts: too few to tell its control from its tuned model.
    apart = given["control_shuffled"] | {"contains_interval": [0.0, 0.05]}
    card = {**given, "control_shuffled": apart}
    told = " ".join(doubts(card))
    assert "word problems: clearly worse" in told
    assert "Few questions" in told
    control = card["control_shuffled"] | {"contains_interval": [0.7, 0.99]}
    assert "shuffled control" in " ".join(doubts({**card, "control_shuffled": control}))
    assert "shuffled control" not in told
    missing = {"held_out_wording": card["systems"]["tuned"]["held_out_wording"] | {"missing": 3}}
    assert "tuned model left 3 questions" in " ".join(
        doubts({**card, "systems": {"tuned": missing}})
    )


def test_a_win_rate_is_the_same_from_both_sides() -> None:
    row = world.WIN_RATE | {"win_rate": 0.25, "low": 0.1, "high": 0.4, "wins_a": 1, "wins_b": 2}
    [base], [tuned] = seen_from([row], "base"), seen_from([row], "tuned")
    assert (base.other, base.rate, base.low, base.high) == ("tuned", 0.25, 0.1, 0.4)
    assert (tuned.other, tuned.rate, tuned.low, tuned.high) == ("base", 0.75, 0.6, 0.9)
    assert (tuned.wins, tuned.losses) == (base.losses, base.wins) == (2, 1)
    assert (base.verdict, tuned.verdict) == ("behind", "ahead")
    assert seen_from([row], "long_context") == []


def test_the_matrix_is_its_own_opposite() -> None:
    rows = win_rates(showcase.judgements(showcase.queries()), showcase.queries(), SEED).to_pylist()
    systems = list(showcase.SYSTEMS)
    cells = matrix(rows, "local", systems)
    for place, row in enumerate(cells):
        assert row[place] is None
        for other, cell in enumerate(row):
            opposite = cells[other][place]
            if cell is not None and opposite is not None:
                assert cell.rate == pytest.approx(1 - (opposite.rate or 0))
    assert sum(cell is not None for row in cells for cell in row) == 7 * 6


def test_the_win_sentence_says_who_is_preferred_whoever_it_is() -> None:
    def rate(other: str, share: float) -> dict[str, Any]:
        changes = {"win_rate": share, "low": share - 0.1, "high": share + 0.1}
        return world.WIN_RATE | {"system_a": "tuned", "system_b": other} | changes

    rows = [rate("vanilla_rag", 0.2), rate("zeta", 0.55), rate("long_context", 0.8)]
    card = {"win_rates": rows, "judge": {"engine": "teacher"}}
    assert win_sentence(card, "local") == (
        "Judged in pairs, on local questions, the tuned model is clearly preferred to long context "
        "(80\u00a0%); clearly loses to VanillaRAG (20\u00a0%); is not clearly apart from zeta "
        "(55\u00a0%) (win rates)."
    )
    assert win_sentence(card, "global") is None
    rules = win_sentence(card | {"judge": {"engine": "rules"}}, "local")
    assert rules is not None
    assert rules.startswith("By rules that read no meaning")
