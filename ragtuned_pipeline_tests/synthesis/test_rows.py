"""Training rows: what fits the budget, what is left out, and that the counts add up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.synthesis.facts import ENTITY, KINDS, LOCAL, REPLAY, UNANSWERABLE
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.synthesis.rows import (
    NothingToTrain,
    TrainingSelection,
    select_training_rows,
)
from ragtuned_pipeline.tables import check_schema, table
from ragtuned_pipeline_tests.synthesis.corpora import harbour

LONG = "rows longer than tuning.max_tokens"
PASSAGES = "passages left out by the time budget"
FURTHER = "further wordings of passages, which are shown once"
FACTS = "facts left out by the time budget"
WORDINGS = "wordings left out by the time budget"


def count_words(rows: Sequence[tuple[str | None, str, str]]) -> np.ndarray:
    return np.array([len(f"{q} {a}".split()) for _, q, a in rows], dtype=np.int64)


def fact(
    name: str, wordings: int = 8, kind: str = LOCAL, tokens: int = 4, **changes: Any
) -> list[dict[str, Any]]:
    """Rows of one fact, each of `tokens` words, question and answer together."""
    empty = ("text_unit_ids", "entity_ids", "relationship_ids", "community_ids", "document_ids")
    return [
        {
            **{column: [] for column in empty},
            "id": f"{name}-{number}",
            "kind": kind,
            "question": f"{name}-{number}?",
            "answer": " ".join(["word"] * (tokens - 1)),
            "wording": number,
            "fact_id": name,
            "split": "train",
            "kept": True,
            "drop_reason": None,
            "generator": "by hand",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "gold": "word",
            "form": f"form-{number}",
            "style": "short",
        }
        | changes
        for number in range(wordings)
    ]


def passage(name: str, wordings: int = 8, tokens: int = 20) -> list[dict[str, Any]]:
    return fact(name, wordings, tokens=tokens, generator=PASSAGE_GENERATOR)


def pairs_of(*facts: list[dict[str, Any]]) -> pa.Table:
    return table("qa_pairs", [row for rows in facts for row in rows])


def tuning(budget: int, **changes: Any) -> TuningSettings:
    """Settings with a budget of so many tokens, all epochs together."""
    given = {"time_budget_minutes": 1, "assumed_tokens_per_second": budget / 60}
    return TuningSettings.model_validate(given | changes)


def select(pairs: pa.Table, budget: int, **changes: Any) -> TrainingSelection:
    return select_training_rows(pairs, count_words, tuning(budget, **changes))


def ids(selection: TrainingSelection) -> set[str]:
    return set(selection.training_rows["id"].to_pylist())


def facts_in(selection: TrainingSelection) -> Counter[str]:
    return Counter(selection.training_rows["fact_id"].to_pylist())


def tokens_of(selection: TrainingSelection) -> int:
    return sum(selection.training_rows["n_tokens"].to_pylist())


def seen_tokens(selection: TrainingSelection) -> int:
    rows = selection.training_rows.select(["n_tokens", "epochs"]).to_pylist()
    return sum(row["n_tokens"] * row["epochs"] for row in rows)


def test_with_room_for_all_every_pair_of_training_is_a_row() -> None:
    pairs = pairs_of(fact("a"), fact("b", 3, "global_entity"))
    selection = select(pairs, 10_000, epochs=4)
    check_schema("training_rows", selection.training_rows)
    assert ids(selection) == set(pairs["id"].to_pylist())
    assert selection.left_out == {}
    assert (selection.tokens, selection.token_budget) == (4 * tokens_of(selection), 10_000)
    by_id = {row["id"]: row for row in pairs.to_pylist()}
    for row in selection.training_rows.to_pylist():
        pair = by_id[row["id"]]
        assert (row["prompt"], row["completion"]) == (pair["question"], pair["answer"])
        assert (row["fact_id"], row["kind"]) == (pair["fact_id"], pair["kind"])
        assert (row["n_tokens"], row["system"]) == (4, None)


def test_held_out_and_dropped_pairs_are_never_trained() -> None:
    selection = select(
        pairs_of(
            fact("a", 3),
            fact("b", 2, split="held_out_wording"),
            fact("c", 2, split="held_out_fact"),
            fact("d", 2, kept=False, drop_reason="ambiguous"),
        ),
        10_000,
    )
    assert set(facts_in(selection)) == {"a"}
    assert selection.left_out == {}


def test_a_fact_is_trained_whole_or_not_at_all() -> None:
    pairs = pairs_of(*(fact(f"f{number}") for number in range(10)))
    selection = select(pairs, 2 * 100, epochs=2, min_wordings=6)
    assert facts_in(selection) == {f"f{number}": 6 for number in range(4)}  # 24 tokens each
    assert tokens_of(selection) <= 100
    assert selection.left_out == {FACTS: 6, WORDINGS: 4 * 2}


def test_where_not_all_fits_every_fact_gets_as_many_first_wordings_as_all_can_have() -> None:
    pairs = pairs_of(*(fact(f"f{number}") for number in range(4)))
    for least in (1, 5, 6):
        selection = select(pairs, 2 * 100, epochs=2, min_wordings=least)
        assert ids(selection) == {f"f{fact}-{wording}" for fact in range(4) for wording in range(6)}
        assert selection.left_out == {WORDINGS: 8}


def test_fewer_facts_rather_than_fewer_wordings_than_the_least() -> None:
    pairs = pairs_of(*(fact(f"f{number}") for number in range(4)))
    selection = select(pairs, 2 * 100, epochs=2, min_wordings=7)
    assert facts_in(selection) == {"f0": 7, "f1": 7, "f2": 7}
    assert selection.left_out == {FACTS: 1, WORDINGS: 3}


def test_a_budget_for_no_fact_at_all_is_refused() -> None:
    with pytest.raises(
        NothingToTrain, match=r"tuning\.time_budget_minutes .* too few for any fact"
    ):
        select(pairs_of(fact("a")), 3)


@pytest.mark.parametrize(
    ("facts", "replay_share"),
    [
        ([fact("a", 8, LOCAL, 9), fact("b", 3, ENTITY, 40), fact("c", 2, UNANSWERABLE, 7)], 0.0),
        ([fact("b", 3, ENTITY, 40)], 0.0),
        ([fact("a", 20, LOCAL, 9), fact("p", 2, LOCAL, 60, generator=PASSAGE_GENERATOR)], 0.0),
        ([fact("p", 1, LOCAL, 20, generator=PASSAGE_GENERATOR)], 0.0),
        ([fact("a", 8, LOCAL, 30), *[fact(f"r{n}", 1, REPLAY, 5) for n in range(90)]], 0.4),
    ],
)
def test_the_time_budget_that_is_named_holds_a_fact(
    facts: list[list[dict[str, Any]]], replay_share: float
) -> None:
    """And a tenth less is refused."""

    def with_minutes(minutes: float) -> TrainingSelection:
        budget = tuning(6000, epochs=4, time_budget_minutes=minutes)  # 6,000 tokens a minute
        return select_training_rows(pairs_of(*facts), count_words, budget, replay_share)

    with pytest.raises(NothingToTrain, match=r"too few for any fact; .* would hold one") as refused:
        with_minutes(0.001)
    [minutes] = re.findall(r"fact; ([\d.]+) would", str(refused.value))
    assert with_minutes(float(minutes)).training_rows.num_rows
    if not replay_share:  # what replay leaves is rounded
        with pytest.raises(NothingToTrain):
            with_minutes(0.9 * float(minutes))


def test_more_budget_means_no_fact_less() -> None:
    kinds = (*KINDS, LOCAL)
    pairs = pairs_of(*(fact(f"f{n}", 8, kinds[n % 6], 3 + n % 4) for n in range(60)))
    last: set[str] = set()
    for budget in range(200, 4000, 200):
        now = set(facts_in(select(pairs, budget, epochs=1)))
        assert last <= now
        last = now
    assert len(last) == 60


def test_important_facts_of_a_kind_come_first() -> None:
    pairs = pairs_of(*(fact(f"{kind}-{n}", 8, kind) for kind in KINDS for n in range(10)))
    chosen = facts_in(select(pairs, 2000, epochs=2))
    for kind in KINDS:
        numbers = sorted(int(name.rpartition("-")[2]) for name in chosen if name.startswith(kind))
        assert numbers == list(range(len(numbers)))


def test_every_kind_gets_its_turn_and_what_one_leaves_goes_to_the_others() -> None:
    pairs = pairs_of(*(fact(f"{kind}-{n}", 8, kind) for kind in KINDS for n in range(100)))
    chosen = Counter(select(pairs, 2 * 6000, epochs=2).training_rows["kind"].to_pylist())
    assert set(chosen) == set(KINDS)
    only_two = pairs_of(
        *(fact(f"l{n}", 8) for n in range(150)), *(fact(f"e{n}", 8, KINDS[1]) for n in range(150))
    )
    assert tokens_of(select(only_two, 2 * 6000, epochs=2, min_wordings=6)) > 6000 - 24


def test_a_passage_is_shown_in_one_wording() -> None:
    selection = select(pairs_of(passage("p"), passage("q", 3), fact("a")), 10_000)
    assert facts_in(selection) == {"p": 1, "q": 1, "a": 8}
    assert {"p-0", "q-0"} <= ids(selection)
    assert selection.left_out == {FURTHER: 7 + 2}


def test_passages_are_seen_in_the_first_epochs_and_take_half_of_the_budget_at_most() -> None:
    pairs = pairs_of(*(passage(f"p{n}", 1, 20) for n in range(10)), fact("a", 2, tokens=5))
    plenty = select(pairs, 10_000, epochs=4, passage_epochs=2)
    seen = plenty.training_rows.select(["fact_id", "epochs"]).to_pylist()
    assert {row["fact_id"]: row["epochs"] for row in seen} == {
        **{f"p{n}": 2 for n in range(10)},
        "a": 4,
    }
    assert plenty.tokens == seen_tokens(plenty) == 2 * 10 * 20 + 4 * 2 * 5
    tight = select(pairs, 200, epochs=4, passage_epochs=1)
    assert tight.left_out == {PASSAGES: 5}
    assert facts_in(tight)["a"] == 2
    few = select(pairs, 10_000, epochs=1, passage_epochs=3)
    assert set(few.training_rows["epochs"].to_pylist()) == {1}


def replay_rows(selection: TrainingSelection) -> int:
    return selection.training_rows["kind"].to_pylist().count(REPLAY)


def test_replay_rows_are_taken_up_to_their_share_of_the_rows_and_seen_in_every_epoch() -> None:
    general = [fact(f"r{n}", 1, REPLAY, generator="base:replay@1") for n in range(50)]
    pairs = pairs_of(*(fact(f"f{n}") for n in range(9)), *general)
    for share, wanted in ((0.0, 0), (0.1, 8), (0.25, 24), (0.5, 50)):
        chosen = select_training_rows(pairs, count_words, tuning(100_000, epochs=3), share)
        assert replay_rows(chosen) == wanted
        assert chosen.training_rows.num_rows == 72 + wanted
        beyond = chosen.left_out.get("replay rows beyond synthesis.replay_share", 0)
        assert beyond == 50 - wanted
    assert set(chosen.training_rows["epochs"].to_pylist()) == {3}


def test_replay_rows_take_no_more_than_their_share_of_the_budget() -> None:
    general = [fact(f"r{n}", 1, REPLAY, tokens=40) for n in range(50)]
    pairs = pairs_of(*(fact(f"f{n}") for n in range(90)), *general)
    chosen = select_training_rows(pairs, count_words, tuning(1600, epochs=1), 0.25)
    assert replay_rows(chosen) == 10  # 400 of the 1600 tokens
    assert seen_tokens(chosen) == chosen.tokens <= 1600
    assert len(facts_in(chosen)) == 10 + 37


def test_replay_rows_alone_are_nothing_to_train() -> None:
    with pytest.raises(NothingToTrain):
        select_training_rows(pairs_of(fact("r", 1, REPLAY)), count_words, tuning(1000), 0.5)


def test_rows_that_are_too_long_are_counted_and_not_trained() -> None:
    selection = select(pairs_of(fact("a", 3), fact("b", 2, tokens=40)), 10_000, max_tokens=39)
    assert set(facts_in(selection)) == {"a"}
    assert selection.left_out == {LONG: 2}
    assert selection.longest == 40
    assert set(facts_in(select(pairs_of(fact("b", 2, tokens=40)), 10_000, max_tokens=40))) == {"b"}


def test_nothing_to_train_says_what_the_corpus_needs() -> None:
    for pairs in (table("qa_pairs", []), pairs_of(fact("a", 2, split="held_out_fact"))):
        with pytest.raises(NothingToTrain, match="needs sentences that state something"):
            select(pairs, 10_000)


def test_nothing_short_enough_names_the_setting() -> None:
    with pytest.raises(NothingToTrain, match=r"all 3 training rows.*tuning\.max_tokens = 32; .*40"):
        select(pairs_of(fact("a", 3, tokens=40)), 10_000, max_tokens=32)


def test_the_selection_is_the_same_on_every_call_and_its_order_follows_the_seed() -> None:
    pairs = harbour().synthesise().qa_pairs
    first, again = select(pairs, 60_000), select(pairs, 60_000)
    assert first.training_rows.equals(again.training_rows)
    assert first.left_out == again.left_out
    other = select(pairs, 60_000, seed=7)
    assert ids(other) == ids(first)
    assert not other.training_rows.equals(first.training_rows)


def test_rows_are_shuffled() -> None:
    pairs = pairs_of(*(fact(f"f{n:02}") for n in range(10)))
    order = select(pairs, 10_000).training_rows["id"].to_pylist()
    assert order != sorted(order)


def test_a_real_corpus_keeps_to_its_budget() -> None:
    pairs = harbour().synthesise().qa_pairs
    for budget in (20_000, 60_000, 200_000, 2_000_000):
        selection = select(pairs, budget)
        assert seen_tokens(selection) == selection.tokens <= budget
        assert selection.training_rows.num_rows > 0


# ---- any table ----------------------------------------------------------------------------------

TABLES = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(1, 9),  # wordings
        st.integers(2, 45),  # tokens of a row
        st.booleans(),  # a passage
        st.sampled_from(["train", "train", "train", "held_out_fact"]),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=12,
)


@given(TABLES, st.integers(1, 3000), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_any_table_fits_its_budget_and_every_row_is_accounted_for(
    specification: list[Any], budget: int, epochs: int, min_wordings: int, seed: int
) -> None:
    facts = [
        fact(
            f"f{number}",
            wordings,
            LOCAL if is_passage else kind,
            tokens,
            split=split,
            kept=kept,
            generator=PASSAGE_GENERATOR if is_passage else "by hand",
        )
        for number, (kind, wordings, tokens, is_passage, split, kept) in enumerate(specification)
    ]
    rows = [r for each in facts for r in each if r["kept"] and r["split"] == "train"]
    changes = {"epochs": epochs, "min_wordings": min_wordings, "seed": seed, "max_tokens": 40}
    fitting = [r for r in rows if len(r["answer"].split()) + 1 <= 40]
    if not fitting:
        with pytest.raises(NothingToTrain):
            select(pairs_of(*facts), budget, **changes)
        return
    try:
        selection = select(pairs_of(*facts), budget, **changes)
    except NothingToTrain:
        assert budget < epochs * 9 * 40  # no fact has more than 9 wordings of 40 tokens
        return
    left = Counter(selection.left_out)
    chosen = selection.training_rows["id"].to_pylist()

    assert selection.token_budget == pytest.approx(budget, abs=1)
    assert seen_tokens(selection) == selection.tokens <= selection.token_budget
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {r["id"] for r in fitting}

    passages = [r for r in fitting if r["generator"] == PASSAGE_GENERATOR]
    others = [r for r in fitting if r["generator"] != PASSAGE_GENERATOR]
    trained = facts_in(selection)
    of_passages = len({r["fact_id"] for r in passages})
    shown = sum(name in trained for name in {r["fact_id"] for r in passages})
    assert all(trained[r["fact_id"]] <= 1 for r in passages)
    sizes = Counter(r["fact_id"] for r in others)
    for name, size in sizes.items():
        assert trained[name] == 0 or trained[name] >= min(size, min_wordings)
        first = {f"{name}-{wording}" for wording in range(trained[name])}
        assert first == {r for r in chosen if r.rpartition("-")[0] == name}
    assert left[LONG] == len(rows) - len(fitting)
    assert left[PASSAGES] == of_passages - shown
    assert left[FURTHER] == len(passages) - of_passages
    assert left[FACTS] == sum(name not in trained for name in sizes)
    assert left[WORDINGS] == sum(n - trained[name] for name, n in sizes.items() if name in trained)
    assert all(left.values())
    assert set(left) <= {LONG, PASSAGES, FURTHER, FACTS, WORDINGS}
