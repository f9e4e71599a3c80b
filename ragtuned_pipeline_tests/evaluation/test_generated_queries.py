"""Generated queries without a teacher: drawn evenly, in fresh wordings, and always the same."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.questions.generated_queries import (
    GeneratedQueries,
    generate_queries,
)
from ragtuned_pipeline.evaluation.questions.global_queries import question_templates
from ragtuned_pipeline.evaluation.questions.local_templates import _Facts
from ragtuned_pipeline.evaluation.questions.queries import plain_question
from ragtuned_pipeline.evaluation.questions.quotes import flat
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.synthesis.gates import names_one_of
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.tables import check_schema, content_hash
from ragtuned_pipeline_tests.evaluation import generated, world
from ragtuned_pipeline_tests.evaluation.generated import Memory
from ragtuned_pipeline_tests.synthesis import corpora


@pytest.fixture(scope="module")
def memory() -> Memory:
    return generated.harbour()


@pytest.fixture(scope="module")
def made(memory: Memory) -> GeneratedQueries:
    return memory.generate()


def rows_of(made: GeneratedQueries, question_set: str) -> list[dict[str, Any]]:
    return [row for row in made.queries.to_pylist() if row["question_set"] == question_set]


def local(made: GeneratedQueries) -> list[dict[str, Any]]:
    return rows_of(made, "generated_local")


def whole(made: GeneratedQueries) -> list[dict[str, Any]]:
    return rows_of(made, "generated_global")


def names_of(memory: Memory) -> list[str]:
    rows = memory.world.entities.to_pylist()
    return [name for row in rows for name in (row["title"], *row["aliases"])]


def units_of(memory: Memory) -> dict[str, str]:
    columns = (memory.world.text_units[name].to_pylist() for name in ("id", "text"))
    return {key: flat(text) for key, text in zip(*columns, strict=True)}


@pytest.mark.parametrize(
    ("file", "make"),
    [
        (generated.GOLDEN, generated.golden),
        (generated.GOLDEN_TEACHER, generated.golden_with_teacher),
    ],
)
def test_the_queries_of_a_small_corpus_are_the_golden_ones(file: Any, make: Any) -> None:
    made = make()
    check_schema("queries", made.queries)
    assert made.queries.to_pylist() == json.loads(file.read_text(encoding="utf-8"))


def test_both_sets_have_the_papers_numbers_and_all_columns(made: GeneratedQueries) -> None:
    check_schema("queries", made.queries)
    assert not made.failures
    assert len(local(made)) == len(whole(made)) == 125
    assert len(set(made.queries["id"].to_pylist())) == 250
    for row in made.queries.to_pylist():
        assert row["seed"] == 29
        assert row["generator"].startswith("template")
        assert row["source_ids"]
        assert row["reference_answer"] == flat(row["reference_answer"]) != ""
    for row in local(made):
        assert row["scope"] == "local"
        assert row["persona"] is row["task"] is None
        assert all(row[name] for name in ("fact_id", "form", "document_ids", "long_answer"))
    for row in whole(made):
        assert (row["scope"], row["kind"]) == ("global", "whole_corpus")
        assert row["reference_answer"] == made.description
        assert row["evidence"] is None


# ---- global ----


def test_five_personas_have_five_tasks_of_five_questions(made: GeneratedQueries) -> None:
    each = Counter((row["persona"], row["task"]) for row in whole(made))
    assert set(each.values()) == {5}
    assert len(each) == 25
    assert len({persona for persona, _ in each}) == 5
    assert len({normalised(row["question"]) for row in whole(made)}) == 125


def test_no_global_question_names_anything_of_the_corpus(
    memory: Memory, made: GeneratedQueries
) -> None:
    names = names_of(memory)
    assert "Maud Okrent" in names
    assert not [row for row in whole(made) if names_one_of(row["question"], names)]


def test_few_questions_go_to_every_persona_in_turn(memory: Memory) -> None:
    asked = whole(memory.generate(local_queries=0, global_queries=10))
    assert set(Counter(row["persona"] for row in asked).values()) == {2}
    assert set(Counter(row["task"] for row in asked).values()) == {1}


def test_a_template_that_holds_a_name_of_the_corpus_is_replaced_by_a_spare_one() -> None:
    every = [q for tasks in question_templates().values() for _, qs in tasks for q in qs]
    holding = [question for question in every if names_one_of(question, ["turning point"])]
    small = corpora.small(["The Turning Point is a pub in Saltwick. Maud Okrent owns it."])
    memory = generated.memory_of(small)
    assert "Turning Point" in names_of(memory)
    made = memory.generate(local_queries=0)
    assert holding
    assert [(f.item_id, "'Turning Point'" in f.reason) for f in made.failures] == [
        (question, True) for question in holding
    ]
    asked = [row["question"] for row in whole(made)]
    assert len(set(asked)) == 125
    assert not set(asked) & set(holding)


def test_more_questions_than_there_are_templates_is_counted(memory: Memory) -> None:
    made = memory.generate(local_queries=0, global_queries=200)
    assert len(whole(made)) == 150
    assert [failure.reason[:29] for failure in made.failures] == ["150 of 200 questions: there a"]


# ---- local ----


def test_evidence_stands_in_the_text_units_that_are_named(
    memory: Memory, made: GeneratedQueries
) -> None:
    texts = units_of(memory)
    for row in local(made):
        units = [texts[one] for one in row["source_ids"] if one in texts]
        assert units
        for line in row["evidence"].split("\n"):
            assert any(line in text for text in units)
        if row["generator"] == "template:questions@1":
            assert row["reference_answer"] in row["evidence"]


def test_no_question_is_a_training_question(memory: Memory, made: GeneratedQueries) -> None:
    trained = set(map(plain_question, memory.training_rows["prompt"].to_pylist()))
    asked = [plain_question(row["question"]) for row in local(made)]
    assert len(set(asked)) == 125
    assert not trained.intersection(asked)


def test_what_tuning_left_out_is_asked_too(memory: Memory, made: GeneratedQueries) -> None:
    trained = set(memory.training_rows["fact_id"].to_pylist())
    splits = {row["question"]: row["split"] for row in memory.qa_pairs.to_pylist()}
    asked = [row for row in local(made) if row["kind"] != "multi_hop"]
    untrained = [row for row in asked if row["fact_id"] not in trained]
    assert 20 < len(untrained) < len(asked)
    # Their training wordings were never seen.
    assert "train" in {splits.get(row["question"]) for row in untrained}
    seen = {splits.get(row["question"]) for row in asked if row["fact_id"] in trained}
    assert {None, "held_out_wording"} <= seen  # None: a new wording


def askable(memory: Memory) -> set[str]:
    kept = memory.qa_pairs.filter(pc.field("kept"))
    return {
        row["fact_id"]
        for row in kept.to_pylist()
        if row["kind"] in ("local", "global_relationship") and row["generator"] != PASSAGE_GENERATOR
    }


def test_no_fact_is_asked_twice_before_all_are(memory: Memory) -> None:
    few = Counter(row["fact_id"] for row in local(memory.generate(local_queries=40)))
    assert set(few.values()) == {1}
    every = Counter(row["fact_id"] for row in local(memory.generate(local_queries=100_000)))
    # "I sold the old nets": no sentence says in a word who did.
    missing = askable(memory) - set(every)
    golds = {row["fact_id"]: row["gold"] for row in memory.qa_pairs.to_pylist()}
    assert [golds[fact] for fact in missing] == ["Maud Okrent"] * 2
    some = Counter(row["fact_id"] for row in local(memory.generate(local_queries=len(every) + 5)))
    assert len(some) == len(every)
    assert sum(some.values()) == len(every) + 5


def test_units_take_turns(memory: Memory) -> None:
    texts = units_of(memory)
    for wanted in (7, len(texts)):
        made = memory.generate(local_queries=wanted)
        drawn = Counter(row["source_ids"][0] for row in local(made))
        assert set(drawn.values()) == {1}
    half = memory.generate(local_queries=2 * len(texts))
    assert max(Counter(row["source_ids"][0] for row in local(half)).values()) == 2


def test_more_than_can_be_asked_is_counted(memory: Memory) -> None:
    made = memory.generate(local_queries=100_000, global_queries=0)
    assert not whole(made)
    (failure,) = made.failures
    assert failure.item_id == "generated_local"
    assert failure.reason.startswith(f"{len(local(made))} of 100000 questions")


def test_reverse_questions_ask_for_the_source_from_the_target(
    memory: Memory, made: GeneratedQueries
) -> None:
    names = {
        row["id"]: [row["title"], *row["aliases"]] for row in memory.world.entities.to_pylist()
    }
    stated = [
        (names[row["source_id"]], names[row["target_id"]])
        for row in memory.world.relationships.to_pylist()
    ]
    asked = [
        row
        for row in local(made)
        if row["kind"] == "reverse" and row["generator"] == "template:questions@1"
    ]
    assert len(asked) >= 5
    for row in asked:
        assert any(
            row["reference_answer"].removeprefix("the ") in source
            and names_one_of(row["question"], target)
            for source, target in stated
        )


def test_two_hops_hide_the_name_that_joins_them(memory: Memory, made: GeneratedQueries) -> None:
    pairs = {row["fact_id"]: row for row in memory.qa_pairs.to_pylist()}
    asked = [row for row in local(made) if row["kind"] == "multi_hop"]
    assert len(asked) >= 5
    for row in asked:
        lead, last = row["evidence"].split("\n")[0], row["evidence"].split("\n")[-1]
        assert lead != last
        assert row["reference_answer"] == flat(pairs[row["fact_id"]]["gold"])
        # What the lead answers stands in the sentence of the answer, and not in the question.
        bridges = [name for name in names_of(memory) if names_one_of(lead, [name])]
        assert any(not names_one_of(row["question"], [name]) for name in bridges)
        assert not names_one_of(row["question"], [row["reference_answer"]])


def test_a_name_that_stands_twice_is_not_told_by_another_fact(memory: Memory) -> None:
    graph = memory.graph
    facts = _Facts(
        *(graph[name] for name in ("text_units", "entities", "relationships")),
        **memory.pairs,
        seed=1,
    )
    ids = dict(zip(*(graph["entities"][n].to_pylist() for n in ("title", "id")), strict=True))
    over = partial(facts._over, entity=ids["Maud Okrent"], lead="who leads the crew")
    assert over("what Maud Okrent's crew sold") == (
        "First find out who leads the crew, then say what that person's crew sold."
    )
    assert over('what Maud Okrent sold, according to "Maud Okrent at sea"') is None
    assert facts._over("what Maud Okrent sold", ids["Maud Okrent"], "who saw Maud Okrent") is None


def test_without_a_text_nothing_is_asked_and_that_is_counted(memory: Memory) -> None:
    tables = {name: data.slice(0, 0) for name, data in (memory.graph | memory.pairs).items()}
    made = generate_queries(**tables, settings=world.settings())
    assert made.queries.num_rows == 0
    assert made.description == ""
    assert sorted((f.item_id, f.reason) for f in made.failures) == [
        ("generated_global", "there is nothing to describe: no report and no text"),
        ("generated_local", "0 of 125 questions: there are no more facts and wordings"),
    ]


# ---- the same every time ----


def shuffled(data: pa.Table, seed: int) -> pa.Table:
    order = list(range(data.num_rows))
    random.Random(seed).shuffle(order)
    return data.take(pa.array(order, pa.int64()))


@given(st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_the_order_of_rows_makes_no_difference(seed: int) -> None:
    memory = generated.harbour()
    turned = Memory(
        corpora.World(
            **{name: shuffled(data, seed) for name, data in memory.graph.items()},
            communities=memory.world.communities,
        ),
        **{name: shuffled(data, seed) for name, data in memory.pairs.items()},
    )
    wanted = {"local_queries": 30, "global_queries": 20}
    first, again = memory.generate(**wanted), turned.generate(**wanted)
    assert content_hash(first.queries) == content_hash(again.queries)
    assert first.description == again.description


def test_the_seed_changes_what_is_drawn(memory: Memory) -> None:
    drawn = [memory.generate(local_queries=20, seed=seed).queries for seed in (1, 2)]
    assert content_hash(drawn[0]) != content_hash(drawn[1])
