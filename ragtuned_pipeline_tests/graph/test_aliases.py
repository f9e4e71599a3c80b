"""Names that name the same thing become one; names that differ never do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.graph.aliases import Aliases, Embed, Occurrence, resolve_aliases
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher

Named = tuple[str, str, int]  # name, type, document; each in a text unit of its own


def teacher(same: bool) -> InMemoryTeacher:
    return InMemoryTeacher(lambda _call: {"reason": "Because.", "same": same})


def resolved(
    names: Sequence[Named], answers: InMemoryTeacher | None = None, embed: Embed | None = None
) -> Aliases:
    occurrences = [
        Occurrence(name, kind or None, f"{name} is told of.", document, unit)
        for unit, (name, kind, document) in enumerate(names)
    ]
    return resolve_aliases(occurrences, answers or teacher(False), embed)


def groups(aliases: Aliases) -> list[tuple[str, ...]]:
    return [(thing.title, *thing.aliases) for thing in aliases.things]


def people(*names: str) -> list[Named]:
    return [(name, "person", 0) for name in names]


def things(*names: str, kind: str = "organization") -> list[Named]:
    return [(name, kind, 0) for name in names]


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (people("Ann Orr", "ANN ORR", "ann orr"), ("Ann Orr", "ANN ORR", "ann orr")),
        (things("Lintz Mill", "the Lintz Mill"), ("Lintz Mill", "the Lintz Mill")),
        (things("Karst & Sons", "Karst and Sons"), ("Karst and Sons", "Karst & Sons")),
        (people("Jory Orr", "Captain Jory Orr"), ("Jory Orr", "Captain Jory Orr")),
        (people("Ann Orr", "Orr", "Ann"), ("Ann Orr", "Ann", "Orr")),
        (people("Ann Orr", "Ms Orr", "Orr"), ("Ann Orr", "Ms Orr", "Orr")),
        (people("Ann Orr", "A. Orr"), ("Ann Orr", "A. Orr")),
        (people("Ann Mary Orr", "Ann Orr", "Ann Orr"), ("Ann Mary Orr", "Ann Orr")),
        (people("Mr Orr", "Orr"), ("Mr Orr", "Orr")),
        (things("Brannock Harbour Trust", "the Trust"), ("Brannock Harbour Trust", "the Trust")),
        (things("Brannock Harbour Trust", "BHT"), ("Brannock Harbour Trust", "BHT")),
        (things("Bank of the North East", "BNE"), ("Bank of the North East", "BNE")),
        (things("Corvane Hydro", "Corvane"), ("Corvane Hydro", "Corvane")),
        (
            things("Brannock Harbour Trust", "Harbour Trust", "Trust"),
            ("Brannock Harbour Trust", "Harbour Trust", "Trust"),
        ),
    ],
)
def test_rules_join_the_forms_of_a_name_in_a_document(
    names: list[Named], group: tuple[str, ...]
) -> None:
    asked = teacher(False)
    assert groups(resolved(names, asked)) == [group]
    assert not asked.calls


def test_an_end_without_a_type_is_the_person_of_that_name() -> None:
    assert groups(resolved([("Ann Orr", "person", 0), ("Orr", "", 0)])) == [("Ann Orr", "Orr")]


def test_a_short_form_means_the_full_name_of_its_text_unit_else_of_its_document() -> None:
    occurrences = [
        Occurrence("Ann Orr", "person", "", 0, 0),
        Occurrence("Orr", "person", "", 0, 0),
        Occurrence("Bo Orr", "person", "", 0, 1),
        Occurrence("Orr", "person", "", 0, 1),
        Occurrence("Orr", "person", "", 0, 2),  # either
        Occurrence("Cy Orr", "person", "", 1, 3),
        Occurrence("Orr", "person", "", 1, 4),
    ]
    aliases = resolve_aliases(occurrences, teacher(False))
    owners = [aliases.things[owner].title for owner in aliases.owners]
    assert owners == ["Ann Orr", "Ann Orr", "Bo Orr", "Bo Orr", "Orr", "Cy Orr", "Cy Orr"]


DIFFERENT: list[list[Named]] = [
    things("Ward 3", "Ward 4", kind="geo"),
    things("Ward Three", "Ward Four", kind="geo"),
    things("Ward", "Ward 3", kind="geo"),
    things("Flood of 1987", "Flood of 1988", kind="event"),
    things("Eel Fair 2031", "Eel Fair", kind="event"),
    things("Lintz Rovers II", "Lintz Rovers III"),
    things("Block A", "Block B", kind="geo"),
    things("First Bank of Lintz", "Second Bank of Lintz"),
    things("North Lintz Mill", "South Lintz Mill"),
    things("Upper Hask", "Lower Hask", kind="geo"),
    things("Old Lintz Bridge", "New Lintz Bridge", kind="geo"),
    things("King Street", "Queen Street", kind="geo"),
    people("Ann Orr", "Anna Orr"),
    people("Maria Orr", "Mario Orr"),
    people("Ann Mary Orr", "Ann Marc Orr"),
    people("Mr Orr", "Mrs Orr"),
    people("Mrs Orr", "Miss Orr"),
    people("Mr Robin Orr", "Mrs Robin Orr"),
    people("Tom Orr Senior", "Tom Orr Junior"),
    people("Uncle Tom", "Aunt Tom"),
    people("Father Orr", "Brother Orr"),
    [("Mr Calder", "person", 0), ("Calder", "geo", 0)],
    [("Ann Hask", "person", 0), ("Hask", "geo", 0)],
    [("Lintz Mill", "organization", 0), ("Lintz Mills", "person", 0)],
]


@pytest.mark.parametrize("names", DIFFERENT)
def test_what_differs_is_neither_asked_about_nor_merged(names: list[Named]) -> None:
    yes = teacher(True)
    near = lambda texts: np.ones((len(texts), 3))  # noqa: E731 - to the embedder all are equal
    for order in permutations(names):
        assert len(resolved(order, yes, near).things) == len(names)
    assert not yes.calls


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["Ann", "Anna", "Anne", "Jon", "John", "Joan", "Maria", "Mario", "Eva", "Ava", "Ewan"]
        ),
        min_size=2,
        max_size=6,
        unique=True,
    ),
    st.booleans(),
)
def test_given_names_with_one_surname_stay_apart(given_names: list[str], surname: bool) -> None:
    names = people(*(f"{name} Orr" for name in given_names), *(["Orr"] if surname else []))
    assert len(resolved(names, teacher(True)).things) == len(given_names) + surname


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 3000), min_size=2, max_size=6), st.sampled_from(["Ward", "Flood of"]))
def test_numbers_and_years_stay_apart(numbers: set[int], head: str) -> None:
    names = things(*(f"{head} {number}" for number in numbers), kind="event")
    assert len(resolved(names, teacher(True)).things) == len(numbers)


def test_a_full_name_that_two_forms_of_address_claim_is_given_to_neither() -> None:
    found = groups(resolved(people("Robin Orr", "Mr Orr", "Mrs Orr"), teacher(False)))
    assert sorted(found) == [("Mr Orr",), ("Mrs Orr",), ("Robin Orr",)]


def test_a_surname_in_another_document_is_asked_about() -> None:
    names: list[Named] = [("Ann Orr", "person", 0), ("Orr", "person", 1)]
    no, yes = teacher(False), teacher(True)
    assert groups(resolved(names, no)) == [("Ann Orr",), ("Orr",)]
    assert groups(resolved(names, yes)) == [("Ann Orr", "Orr")]
    assert [call.item_id for call in no.calls] == ["Ann Orr = Orr"]
    asked = no.calls[0].messages[-1]["content"]
    assert "First: Ann Orr (person)\nAnn Orr is told of." in asked
    assert "Second: Orr (person)\nOrr is told of." in asked


@pytest.mark.parametrize("same", [True, False])
def test_near_spellings_are_merged_only_on_a_yes(same: bool) -> None:
    names = things("Lintz Ironworks", "Lintz Iron Works", "Saltwick", kind="organization")
    asked = teacher(same)
    assert len(resolved(names, asked).things) == (2 if same else 3)
    assert len(asked.calls) == 1


def test_a_doubled_letter_or_an_accent_in_a_given_name_is_asked_about() -> None:
    assert len(resolved(people("Mirela Voss", "Mirella Voss"), teacher(True)).things) == 1
    assert len(resolved(people("Mirela Voss", "Mirella Voss"), teacher(False)).things) == 2
    assert len(resolved(people("Zoe Voss", "Zoë Voss"), teacher(True)).things) == 1


def test_near_meanings_are_asked_about_where_an_embedder_is_given() -> None:
    names = things("Harbour Board", "Port Authority", "Bakery")
    vectors = {"Bakery": [0.0, 1.0], "Harbour Board": [1.0, 0.1], "Port Authority": [1.0, 0.0]}

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.array([vectors[text] for text in texts])

    without, asked = teacher(True), teacher(True)
    assert len(resolved(names, without).things) == 3
    assert groups(resolved(names, asked, embed)) == [
        ("Bakery",),
        ("Port Authority", "Harbour Board"),
    ] or groups(resolved(names, asked, embed)) == [("Bakery",), ("Harbour Board", "Port Authority")]
    assert not without.calls
    assert {call.item_id for call in asked.calls} == {"Harbour Board = Port Authority"}


def test_a_near_tie_without_an_answer_is_a_failure_and_merges_nothing() -> None:
    aliases = resolved(
        things("Lintz Ironworks", "Lintz Iron Works"), InMemoryTeacher(lambda _: None)
    )
    assert len(aliases.things) == 2
    (failure,) = aliases.failures
    assert (failure.stage, failure.item_id) == (
        "resolution",
        "Lintz Iron Works = Lintz Ironworks",
    )


def test_two_that_differ_do_not_meet_by_way_of_a_third() -> None:
    # "Saltwick Lodge" is near to both, which differ.
    names = things("Upper Saltwick Lodges", "Saltwick Lodges", "Lower Saltwick Lodges", kind="geo")
    near = lambda texts: np.ones((len(texts), 3))  # noqa: E731 - to the embedder all are equal
    yes = teacher(True)
    found = groups(resolved(names, yes, near))
    assert len(yes.calls) == 2
    assert sorted(len(group) for group in found) == [1, 2]
    assert not any(
        {"Upper Saltwick Lodges", "Lower Saltwick Lodges"} <= set(group) for group in found
    )


def test_people_that_differ_do_not_meet_by_way_of_an_initial() -> None:
    names: list[Named] = [
        ("Ann Orr", "person", 0),
        ("Ada Orr", "person", 1),
        ("A. Orr", "person", 2),
    ]
    for order in permutations(names):
        found = groups(resolved(order, teacher(True)))
        assert not any({"Ann Orr", "Ada Orr"} <= set(group) for group in found)


def test_the_title_is_full_and_not_shouted_and_the_rest_are_aliases() -> None:
    names = people("ANN ORR", "Ann Orr", "Orr", "Orr", "Orr", "Dr Ann Orr", "Dr Ann Orr")
    assert groups(resolved(names)) == [("Ann Orr", "ANN ORR", "Dr Ann Orr", "Orr")]


def test_things_are_in_the_order_of_their_titles_and_every_occurrence_has_one() -> None:
    aliases = resolved(things("Zeta", "alpha", "Beta", "zeta"))
    assert [thing.title for thing in aliases.things] == ["alpha", "Beta", "Zeta"]
    assert aliases.owners == [2, 0, 1, 2]


def test_no_names_are_no_things() -> None:
    assert resolved([]) == Aliases([], [], [])
    assert resolved([], embed=lambda _texts: np.zeros((0, 3))).things == []


def test_many_names_are_compared_in_blocks() -> None:
    draw = random.Random(5)
    syllables = ["ba", "co", "du", "fi", "ga", "lo", "mu", "ni", "po", "ra", "se", "tu"]
    names = sorted({"".join(draw.choices(syllables, k=4)).title() for _ in range(3000)})
    asked = teacher(False)
    aliases = resolved(things(*(f"{name} Mill" for name in names)), asked)
    assert len(aliases.things) == len(names)
    # Every name is compared with its neighbours only, and asked about a few times at most.
    assert 0 < len(asked.calls) <= 5 * len(names) / 2
