"""The rules: each number by hand, and what must never gain anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, Pairing
from ragtuned_pipeline.evaluation.judging.judge_rules import (
    JUDGE,
    better,
    friendliness,
    judge_by_rules,
)
from ragtuned_pipeline.tables import check_schema, content_hash
from ragtuned_pipeline_tests.evaluation import world
from ragtuned_pipeline_tests.evaluation.judging import query

USEFUL, RICH, INSIGHTFUL, FRIENDLY = DIMENSIONS
# World: "Mirela Voss opened the Harrow Bakery in 1987. The bakery sells forty-two sorts of bread.
# Ivo Pell mended the clock of Harrow." and "Ada Renk rows the ferry to Quell. Tam Orrin keeps bees
# on Quell. The Quell Fair is held in June."
ASKED: dict[str, Any] = {"question": "Who opened the Harrow Bakery?"}
GOLD = "Mirela Voss"
RIGHT = "Mirela Voss opened it in 1987."


def pairing(a: str, b: str, **changes: Any) -> Pairing:
    told = {"reference_answer": GOLD} | ASKED | changes
    return Pairing(query(1, **told), "base", "tuned", a, b)


def judged(a: str, b: str, **changes: Any) -> dict[str, tuple[str, str]]:
    """{dimension: (verdict, reason)}; that both orders are equal is seen to."""
    made = judge_by_rules([pairing(a, b, **changes)], world.documents())
    check_schema("judgements", made)
    rows = made.to_pylist()
    found: dict[str, tuple[str, str]] = {}
    for ab, ba in zip(rows[::2], rows[1::2], strict=True):
        assert (ab["order"], ba["order"]) == ("ab", "ba")
        assert (ab["verdict"], ab["reason"]) == (ba["verdict"], ba["reason"])
        found[ab["dimension"]] = ab["verdict"], ab["reason"]
    assert tuple(found) == DIMENSIONS
    return found


def winners(a: str, b: str, **changes: Any) -> list[str]:
    return [verdict for verdict, _ in judged(a, b, **changes).values()]


def test_numbers_by_hand() -> None:
    made = judged(RIGHT, "Ivo Pell opened the Harrow Bakery, and Tam Orrin keeps bees on Quell.")
    # Without the question's words: mirela, voss, 1987 of one sentence; ivo, pell, tam, orrin,
    # keep, bee, quell of two.
    assert made == {
        USEFUL: ("a", "1 against 0"),
        RICH: ("b", "3 against 7"),
        INSIGHTFUL: ("b", "1 against 2"),
        FRIENDLY: ("tie", "1 against 1"),
    }


def test_what_does_not_contain_the_reference_is_useful_by_the_content_words_in_common() -> None:
    made = judged("Voss opened it.", "Orrin opened it.")
    # {voss, open} and {mirela, voss}: 2 * 1 / 4
    assert made[USEFUL] == ("a", "0.5 against 0")
    assert judged("Voss opened it.", RIGHT)[USEFUL] == ("b", "0.5 against 1")


def test_the_best_of_several_references_counts() -> None:
    two = "Mirela Voss\nTam Orrin"
    assert judged("It was Tam Orrin.", RIGHT, reference_answer=two)[USEFUL] == (
        "tie",
        "1 against 1",
    )


def test_without_a_reference_usefulness_is_a_tie() -> None:
    made = judged(RIGHT, "Bread.", reference_answer="")
    assert made[USEFUL] == ("tie", "0 against 0")
    assert made[RICH][0] == "a"


def test_a_global_answer_is_compared_with_the_description() -> None:
    told = {"scope": "global", "question_set": "generated_global", "question": "What is it about?"}
    about = "A bakery in Harrow and the ferry and bees of Quell."
    made = judged(
        "It is about a ferry, bees and a bakery.", "A clock.", reference_answer=about, **told
    )
    assert made[USEFUL][0] == "a"


@pytest.mark.parametrize("refusal", ["I do not know who opened the Harrow Bakery.", "", "  \n"])
def test_a_refusal_is_below_any_answer_that_overlaps(refusal: str) -> None:
    assert winners("Voss", refusal) == ["a"] * 4
    assert winners(refusal, "Voss") == ["b"] * 4


def test_two_refusals_are_a_tie() -> None:
    assert winners("I do not know.", "") == ["tie"] * 4


def test_an_answer_without_a_word_of_the_corpus_wins_nothing() -> None:
    assert winners("Zorp quux blarg.", "I do not know.") == ["tie"] * 4


def test_words_of_the_question_are_not_rich() -> None:
    made = judged("The Harrow Bakery opened.", RIGHT)
    assert made[RICH] == ("b", "0 against 3")


def test_near_numbers_are_a_tie() -> None:
    numbers = np.array([0.0, 1.0, 1.0, 10.0, 10.0, 0.01])
    others = np.array([0.0, 0.95, 0.9, 9.0, 8.9, 0.0])
    assert better(numbers, others).tolist() == [False, False, False, False, True, True]
    assert not better(others, numbers).any()


# ---- friendliness ----

DISTINCT = " ".join(f"{a}{b}" for a in "abcdefghij" for b in "klmnopqr")  # eighty words


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Mirela Voss", 1.0),
        ("Mirela Voss opened it.", 1.0),
        ("- bread\n- bees\n- a ferry that goes to and fro between Harrow and the isle", 1.0),
        # Thirteen words and no end.
        ("The bakery was opened by Mirela Voss in 1987 and it sells many sorts", 0.5),
        ("The bakery was opened by Mirela Voss in 1987 and it sells many sorts.", 1.0),
        # Nine runs of four words, four of them different.
        ("one mill two mill. " * 3, 1 / (1 + 5 / 10)),
        (f"{DISTINCT}.", 40 / 80),
        (f"{DISTINCT[:119]}. {DISTINCT[120:]}.", 1.0),
    ],
)
def test_friendliness_by_hand(answer: str, expected: float) -> None:
    assert friendliness(answer) == pytest.approx(expected)


def test_friendliness_decides_between_the_same_words() -> None:
    once = "Mirela Voss opened the bakery in 1987, and Ivo Pell mended the clock of Harrow."
    assert winners(once, f"{once} {once}") == ["tie", "tie", "tie", "a"]
    assert winners(once, once.removesuffix(".")) == ["tie", "tie", "tie", "a"]


# ---- what must gain nothing ----

_CORPUS_WORDS = ["Mirela", "Voss", "opened", "bakery", "1987", "Ivo", "Pell", "clock", "ferry"]
_CORPUS_WORDS += ["Ada", "Renk", "Quell", "bees", "bread", "June", "the", "of", "and", "in"]
_ANSWERS = st.lists(
    st.lists(st.sampled_from(_CORPUS_WORDS), min_size=1, max_size=12).map(
        lambda words: " ".join(words) + "."
    ),
    min_size=1,
    max_size=4,
).map(" ".join)
_PADDING = st.lists(
    st.sampled_from(["zorp", "blarg", "quux", "frob", "Nimbo", "Tralfam"]), min_size=1, max_size=30
)


@given(_ANSWERS, st.integers(2, 4))
def test_repetition_wins_nothing(answer: str, times: int) -> None:
    repeated = " ".join([answer] * times)
    assert "b" not in winners(answer, repeated, reference_answer="Voss")


@given(_ANSWERS, _PADDING, st.booleans())
def test_words_that_the_corpus_does_not_have_win_nothing(
    answer: str, padding: list[str], ends: bool
) -> None:
    padded = f"{answer} {' '.join(padding)}{'.' if ends else ''}"
    assert "b" not in winners(answer, padded)
    long = f"{answer} {'. '.join(padding)}."
    assert "b" not in winners(answer, long)


@given(_ANSWERS, _ANSWERS)
def test_the_rules_do_not_care_which_answer_comes_first(a: str, b: str) -> None:
    mirrored = {"a": "b", "b": "a", "tie": "tie"}
    assert winners(a, b) == [mirrored[verdict] for verdict in winners(b, a)]


# ---- the table ----


def many() -> list[Pairing]:
    said = [RIGHT, "Tam Orrin.", "I do not know.", "Bees and bread and Ivo Pell."]
    return [
        Pairing(query(n, reference_answer=GOLD, **ASKED), "base", "tuned", a, b)
        for n, (a, b) in enumerate((a, b) for a in said for b in said)
    ]


def test_many_pairings_give_what_each_gives_alone() -> None:
    made = judge_by_rules(many(), world.documents())
    alone = [judge_by_rules([each], world.documents()) for each in many()]
    assert made.num_rows == 16 * 4 * 2
    assert made.equals(pa.concat_tables(alone).combine_chunks())
    assert set(made["judge"].to_pylist()) == {JUDGE}
    assert len(set(made["id"].to_pylist())) == made.num_rows


def test_the_same_input_gives_the_same_bytes() -> None:
    hashes = {content_hash(judge_by_rules(many(), world.documents())) for _ in range(2)}
    assert len(hashes) == 1


def test_nothing_to_judge_is_an_empty_table() -> None:
    made = judge_by_rules([], world.documents())
    check_schema("judgements", made)
    assert made.num_rows == 0
