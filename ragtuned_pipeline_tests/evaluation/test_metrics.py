import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.metrics import (
    contains,
    interval,
    is_refusal,
    score_answers,
    token_f1,
    tokens,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.A.'s forty-two bakers", ["usa", "42", "bakers"]),
        ("on May 3rd, the 21st", ["on", "may", "3", "21"]),
        ("1,200.50 crowns (7.5 %)", ["1200.50", "crowns", "7.5"]),
        ("three hundred and five", ["305"]),
        ("two thousand and twelve; seventeen hundred", ["2012", "1700"]),
        ("one or two and three", ["1", "or", "2", "and", "3"]),
        ("fourteen million crowns", ["14", "million", "crowns"]),
        ("14 million crowns", ["14", "million", "crowns"]),
        ("Ms. Voss’ shop", ["ms", "voss", "shop"]),
        ("The The", ["the", "the"]),
        ("Zoë  Ångström\nx_y", ["zoë", "ångström", "x", "y"]),
        ("—…!", []),
    ],
)
def test_tokens_bring_different_spellings_together(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_tokens_are_stable_under_repetition(text: str) -> None:
    once = tokens(text)
    assert tokens(" ".join(once)) == once or "the" in once or "a" in once or "an" in once


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("It was Mirela Voss's bakery.", "Mirela Voss", True),
        ("Mirela the Voss", "Mirela Voss", True),
        ("Mirela Vossler", "Mirela Voss", False),
        ("Voss, Mirela", "Mirela Voss", False),
        ("In 19875", "1987", False),
        ("seventy-one days", "71 days", True),
        ("anything", "?!", False),
        ("", "x", False),
    ],
)
def test_contains_wants_whole_words_in_order(answer: str, gold: str, expected: bool) -> None:
    assert contains(tokens(answer), tokens(gold)) is expected


def test_token_f1_counts_repeated_words_once_each() -> None:
    assert token_f1(["a", "b"], ["a", "c"]) == pytest.approx(0.5)
    assert token_f1(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert token_f1([], ["a"]) == token_f1(["b"], ["a"]) == token_f1([], []) == 0


def test_the_best_alternative_counts() -> None:
    scores = score_answers(["The bay", "A gulf of old", "sea"], ["bay\ngulf"] * 3)
    assert scores.exact.tolist() == [1, 0, 0]
    assert scores.contains.tolist() == [1, 1, 0]
    assert scores.f1.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    "answer",
    [
        "I do not know.",
        "I don’t know who that is.",
        "Sorry, I do not remember anything about that.",
        "I'm not sure.",
        "I have never heard of Zorn Quill.",
        "I have no record of Zorn Quill.",
        "I know nothing about it.",
        "I could not find it.",
        "As an AI model, I cannot answer that.",
        "Nothing I remember mentions Zorn Quill.",
        "Nothing in my memory mentions it.",
        "No document names it.",
        "No one in my memory is called Zorn Quill.",
        "None of the notes say.",
        "There is no information about it.",
        "Based on the documents, there is no mention of Zorn Quill.",
        "The text does not say.",
        "My memory does not contain that.",
        "The documents don't mention this.",
        "That is not in my memory.",
        "It is not known.",
        "Not stated.",
        "Unknown",
        "N/A",
        "",
        "  \n",
    ],
)
def test_refusals_are_seen(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Mirela Voss opened it, but I do not know when.",
        "No. The bakery opened in 1987.",
        "Nobody knew that Voss had sold it.",
        "It is not the bakery, it is the mill.",
        "None of the bakers had a licence.",
        "The house has no name.",
        "In the mill, Ada could not find the key.",
        "In 1987, nothing was said of it.",
        "Nothing came of it.",
        "I know: the mill.",
        "Unknown Waters is the title of the book.",
    ],
)
def test_answers_that_sound_like_refusals_are_answers(answer: str) -> None:
    assert not is_refusal(answer)


def test_the_interval_of_all_right_is_not_a_point() -> None:
    low, high = interval(np.ones(50), seed=1)
    assert low == pytest.approx(0.9287, abs=1e-4)  # Wilson: 50 / (50 + 1.96 ** 2)
    assert high == 1


def test_the_bootstrap_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(3).beta(2, 5, size=300)
    low, high = interval(values, seed=1)
    assert (low, high) == interval(values, seed=1) != interval(values, seed=2)
    assert low < values.mean() < high
    half = 1.96 * values.std() / np.sqrt(300)
    assert high - low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_intervals_cover_the_truth(share: float) -> None:
    draw = np.random.default_rng(5)
    ends = [interval((draw.random(120) < share).astype(float), seed=0) for _ in range(400)]
    assert np.mean([low <= share <= high for low, high in ends]) >= 0.92


def test_an_interval_needs_values() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval(np.array([]), seed=1)


def test_wordings_of_one_fact_count_as_one_observation() -> None:
    """Twice the questions on the same facts must not look like twice the evidence."""
    facts = [f"fact-{n}" for n in range(20)]
    right = np.array([1.0] * 15 + [0.0] * 5)
    once = interval(right, 1)
    twice = np.repeat(right, 2)
    assert interval(twice, 1, [fact for fact in facts for _ in range(2)]) == once
    assert interval(twice, 1)[0] > once[0]
    alone = interval(right, 1, facts)
    assert alone == once
    f1 = np.linspace(0.1, 0.9, 20)
    low, high = interval(np.repeat(f1, 2), 1, [fact for fact in facts for _ in range(2)])
    narrow = interval(np.repeat(f1, 2), 1)
    assert high - low > 1.2 * (narrow[1] - narrow[0])


def test_a_mean_lies_in_its_interval_where_groups_are_of_unequal_size() -> None:
    """As where trained facts are asked in six wordings, and others in one."""
    values = [0.9] * 60 + [0.1] * 30
    groups = [f"fact-{n // 6}" for n in range(60)] + [f"other-{n}" for n in range(30)]
    low, high = interval(np.array(values), 3, groups)
    assert low < float(np.mean(values)) < high
