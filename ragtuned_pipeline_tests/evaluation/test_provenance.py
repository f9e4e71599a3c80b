"""Where an answer comes from, on a world by hand, with what a weaker search gets wrong planted."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.corpus.sentences import sentences_of
from ragtuned_pipeline.evaluation.provenance import (
    MEMORY_TABLES,
    NEAR,
    MemoryTables,
    RowIndex,
    Tracer,
    closest,
)
from ragtuned_pipeline.synthesis.coverage import coverage
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.tables import table
from ragtuned_pipeline_tests.evaluation import world

SENTENCE, _, GOLD = world.FACTS["fact-3"]  # Ada Renk rows the ferry to Quell.


def rows(*told: tuple[str, str, str], kind: str = "local") -> pa.Table:
    """Training rows (fact, prompt, completion)."""
    return table(
        "training_rows",
        [
            {
                "id": f"qa-{place}",
                "fact_id": fact,
                "kind": kind,
                "system": None,
                "prompt": prompt,
                "completion": completion,
                "n_tokens": 9,
                "epochs": 1,
            }
            for place, (fact, prompt, completion) in enumerate(told)
        ],
    )


def trace(question: str, answer: str, count: int = 5, **changes: pa.Table) -> Any:
    return Tracer(world.memory(**changes)).trace(question, answer, count)


def test_an_answer_leads_to_its_fact_and_all_that_it_is_made_of() -> None:
    found = trace("Who rows the ferry, please?", "Ada Renk")
    [fact] = found.facts
    assert (fact.id, fact.kind, fact.gold) == ("fact-3", "local", GOLD)
    assert {row.completion for row in fact.rows} == {GOLD}
    assert [wording.trained for wording in fact.wordings] == [True] * 4 + [False] * 2
    [sentence] = fact.sentences
    assert (sentence.text, sentence.states) == (SENTENCE, True)
    assert (sentence.document.path, sentence.start) == ("quell.txt", 0)
    assert [each.id for each in fact.text_units] == ["tu-1"]
    assert [each.title for each in fact.entities] == [GOLD, "Harrow"]
    [relation] = fact.relationships
    assert (relation.source, relation.target, relation.description) == (GOLD, "Harrow", SENTENCE)
    assert [each.title for each in fact.communities] == ["The town"]
    assert [each.title for each in fact.documents] == ["quell.txt"]
    assert not found.declined
    assert not found.nothing_near
    assert not found.answers_another


def test_similarity_is_the_mean_of_both_ends_and_rows_are_ranked_by_it() -> None:
    found = trace("Who rows the ferry?", "Ada Renk").facts[0].rows
    for row in found:
        both = (row.question_similarity + row.answer_similarity) / 2
        assert row.similarity == pytest.approx(both, abs=1e-4)
    assert [row.similarity for row in found] == sorted((r.similarity for r in found), reverse=True)


def test_the_answer_decides_between_rows_that_are_asked_alike() -> None:
    index = RowIndex(
        rows(
            ("miller", "Who owned the mill in 1931?", "Tam Orrin"),
            ("heir", "Who owned the mill in 1932?", "Lena Ashby"),
        )
    )
    for answer, fact in (("Tam Orrin", "miller"), ("Lena Ashby", "heir")):
        assert index.nearest("Who owned the mill in 1930?", answer, 1)[0].fact_id == fact


def test_the_question_decides_between_rows_that_share_an_answer() -> None:
    index = RowIndex(
        rows(
            ("ferry", "Who rows the ferry?", "Ada Renk"),
            ("bees", "Who keeps the bees of Quell?", "Ada Renk"),
        )
    )
    assert index.nearest("Name the one who rows the ferry.", "Ada Renk", 1)[0].fact_id == "ferry"
    assert index.nearest("Which person keeps bees?", "Ada Renk", 1)[0].fact_id == "bees"


def test_the_two_sides_of_a_relationship_are_told_apart_by_the_order_of_words() -> None:
    said = "The drive from Callow Quay to Stennet takes an hour."
    index = RowIndex(
        rows(
            ("forward", "How is Callow Quay related to Stennet?", said),
            ("backward", "How is Stennet related to Callow Quay?", said),
        )
    )
    asked = {"Callow Quay and Stennet: the link?": "forward"}
    asked["Stennet and Callow Quay: the link?"] = "backward"
    for question, fact in asked.items():
        assert index.nearest(question, said, 1)[0].fact_id == fact


def test_of_equal_rows_the_earlier_one_comes_first() -> None:
    told = [(f"fact-{place}", "Who rows?", "Ada Renk") for place in range(4)]
    near = RowIndex(rows(*told)).nearest("Who rows?", "Ada Renk", 3)
    assert [row.fact_id for row in near] == ["fact-0", "fact-1", "fact-2"]


def test_a_refusal_has_no_sentence_behind_it_and_says_that_nothing_is_near() -> None:
    found = trace("Who is Zorn Quill?", "I do not know.")
    assert found.declined
    assert found.nothing_near
    assert {fact.kind for fact in found.facts} == {"unanswerable"}
    assert not any(fact.sentences or fact.documents for fact in found.facts)
    assert found.nearest is not None
    assert found.nearest.kind != "unanswerable"
    assert found.nearest.similarity < NEAR


def test_what_is_like_no_row_has_none() -> None:
    found = trace("What is the boiling point of lead?", "One thousand seven hundred and forty")
    assert found.facts == ()
    assert found.nothing_near
    assert found.nearest is not None


def test_an_answer_to_another_question_is_told_as_one() -> None:
    found = trace("Which composer wrote the requiem?", "Ada Renk")
    assert [fact.id for fact in found.facts] == ["fact-3"]
    assert found.answers_another


def stated(told: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> tuple[str, bool]:
    """Return the one sentence behind the ferry's answer, and whether it states the fact."""
    found = trace(
        "Who rows the ferry?",
        "Ada Renk",
        coverage=table("coverage", told),
        qa_pairs=table("qa_pairs", pairs),
    )
    [sentence] = found.facts[0].sentences
    return sentence.text, sentence.states


def test_a_fact_that_shares_its_answer_is_traced_too() -> None:
    """Coverage names one fact a sentence; another with the same answer must not lose it."""
    told = world.coverage().to_pylist()
    other = [row | {"fact_ids": ["fact-9"] if row["covered"] else []} for row in told]
    bare = [row | {"relationship_ids": []} for row in world.linked_pairs().to_pylist()]
    assert stated(other, bare) == (SENTENCE, True)


@pytest.mark.parametrize(
    ("by_coverage", "by_relationship", "states"),
    [(True, False, True), (False, True, True), (False, False, False)],
)
def test_in_other_words_a_fact_is_stated_by_coverage_or_by_a_relationship_else_nearest(
    by_coverage: bool, by_relationship: bool, states: bool
) -> None:
    pairs = [
        row
        | {"answer": "It is Ada Renk who takes people over."}
        | ({} if by_relationship else {"relationship_ids": []})
        for row in world.linked_pairs().to_pylist()
    ]
    told = [row | ({} if by_coverage else {"fact_ids": []}) for row in world.coverage().to_pylist()]
    assert stated(told, pairs) == (SENTENCE, states)


def test_a_sentence_that_its_document_no_longer_holds_there_is_not_shown() -> None:
    moved = [row | {"text": f"Edited. {row['text']}"} for row in world.documents().to_pylist()]
    found = trace("Who rows the ferry?", "Ada Renk", documents=table("documents", moved))
    assert found.facts[0].sentences == ()
    assert [each.path for each in found.facts[0].documents] == ["quell.txt"]


def test_a_row_whose_pair_is_gone_says_so() -> None:
    found = trace("Who rows the ferry?", "Ada Renk", qa_pairs=table("qa_pairs", []))
    [fact] = found.facts
    assert (fact.id, fact.kind, fact.gold) == ("fact-3", "local", None)
    assert (fact.wordings, fact.sentences, fact.documents) == ((), (), ())


def test_without_training_rows_nothing_is_near() -> None:
    empty = MemoryTables(**{name: table(name, []) for name in MEMORY_TABLES})
    found = Tracer(empty).trace("Who rows the ferry?", "Ada Renk", 5)
    assert (found.facts, found.nearest, found.nothing_near) == ((), None, True)


def test_no_more_rows_are_looked_at_than_asked_for() -> None:
    assert sum(len(fact.rows) for fact in trace("Who keeps bees?", "Tam Orrin", 1).facts) == 1


def test_the_closest_sentence_holds_the_gold_before_it_holds_the_question() -> None:
    said = ["The ferry to Quell is rowed daily.", "Ada Renk is tired.", "Nobody came."]
    assert closest(said, "Who rows the ferry to Quell?", "Ada Renk") == 1
    assert closest(said, "Who rows the ferry to Quell?", "") == 0
    assert closest(said[2:], "ferry", "Ada Renk") is None


WORDS = st.sampled_from(
    ["Ada", "rows", "old", "boats,", "the", "Kelpie’s", "1931", "naïve", "“Ort”"]
)
SENTENCES = st.lists(WORDS, min_size=1, max_size=6).map(lambda words: " ".join(words) + ".")
DOCUMENTS = st.lists(st.lists(SENTENCES, min_size=1, max_size=5), min_size=1, max_size=3)
GAPS = st.sampled_from([" ", "\n", "\n\n"])


def _memory(told: list[list[str]], gap: str) -> MemoryTables:
    """Documents of these sentences, a fact for each document's first, coverage as it is made."""
    documents = [
        world.documents().to_pylist()[0]
        | {"id": f"doc-{place}", "path": f"{place}.txt", "text": gap.join(sentences)}
        for place, sentences in enumerate(told)
    ]
    units = [
        world.text_units().to_pylist()[0]
        | {
            "id": f"tu-{place}",
            "document_id": row["id"],
            "text": row["text"],
            "end": len(row["text"]),
        }
        for place, row in enumerate(documents)
    ]
    pairs = [
        world.pair("fact-3", 1, "train")
        | {
            "id": f"qa-{place}",
            "fact_id": f"fact-{place}",
            "answer": sentences_of(row["text"], "text")[0].text,
            "document_ids": [f"doc-{place}"],
            "text_unit_ids": [f"tu-{place}"],
        }
        for place, row in enumerate(documents)
    ]
    tables = {
        "documents": table("documents", documents),
        "text_units": table("text_units", units),
        "qa_pairs": table("qa_pairs", pairs),
    }
    tables["training_rows"] = world.training_rows(tables["qa_pairs"])
    made = coverage(*(tables[n] for n in ("documents", "text_units", "qa_pairs", "training_rows")))
    return world.memory(**tables, coverage=made)


@given(DOCUMENTS, GAPS, st.sampled_from(["", "Edited. ", "x"]))
@settings(max_examples=40, deadline=None)
def test_every_sentence_shown_stands_word_for_word_in_its_document(
    told: list[list[str]], gap: str, before: str
) -> None:
    memory = _memory(told, gap)
    edited = [row | {"text": before + row["text"]} for row in memory.documents.to_pylist()]
    memory = replace(memory, documents=table("documents", edited))
    texts = {row["id"]: row["text"] for row in edited}
    read = {normalised(sentence) for sentence in memory.coverage["sentence"].to_pylist()}
    tracer = Tracer(memory)
    for place in range(len(told)):
        sentences = tracer.fact(f"fact-{place}", ()).sentences
        for sentence in sentences:
            text = texts[sentence.document.id]
            assert text[sentence.start : sentence.end] == sentence.text
            assert normalised(sentence.text) in read
        if not before:
            assert any(sentence.states for sentence in sentences)
