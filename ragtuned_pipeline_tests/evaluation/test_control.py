from collections import defaultdict

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.control import Control, shuffled_control
from ragtuned_pipeline.evaluation.metrics import contains, tokens
from ragtuned_pipeline.tables import check_schema, table
from ragtuned_pipeline_tests.evaluation import world


def control(pairs: pa.Table, most: int = 100) -> tuple[pa.Table, Control]:
    rows = world.training_rows(pairs)
    made = shuffled_control(rows, pairs, world.count_words, world.settings(control_facts=most))
    return rows, made


def test_the_control_keeps_questions_and_exchanges_answers() -> None:
    pairs = world.qa_pairs()
    rows, made = control(pairs)
    check_schema("training_rows", made.training_rows)
    check_schema("queries", made.queries)
    before = {row["id"]: row for row in rows.to_pylist()}
    after = made.training_rows.to_pylist()
    assert {row["fact_id"] for row in after} == set(world.FACTS) - {world.HELD_OUT_FACT}
    for row in after:
        assert row["prompt"] == before[row["id"]]["prompt"]
        assert row["completion"] != before[row["id"]]["completion"]
        assert row["n_tokens"] == len(f"{row['prompt']} {row['completion']}".split())
    golds = {fact: gold for fact, (_, _, gold) in world.FACTS.items()}
    for query in made.queries.to_pylist():
        assert query["question_set"] == "control_shuffled"
        assert query["reference_answer"] == golds[query["fact_id"]]
    assert made.queries.num_rows == 10


def test_at_most_so_many_facts_are_drawn() -> None:
    _, made = control(world.qa_pairs(), most=2)
    assert len(set(made.training_rows.column("fact_id").to_pylist())) == 2


def test_nothing_to_shuffle_gives_empty_tables() -> None:
    pairs = world.qa_pairs().filter(pa.compute.field("fact_id") == "fact-1")
    _, made = control(pairs)
    assert made.training_rows.num_rows == made.queries.num_rows == 0


facts = st.lists(
    st.tuples(st.sampled_from(["local", "global_entity"]), st.sampled_from("bcdefg")),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=60)
@given(facts)
def test_the_control_is_a_derangement(drawn: list[tuple[str, str]]) -> None:
    """Each fact takes one other fact's answers, none taken twice, and never its own gold."""
    pairs = []
    for place, (kind, letter) in enumerate(drawn):
        for number in range(2):
            row = world.pair("fact-1", number, "train")
            fact = f"f{place}"
            pairs.append(
                row
                | {
                    "id": f"{fact}-{number}",
                    "fact_id": fact,
                    "kind": kind,
                    "question": f"{fact} {number}?",
                    "gold": f"gold {letter}",
                    "answer": f"It is gold {letter}, {fact}.",
                    "style": "long",
                }
            )
    rows, made = control(table("qa_pairs", pairs))
    source = {row["completion"]: row for row in rows.to_pylist()}
    gold = {row["fact_id"]: tokens(row["gold"]) for row in pairs}
    taken: dict[str, set[str]] = defaultdict(set)
    for row in made.training_rows.to_pylist():
        assert not contains(tokens(row["completion"]), gold[row["fact_id"]])
        other = source[row["completion"]]
        assert other["kind"] == row["kind"]
        taken[row["fact_id"]].add(other["fact_id"])
    assert all(len(others) == 1 and fact not in others for fact, others in taken.items())
    assert len({next(iter(others)) for others in taken.values()}) == len(taken)
    # Every fact takes part whose gold fewer than half of its kind share.
    for kind in {kind for kind, _ in drawn}:
        letters = [letter for k, letter in drawn if k == kind]
        if max(map(letters.count, letters)) * 2 <= len(letters):
            in_kind = {f"f{n}" for n, (k, _) in enumerate(drawn) if k == kind}
            assert in_kind <= taken.keys()
