"""The parts that generated queries are made with: the draw, names, quotations, descriptions."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.questions.corpus_description import (
    Telling,
    _batches,
    described,
    extracted,
    tellings,
)
from ragtuned_pipeline.evaluation.questions.entity_names import EntityNames
from ragtuned_pipeline.evaluation.questions.query_draw import evenly
from ragtuned_pipeline.evaluation.questions.quotes import flat, quotable, stands_in, statement
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.synthesis.gates import names_one_of
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import generated
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher

# ---- the draw ----

SHARES = {"a": 0.6, "b": 0.2, "c": 0.2, "rest": 0.0}
OFFERS = st.dictionaries(
    st.sampled_from("uvwxyz"),
    st.dictionaries(st.sampled_from(list(SHARES)), st.lists(st.integers(0, 9), max_size=5)),
    max_size=6,
)


def drawn(offers: Any, once: bool, seed: int = 1) -> list[tuple[str, str, int]]:
    marked = {
        unit: {kind: [(unit, kind, one) for one in ones] for kind, ones in kinds.items()}
        for unit, kinds in offers.items()
    }
    return list(evenly(offers, marked.__getitem__, SHARES, lambda one: one[2], once, seed))


@given(OFFERS, st.integers(0, 99))
def test_everything_is_drawn_and_units_take_turns(offers: Any, seed: int) -> None:
    got = drawn(offers, once=False, seed=seed)
    every = [
        (u, k, one) for u, kinds in offers.items() for k, ones in kinds.items() for one in ones
    ]
    assert sorted(got) == sorted(every)
    sizes = {unit: sum(map(len, kinds.values())) for unit, kinds in offers.items()}
    taken: Counter[str] = Counter()
    for unit, _, _ in got:
        # Nobody gives another before all that have something left have given as many.
        assert all(taken[u] >= min(taken[unit], sizes[u]) for u in offers)
        taken[unit] += 1


@given(OFFERS)
def test_what_is_the_same_is_drawn_once_where_that_is_wanted(offers: Any) -> None:
    got = drawn(offers, once=True)
    numbers = {one for kinds in offers.values() for ones in kinds.values() for one in ones}
    assert sorted(one for _, _, one in got) == sorted(numbers)


def test_kinds_keep_their_shares_and_the_rest_comes_last() -> None:
    units = [f"unit {n}" for n in range(400)]
    offers = {u: {k: [0] for k in SHARES} for u in units}
    kinds = [kind for _, kind, _ in drawn(offers, once=False)]
    first = Counter(kinds[:400])
    # Three standard deviations of a draw of 400.
    for kind, share in SHARES.items():
        assert abs(first[kind] - 400 * share) <= 3 * (400 * share * (1 - share)) ** 0.5
    assert kinds[1200:] == ["rest"] * 400


def test_a_unit_that_lacks_a_kind_gives_another() -> None:
    offers = {"u": {"a": [1, 2, 3, 4, 5]}, "v": {"rest": [6, 7], "c": [10]}}
    got = drawn(offers, once=False)
    assert [kind for unit, kind, _ in got if unit == "u"] == ["a"] * 5
    assert [kind for unit, kind, _ in got if unit == "v"] == ["c", "rest", "rest"]


@given(OFFERS, OFFERS)
def test_what_a_unit_gives_does_not_depend_on_the_others(some: Any, others: Any) -> None:
    # Apart from what several units have: of that the one drawn least often comes first.
    def apart(unit: str, kinds: Any) -> Any:
        return {kind: [f"{unit} {one}" for one in ones] for kind, ones in kinds.items()}

    alone = {unit: apart(unit, kinds) for unit, kinds in some.items()}
    more = alone | {f"{unit}2": apart(f"{unit}2", kinds) for unit, kinds in others.items()}
    expected = drawn(alone, once=True)
    assert [each for each in drawn(more, once=True) if each[0] in alone] == expected


@given(OFFERS)
def test_of_a_kind_what_was_drawn_least_comes_first(offers: Any) -> None:
    left = {(u, k): Counter(ones) for u, kinds in offers.items() for k, ones in kinds.items()}
    times: Counter[int] = Counter()
    for unit, kind, one in drawn(offers, once=False):
        assert times[one] == min(times[other] for other in +left[unit, kind])
        left[unit, kind][one] -= 1
        times[one] += 1


def test_only_the_units_that_are_reached_are_read() -> None:
    read: list[str] = []

    def offers(unit: str) -> dict[str, list[str]]:
        read.append(unit)
        return {"a": [unit]}

    units = [f"unit {n}" for n in range(1000)]
    list(itertools.islice(evenly(units, offers, SHARES, str, True, 1), 10))
    assert len(read) == 10


# ---- names ----


def names(*titles: str, aliases: tuple[str, ...] = ()) -> EntityNames:
    rows = [dict.fromkeys(table("entities", []).schema.names) for _ in titles]
    for row, title in zip(rows, titles, strict=True):
        row |= {"id": title, "title": title, "aliases": list(aliases)}
    return EntityNames(table("entities", rows))


@pytest.mark.parametrize(
    ("title", "text", "found"),
    [
        ("Maud Okrent", "What did Maud Okrent's crew do?", True),
        ("MAUD OKRENT", "what did maud okrent do?", True),
        ("Maud Okrent", "What did Maud do?", False),
        ("Blue Marten", "Who owns the Blue-Marten?", True),
        ("Art", "Which parts matter?", False),
        ("U.S.", "What does the U.S. want?", True),
        ("WHO", "Who matters to whom?", False),
        ("WHO", "What did the WHO decide?", True),
        ("It", "What does it mean?", False),
        ("What We Do", "What we do, who knows?", False),
        ("Trust", "Where was trust broken?", True),
        ("«»", "What is « this »?", False),
    ],
)
def test_a_name_is_found_whatever_the_capitals(title: str, text: str, found: bool) -> None:
    assert (names(title).first_in(text) is not None) == found


WORDS = st.lists(st.sampled_from(["Ab", "ab", "CD", "é1", "x"]), min_size=1, max_size=4)


@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=5), WORDS.map(" ".join))
def test_no_name_of_a_text_is_missed_and_none_is_invented(titles: list[str], text: str) -> None:
    found = names(*titles).first_in(text)
    assert (found is not None) == names_one_of(text, titles)
    assert found is None or names_one_of(text, [found])


def test_an_alias_is_a_name_too() -> None:
    assert names("Wilhelmina Trask", aliases=("Billie",)).first_in("Why did billie stay?")


# ---- quotations ----


def test_quotations_stand_word_for_word_but_for_white_space() -> None:
    text = "Maud Okrent:  I sold\nthe old nets. They were torn."
    assert quotable("Maud Okrent said: I sold the old nets.", [flat(text)]) == [
        "I sold the old nets."
    ]
    assert quotable("I sold the nets. They  were torn.", [flat(text)]) == ["They were torn."]
    assert not stands_in("", flat(text))
    assert not stands_in(" \n", flat(text))


def test_an_answer_that_is_no_more_than_its_gold_is_found_in_its_sentence() -> None:
    texts = [
        "On 4 May Aldous Fenn came back. Petra Lindqvar hired Maud Okrent on 4 May.",
        "The ferry sailed on 4 May.",
    ]
    asked = "When did Petra Lindqvar hire Maud Okrent?"
    assert statement(asked, "4 May", "4 May", texts) == [
        "Petra Lindqvar hired Maud Okrent on 4 May."
    ]
    assert statement(asked, "5 May", "5 May", texts) == []
    assert statement(asked, "4 May", "The ferry sailed on 4 May.", texts) == [
        "The ferry sailed on 4 May."
    ]


# ---- descriptions ----


@given(st.lists(st.text("ab. ", max_size=30), max_size=6), st.integers(1, 60))
def test_an_extract_keeps_within_its_limit(texts: list[str], limit: int) -> None:
    told, used = extracted(texts, limit)
    assert len(told) <= limit
    assert used == sorted(set(used))
    assert bool(told) <= bool(used)


def test_an_extract_tells_of_every_text_in_their_order() -> None:
    texts = [
        "He was late. The trust bought the ferry in January. It sold the old nets to a neighbour.",
        "The ferry sank in the great autumn storm. The crew was saved by the harbour pilots.",
        "Short.",
    ]
    told, used = extracted(texts, 100)
    assert told == (
        "The trust bought the ferry in January. The ferry sank in the great autumn storm. Short."
    )
    assert used == [0, 1, 2]
    assert extracted(["a " * 100], 11) == ("a a a a a", [0])
    assert extracted([]) == ("", [])


def test_the_reports_of_the_top_level_are_told_the_most_important_first() -> None:
    blank = dict.fromkeys(table("community_reports", []).schema.names)
    reports = [
        {
            **blank,
            "id": f"rep-{level}-{rank}",
            "level": level,
            "rank": rank,
            "title": f"Group {rank}",
            "summary": f"It is group {rank}.",
            "findings": [{"summary": "It grew.", "explanation": "By a third."}],
        }
        for level, rank in ((0, 1.0), (1, 9.0), (0, 5.0))
    ]
    told = tellings(table("community_reports", reports), table("text_units", []))
    assert told == [
        Telling("rep-0-5.0", "It is group 5.0.", "Group 5.0\nIt is group 5.0.\n- It grew."),
        Telling("rep-0-1.0", "It is group 1.0.", "Group 1.0\nIt is group 1.0.\n- It grew."),
    ]


def test_without_reports_the_texts_are_told() -> None:
    units = generated.tiny().world.text_units
    told = tellings(table("community_reports", []), units)
    assert [telling.text for telling in told] == units["text"].to_pylist()


def corpus(size: int) -> list[Telling]:
    text = "The keeper rowed to the island and came back with the mail. " * 40
    return [Telling(f"rep-{n}", text, f"Report {n}\n{text}") for n in range(size)]


@given(st.lists(st.integers(0, 60_000), max_size=12))
def test_batches_hold_everything_within_their_limit(lengths: list[int]) -> None:
    texts = [("ab " * length)[:length] for length in lengths]
    batches = list(_batches(texts))
    assert all(sum(map(len, batch)) <= 24_000 for batch in batches)
    assert all(batches)
    held = "".join(piece for batch in batches for piece in batch)
    assert held.replace(" ", "") == "".join(texts).replace(" ", "")


def test_a_corpus_larger_than_a_batch_is_described_part_by_part() -> None:
    told = corpus(300)  # 720,000 characters
    asked: list[Call[Any]] = []

    def reply(call: Call[Any]) -> dict[str, Any]:
        asked.append(call)
        return {"description": f"What {call.item_id} tells. " + "It goes on and on. " * 120}

    teacher = generated.Shuffling(InMemoryTeacher(reply), seed=1)
    description, failures = described(told, teacher)
    assert not failures
    levels = [call.item_id.split()[1] for call in asked]
    assert Counter(levels) == {"1": 34, "2": 4, "3": 1}
    assert all(len(call.messages[-1]["content"]) < 25_500 for call in asked)
    read = "\n".join(call.messages[-1]["content"] for call in asked)
    assert all(f"Report {n}\n" in read for n in range(300))
    for call in asked[:-1]:  # every description is part of a later one
        assert f"What {call.item_id} tells." in read
    parts = [re.findall(r"What level \d part (\d+)", c.messages[-1]["content"]) for c in asked]
    second = [
        int(n)
        for call, part in zip(asked, parts, strict=True)
        for n in part
        if "level 2" in call.item_id
    ]
    assert second == list(range(1, 35))  # in order, whichever came first
    assert description.startswith("What level 3 part 1 tells.")


def test_a_small_corpus_is_described_at_once() -> None:
    teacher = InMemoryTeacher(lambda _: {"description": "  A ferry\n and its crew. "})
    assert described(corpus(2), teacher) == ("A ferry and its crew.", [])
    assert len(teacher.calls) == 1
    assert described([], teacher) == ("", [])


def test_sentences_stand_in_for_a_description_that_failed() -> None:
    def reply(call: Call[Any]) -> dict[str, Any] | None:
        if call.item_id == "level 1 part 2":
            return None
        if call.item_id == "level 1 part 1":
            return {"description": "x" * 3000}
        return {"description": call.messages[-1]["content"][-300:]}

    told = [*corpus(10), Telling("rep-z", "", "The storm broke the quay in two at midnight. " * 9)]
    description, failures = described(told, InMemoryTeacher(reply))
    assert [failure.item_id for failure in failures] == ["level 1 part 1", "level 1 part 2"]
    assert "too long" in failures[0].reason
    assert "The storm broke the quay" in description
