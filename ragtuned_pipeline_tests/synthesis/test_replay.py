"""General questions answered by the base model itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ragtuned_pipeline import tables
from ragtuned_pipeline.inference.engine import Message, Reply
from ragtuned_pipeline.synthesis.replay import replay_pairs, replay_questions

LIMIT = 20


class Parrot:
    """Answers with the question's words, a token each; `asked` keeps every conversation."""

    def __init__(self, prefix: str = "You ask: ") -> None:
        self._prefix = prefix
        self.asked: list[list[Message]] = []

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        self.asked += [list(each) for each in conversations]
        return [self._reply(each[-1]["content"], max_tokens) for each in conversations]

    def _reply(self, question: str, max_tokens: int) -> Reply:
        words = (self._prefix + question).split()[:max_tokens]
        return Reply(" ".join(words), len(question.split()), len(words), 0.0)


class Silent:
    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        return [Reply(" \n", 5, 1, 0.0) for _ in conversations]


def test_rows_are_the_base_models_own_answers() -> None:
    base = Parrot()
    pairs = replay_pairs(base, 50, 3, LIMIT, None)
    tables.check_schema("qa_pairs", pairs)
    rows = pairs.to_pylist()
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 50
    assert {row["question"] for row in rows} <= set(replay_questions())
    for row in rows:
        whole = f"You ask: {row['question']}".split()
        assert row["answer"] == " ".join(whole[:LIMIT])
        assert (row["kind"], row["split"], row["generator"]) == ("replay", "train", "base:replay@1")
        assert row["kept"] == (len(whole) < LIMIT)
        assert row["drop_reason"] == (None if row["kept"] else "answer cut off")
        assert row["completion_tokens"] == min(len(whole), LIMIT)
        assert row["prompt_tokens"] == len(row["question"].split())
        assert row["document_ids"] == row["entity_ids"] == row["community_ids"] == []
    assert {row["kept"] for row in rows} == {True, False}


def test_an_empty_answer_is_dropped() -> None:
    rows = replay_pairs(Silent(), 3, 3, LIMIT, None).to_pylist()
    assert [(row["kept"], row["drop_reason"]) for row in rows] == [(False, "empty answer")] * 3


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_question_is_asked_as_in_tuning(system: str | None) -> None:
    base = Parrot()
    (row,) = replay_pairs(base, 1, 3, LIMIT, system).to_pylist()
    told = [] if system is None else [{"role": "system", "content": system}]
    assert base.asked == [[*told, {"role": "user", "content": row["question"]}]]


def test_the_seed_draws_and_a_larger_count_adds() -> None:
    def drawn(count: int, seed: int) -> list[str]:
        return list(replay_pairs(Parrot(), count, seed, LIMIT, None)["question"].to_pylist())

    assert drawn(20, 3) == drawn(40, 3)[:20]
    assert set(drawn(20, 3)) != set(drawn(20, 4))
    assert drawn(0, 3) == []
    assert sorted(drawn(10**6, 3)) == sorted(replay_questions())


def test_ids_are_by_content() -> None:
    once = replay_pairs(Parrot(), 10, 3, LIMIT, None)
    again = replay_pairs(Parrot(), 10, 3, LIMIT, None)
    other = replay_pairs(Parrot("You said: "), 10, 3, LIMIT, None)
    assert tables.content_hash(once) == tables.content_hash(again)
    assert not set(once["id"].to_pylist()) & set(other["id"].to_pylist())
    assert once["fact_id"].to_pylist() == other["fact_id"].to_pylist()


def test_questions_are_many_and_none_twice() -> None:
    questions = replay_questions()
    assert len(questions) >= 380
    assert len({question.casefold() for question in questions}) == len(questions)
    assert all(question == question.strip() and question for question in questions)
