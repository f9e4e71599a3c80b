"""The offline extractor: golden tables on eight sentences, resolution, properties."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.extraction_offline import GraphTables, extract
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline_tests.graph.corpora import GOLDEN, corpus

GRAPH = Settings().graph


def graph_of(texts: dict[str, str]) -> GraphTables:
    return extract(*corpus(texts), GRAPH)


def titles(graph: GraphTables) -> list[str]:
    return list(graph.entities["title"].to_pylist())


def pairs(graph: GraphTables) -> dict[tuple[str, str], float]:
    return {
        (row["source"], row["target"]): row["weight"] for row in graph.relationships.to_pylist()
    }


def test_golden_entities() -> None:
    found = [
        (row["title"], row["type"], row["aliases"], row["frequency"], row["degree"])
        for row in graph_of(GOLDEN).entities.to_pylist()
    ]
    assert found == [
        ("Brannock Harbour Trust", "organization", ["BHT", "Trust"], 2, 3),
        ("Grey Plover", "object", [], 1, 2),
        ("Harrow Bakery", "organization", [], 1, 2),
        ("Ilse Corran", "person", ["Corran", "Judge Ilse Corran"], 2, 2),
        ("Mirela Voss", "person", ["Ms. Voss", "Voss"], 1, 3),
        ("Rurik Pell", "person", ["Captain Rurik Pell", "Pell"], 1, 3),
        ("Saltwick", "geo", [], 1, 3),
        ("Tom Aldane", "person", [], 1, 2),
    ]


def test_golden_relationships() -> None:
    found = [
        (row["source"], row["target"], row["weight"], row["inverse"], row["sentences"])
        for row in graph_of(GOLDEN).relationships.to_pylist()
    ]
    opened, sold = (
        "Mirela Voss opened the Harrow Bakery in 1987.",
        "She sold it to Tom Aldane in 2004.",
    )
    sailed = "Captain Rurik Pell sailed the Grey Plover from Saltwick."
    trust = "Brannock Harbour Trust"
    bought = "The Brannock Harbour Trust bought a mill from Ms. Voss."
    assert found == [
        (trust, "Ilse Corran", 1.0, "founded", ["The Trust was founded by Judge Ilse Corran."]),
        (
            trust,
            "Mirela Voss",
            1.0,
            None,
            [bought],
        ),
        (trust, "Rurik Pell", 1.0, None, ["Yesterday the BHT thanked Pell."]),
        ("Grey Plover", "Saltwick", 1.0, None, [sailed]),
        ("Harrow Bakery", "Tom Aldane", 1.0, None, [sold]),
        ("Ilse Corran", "Saltwick", 1.0, None, ["Corran lives in Saltwick."]),
        ("Mirela Voss", "Harrow Bakery", 2.0, None, [opened, sold]),
        ("Mirela Voss", "Tom Aldane", 1.0, None, [sold]),
        ("Rurik Pell", "Grey Plover", 1.0, "was sailed by", [sailed]),
        ("Rurik Pell", "Saltwick", 1.0, None, [sailed]),
    ]


def test_descriptions_are_sentences_in_time_order() -> None:
    by_title = {row["title"]: row for row in graph_of(GOLDEN).entities.to_pylist()}
    assert by_title["Mirela Voss"]["description"] == (
        "Mirela Voss opened the Harrow Bakery in 1987. She sold it to Tom Aldane in 2004. "
        "The Brannock Harbour Trust bought a mill from Ms. Voss."
    )
    short = extract(*corpus(GOLDEN), GRAPH.model_copy(update={"description_sentences": 1}))
    by_title = {row["title"]: row for row in short.entities.to_pylist()}
    assert by_title["Rurik Pell"]["description"].startswith("Captain Rurik Pell sailed")
    assert by_title["Mirela Voss"]["description"].count(".") == 1


def test_a_title_with_votes_for_two_types_stays_one_entity() -> None:
    graph = graph_of({"a.txt": "They met in Calder. Calder, a solicitor, smiled. We left Calder."})
    (row,) = graph.entities.to_pylist()
    votes = dict(row["type_votes"])
    assert row["title"] == "Calder"
    assert votes["person"] > 0
    assert votes["geo"] > 0


@pytest.mark.parametrize("first", ["Anna", "Berta"])
def test_two_people_with_one_surname_stay_two(first: str) -> None:
    other = {"Anna": "Berta", "Berta": "Anna"}[first]
    graph = graph_of(
        {
            "a.txt": f"{first} Voss kept goats in Dell. Her sister {other} Voss lived in Marle.",
            "b.txt": f"{first} Voss went to Orrin. There Voss wept for Karl Ober.",
            "c.txt": f"{other} Voss stayed. Voss sold milk to Ines Kroll.",
        }
    )
    assert {"Anna Voss", "Berta Voss"} <= set(titles(graph))
    assert "Voss" not in titles(graph)
    assert (f"{first} Voss", "Karl Ober") in pairs(graph)
    assert (f"{other} Voss", "Ines Kroll") in pairs(graph)


def test_capitals_at_sentence_starts_and_dates_are_no_entities() -> None:
    graph = graph_of(
        {"a.txt": "Rain fell. Nobody came on Monday. In March French visitors ate. Bread rose."}
    )
    assert titles(graph) == []


def test_names_of_several_words() -> None:
    graph = graph_of(
        {
            "a.txt": (
                "We heard Brine and Timber on the radio. She left the Bank of Marle to join the "
                "Quayside Workers' Union. The novel was *The Salt Road*. Later Ines de Kroll and "
                "Tom Aldane met at Tanner's Field."
            )
        }
    )
    assert titles(graph) == [
        "Bank of Marle",
        "Brine and Timber",
        "Ines de Kroll",
        "Quayside Workers' Union",
        "Salt Road",
        "Tanner's Field",
        "Tom Aldane",
    ]


def test_speakers_are_persons_and_i_is_the_speaker() -> None:
    graph = graph_of(
        {
            "x.chat": (
                "Time: 2031-01-02 10:00\nParticipants: Nell, Oskar Bron\n\n"
                "Nell: I bought a bike in Trennet.\n"
                "Oskar Bron: My sister Lotte lives in Trennet.\n"
                "User: hello there\n"
            )
        }
    )
    kinds = dict(zip(titles(graph), graph.entities["type"].to_pylist(), strict=True))
    assert kinds == {"Lotte": "person", "Nell": "person", "Oskar Bron": "person", "Trennet": "geo"}
    assert ("Nell", "Trennet") in pairs(graph)
    assert ("Oskar Bron", "Lotte") in pairs(graph)


def test_reversed_pairs_are_both_kept() -> None:
    graph = graph_of({"a.txt": "Tom Aldane hired Ines Kroll. Ines Kroll sued Tom Aldane."})
    assert pairs(graph) == {("Ines Kroll", "Tom Aldane"): 1.0, ("Tom Aldane", "Ines Kroll"): 1.0}
    inverse = dict(
        zip(
            graph.relationships["source"].to_pylist(),
            graph.relationships["inverse"].to_pylist(),
            strict=True,
        )
    )
    assert inverse == {"Ines Kroll": "was sued by", "Tom Aldane": "was hired by"}


@pytest.mark.parametrize(
    "sentence",
    [
        "Tom Aldane handed Ines Kroll the keys.",  # she was not handed
        "Forty clerks of Aldane Mills founded the Kroll Society.",  # the mill did not
        "Tom Aldane wins the Kroll Cup.",
    ],
)
def test_what_would_be_false_or_broken_backwards_has_no_inverse(sentence: str) -> None:
    graph = graph_of({"a.txt": f"{sentence} Tom Aldane met Ines Kroll at the Kroll Cup."})
    inverse = graph.relationships["inverse"].to_pylist()
    assert [phrase for phrase in inverse if phrase != "was met by"] == [None] * (len(inverse) - 1)


def test_a_description_has_no_bylines_and_ends_its_headlines() -> None:
    graph = graph_of(
        {
            "a.md": "# Tom Aldane opens a mill\n\nBy Tom Aldane, 3 May 2031\n\n"
            "Tom Aldane hired Ines Kroll."
        }
    )
    told = dict(zip(titles(graph), graph.entities["description"].to_pylist(), strict=True))
    assert told["Tom Aldane"] == "Tom Aldane opens a mill. Tom Aldane hired Ines Kroll."


def test_a_sentence_in_the_overlap_belongs_to_two_text_units() -> None:
    text = (
        "Tom Aldane hired Ines Kroll. " + "Rain fell on the roof. " * 3 + "Ines Kroll left Marle."
    )
    documents, units = corpus({"a.txt": text}, unit=len(text) - 10, overlap=60)
    graph = extract(documents, units, GRAPH)
    assert units.num_rows == 2
    by_pair = {(r["source"], r["target"]): r for r in graph.relationships.to_pylist()}
    assert by_pair["Ines Kroll", "Marle"]["text_unit_ids"] == [units["id"][1].as_py()]
    documents, units = corpus({"a.txt": text[:28]}, unit=28, overlap=14)
    doubled = pa.concat_tables([units, units]).set_column(0, "id", pa.array(["tu-1", "tu-2"]))
    graph = extract(documents, doubled, GRAPH)
    assert graph.relationships["text_unit_ids"].to_pylist() == [["tu-1", "tu-2"]]


@pytest.mark.parametrize("text", ["", "it rained.", "rain fell on the roof all day"])
def test_a_corpus_without_names_gives_empty_tables(text: str) -> None:
    graph = graph_of({"a.txt": text})
    assert graph.entities.num_rows == graph.relationships.num_rows == 0
    tables.check_schema("entities", graph.entities)
    tables.check_schema("relationships", graph.relationships)
    tables.check_schema("text_units", graph.text_units)


def test_one_sentence() -> None:
    graph = graph_of({"a.txt": "Tom Aldane hired Ines Kroll."})
    assert titles(graph) == ["Ines Kroll", "Tom Aldane"]
    assert graph.text_units["entity_ids"].to_pylist() == [sorted(graph.entities["id"].to_pylist())]


def test_a_document_without_text_units_is_a_failure() -> None:
    documents, units = corpus(GOLDEN)
    graph = extract(
        documents, units.filter(pa.compute.field("document_id") == documents["id"][0]), GRAPH
    )
    (failure,) = graph.failures.to_pylist()
    assert failure["stage"] == "graph"
    assert failure["item_id"] == documents["id"][1].as_py()
    assert "b.txt" in failure["reason"]


NAMES = [
    "Tom Aldane",
    "Ines Kroll",
    "Anna Voss",
    "Berta Voss",
    "Voss",
    "Ms. Kroll",
    "Marle",
    "Dell",
]
SENTENCES = [
    f"{a} {verb} {b}."
    for (a, b), verb in zip(
        itertools.permutations(NAMES, 2), itertools.cycle(["hired", "left", "told", "was seen by"])
    )
] + ["Rain fell.", "She went to the Harrow Bank.", "I saw it.", "The Bank closed in May."]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=6), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_ids_resolve_and_do_not_depend_on_the_order_of_documents(lists, random) -> None:  # type: ignore[no-untyped-def]
    texts = {f"{i}.txt": " ".join(sentences) for i, sentences in enumerate(lists)}
    documents, units = corpus(texts)
    graph = extract(documents, units, GRAPH)
    order = list(range(documents.num_rows))
    random.shuffle(order)
    again = extract(documents.take(order), units, GRAPH)
    assert graph == again
    entities = {row["id"]: row for row in graph.entities.to_pylist()}
    assert len(entities) == graph.entities.num_rows
    unit_ids = set(units["id"].to_pylist())
    for row in graph.relationships.to_pylist():
        assert row["source_id"] != row["target_id"]
        for end in ("source", "target"):
            assert entities[row[f"{end}_id"]]["title"] == row[end]
        assert row["sentences"]
        assert set(row["text_unit_ids"]) <= unit_ids
    for row in entities.values():
        assert row["text_unit_ids"]
        assert set(row["text_unit_ids"]) <= unit_ids
        assert row["frequency"] == len(row["text_unit_ids"])
    for row in graph.text_units.to_pylist():
        for identity in row["entity_ids"]:
            assert row["id"] in entities[identity]["text_unit_ids"]


def test_two_runs_are_byte_identical() -> None:
    first, second = graph_of(GOLDEN), graph_of(GOLDEN)
    for name in ("entities", "relationships", "text_units", "failures"):
        assert tables.content_hash(getattr(first, name)) == tables.content_hash(
            getattr(second, name)
        )


def test_the_writer_of_a_journal_is_i() -> None:
    graph = graph_of(
        {
            "2031-01-02.txt": 'I met Ines Kroll in Marle. "Tell me, Nella, are you well?"',
            "2031-01-03.txt": 'I left Dell. The card said "Dear Nella" in green. I slept.',
        }
    )
    assert ("Nella", "Ines Kroll") in pairs(graph)
    assert ("Nella", "Dell") in pairs(graph)


def test_what_is_quoted_in_news_is_not_said_by_a_writer() -> None:
    graph = graph_of({"a.txt": '"I learned to swim in Dell," said Ines Kroll. "I like Marle."'})
    assert pairs(graph).keys() <= {("Dell", "Ines Kroll")}


def test_all_who_speak_are_linked_to_the_programme_announced() -> None:
    graph = graph_of(
        {
            "x.chat": (
                "Time: 2031-01-02 10:00\nParticipants: Nell Orr, Oskar Bron\n\n"
                "Nell Orr: Good evening, this is the Marle Hour.\nOskar Bron: Hello.\n"
            )
        }
    )
    assert pairs(graph) == {("Nell Orr", "Marle Hour"): 1.0, ("Oskar Bron", "Marle Hour"): 1.0}


def test_a_short_form_of_a_short_form_means_the_longest() -> None:
    graph = graph_of(
        {
            "a.txt": (
                "The Brannock Harbour Board met in Dell. Ines Kroll thanked the Harbour Board. "
                "Later the HB left Marle."
            )
        }
    )
    assert titles(graph) == ["Brannock Harbour Board", "Dell", "Ines Kroll", "Marle"]
    (row,) = [row for row in graph.entities.to_pylist() if row["title"].endswith("Board")]
    assert row["aliases"] == ["HB", "Harbour Board"]


CHATTER = {
    "a.chat": (
        "Ann: Hiya Joel! Xx Remind me to call Mira.\n"
        "Joel: Hiya Mira here. 😂 Remind Joel. Haha Bring the Zoltan.\n"
        "Mira: Hiya Ann! We met at Garrow's. Nooo.\n"
        "Ann: Garrow's has lamps. I saw the GP. The GP said to rest.\n"
        "Joel: The GP again? My GP said so. Your GP or the GP. A GP.\n"
        "Mira: I saw Ann with Joel and Mira at Hotel Vogel near the Gilded Pear.\n"
    )
}


def test_chatter_makes_no_names() -> None:
    found = {row["title"]: row for row in graph_of(CHATTER).entities.to_pylist()}
    expected = "Ann|Garrow's|Gilded Pear|GP|Hotel Vogel|Joel|Mira|Zoltan"
    assert "|".join(found) == expected
    assert {found[name]["type"] for name in ("Garrow's", "Hotel Vogel")} == {"organization"}
    assert found["Joel"]["aliases"] == []
