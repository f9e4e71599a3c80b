from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline.evaluation.reporting.case_sources import TRAINING_ROWS, CaseSources
from ragtuned_pipeline.evaluation.reporting.case_verdicts import (
    Opinion,
    Verdict,
    points,
    verdicts_by_query,
)
from ragtuned_pipeline.evaluation.reporting.cases import PER_LONG_GROUP, choose_cases, is_right
from ragtuned_pipeline.evaluation.scorecard import score_each
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import showcase, world


def judgement(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "judgement-1",
        "query_id": "query-1",
        "system_a": "base",
        "system_b": "tuned",
        "dimension": "usefulness_correctness",
        "order": "ab",
        "verdict": "b",
        "reason": "It names the baker.",
        "judge": "by hand",
    }
    return row | changes


@pytest.mark.parametrize(
    ("in_order_ab", "in_order_ba", "outcome"),
    [
        ("b", "b", "won"),
        ("a", "a", "lost"),
        ("tie", "tie", "tie"),
        ("a", "b", "orders disagree"),
        ("b", "tie", "orders disagree"),
        ("b", None, "no verdict"),
        (None, None, "no verdict"),
    ],
)
def test_both_orders_make_one_outcome_for_the_tuned_model(
    in_order_ab: str | None, in_order_ba: str | None, outcome: str
) -> None:
    rows = [judgement(verdict=in_order_ab), judgement(order="ba", verdict=in_order_ba)]
    [verdict] = verdicts_by_query(table("judgements", rows))["query-1"]
    assert verdict.other == "base"
    assert verdict.outcome == outcome
    assert [opinion.shown_first for opinion in verdict.opinions] == ["base", "tuned"]


def test_the_tuned_model_may_stand_on_either_side() -> None:
    sides = {"system_a": "tuned", "system_b": "vanilla_rag", "verdict": "a"}
    rows = [judgement(**sides), judgement(**sides, order="ba")]
    rows.append(judgement(system_a="base", system_b="long_context"))
    [verdict] = verdicts_by_query(table("judgements", rows))["query-1"]
    assert (verdict.other, verdict.outcome) == ("vanilla_rag", "won")


def test_one_order_alone_is_no_verdict() -> None:
    [verdict] = verdicts_by_query(table("judgements", [judgement()]))["query-1"]
    assert verdict.outcome == "no verdict"


def test_points_count_ties_as_half_and_leave_out_what_was_not_judged() -> None:
    def verdict(*preferred: str | None) -> Verdict:
        return Verdict("base", "overall", [Opinion("base", each, "") for each in preferred])

    won, lost = verdict("tuned", "tuned"), verdict("base", "base")
    split, missing = verdict("tuned", "base"), verdict("tuned", None)
    assert points([won, lost, split, missing]) == 0.5
    assert points([won, won, missing]) == 1
    assert points([missing]) is None


def chosen(judgements: pa.Table | None = None) -> dict[str, list[str]]:
    """title -> the question sets of its cases; no question may stand in two groups."""
    inputs = showcase.inputs()
    groups = choose_cases(
        score_each(inputs.queries, inputs.answers, inputs.grades),
        CaseSources(inputs.memory),
        inputs.judgements if judgements is None else judgements,
        inputs.grades,
    )
    ids = [case.query["id"] for group in groups for case in group.cases]
    assert len(ids) == len(set(ids))
    for group in groups:
        for case in group.cases:
            assert [answer.system for answer in case.answers] == list(showcase.SYSTEMS)
    return {group.title: [case.query["question_set"] for case in group.cases] for group in groups}


def test_questions_on_the_whole_corpus_are_chosen_by_the_judge_and_not_by_their_f1() -> None:
    groups = chosen()
    by_judge = [sets for title, sets in groups.items() if "the judge prefers" in title]
    assert by_judge
    assert all(len(sets) <= PER_LONG_GROUP for sets in by_judge)
    for title, sets in groups.items():
        if "judge" not in title:
            assert "generated_global" not in sets
    assert any("In two minds" in title for title in groups)


def test_without_a_judge_they_are_shown_all_the_same() -> None:
    groups = chosen(table("judgements", []))
    [sets] = [sets for title, sets in groups.items() if "compared by no judge" in title]
    assert sets
    assert not [title for title in groups if "the judge" in title]


def test_groups_by_reference_hold_what_their_titles_say() -> None:
    _, queries, answers = world.evaluation()
    groups = choose_cases(
        score_each(queries, answers), sources(), table("judgements", []), table("grades", [])
    )
    seen = set()
    for group in groups:
        for case in group.cases:
            tuned, *others = case.answers
            assert tuned.system == "tuned"
            right = (is_right(tuned), any(map(is_right, others)))
            kind = group.title.partition(":")[0]
            seen.add(kind)
            wanted = {
                "Best": (True, False),
                "Disagreements": (False, True),
                "Worst": (False, False),
                "Agreement": (True, True),
            }
            assert right == wanted[kind]
    assert seen == {"Best", "Disagreements", "Agreement"}


def sources() -> CaseSources:
    return CaseSources(world.memory())


def query(**changes: Any) -> dict[str, Any]:
    row = showcase.queries().to_pylist()[0]
    return row | {"evidence": None, "long_answer": None, "fact_id": None} | changes


def test_the_fact_that_is_asked_for_comes_first_even_where_the_answer_is_anothers() -> None:
    asked = query(fact_id="fact-3", question="Who rows the ferry?")
    wrong = sources().lineage(asked, "Tam Orrin")
    assert wrong.facts[0].id == "fact-3"
    right = sources().lineage(asked, "Ada Renk")
    assert [fact.id for fact in right.facts] == ["fact-3"]
    assert 0 < len(right.facts[0].rows) <= TRAINING_ROWS
    near = sources().lineage(query(fact_id=None, question="Who keeps bees?"), "Tam Orrin")
    assert [fact.id for fact in near.facts] == ["fact-4"]


def test_a_fact_that_was_never_trained_is_not_shown_as_taught() -> None:
    asked = query(fact_id=world.HELD_OUT_FACT, question="How many sorts?")
    found = sources().lineage(asked, "I do not know.")
    assert world.HELD_OUT_FACT not in [fact.id for fact in found.facts]
    assert found.nothing_near


def test_the_evidence_is_the_corpus_own_words() -> None:
    stated = "Ada Renk rows the ferry to Quell."
    asked = query(
        question="Who rows the ferry?", reference_answer="Ada Renk", document_ids=["doc-1"]
    )
    assert sources().evidence(asked) == stated
    assert sources().evidence(asked | {"long_answer": "Ada does."}) == "Ada does."
    assert sources().evidence(asked | {"evidence": "A quotation.", "long_answer": "x"}) == (
        "A quotation."
    )
    assert sources().evidence(asked | {"question_set": "gold_global"}) == ""
    assert sources().evidence(asked | {"document_ids": []}) == ""
