"""Whether an adapter may be promoted: by its numbers, beside its base and the promoted adapter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.questions.queries import query_row
from ragtuned_pipeline.orchestration.gate import (
    SETS,
    Compared,
    Numbers,
    Question,
    gate,
    numbers_of,
)
from ragtuned_pipeline.settings import ChecksSettings
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation.judging import answers

CHECKS = ChecksSettings(
    max_failed_share=0.2, min_gain_over_base=0.05, max_drop=0.05, max_probe_rise=0.5
)


def asked(
    question_set: str, tuned: list[float], base: float = 0.0, start: int = 0
) -> list[Question]:
    """One question a score, each about a fact of its own."""
    return [
        Question(f"{question_set}-{place}", question_set, f"fact-{place}", score, base)
        for place, score in enumerate(tuned, start=start)
    ]


def shares(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


def numbers(*questions: Question, **changed: Any) -> Numbers:
    plain = Numbers(
        adapter="new",
        base_model="base-1",
        data_version="rows",
        absent="",
        questions=questions or tuple(asked("held_out_wording", shares(36, 4))),
        general_loss=4.0,
        coverage=0.9,
        covered=90,
        failed={"documents": (0, 10)},
    )
    return replace(plain, **changed)


def refused(new: Numbers, promoted: Numbers | None = None) -> list[tuple[str, str]]:
    return [(each.number, each.against) for each in gate(new, promoted, CHECKS).refusals]


def promoted(**changed: Any) -> Numbers:
    return numbers(**{"adapter": "promoted", **changed})


# ---- beside the base ----


def test_an_adapter_that_beats_its_base_passes() -> None:
    verdict = gate(numbers(), None, CHECKS)
    assert verdict.reasons == ()
    [gain, _] = verdict.compared
    assert (gain.value, gain.other, gain.questions) == (0.9, 0.0, 40)
    just = asked("held_out_wording", shares(2, 38))
    assert gate(numbers(*just), None, CHECKS).reasons == (), "0.05 is asked for and reached"


def test_the_refusal_says_which_number_and_by_how_much() -> None:
    slightly = asked("held_out_wording", shares(12, 88), base=0.1)
    [reason] = gate(numbers(*slightly), None, CHECKS).reasons
    assert "scores 0.120 and the base 0.100: a gain of 0.020" in reason
    assert "checks.min_gain_over_base asks for 0.050" in reason


def test_gold_questions_that_the_base_knew_must_not_be_lost() -> None:
    held_out = asked("held_out_wording", shares(36, 4))
    for question_set in ("gold_local", "gold_global"):
        lost = asked(question_set, shares(4, 36), base=0.5)
        assert refused(numbers(*held_out, *lost)) == [(question_set, "base")]
        kept = asked(question_set, shares(20, 20), base=0.5)
        assert refused(numbers(*held_out, *kept)) == []


def test_a_base_that_declines_everything_is_no_measure_of_refusals() -> None:
    declined = asked("unanswerable", shares(10, 30), base=1.0)
    assert refused(numbers(*asked("held_out_wording", shares(36, 4)), *declined)) == []


def test_an_adapter_that_nothing_can_be_compared_with_is_refused() -> None:
    verdict = gate(numbers(absent="cannot be judged"), promoted(), CHECKS)
    assert verdict.reasons == ("cannot be judged",)


def test_a_corpus_too_small_to_hold_a_wording_out_passes() -> None:
    unheld = numbers(*asked("unanswerable", [1.0]))
    assert gate(unheld, None, CHECKS).reasons == ()


# ---- beside the promoted adapter ----


@pytest.mark.parametrize("question_set", SETS)
def test_a_share_that_falls_is_refused(question_set: str) -> None:
    held_out = (
        asked("held_out_wording", shares(40, 0)) if question_set != "held_out_wording" else []
    )
    new = numbers(*held_out, *asked(question_set, shares(30, 10)))
    old = promoted(questions=(*held_out, *asked(question_set, shares(40, 0))))
    verdict = gate(new, old, CHECKS)
    [refusal] = verdict.refusals
    assert (refusal.number, refusal.against, refusal.questions) == (question_set, "promoted", 40)
    assert (refusal.value, refusal.other, refusal.worse) == (0.75, 1.0, 0.25)
    assert refusal.setting == "checks.max_drop"
    [reason] = verdict.reasons
    assert "scores 0.750 and the promoted adapter 1.000, over the 40 that both" in reason
    assert "0.250 less" in reason
    assert "checks.max_drop allows 0.050" in reason


def test_only_the_questions_that_both_were_asked_count() -> None:
    shared = asked("held_out_wording", shares(20, 0))
    hard = asked("held_out_wording", shares(0, 30), start=100)  # new facts, not learned well
    easy = asked("held_out_wording", shares(30, 0), start=200)  # facts that are gone
    old = promoted(questions=(*shared, *easy))
    verdict = gate(numbers(*shared, *hard), old, CHECKS)
    [held_out] = [each for each in verdict.compared if each.questions == 20]
    assert (held_out.value, held_out.other) == (1.0, 1.0)
    assert verdict.reasons == ()
    apart = numbers(*hard, *asked("held_out_wording", shares(20, 0), start=300))
    beside = {each.number for each in gate(apart, old, CHECKS).compared if each.against != "base"}
    assert "held_out_wording" not in beside, "they share no question"


def test_a_drop_that_may_be_chance_is_not_refused_and_a_sure_one_that_is_small_neither() -> None:
    def beside(fell: int, rose: int, same: int) -> Compared:
        new = asked("held_out_wording", [0.0] * fell + [1.0] * (rose + same))
        old = asked("held_out_wording", [1.0] * fell + [0.0] * rose + [1.0] * same)
        verdict = gate(numbers(*new), promoted(questions=tuple(old)), CHECKS)
        return next(each for each in verdict.compared if each.against == "promoted")

    few = beside(fell=2, rose=0, same=8)
    assert few.worse == pytest.approx(0.2)
    assert few.chance == 0.25
    assert few.passed
    mixed = beside(fell=14, rose=10, same=26)
    assert mixed.worse == pytest.approx(0.08)
    assert mixed.passed
    sure = beside(fell=10, rose=0, same=290)
    assert sure.chance < 0.025
    assert sure.worse < CHECKS.max_drop
    assert sure.passed
    assert not beside(fell=30, rose=2, same=168).passed


def test_wordings_of_one_fact_are_no_independent_evidence() -> None:
    """Twelve wordings of two facts, one of them forgotten: that is one observation of two."""
    new = asked("held_out_wording", shares(12, 12))
    old = asked("held_out_wording", shares(24, 0))

    def two_facts(questions: list[Question]) -> list[Question]:
        return [replace(each, fact=f"fact-{i // 12}") for i, each in enumerate(questions)]

    assert refused(numbers(*new), promoted(questions=tuple(old)))
    assert not refused(numbers(*two_facts(new)), promoted(questions=tuple(two_facts(old))))


def beside_scores(new: np.ndarray, old: np.ndarray) -> Compared:
    """The comparison of one set's scores with those of the promoted adapter."""
    before = promoted(questions=tuple(asked("gold_global", old.tolist())))
    verdict = gate(numbers(*asked("gold_global", new.tolist())), before, CHECKS)
    return next(each for each in verdict.compared if each.against == "promoted")


def test_a_few_scores_that_fell_are_no_evidence() -> None:
    for count in range(1, 6):
        all_fell = beside_scores(np.full(count, 0.5), np.full(count, 0.6))
        assert all_fell.worse == pytest.approx(0.1)
        assert all_fell.chance == 0.5**count
        assert all_fell.passed
    six = beside_scores(np.full(6, 0.5), np.full(6, 0.6))
    assert (six.chance, six.passed) == (0.5**6, False)
    assert "0.100 less (by chance with a probability of 0.0156)" in six.reason
    # Of the sums of 0.3, 0.2 and -0.1 with any signs, 0.6 and 0.4 are at least 0.4.
    assert beside_scores(np.array([0.1, 0.1, 0.4]), np.array([0.4, 0.3, 0.3])).chance == 2 / 8


# At 0.025 more than `most` come once in some 3,000 times.
@pytest.mark.parametrize(
    ("count", "cases", "most"),
    [*((count, 300, 0) for count in range(1, 6)), (6, 300, 18), (7, 300, 18), (20, 80, 8)],
)
def test_an_equal_adapter_is_refused_in_at_most_a_fortieth_of_cases(
    count: int, cases: int, most: int
) -> None:
    draw = np.random.default_rng(count)
    alike = draw.normal(0.4, 0.15, size=(cases, 2, count)).clip(0, 1)  # F1 of long answers
    right = draw.random((cases, 2, count)) < 0.7  # yes or no
    for scores in (alike, right.astype(float)):
        refusals = sum(not beside_scores(new, old).passed for new, old in scores)
        assert refusals <= most


def test_a_real_fall_is_refused() -> None:
    """A fifth of the answers lost, with three in ten differing."""
    draw, cases = np.random.default_rng(1), 200
    change = draw.choice([-1, 1, 0], p=[0.25, 0.05, 0.7], size=(cases, 60))
    refusals = sum(not beside_scores((each > 0) + 0.0, (each < 0) + 0.0).passed for each in change)
    assert refusals > 0.65 * cases


def test_general_text_and_coverage_may_not_get_much_worse() -> None:
    assert refused(numbers(general_loss=4.5, coverage=0.85, covered=85), promoted()) == []
    louder = gate(numbers(general_loss=4.6), promoted(), CHECKS)
    assert (
        "4.600 nats a token and the promoted adapter's 4.000: a rise of 0.600"
        in (louder.reasons[0])
    )
    assert louder.refusals[0].setting == "checks.max_probe_rise"
    thinner = gate(numbers(coverage=0.8, covered=80), promoted(), CHECKS)
    told = "0.800 of the corpus's sentences (80) and the promoted adapter's 0.900 (90): 0.100 less"
    assert told in thinner.reasons[0]
    assert thinner.remarks == ()
    assert refused(numbers(general_loss=None, coverage=None), promoted()) == []


def test_a_corpus_that_outgrows_its_time_budget_is_promoted_with_a_remark() -> None:
    grown = gate(numbers(coverage=0.5, covered=91), promoted(), CHECKS)
    assert grown.reasons == ()
    [remark] = grown.remarks
    assert "0.500 of the corpus's sentences (91) and the promoted adapter's 0.900 (90)" in remark
    assert "tuning.time_budget_minutes" in remark
    assert gate(numbers(coverage=0.86, covered=91), promoted(), CHECKS).remarks == ()


def test_a_promoted_loss_that_is_no_number_refuses_nothing_after_it() -> None:
    nan = float("nan")
    assert refused(numbers(general_loss=4.0), promoted(general_loss=nan)) == []
    assert refused(numbers(general_loss=nan), promoted()) == [("general_loss", "promoted")]


def test_failed_items_are_counted_by_stage() -> None:
    few_failed = numbers(failed={"documents": (2, 10), "qa_pairs": (0, 0)})
    assert refused(few_failed) == []
    [reason] = gate(numbers(failed={"documents": (3, 10)}), None, CHECKS).reasons
    assert "3 of 10 documents failed: a share of 0.300" in reason
    assert "checks.max_failed_share allows 0.200" in reason


def test_all_reasons_are_given_together() -> None:
    bad = numbers(
        *asked("held_out_wording", shares(0, 40)),
        *asked("gold_local", shares(0, 40), base=1.0),
        *asked("unanswerable", shares(0, 40)),
        general_loss=9.0,
        coverage=0.1,
        covered=10,
        failed={"documents": (9, 10), "qa_pairs": (9, 10)},
    )
    good = promoted(questions=tuple(replace(each, tuned=1.0) for each in bad.questions))
    assert sorted(refused(bad, good)) == [
        ("coverage", "promoted"),
        ("failed documents", "limit"),
        ("failed qa_pairs", "limit"),
        ("general_loss", "promoted"),
        ("gold_local", "base"),
        ("gold_local", "promoted"),
        ("held_out_wording", "base"),
        ("held_out_wording", "promoted"),
        ("unanswerable", "promoted"),
    ]
    assert len(gate(bad, good, CHECKS).reasons) == 9


def test_one_of_another_base_model_is_not_compared_with() -> None:
    other = promoted(base_model="base-2", general_loss=1.0, coverage=1.0)
    assert refused(numbers(general_loss=9.0, coverage=0.1, covered=10), other) == []


# ---- properties ----

SCORES = st.sampled_from([0.0, 0.25, 1 / 3, 0.7, 1.0])


@st.composite
def judged(draw: st.DrawFn) -> Numbers:
    questions = [
        Question(f"q{place}", question_set, f"f{draw(st.integers(0, 5))}", tuned, base)
        for place, (question_set, tuned, base) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(list(SETS)), SCORES, SCORES), max_size=30))
        )
    ]
    return numbers(
        questions=tuple(questions),
        general_loss=draw(st.none() | st.floats(0, 12)),
        coverage=draw(st.none() | st.floats(0, 1)),
    )


@given(judged(), st.floats(0, 1))
def test_an_adapter_equal_to_the_promoted_one_is_never_refused_for_a_drop(
    made: Numbers, limit: float
) -> None:
    checks = CHECKS.model_copy(update={"max_drop": limit, "max_probe_rise": 0.0})
    verdict = gate(made, replace(made, adapter="promoted"), checks)
    assert [each for each in verdict.refusals if each.against == "promoted"] == []


@given(judged(), judged(), st.randoms(use_true_random=False))
def test_the_order_of_the_questions_does_not_matter(
    new: Numbers, old: Numbers, random: Any
) -> None:
    def shuffled(made: Numbers) -> Numbers:
        return replace(made, questions=tuple(random.sample(made.questions, len(made.questions))))

    assert gate(shuffled(new), shuffled(old), CHECKS) == gate(new, old, CHECKS)


# ---- from a scorecard ----


def scorecard(**systems: dict[str, Any]) -> dict[str, Any]:
    return {
        "systems": systems,
        "skipped": {"base": "Left out by the setting."},
        "versions": {"adapter": "a", "base model": "b", "data training_rows": "rows"},
        "general_ability": {"language_loss": {"tuned": 4.5}},
        "coverage": {"sentences": 10, "sentences_covered": 9},
    }


def test_the_numbers_are_those_of_the_sets_that_are_read() -> None:
    queries = [
        query_row(
            question_set=question_set,
            scope="local",
            kind="local",
            question=f"{question_set} {place}?",
            reference_answer="Hask Dam",
            document_ids=[],
            fact_id="fact-1" if question_set == "held_out_wording" else None,
        )
        for question_set in ("held_out_wording", "unanswerable", "generated_local")
        for place in range(2)
    ]
    replies = ["It is Hask Dam.", "No.", "I do not know.", "Yes.", "Hask Dam", "Hask Dam"]
    ids = [query["id"] for query in queries]
    given = {system: dict.fromkeys(ids, "I do not know.") for system in ("base", "vanilla_rag")}
    given["tuned"] = dict(zip(ids, replies, strict=True))
    tables = table("queries", queries), answers(given)
    made = numbers_of(scorecard(tuned={}, base={}), *tables, {"documents": (1, 4)})
    assert [(each.question_set, each.tuned, each.base) for each in made.questions] == [
        ("held_out_wording", 1.0, 0.0),
        ("held_out_wording", 0.0, 0.0),
        ("unanswerable", 1.0, 1.0),
        ("unanswerable", 0.0, 1.0),
    ]
    assert [each.fact for each in made.questions[:3]] == ["fact-1", "fact-1", queries[2]["id"]]
    assert (made.adapter, made.base_model, made.general_loss) == ("a", "b", 4.5)
    assert (made.coverage, made.covered) == (0.9, 9)
    assert made.failed == {"documents": (1, 4)}
    for absent, systems in (
        ("'base': Left out by the setting.", {"tuned": {}}),
        ("'tuned': it has no answers", {"base": {}}),
    ):
        assert absent in numbers_of(scorecard(**systems), *tables, {}).absent
