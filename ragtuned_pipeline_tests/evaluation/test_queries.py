import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.evaluation.questions.queries import (
    _shares,
    build_queries,
    query_row,
    read_gold,
)
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import Failure, check_schema, table
from ragtuned_pipeline_tests.evaluation import world

SAMPLES = Path(__file__).parents[2] / "ragtuned_pipeline" / "samples"


def build(
    gold: Path | None = None, pairs: pa.Table | None = None, **settings: int
) -> tuple[pa.Table, list[Failure]]:
    pairs = world.qa_pairs() if pairs is None else pairs
    return build_queries(
        pairs,
        world.training_rows(pairs),
        world.new_wording(),
        world.generated(),
        gold,
        world.documents(),
        world.settings(**settings),
    )


def test_each_set_asks_what_its_name_says() -> None:
    queries, failures = build()
    check_schema("queries", queries)
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in queries.to_pylist():
        by_set.setdefault(row["question_set"], []).append(row)
    trained = set(world.FACTS) - {world.HELD_OUT_FACT}
    assert {row["fact_id"] for row in by_set["held_out_wording"]} == trained
    assert len(by_set["held_out_wording"]) == 10  # the dropped near duplicate is not asked
    assert {row["fact_id"] for row in by_set["new_wording"]} == trained
    assert {row["fact_id"] for row in by_set["held_out_fact"]} == {world.HELD_OUT_FACT}
    assert [row["kind"] for row in by_set["unanswerable"]] == ["unanswerable"] * 2
    assert not failures
    assert all(row["scope"] == "local" for row in queries.to_pylist())
    assert queries.column("id").to_pylist() == build()[0].column("id").to_pylist()


def test_global_kinds_have_global_scope() -> None:
    pairs = world.qa_pairs().to_pylist()
    pairs = [p | {"kind": "global_entity"} if p["fact_id"] == "fact-1" else p for p in pairs]
    queries, _ = build(pairs=table("qa_pairs", pairs))
    scopes = {(row["fact_id"], row["scope"]) for row in queries.to_pylist() if row["long_answer"]}
    assert ("fact-1", "global") in scopes
    assert ("fact-2", "local") in scopes


def test_a_question_that_tuning_has_seen_is_not_asked() -> None:
    seen = world.pair("fact-2", 0, "train")["question"]
    extra = world.pair("fact-2", 8, "held_out_wording", question=seen.upper() + " ")
    pairs = table("qa_pairs", [*world.qa_pairs().to_pylist(), extra])
    queries, failures = build(pairs=pairs)
    assert extra["question"] not in queries.column("question").to_pylist()
    assert ["word for word a training question" in f.reason for f in failures] == [True]


def test_a_sample_asks_every_fact_before_any_twice() -> None:
    queries, _ = build(questions_per_set=5)
    facts = [r["fact_id"] for r in queries.to_pylist() if r["question_set"] == "held_out_wording"]
    assert sorted(facts) == sorted(set(world.FACTS) - {world.HELD_OUT_FACT})


def test_the_seed_changes_the_sample() -> None:
    drawn = [build(questions_per_set=3, seed=seed)[0].column("id").to_pylist() for seed in (1, 2)]
    assert drawn[0] != drawn[1]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 200))
def test_shares_are_proportional(sizes: list[int], total: int) -> None:
    shares = _shares(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if total >= 2 * len(sizes) and sum(sizes) > total:
        due = [total * size / sum(sizes) for size in sizes]
        assert all(share >= 1 for share in shares)
        assert max(abs(s - d) for s, d in zip(shares, due, strict=True)) <= len(sizes)


ROWS: list[dict[str, Any]] = [
    {"question": "Who opened it?", "answer": "Mirela Voss", "documents": ["bakery.txt"]},
    {"question": "Who is who?", "answer": ["Ivo Pell", "Pell"], "type": "multi-hop"},
    {"question": "What is it about?", "answer": "Bread and bees.", "type": "whole_corpus"},
    {"question": "Who is king?", "answer": "", "type": "unanswerable"},
]


def test_gold_questions_go_into_their_sets(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text("\n".join(map(json.dumps, ROWS)))
    queries, failures = build(gold)
    asked: dict[Any, dict[str, Any]] = {
        r["question"]: r for r in queries.to_pylist() if r["long_answer"] is None
    }
    assert not failures
    assert [asked[row["question"]]["question_set"] for row in ROWS] == [
        "gold_local",
        "gold_local",
        "gold_global",
        "unanswerable",
    ]
    assert asked["Who opened it?"]["document_ids"] == ["doc-0"]
    assert asked["Who is who?"]["reference_answer"] == "Ivo Pell\nPell"
    assert asked["What is it about?"]["scope"] == "global"


def test_json_csv_and_other_column_names_say_the_same(tmp_path: Path) -> None:
    files = {
        "a.json": json.dumps({"questions": [{"Query": "Who?", "gold": "Voss", "kind": "fact"}]}),
        "b.json": json.dumps([{"q": "Who?", "reference": "Voss"}]),
        "c.csv": "question,answers,category\nWho?,Voss,local\n",
        "d.JSONL": '\ufeff{"prompt": "Who?", "a": "Voss"}\n\n',
    }
    read = []
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read.append(read_gold(tmp_path / name, world.documents()))
    assert all(rows == read[0][0] and not failures for rows, failures in read)


def test_bad_rows_are_named_and_the_others_are_asked(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    lines = [
        json.dumps(ROWS[0]),
        "{not json",
        '"a string"',
        json.dumps({"question": "No answer?"}),
        json.dumps({"answer": "no question"}),
        json.dumps({"question": "What?", "answer": "x", "type": "riddle"}),
        json.dumps({"question": "What?", "answer": "?!"}),
        json.dumps(ROWS[0]),
        json.dumps({"question": "Where?", "answer": "x", "evidence": ["keeps bees", "no such"]}),
    ]
    gold.write_text("\n".join(lines))
    rows, failures = read_gold(gold, world.documents())
    assert [row["question"] for row in rows] == ["Who opened it?", "Where?"]
    assert rows[1]["document_ids"] == ["doc-1"]
    assert [row["evidence"] for row in rows] == [None, "keeps bees"]
    assert [failure.item_id for failure in failures] == [f"gold.jsonl:{n}" for n in range(2, 10)]
    assert "repeats row 1" in failures[6].reason
    assert "'no such' is in no document" in failures[7].reason


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", '{"x": 1}'),
        ("a.txt", ""),
        ("a.csv", "\udcff"),
        ("none.csv", None),
    ],
)
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError, match=name):
        read_gold(tmp_path / name, world.documents())


def test_the_samples_own_gold_is_read_whole() -> None:
    for gold in sorted(SAMPLES.glob("*/gold/questions.jsonl")):
        documents = [
            dict.fromkeys(world.documents().schema.names)
            | {"id": file.name, "path": file.name, "text": file.read_text(encoding="utf-8")}
            for file in sorted((gold.parents[1] / "documents").iterdir())
        ]
        rows, failures = read_gold(gold, table("documents", documents))
        sets = Counter(row["question_set"] for row in rows)
        assert not failures
        assert sets.keys() == {"gold_local", "gold_global", "unanswerable"}
        assert sets.total() >= 60


def test_a_question_about_a_fact_has_the_stating_sentence_as_its_evidence() -> None:
    queries, _ = build()
    texts = dict(
        zip(*(world.documents()[name].to_pylist() for name in ("id", "text")), strict=True)
    )
    asked = [row for row in queries.to_pylist() if row["question_set"] == "held_out_wording"]
    assert asked
    for row in asked:
        sentence, _, _ = world.FACTS[row["fact_id"]]
        assert row["evidence"] == sentence
        assert any(sentence in texts[document] for document in row["document_ids"])
        assert (row["generator"], row["seed"]) == ("by hand", 29)


def test_generated_questions_keep_their_numbers_but_for_training_ones() -> None:
    seen = world.pair("fact-2", 0, "train")["question"]
    questions = [f"Which theme is number {n}?" for n in range(9)]
    rows = [
        query_row(
            question_set="generated_global",
            scope="global",
            kind="whole_corpus",
            question=question,
            reference_answer="Bread and bees.",
            document_ids=[],
            generator="by hand",
            seed=29,
        )
        for question in [*questions, seen]
    ]
    pairs = world.qa_pairs()
    arguments = pairs, world.training_rows(pairs), world.new_wording(), world.generated(*rows)
    queries, failures = build_queries(
        *arguments, None, world.documents(), world.settings(questions_per_set=2)
    )
    asked = [r["question"] for r in queries.to_pylist() if r["question_set"] == "generated_global"]
    assert sorted(asked) == questions
    assert [seen in failure.reason for failure in failures] == [True]


def test_a_name_that_tuning_has_seen_refused_is_not_among_the_unanswerable() -> None:
    pairs = world.qa_pairs()
    refused = world.refusal(1, "train") | {"id": "qa-taught", "question": "Who was Zorn Quill 1?"}
    taught = pa.concat_tables([pairs, table("qa_pairs", [refused])])
    asked = [
        {row["fact_id"] for row in queries.to_pylist() if row["question_set"] == "unanswerable"}
        for queries, _ in (build(), build(pairs=taught))
    ]
    assert asked[0] - asked[1] == {"nothing-1"}


def test_a_gold_question_that_is_a_training_question_is_asked_and_noted(tmp_path: Path) -> None:
    prompt = world.training_rows(world.qa_pairs())["prompt"][0].as_py()
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps({"question": prompt, "answer": "Mirela Voss"}), encoding="utf-8")
    queries, failures = build(gold)
    asked = [row["question"] for row in queries.to_pylist() if row["question_set"] == "gold_local"]
    assert asked == [prompt]
    assert [f.stage for f in failures if "asked all the same" in f.reason] == ["gold_questions"]
