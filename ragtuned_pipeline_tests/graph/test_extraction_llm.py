"""Extraction by a teacher: golden tables, the mess real models make, nothing lost or doubled."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ragtuned_pipeline import samples, tables
from ragtuned_pipeline.graph.descriptions import Description, Told, describe
from ragtuned_pipeline.graph.extraction_llm import extract_with_teacher
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.extraction_replies import Extraction, Passage, Reader
from ragtuned_pipeline.graph.lines import GraphTables
from ragtuned_pipeline.graph.names import clean_name, nearest_type
from ragtuned_pipeline.graph.stand_ins import extraction_stand_ins
from ragtuned_pipeline.inference.calls import Call, Completed, Outcome, T
from ragtuned_pipeline.settings import GraphSettings
from ragtuned_pipeline_tests.benchmarks.extraction_quality import Score, match, read_sample
from ragtuned_pipeline_tests.graph.corpora import GOLDEN, corpus
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher
from ragtuned_pipeline_tests.scripted.graph import GraphScript

SAMPLES = Path(samples.__path__[0])
GRAPH = GraphSettings()
NOTHING: dict[str, Any] = {"entities": [], "relationships": []}
Reply = Callable[[Call[Any]], dict[str, Any] | str | None]


def count_tokens(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def entity(name: str, kind: str, *sentences: int, told: str = "") -> dict[str, Any]:
    description = told or f"{name} is told of."
    return {"name": name, "type": kind, "description": description, "sentences": list(sentences)}


def related(
    source: str, target: str, *sentences: int, told: str = "", strength: Any = 5
) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "description": told or f"{source} and {target}.",
        "strength": strength,
        "sentences": list(sentences),
    }


def shown(call: Call[Any]) -> str:
    return next(m["content"] for m in call.messages if m["role"] == "user")


def by_text(replies: dict[str, Any], gleaned: dict[str, Any] | None = None) -> Reply:
    """Answer extraction calls by a word of their text, gleaning calls with nothing else."""

    def reply(call: Call[Any]) -> dict[str, Any] | str | None:
        match call.step:
            case "extraction":
                return next((r for word, r in replies.items() if word in shown(call)), NOTHING)
            case "gleaning":
                found = gleaned or {}
                return next((r for word, r in found.items() if word in shown(call)), NOTHING)
            case "resolution":
                return {"reason": "In doubt they differ.", "same": False}
        return None

    return reply


def graph_of(
    texts: dict[str, str],
    reply: Reply,
    settings: GraphSettings = GRAPH,
    unit: int = 2000,
    overlap: int = 0,
) -> GraphTables:
    teacher = InMemoryTeacher(reply)
    return extract_with_teacher(*corpus(texts, unit, overlap), teacher, settings, count_tokens)


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in table.to_pylist()]


def reasons(graph: GraphTables) -> list[tuple[str, str]]:
    return [(row["stage"], row["reason"]) for row in graph.failures.to_pylist()]


GOLDEN_REPLIES: dict[str, Any] = {
    "Harrow": {
        "entities": [
            entity("Mirela Voss", "person", 1, 2, 3, told="Mirela Voss opened the Harrow Bakery."),
            entity("Harrow Bakery", "organization", 1, 2),
            entity("Tom Aldane", "Person", 2),
            entity("Brannock Harbour Trust", "organizations", 3, 4),
            entity("Judge Ilse Corran", "person", 4),
        ],
        "relationships": [
            related("Mirela Voss", "Harrow Bakery", 1, 2, strength=9),
            related("Brannock Harbour Trust", "Mirela Voss", 3),
            related("Ilse Corran", "Brannock Harbour Trust", 4, strength=10),
        ],
    },
    "Plover": {
        "entities": [
            entity("Rurik Pell", "person", 1, 2),
            entity("Grey Plover", "specific object", 1),
            entity("BHT", "organization", 2),
            entity("Ilse Corran", "person", 4),
            entity("Saltwick", "geo", 1, 4),
        ],
        "relationships": [
            related("Rurik Pell", "Grey Plover", 1),
            related("Ilse Corran", "Saltwick", 4),
        ],
    },
}


def test_golden_entities() -> None:
    graph = graph_of(GOLDEN, by_text(GOLDEN_REPLIES))
    columns = ("human_readable_id", "title", "type", "aliases", "frequency", "degree")
    assert rows(graph.entities, *columns) == [
        (0, "BHT", "organization", [], 1, 0),
        (1, "Brannock Harbour Trust", "organization", [], 1, 2),
        (2, "Grey Plover", "specific object", [], 1, 1),
        (3, "Harrow Bakery", "organization", [], 1, 1),
        (4, "Ilse Corran", "person", ["Judge Ilse Corran"], 2, 2),
        (5, "Mirela Voss", "person", [], 1, 2),
        (6, "Rurik Pell", "person", [], 1, 1),
        (7, "Saltwick", "geo", [], 1, 1),
        (8, "Tom Aldane", "person", [], 1, 0),
    ]
    votes = dict(rows(graph.entities, "title", "type_votes"))
    assert votes["Mirela Voss"] == [("person", 3)]
    described = dict(rows(graph.entities, "title", "description"))
    assert described["Mirela Voss"] == "Mirela Voss opened the Harrow Bakery."


def test_golden_relationships() -> None:
    graph = graph_of(GOLDEN, by_text(GOLDEN_REPLIES))
    columns = ("source", "target", "weight", "combined_degree", "sentences", "inverse")
    opened, sold = (
        "Mirela Voss opened the Harrow Bakery in 1987.",
        "She sold it to Tom Aldane in 2004.",
    )
    bought = "The Brannock Harbour Trust bought a mill from Ms. Voss."
    founded = "The Trust was founded by Judge Ilse Corran."
    sailed = "Captain Rurik Pell sailed the Grey Plover from Saltwick."
    assert rows(graph.relationships, *columns) == [
        ("Brannock Harbour Trust", "Mirela Voss", 5.0, 4, [bought], None),
        ("Ilse Corran", "Brannock Harbour Trust", 10.0, 4, [founded], None),
        ("Ilse Corran", "Saltwick", 5.0, 3, ["Corran lives in Saltwick."], None),
        ("Mirela Voss", "Harrow Bakery", 9.0, 3, [opened, sold], None),
        ("Rurik Pell", "Grey Plover", 5.0, 2, [sailed], None),
    ]


def test_the_tables_have_the_schemas_and_no_dangling_ids() -> None:
    graph = graph_of(GOLDEN, by_text(GOLDEN_REPLIES))
    tables.check_schema("entities", graph.entities)
    tables.check_schema("relationships", graph.relationships)
    tables.check_schema("text_units", graph.text_units)
    assert_linked(graph)


def assert_linked(graph: GraphTables) -> None:
    entities = {row["id"]: row for row in graph.entities.to_pylist()}
    units = {row["id"]: row for row in graph.text_units.to_pylist()}
    assert len({row["title"].casefold() for row in entities.values()}) == len(entities)
    for row in graph.relationships.to_pylist():
        assert entities[row["source_id"]]["title"] == row["source"]
        assert entities[row["target_id"]]["title"] == row["target"]
        assert row["source_id"] != row["target_id"]
        assert row["sentences"]
        assert row["text_unit_ids"]
        assert all(row["id"] in units[unit]["relationship_ids"] for unit in row["text_unit_ids"])
    for row in entities.values():
        assert row["frequency"] == len(row["text_unit_ids"]) > 0
        assert all(row["id"] in units[unit]["entity_ids"] for unit in row["text_unit_ids"])


class Shuffled:
    """Another teacher's outcomes in another order."""

    def __init__(self, teacher: InMemoryTeacher, seed: int) -> None:
        self._teacher, self._random = teacher, random.Random(seed)

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        outcomes = list(self._teacher.complete(calls))
        self._random.shuffle(outcomes)
        yield from outcomes


def test_the_order_of_replies_does_not_matter() -> None:
    long = GRAPH.model_copy(update={"max_description_tokens": 50, "claims": True})
    texts = {f"{n}.txt": f"Ann{n} met the Mayor of Lintz. Ann{n} left." for n in range(12)}

    def reply(call: Call[Any]) -> dict[str, Any] | None:
        match call.step:
            case "extraction":
                name = shown(call).split("[1] ")[1].split()[0]
                if name == "Ann7":
                    return None
                told = f"{name} has a long story to tell about the town and all who live in it."
                return {
                    "entities": [
                        entity(name, "person", 1, 2),
                        entity("Lintz", "geo", 1, told=told),
                    ],
                    "relationships": [related(name, "Lintz", 1)],
                }
            case "gleaning":
                return NOTHING if "Ann3" in shown(call) else None
            case "claims":
                return {"claims": []}
            case "description":
                return {"description": f"Lintz {len(shown(call))}."}
        return {"reason": "", "same": False}

    documents, units = corpus(texts, 2000, 0)
    hashes = set()
    for seed in range(4):
        teacher = Shuffled(InMemoryTeacher(reply), seed)
        graph = extract_with_teacher(documents, units, teacher, long, count_tokens)
        made = (graph.entities, graph.relationships, graph.text_units, graph.failures)
        hashes.add(tuple(map(tables.content_hash, made)))
    assert len(hashes) == 1


def test_evidence_in_the_overlap_of_two_units_counts_once() -> None:
    text = "Ann Orr left. Ann Orr founded Lintz. Bo Pell came."
    # Two units of two sentences each, the middle one in both.
    documents, base = corpus({"a.txt": text}, unit=36, overlap=22)
    assert [row["text"] for row in base.to_pylist()][:2] == [text[:36], text[14:50]]
    reply = {
        "entities": [entity("Ann Orr", "person"), entity("Lintz", "geo")],
        "relationships": [related("Ann Orr", "Lintz", strength=6)],
    }
    teacher = InMemoryTeacher(by_text({"left": reply, "came": reply}))
    graph = extract_with_teacher(documents, base, teacher, GRAPH, count_tokens)
    (row,) = graph.relationships.to_pylist()
    assert row["weight"] == 6.0
    assert row["sentences"] == ["Ann Orr founded Lintz."]
    assert len(row["text_unit_ids"]) == 2
    votes = dict(rows(graph.entities, "title", "type_votes"))
    assert votes["Lintz"] == [("geo", 1)]
    assert votes["Ann Orr"] == [("person", 2)]


def test_strengths_of_separate_evidence_are_summed() -> None:
    reply = {
        "entities": [entity("Ann", "person"), entity("Lintz", "geo")],
        "relationships": [
            related("Ann", "Lintz", 1, strength=8),
            related("Ann", "Lintz", 2, strength=3),
            related("Ann", "Lintz", 1, strength=2),  # the same sentence again
        ],
    }
    graph = graph_of({"a.txt": "Ann left Lintz. Ann saw Lintz."}, by_text({"Ann": reply}))
    assert rows(graph.relationships, "weight") == [(11.0,)]


def test_peer_defect_2_what_is_last_keeps_its_weight_and_what_is_gleaned_first_is_kept() -> None:
    first = {
        "entities": [entity("Ann", "person", 1), entity("Lintz", "geo", 1)],
        "relationships": [related("Ann", "Lintz", 1, strength=9)],
    }
    gleaned = {
        "entities": [entity("Bo", "person", 2)],
        "relationships": [related("Bo", "Ann", 2, strength=4)],
    }
    graph = graph_of(
        {"a.txt": "Ann founded Lintz. Bo knew Ann."}, by_text({"Ann": first}, {"Ann": gleaned})
    )
    assert rows(graph.relationships, "source", "target", "weight") == [
        ("Ann", "Lintz", 9.0),
        ("Bo", "Ann", 4.0),
    ]


def test_peer_defect_4_two_types_of_a_title_and_both_directions_of_a_pair_are_kept() -> None:
    graph = graph_of(
        {"a.txt": "Calder lies low. Ann left Calder.", "b.txt": "Calder greeted Ann."},
        by_text(
            {
                "lies": {
                    "entities": [entity("Calder", "geo", 1, 2), entity("Ann", "person", 2)],
                    "relationships": [related("Ann", "Calder", 2, strength=3)],
                },
                "greeted": {
                    "entities": [entity("CALDER", "person", 1), entity("Ann", "person", 1)],
                    "relationships": [related("Calder", "Ann", 1, strength=7)],
                },
            }
        ),
    )
    calder = graph.entities.to_pylist()[1]
    assert (calder["title"], calder["type"]) == ("Calder", "geo")
    assert calder["type_votes"] == [("geo", 2), ("person", 1)]
    assert calder["frequency"] == 2
    assert rows(graph.relationships, "source", "target", "weight") == [
        ("Ann", "Calder", 3.0),
        ("Calder", "Ann", 7.0),
    ]


def test_a_tie_of_types_goes_by_the_order_of_the_setting() -> None:
    reply = {"entities": [entity("Lintz", "geo", 1), entity("Lintz", "organization", 1)]}
    texts = {"a.txt": "Lintz grew."}
    assert rows(graph_of(texts, by_text({"Lintz": reply})).entities, "type") == [("organization",)]
    turned = GRAPH.model_copy(update={"entity_types": ("geo", "organization")})
    assert rows(graph_of(texts, by_text({"Lintz": reply}), turned).entities, "type") == [("geo",)]


def test_peer_defect_7_a_failed_unit_is_a_failure_and_the_others_go_on() -> None:
    texts = {"a.txt": "Ann left Lintz.", "b.txt": "Bo left Lintz."}
    kept = {"entities": [entity("Bo", "person", 1)], "relationships": []}

    def reply(call: Call[Any]) -> dict[str, Any] | str | None:
        if "Ann" in shown(call):
            return None
        return kept if call.step == "extraction" else NOTHING

    graph = graph_of(texts, reply)
    unit = graph.text_units["id"][0].as_py()
    assert graph.failures.to_pylist() == [
        {
            "stage": "extraction",
            "item_id": unit,
            "reason": "the server sent no reply",
            "attempts": 1,
            "at": "",
        }
    ]
    assert rows(graph.entities, "title") == [("Bo",)]


def test_a_unit_whose_gleaning_fails_keeps_its_extraction() -> None:
    reply = by_text({"Ann": {"entities": [entity("Ann", "person", 1)], "relationships": []}})
    graph = graph_of({"a.txt": "Ann left."}, lambda c: None if c.step == "gleaning" else reply(c))
    assert rows(graph.entities, "title") == [("Ann",)]
    assert rows(graph.failures, "stage") == [("gleaning",)]


@pytest.mark.parametrize(("gleanings", "asked"), [(0, 0), (1, 2), (3, 4)])
def test_gleaning_goes_on_after_the_conversation_until_nothing_was_missed(
    gleanings: int, asked: int
) -> None:
    found = {"entities": [entity("Ann", "person", 1)], "relationships": []}
    replies = by_text({"Ann": found, "Bo": NOTHING})

    def reply(call: Call[Any]) -> dict[str, Any] | str | None:
        more = call.step == "gleaning" and "Ann" in shown(call) and len(call.messages) == 4
        return found if more else replies(call)

    teacher = InMemoryTeacher(reply)
    settings = GRAPH.model_copy(update={"gleanings": gleanings})
    documents, units = corpus({"a.txt": "Ann left.", "b.txt": "Bo left."}, 2000, 0)
    extract_with_teacher(documents, units, teacher, settings, count_tokens)
    gleaned = [call for call in teacher.calls if call.step == "gleaning"]
    # Of Ann's unit a second time, as the first gleaning found something; of Bo's only once.
    assert len(gleaned) == min(asked, 3 if gleanings > 1 else asked)
    assert len({call.item_id for call in gleaned}) == len(gleaned)
    for call in gleaned[:1]:
        roles = [message["role"] for message in call.messages]
        assert roles == ["system", "user", "assistant", "user"]
        assert json.loads(call.messages[2]["content"])["entities"][0]["name"] == "Ann"


def test_the_prompt_numbers_the_sentences_and_tells_types_title_and_date() -> None:
    teacher = InMemoryTeacher(by_text({}))
    documents, units = corpus({"a.chat": "Ann: I left.\nBo: Why? Tell me.\nAnn: No."}, 2000, 0)
    date = pa.array(["2041-02-03"])
    column = documents.schema.get_field_index("creation_date")
    documents = documents.set_column(column, "creation_date", date)
    extract_with_teacher(documents, units, teacher, GRAPH, count_tokens)
    asked = shown(teacher.calls[0])
    assert "[1] Ann: I left.\n[2] Bo: Why?\n[3] Bo: Tell me.\n[4] Ann: No.\n" in asked
    assert "Document: a.chat. Date: 2041-02-03" in asked
    assert ", ".join(GRAPH.entity_types) in asked


def test_of_a_sentence_longer_than_a_unit_each_unit_shows_its_part() -> None:
    teacher = InMemoryTeacher(by_text({}))
    words = " ".join(f"word{n}" for n in range(60))
    documents, units = corpus({"a.txt": words}, 120, 0)
    extract_with_teacher(documents, units, teacher, GRAPH, count_tokens)
    parts = [shown(call).split("[1] ")[1] for call in teacher.calls if call.step == "extraction"]
    assert len(parts) > 2
    assert max(len(part.split("\n")[0]) for part in parts) <= 120


# --- the mess ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_type", "kind"),
    [
        ("PERSON", "person"),
        ("persons", "person"),
        ("People", "person"),
        ("Organisations", "organization"),
        ("organizaton", "organization"),
        ("Company", "organization"),
        ("location", "geo"),
        ("Cities", "geo"),
        ("person/character", "person"),
        ("specific_object", "specific object"),
        ("Abstract Objects", "abstract object"),
        ("weather", "other"),
        ("", "other"),
    ],
)
def test_types_are_taken_for_the_nearest_given_one(given_type: str, kind: str) -> None:
    assert nearest_type(given_type, GRAPH.entity_types) == kind


def test_a_synonym_of_a_type_that_is_not_given_is_other() -> None:
    assert nearest_type("location", ["person", "ship"]) == "other"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ('"Ann Orr"', "Ann Orr"),
        ("“Ann Orr”.", "Ann Orr"),
        ("**Ann Orr**,", "Ann Orr"),
        ("ANN ORR", "Ann Orr"),
        ("ann orr", "Ann Orr"),
        ("BHT", "BHT"),
        ("Orr Ltd.", "Orr Ltd."),
        ("J. Orr", "J. Orr"),
        ("Harbour Trust (HT)", "Harbour Trust"),
        ("Harbour Trust (old)", "Harbour Trust (old)"),
        ("GREY_PLOVER", "GREY PLOVER"),
        ('"…"', ""),
        ("  ", ""),
    ],
)
def test_names_are_cleaned_and_spelled_as_in_the_text(written: str, name: str) -> None:
    assert clean_name(written, "Yesterday Ann Orr left. The BHT thanked her.") == name


PASSAGE = Passage(
    "a",
    "",
    (10, 11, 12),
    ("Ann Orr left Lintz.", "Bo Pell wept.", "Lintz burned, and Bo Pell too."),
)


def read(reply: dict[str, Any]) -> Any:
    return Reader(PASSAGE, GRAPH.entity_types).read([Extraction.model_validate(reply)])


@pytest.mark.parametrize(
    ("given_strength", "strength"),
    [(7, 7), ("7", 7), ("8/10", 8), (99, 10), (-3, 1), (0, 1), ("high", 1), (None, 1), (2.5, 2.5)],
)
def test_strengths_are_read_and_clamped(given_strength: Any, strength: float) -> None:
    reply = {"relationships": [related("Ann Orr", "Lintz", 1, strength=given_strength)]}
    (statement,) = read(reply).statements
    assert statement.strength == strength


@pytest.mark.parametrize(
    ("numbers", "lines"),
    [
        ([1], (10,)),
        (["[1]", "2"], (10, 11)),
        ("1, 3", (10, 12)),
        ([3, 1, 3], (10, 12)),
        ([0, 2, 99, -4], (11,)),
        ([99], (10, 12)),  # none of them: the sentences that name it
        (None, (10, 12)),
        ([True, None, "two"], (10, 12)),
    ],
)
def test_numbers_of_sentences_are_read_or_the_sentences_that_name_it_taken(
    numbers: Any, lines: tuple[int, ...]
) -> None:
    (mention,) = read({"entities": [{"name": "Lintz", "sentences": numbers}]}).mentions
    assert mention.lines == lines


def test_a_relationship_without_sentences_is_stated_where_both_ends_are_named_else_either() -> None:
    reply = {"relationships": [related("Bo Pell", "Lintz"), related("Ann Orr", "Bo Pell")]}
    assert [s.lines for s in read(reply).statements] == [(12,), (10, 11, 12)]


def test_an_end_that_is_not_listed_is_made_an_entity_if_the_text_holds_it() -> None:
    found = read(
        {
            "entities": [entity("Ann Orr", "person", 1)],
            "relationships": [related("Ann Orr", "LINTZ", 1), related("Ann Orr", "Rome", 1)],
        }
    )
    assert [(m.name, m.type) for m in found.mentions] == [("Ann Orr", "person"), ("Lintz", None)]
    assert len(found.statements) == 1
    assert list(found.dropped.values()) == [["'Rome'"]]


def test_what_is_dropped_is_a_failure_with_its_count() -> None:
    reply = {
        "entities": [entity("Ann", "person", 1)],
        "relationships": [related("Ann", "Rome", 1), related("Rome", "Ann", 1)],
    }
    graph = graph_of({"a.txt": "Ann left."}, by_text({"Ann": reply}))
    dropped = "2 relationships dropped, neither listed nor in the text are 'Rome'"
    assert reasons(graph) == [("extraction", dropped)]
    assert graph.relationships.num_rows == 0


def test_relationships_of_a_thing_with_itself_are_left_out() -> None:
    reply = {
        "entities": [entity("Ann Orr", "person", 1), entity("Orr", "person", 2)],
        "relationships": [related("Ann Orr", "Ann Orr", 1), related("Orr", "Ann Orr", 2)],
    }
    graph = graph_of({"a.txt": "Ann Orr left. Orr wept."}, by_text({"Ann": reply}))
    assert rows(graph.entities, "title", "aliases") == [("Ann Orr", ["Orr"])]
    assert graph.relationships.num_rows == 0


def test_duplicates_in_a_reply_are_merged() -> None:
    reply = {
        "entities": [
            entity("Ann Orr", "person", 1, told="Ann Orr left."),
            entity("ANN ORR", "person", 1, told="ann orr left"),
            entity("the Lintz", "geo", 1, told="Lintz is far."),
            entity('"Lintz"', "geo", 1, told="Lintz is cold."),
        ],
        "relationships": [],
    }
    graph = graph_of({"a.txt": "Ann Orr left for Lintz."}, by_text({"Ann": reply}))
    assert rows(graph.entities, "title", "description", "type_votes") == [
        ("Ann Orr", "Ann Orr left.", [("person", 1)]),
        ("Lintz", "Lintz is far. Lintz is cold.", [("geo", 1)]),
    ]


def test_white_space_missing_fields_and_extra_ones_do_not_break_a_reply() -> None:
    found = read(
        {
            "entities": [{"name": "  Ann \n\n Orr  ", "description": None, "mood": "glum"}],
            "relationships": None,
            "thoughts": "none",
        }
    )
    assert [(m.name, m.type, m.lines) for m in found.mentions] == [("Ann Orr", "other", (10,))]


def test_floods_do_not_fit_the_schema() -> None:
    with pytest.raises(ValueError, match="at most 200 characters"):
        Extraction.model_validate({"entities": [{"name": "x" * 10_000}]})
    with pytest.raises(ValueError, match="at most 150 items"):
        Extraction.model_validate({"entities": [{"name": "x"}] * 1000})


NAMES = st.sampled_from(
    [
        "Ann Orr",
        "ANN ORR",
        "Orr",
        "Bo Pell",
        "Mr Pell",
        "Mrs Pell",
        "Lintz",
        "the Lintz",
        "",
        "Rome",
    ]
)
NUMBERS = st.lists(st.integers(-2, 6), max_size=3)
ENTITIES = st.builds(
    lambda n, t, s: {"name": n, "type": t, "sentences": s},
    NAMES,
    st.sampled_from(["person", "geo", "ghost", ""]),
    NUMBERS,
)
RELATIONSHIPS = st.builds(
    lambda a, b, w, s: {"source": a, "target": b, "strength": w, "sentences": s},
    NAMES,
    NAMES,
    st.integers(-5, 20),
    NUMBERS,
)
REPLIES = st.fixed_dictionaries(
    {
        "entities": st.lists(ENTITIES, max_size=5),
        "relationships": st.lists(RELATIONSHIPS, max_size=5),
    }
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(REPLIES, min_size=3, max_size=3), st.booleans())
def test_whatever_is_replied_no_id_dangles(replies: list[dict[str, Any]], same: bool) -> None:
    texts = {
        "a.txt": "Ann Orr left Lintz. Mr Pell wept. Orr met Bo Pell.",
        "b.txt": "Mrs Pell saw Lintz. Orr was there.",
        "c.txt": "Bo Pell burned Lintz. Ann Orr fled.",
    }
    queue = iter(replies)

    def reply(call: Call[Any]) -> dict[str, Any]:
        match call.step:
            case "extraction":
                return next(queue)
            case "resolution":
                return {"reason": "", "same": same}
        return NOTHING

    graph = graph_of(texts, reply)
    assert_linked(graph)
    assert all(len(dict(v)) > 0 for (v,) in rows(graph.entities, "type_votes"))


# --- claims and descriptions ------------------------------------------------------------------


def test_claims_are_evidence_of_a_relationship_or_part_of_what_is_told_of_their_subject() -> None:
    extraction = {
        "entities": [entity("Ann", "person", 1, told="Ann is a cook."), entity("Bo", "person", 2)],
        "relationships": [],
    }
    claims = {
        "claims": [
            {"subject": "Ann", "object": "Bo", "description": "Ann robbed Bo.", "sentences": [2]},
            {"subject": "Ann", "object": "NONE", "description": "Ann lied.", "sentences": [1]},
            {"subject": "Zoe", "object": "", "description": "Zoe lied.", "sentences": [1]},
        ]
    }
    reply = by_text({"Ann": extraction})
    texts = {"a.txt": "Ann cooks, they say she lied. Bo says that Ann robbed him."}
    asked = GRAPH.model_copy(update={"claims": True})
    graph = graph_of(texts, lambda c: claims if c.step == "claims" else reply(c), asked)
    assert rows(graph.relationships, "source", "target", "weight", "description") == [
        ("Ann", "Bo", 1.0, "Ann robbed Bo.")
    ]
    assert rows(graph.entities, "description")[0] == ("Ann is a cook. Ann lied.",)
    assert reasons(graph) == [
        ("claims", "1 claims dropped, neither listed nor in the text are 'Zoe'")
    ]
    assert graph_of(texts, reply).relationships.num_rows == 0


def told(*texts: str) -> Told:
    return Told("ent-1", "Lintz", texts)


def test_short_descriptions_are_joined_and_nobody_is_asked() -> None:
    teacher = InMemoryTeacher(lambda _call: None)
    made, failures = describe([told("Lintz is old", "Lintz is far.")], teacher, 50, count_tokens)
    assert made == ["Lintz is old. Lintz is far."]
    assert not failures
    assert not teacher.calls


def test_long_descriptions_are_summarised_in_chunks_and_then_the_summaries() -> None:
    texts = [f"Fact {n}: " + "word " * 47 + "end." for n in range(20)]  # 50 tokens each
    teacher = InMemoryTeacher(lambda call: {"description": f"Summary {call.item_id}."})
    made, failures = describe([told(*texts)], teacher, 60, count_tokens)
    assert not failures
    # 240 tokens a call: 20 texts by 4, five short summaries at once.
    assert [call.item_id for call in teacher.calls] == [
        *(f"ent-1 1.{n}" for n in range(5)),
        "ent-1 2.0",
    ]
    assert made == ["Summary ent-1 2.0."]
    assert all(text in "".join(map(shown, teacher.calls)) for text in texts)


def test_a_summary_that_is_empty_or_too_long_is_refused() -> None:
    texts = ["one two three four five six."] * 10
    for wrong in ("", "word " * 51):
        teacher = InMemoryTeacher(lambda _call, wrong=wrong: {"description": wrong})
        _, failures = describe([told(*texts)], teacher, 50, count_tokens)
        assert len(failures) == 1


def test_where_a_summary_fails_the_text_is_kept_up_to_a_sentence_within_the_limit() -> None:
    texts = [f"Sentence {n} has six words." for n in range(20)]
    teacher = InMemoryTeacher(lambda _call: None)
    (made,), failures = describe([told(*texts)], teacher, 52, count_tokens)
    assert made == " ".join(texts[:10])
    assert [(f.stage, f.item_id) for f in failures] == [("description", "ent-1")]


def test_a_first_sentence_beyond_the_limit_is_cut_at_a_word() -> None:
    teacher = InMemoryTeacher(lambda _call: None)
    (made,), _ = describe([told("word " * 100)], teacher, 50, count_tokens)
    assert made.split() == ["word"] * 50


def test_summaries_replace_the_descriptions_in_the_tables() -> None:
    short = GRAPH.model_copy(update={"max_description_tokens": 50})
    long = "Lintz is told of in many words that say nothing at all about it, now as before. "
    reply = by_text(
        {
            f"Text{n}": {"entities": [entity("Lintz", "geo", 1, told=f"{n}: {long}")]}
            for n in range(5)
        }
    )

    def answer(call: Call[Any]) -> dict[str, Any] | str | None:
        return {"description": "Lintz, in short."} if call.schema is Description else reply(call)

    graph = graph_of({f"{n}.txt": f"Text{n} is of Lintz." for n in range(5)}, answer, short)
    assert rows(graph.entities, "description") == [("Lintz, in short.",)]


# --- teachers of other parts' tests ------------------------------------------------------------


def scripted(sample: str) -> Callable[[Call[Any]], dict[str, Any]]:
    script = GraphScript(SAMPLES / sample / "gold")
    return lambda call: script.reply(call.schema.__name__, [dict(m) for m in call.messages])


def test_the_scripted_teacher_finds_the_gold_of_the_news() -> None:
    folder = SAMPLES / "news"
    teacher = InMemoryTeacher(scripted("news"))
    documents, units = read_sample(folder / "documents")
    graph = extract_with_teacher(documents, units, teacher, GRAPH, count_tokens)
    gold = [json.loads(line) for line in (folder / "gold" / "entities.jsonl").open()]
    assert Score(len(match(graph, gold)), graph.entities.num_rows, len(gold)).f1 >= 0.9
    assert graph.relationships.num_rows > 100
    assert graph.failures.num_rows == 0
    assert_linked(graph)


class StandingIn:
    """Answers with stand-ins."""

    def __init__(self, offline: GraphTables) -> None:
        stand_ins = extraction_stand_ins(offline)
        self._teacher = InMemoryTeacher(lambda c: stand_ins[c.schema](c).model_dump_json())
        self.characters: Counter[str] = Counter()  # of prompts and replies, by step

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        for outcome in self._teacher.complete(calls):
            assert isinstance(outcome, Completed)
            self.characters[outcome.call.step] += sum(
                map(len, (outcome.value.model_dump_json(), *contents(outcome.call)))
            )
            yield outcome


def contents(call: Call[Any]) -> list[str]:
    return [message["content"] for message in call.messages]


def test_stand_ins_answer_every_call_and_leave_a_graph_of_the_same_size() -> None:
    documents, units = read_sample(SAMPLES / "news" / "documents")
    offline = extract(documents, units, GRAPH)
    teacher = StandingIn(offline)
    settings = GRAPH.model_copy(update={"claims": True, "max_description_tokens": 60})
    graph = extract_with_teacher(documents, units, teacher, settings, count_tokens)
    assert teacher.characters.keys() >= {"extraction", "gleaning", "claims", "description"}
    assert graph.failures.num_rows == 0
    assert graph.entities.num_rows >= 0.9 * offline.entities.num_rows


@pytest.mark.parametrize("sample", ["news", "podcast", "journal"])
def test_a_plan_by_stand_ins_is_near_what_the_scripted_teacher_is_asked_and_replies(
    sample: str,
) -> None:
    documents, units = read_sample(SAMPLES / sample / "documents")
    planned = StandingIn(extract(documents, units, GRAPH))
    extract_with_teacher(documents, units, planned, GRAPH, count_tokens)
    script = scripted(sample)
    spent = 0

    def reply(call: Call[Any]) -> str:
        nonlocal spent
        made = json.dumps(script(call))
        spent += sum(map(len, (made, *contents(call))))
        return made

    extract_with_teacher(documents, units, InMemoryTeacher(reply), GRAPH, count_tokens)
    assert abs(planned.characters.total() - spent) <= 0.15 * spent
