"""The ways of asking: names, the wall between shared and new ones, and who is asked how."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.synthesis.forms import (
    FACT_NEEDS,
    FORMS,
    PASSAGE_NEEDS,
    Form,
    choose,
    choose_new,
    entity_fields,
    fact_fields,
    forms_for,
    frame_words,
)

CORES = {
    **dict.fromkeys(
        FACT_NEEDS,
        fact_fields(
            "What did Mirela Voss open in 1987?",
            "what Mirela Voss opened in 1987",
            "Mirela Voss opened ___ in 1987.",
            "Mirela Voss, open, 1987",
        ),
    ),
    "entity": entity_fields("Mirela Voss", is_person=True),
    "pair": {"a": "Mirela Voss", "b": "Harrow"},
    "theme": {"topic": "Mirela Voss and Harrow"},
    "memory": {},
    "source": {"source": "the entry of 3 May 2034"},
    "source_topic": {"source": "the entry of 3 May 2034", "topic": "Harrow"},
    "speaker_topic": {"speaker": "Mirela Voss", "topic": "Harrow"},
    "date": {"date": "3 May 2034"},
}
SHARED = [form for form in FORMS if form.role == "shared"]
NEW = [form for form in FORMS if form.role == "new"]
NEEDS = [{need} for need in CORES] + [set(FACT_NEEDS), set(PASSAGE_NEEDS), {"source", "date"}]
# The cores that synthesis asks together.
ASKED = [FACT_NEEDS, PASSAGE_NEEDS, ["source"], ["entity"], ["pair"], ["theme"], ["memory"]]
seeds = st.integers(-(2**63), 2**63)
keys = st.text(max_size=20)
needs = st.sampled_from(NEEDS)


def names(forms: list[Form]) -> list[str]:
    return [form.name for form in forms]


def frames(forms: list[Form]) -> set[tuple[str, tuple[str, ...]]]:
    return {(form.needs, frame_words(form)) for form in forms}


def test_names_are_unique_and_say_what_a_form_is() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)
    for form in FORMS:
        mark = "new-" if form.role == "new" else ""
        assert form.name.startswith(f"{mark}{form.needs}-{form.style}-")


def test_patterns_are_unique_within_a_core() -> None:
    assert len({(form.needs, form.pattern) for form in FORMS}) == len(FORMS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_can_be_filled_with_its_core_and_names_all_of_it(form: Form) -> None:
    fields = CORES[form.needs]
    question = form.ask(fields)
    assert "{" not in question
    if form.needs in FACT_NEEDS:
        wanted = [fields["plain" if form.needs == "direct" else form.needs]]
    else:
        wanted = [text for name, text in fields.items() if name.lower() != "who"]
    assert all(text.casefold() in question.casefold() for text in wanted)


def test_every_core_has_shared_forms_and_new_ones() -> None:
    for need in CORES:
        assert forms_for(need, "shared")
        assert forms_for(need, "new")


def test_new_and_shared_forms_never_coincide() -> None:
    assert frames(NEW).isdisjoint(frames(SHARED))
    asked = {form: normalised(form.ask(CORES[form.needs])) for form in FORMS}
    assert {asked[form] for form in NEW}.isdisjoint({asked[form] for form in SHARED})


def test_a_new_form_is_no_shared_one_with_words_added_to_an_empty_frame() -> None:
    """Every new form has words of its own, so that it is new whatever its core says."""
    for form in NEW:
        assert len(frame_words(form)) >= 3, form.name


@given(seeds, keys, needs, st.integers(1, 12), st.integers(0, 4))
def test_training_never_uses_a_held_out_form(
    seed: int, key: str, needed: set[str], train: int, held_out: int
) -> None:
    taught, held = choose(seed, key, needed, train, held_out)
    assert frames(taught).isdisjoint(frames(held))
    assert len(frames([*taught, *held])) == len(taught) + len(held)
    assert len(held) <= held_out
    assert len(taught) <= train
    pool = {form.name for need in needed for form in forms_for(need, "shared")}
    assert pool.issuperset(names([*taught, *held]))


@given(seeds, keys, needs, st.integers(1, 12), st.integers(0, 4))
def test_the_draw_depends_on_seed_and_key_only(
    seed: int, key: str, needed: set[str], train: int, held_out: int
) -> None:
    drawn = choose(seed, key, needed, train, held_out)
    choose(seed + 1, key + "x", set(FACT_NEEDS), 3, 1)  # what is drawn in between does not matter
    assert choose(seed, key, sorted(needed, reverse=True), train, held_out) == drawn
    # More training wordings leave the held-out ones and the first ones as they were.
    more, held = choose(seed, key, needed, train + 3, held_out)
    assert held == drawn[1]
    assert more[: len(drawn[0])] == drawn[0]


def test_seed_and_key_change_the_draw() -> None:
    def of(seed: int, key: str) -> tuple[list[str], list[str]]:
        train, held = choose(seed, key, FACT_NEEDS, 8, 2)
        return names(train), names(held)

    assert len({str(of(seed, "fact")) for seed in range(20)}) > 15
    assert len({str(of(1, f"fact-{key}")) for key in range(20)}) > 15


@given(seeds, keys)
def test_the_default_numbers_can_be_drawn_for_every_core(seed: int, key: str) -> None:
    for needed in ASKED:
        train, held = choose(seed, key, needed, 8, 2)
        assert (len(train), len(held)) == (8, 2)


@given(seeds, keys)
def test_a_held_out_form_of_a_fact_has_a_trained_one_of_its_core(seed: int, key: str) -> None:
    train, held = choose(seed, key, FACT_NEEDS, 8, 2)
    assert {form.needs for form in held} <= {form.needs for form in train}
    assert {"short", "long"} == {form.style for form in train}


@given(seeds, keys, needs, st.integers(0, 4))
def test_new_wordings_are_drawn_from_the_new_forms(
    seed: int, key: str, needed: set[str], count: int
) -> None:
    drawn = choose_new(seed, key, needed, count)
    assert all(form.role == "new" and form.needs in needed for form in drawn)
    assert len(set(drawn)) == len(drawn) <= count
    assert choose_new(seed, key, sorted(needed), count) == drawn


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(KeyError):
        FORMS[0].ask({"plain": "who"})
