import json
from pathlib import Path

import pyarrow as pa
import pytest

from ragtuned_pipeline.evaluation.scorecard import Scored, score_each, scores_table, write_scorecard
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import world

GOLDEN = Path(__file__).parent / "scorecard_golden.json"


def test_the_scorecard_is_the_golden_one(tmp_path: Path) -> None:
    """After a wanted change: write what `world.scored()` gives to the golden file, and read it."""
    write_scorecard(world.scored(), tmp_path / "reports" / "scorecard.json")
    assert (tmp_path / "reports" / "scorecard.json").read_text() == GOLDEN.read_text()
    assert [file.name for file in (tmp_path / "reports").iterdir()] == ["scorecard.json"]


def test_the_keys_are_those_of_the_contract() -> None:
    card = world.scored()
    assert {
        "corpus",
        "seed",
        "versions",
        "systems",
        "skipped",
        "control_shuffled",
        "coverage",
        "win_rates",
    } <= card.keys()
    for sets in card["systems"].values():
        assert sets.keys() == {"held_out_wording", "new_wording", "held_out_fact", "unanswerable"}
        for summary in sets.values():
            wanted = {"n", "exact", "contains", "f1", "refused", "prompt_tokens", "seconds"}
            assert wanted <= summary.keys()
            low, high = summary["contains_interval"]
            assert low <= summary["contains"] <= high


def test_means_count_what_was_said() -> None:
    systems = world.scored()["systems"]
    assert systems["base"]["held_out_wording"]["contains"] == 0
    assert systems["vanilla_rag"]["held_out_wording"]["contains"] == 1
    assert systems["vanilla_rag"]["held_out_wording"]["exact"] == 0
    assert systems["tuned"]["held_out_wording"]["exact"] == 0.75
    assert systems["tuned"]["unanswerable"]["refused"] == 1
    assert systems["base"]["unanswerable"]["seconds"] == 0.25


def test_an_answer_that_is_missing_counts_as_wrong_and_is_counted() -> None:
    _, queries, answers = world.evaluation()
    first = queries["id"][0].as_py()
    lacking = answers.filter(
        ~((pa.compute.field("system") == "vanilla_rag") & (pa.compute.field("query_id") == first))
    )
    sets = world.scored(answers=lacking)["systems"]["vanilla_rag"]
    summary = sets[queries["question_set"][0].as_py()]
    assert (summary["n"], summary["missing"], summary["contains"]) == (4, 1, 0.75)
    assert summary["seconds"] == 0.25


def test_answers_to_nothing_and_twice_are_refused() -> None:
    _, queries, answers = world.evaluation()
    with pytest.raises(ValueError, match="twice"):
        score_each(queries, pa.concat_tables([answers, answers.slice(0, 1)]))
    with pytest.raises(ValueError, match="to no query"):
        score_each(queries.slice(1), answers)


def test_the_scores_table_holds_every_number_of_the_sets() -> None:
    card = world.scored()
    rows = {
        (row["system"], row["question_set"], row["part"], row["measure"]): row
        for row in scores_table(card).to_pylist()
    }
    held_out = card["systems"]["tuned"]["held_out_wording"]
    contains = rows["tuned", "held_out_wording", "all", "contains"]
    assert [contains["low"], contains["high"]] == held_out["contains_interval"]
    assert contains["value"] == held_out["contains"]
    assert rows["tuned", "held_out_wording", "kind=local", "f1"]["n"] == held_out["n"]
    assert rows["tuned", "held_out_wording", "all", "seconds"]["low"] is None
    graded = {key for key in rows if key[3] == "graded"}
    assert {key[:2] for key in graded} == {("tuned", "held_out_wording")}


def test_grades_count_partly_as_half_and_leave_out_what_has_no_verdict() -> None:
    held_out = world.scored()["systems"]["tuned"]["held_out_wording"]
    assert (held_out["graded"], held_out["ungraded"], held_out["n"]) == (0.666667, 1, 4)


@pytest.mark.parametrize(
    ("question_set", "grade", "value"),
    [
        ("gold_local", "declined", 0.0),
        ("unanswerable", "declined", 1.0),
        ("unanswerable", "correct", 0.0),
        ("gold_local", None, None),
    ],
)
def test_to_decline_is_right_only_where_there_is_no_answer(
    question_set: str, grade: str | None, value: float | None
) -> None:
    cell = Scored({"question_set": question_set}, "tuned", "", False, {}, {}, grade)
    assert cell.graded == value


def test_a_corpus_without_questions_has_a_scorecard() -> None:
    nothing, nobody = table("queries", []), table("answers", [])
    card = world.scored(
        queries=nothing, answers=nobody, control_queries=nothing, control_answers=nobody
    )
    assert card["systems"] == card["control_shuffled"] == {}
    json.dumps(card, allow_nan=False)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_scorecard({"seconds": float("nan")}, tmp_path / "scorecard.json")


def test_facts_that_are_new_since_the_adapter_before_are_read_apart() -> None:
    assert "by_age" not in world.scored()["systems"]["tuned"]["held_out_wording"]
    _, queries, _ = world.evaluation()
    asked = queries.filter(pa.compute.field("question_set") == "held_out_wording")
    known = asked["fact_id"][0].as_py()
    card = world.scored(earlier_facts={known})
    of_known = asked["fact_id"].to_pylist().count(known)
    sets = card["systems"]["tuned"]
    ages = sets["held_out_wording"]["by_age"]
    assert {age: ages[age]["n"] for age in ages} == {
        "old": of_known,
        "new": asked.num_rows - of_known,
    }
    assert "by_age" in sets["new_wording"]
    assert "by_age" not in sets["unanswerable"]
    parts = {row["part"]: row["n"] for row in scores_table(card).to_pylist()}
    assert {"age=new", "age=old"} <= parts.keys()
    whole = sets["held_out_wording"]
    assert whole["contains"] * whole["n"] == pytest.approx(
        sum(ages[age]["contains"] * ages[age]["n"] for age in ages), abs=1e-5
    )
