"""Coverage: one row a sentence, what covers it, and why the rest is not covered."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.corpus.sentences import sentences_of
from ragtuned_pipeline.synthesis import coverage as room
from ragtuned_pipeline.synthesis.coverage import coverage
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.tables import check_schema, table
from ragtuned_pipeline_tests.synthesis.corpora import World, harbour, small

PLAIN = {
    "2041-02-03|The ferry.md": (
        "# The ferry of Tollen\n\n"
        "Aldous Fenn sold the Blue Marten to Petra Lindqvar in January 2041. Was it old? Rain fell."
    ),
    "2041-02-05|The crew.md": "Maud Okrent lives in Saltwick.\n\n?!\n\nShe mends nets there.",
}


def rows_for(pairs: pa.Table, keep: Any = None) -> pa.Table:
    """Training rows of the kept training pairs, as rows.py writes them, or of some of them."""
    chosen = pairs.filter(pc.field("kept") & (pc.field("split") == "train"))
    if keep is not None:
        chosen = chosen.filter(keep)
    return table(
        "training_rows",
        [
            {
                "id": row["id"],
                "fact_id": row["fact_id"],
                "kind": row["kind"],
                "system": None,
                "prompt": row["question"],
                "completion": row["answer"],
                "epochs": 1,
                "n_tokens": 10,
            }
            for row in chosen.to_pylist()
        ],
    )


def covered(world: World, pairs: pa.Table, training: pa.Table) -> list[dict[str, Any]]:
    made = coverage(world.documents, world.text_units, pairs, training)
    check_schema("coverage", made)
    return list(made.to_pylist())


def reasons(rows: list[dict[str, Any]]) -> dict[str, str | None]:
    return {row["sentence"]: row["reason"] for row in rows}


def test_every_sentence_of_the_corpus_has_one_row_in_order() -> None:
    world = harbour()
    pairs = world.synthesise().qa_pairs
    rows = covered(world, pairs, rows_for(pairs))
    expected = [
        (document["id"], sentence.start, sentence.end, sentence.text)
        for document in world.documents.to_pylist()
        for sentence in sentences_of(document["text"], document["format"])
    ]
    assert [(r["document_id"], r["start"], r["end"], r["sentence"]) for r in rows] == expected
    units = {unit["id"]: unit for unit in world.text_units.to_pylist()}
    for row in rows:
        unit = units[row["text_unit_id"]]
        assert unit["document_id"] == row["document_id"]
        assert unit["start"] < row["end"]
        assert unit["end"] > row["start"]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_covered_sentence_has_facts_that_hold_it_and_another_has_a_reason(share: float) -> None:
    world = harbour()
    pairs = world.synthesise(held_out_fact_share=share).qa_pairs
    training = rows_for(pairs)
    answers: dict[str, list[str]] = {}
    for row in training.to_pylist():
        answers.setdefault(row["fact_id"], []).append(f" {normalised(row['completion'])} ")
    rows = covered(world, pairs, training)
    for row in rows:
        assert row["covered"] == (row["reason"] is None) == bool(row["fact_ids"])
        for fact in row["fact_ids"]:
            assert any(f" {normalised(row['sentence'])} " in answer for answer in answers[fact])
    expected = {room.HELD_OUT} if share else set()
    assert {row["reason"] for row in rows} - {None} == expected


def test_passages_hold_every_sentence_that_is_not_held_out() -> None:
    world = small(PLAIN)
    pairs = world.synthesise(held_out_fact_share=0).qa_pairs
    found = reasons(covered(world, pairs, rows_for(pairs)))
    assert found.pop("?!") == room.NO_WORDS
    assert set(found.values()) == {None}
    assert len(found) == 6


def test_what_nothing_trained_holds_says_why() -> None:
    world = small(PLAIN)
    pairs = world.synthesise(held_out_fact_share=0).qa_pairs
    found = reasons(covered(world, pairs, rows_for(pairs, pc.field("kind") == "unanswerable")))
    assert found == {
        "The ferry of Tollen": room.HEADING,
        "Aldous Fenn sold the Blue Marten to Petra Lindqvar in January 2041.": room.LEFT_OUT,
        "Was it old?": room.QUESTION,
        "Rain fell.": room.LEFT_OUT,
        "Maud Okrent lives in Saltwick.": room.LEFT_OUT,
        "?!": room.NO_WORDS,
        "She mends nets there.": room.LEFT_OUT,
    }


def test_without_any_pair_no_answer_holds_a_sentence() -> None:
    world = small(PLAIN)
    found = reasons(covered(world, table("qa_pairs", []), table("training_rows", [])))
    assert found["Rain fell."] == room.NO_ANSWER
    assert found["The ferry of Tollen"] == room.HEADING
    assert found["Was it old?"] == room.QUESTION


def test_an_answer_covers_sentences_of_its_own_documents_only() -> None:
    world = small(["Rain fell.\n\nMaud Okrent lives in Saltwick.", "Rain fell."])
    pairs = world.synthesise(held_out_fact_share=0).qa_pairs
    first = world.documents["id"][0].as_py()
    of_first = pa.array([ids == [first] for ids in pairs["document_ids"].to_pylist()])
    rows = covered(world, pairs, rows_for(pairs.filter(of_first)))
    assert [(row["document_id"] == first, row["covered"]) for row in rows] == [
        (True, True),
        (True, True),
        (False, False),
    ]


def test_part_of_a_word_does_not_cover() -> None:
    world = small(["Maud sold it. Maud sold items of Saltwick."])
    pairs = world.synthesise(held_out_fact_share=0).qa_pairs
    kept = pairs.filter(pc.invert(pc.match_substring(pairs["answer"], "sold it.")))
    rows = covered(world, kept, rows_for(kept))
    assert [row["covered"] for row in rows] == [False, True]


def test_a_teachers_pair_covers_the_sentence_of_its_unit_that_it_restates() -> None:
    world = small(
        [
            "Aldous Fenn sold the ferry Blue Marten to Petra Lindqvar in January 2041. "
            "Aldous Fenn bought a small brass lantern from the chandler in Saltwick.",
            "Aldous Fenn sold the ferry Blue Marten to Petra Lindqvar in January 2041!",
        ]
    )
    unit, other = world.text_units["id"].to_pylist()
    told = world.synthesise(held_out_fact_share=0).qa_pairs.slice(0, 1).to_pylist()[0] | {
        "kind": "local",
        "generator": "llm:local@00000000",
        "question": "To whom did Aldous Fenn sell the Blue Marten?",
        "answer": "The ferry went to Petra Lindqvar in January 2041, for Aldous Fenn sold it.",
        "document_ids": world.documents["id"].to_pylist(),
        "text_unit_ids": [unit],
        "split": "train",
        "kept": True,
        "drop_reason": None,
    }
    pairs = table("qa_pairs", [told])
    rows = covered(world, pairs, rows_for(pairs))
    assert [row["covered"] for row in rows] == [True, False, False]
    assert rows[0]["fact_ids"] == [told["fact_id"]]
    assert rows[1]["reason"] == room.NO_ANSWER
    assert rows[2]["text_unit_id"] == other
    by_template = table("qa_pairs", [told | {"generator": "template:questions@1"}])
    assert not any(r["covered"] for r in covered(world, by_template, rows_for(by_template)))
