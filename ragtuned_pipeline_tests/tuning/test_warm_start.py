"""Which rows a re-tuning takes, and when it must start from scratch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning.warm_start import (
    StartFromScratch,
    WarmRows,
    check_shape,
    earlier_facts,
    learned_rows,
    warm_rows,
)

WORDINGS = 4


def made(facts: range, kind: str = "local", answer: str = "It is {}.") -> list[dict[str, Any]]:
    return [
        {
            "id": f"qa-{kind}-{fact}-{wording}",
            "fact_id": f"fact-{kind}-{fact}",
            "kind": kind,
            "system": None,
            "prompt": f"{kind} {fact}, asked in way {wording}?",
            "completion": answer.format(fact),
            "n_tokens": 20 + fact % 5,
            "epochs": 3,
        }
        for fact in facts
        for wording in range(WORDINGS)
    ]


def rows(*parts: list[dict[str, Any]]) -> pa.Table:
    return table("training_rows", [row for part in parts for row in part])


def chosen(
    now: pa.Table, learned: pa.Table, share: float = 0.5, seed: int = 1, start: str = "a"
) -> WarmRows:
    return warm_rows(now, learned, now, share, seed, start)


BEFORE = rows(made(range(100)), made(range(40), "global_entity"))
LEARNED = learned_rows(BEFORE, None, goes_on=False)
NOW = rows(
    made(range(110)),
    made(range(35), "global_entity"),
    made(range(35, 40), "global_entity", "It has become {}."),
)


def test_new_and_changed_rows_are_all_taken_and_the_asked_share_is_replayed() -> None:
    warm = chosen(NOW, LEARNED)
    assert (warm.new, warm.replayed) == (60, 60)
    taken = warm.rows["id"].to_pylist()
    known = set(LEARNED["content"].to_pylist())
    contents = learned_rows(warm.rows, None, goes_on=False)["content"].to_pylist()
    assert sum(each not in known for each in contents) == 60
    assert len(set(taken)) == 120
    assert set(taken) <= set(NOW["id"].to_pylist())
    assert "It has become 37." in warm.rows["completion"].to_pylist()
    assert chosen(NOW, LEARNED, share=0.0).replayed == 0
    assert chosen(NOW, LEARNED, share=0.7).replayed == 140


def test_the_replay_is_spread_over_kinds_and_facts() -> None:
    warm = chosen(NOW, LEARNED)
    old = [
        row
        for row in warm.rows.to_pylist()
        if row["fact_id"] not in {f"fact-local-{n}" for n in range(100, 110)}
        and "become" not in row["completion"]
    ]
    kinds = Counter(row["kind"] for row in old)
    assert kinds == {"local": 44, "global_entity": 16}  # of 400 and 140 rows
    assert max(Counter(row["fact_id"] for row in old).values()) == 1
    wordings = Counter(row["id"].rsplit("-", 1)[1] for row in old)
    assert len(wordings) == WORDINGS  # not everywhere the same one


def test_equal_input_draws_equally_and_each_retuning_draws_anew() -> None:
    first = chosen(NOW, LEARNED).rows
    assert first.equals(chosen(NOW, LEARNED).rows)
    shuffled = NOW.take(pa.array(np.random.default_rng(0).permutation(NOW.num_rows)))
    again = chosen(shuffled, LEARNED).rows
    assert set(again["id"].to_pylist()) == set(first["id"].to_pylist())
    for other in (chosen(NOW, LEARNED, start="b"), chosen(NOW, LEARNED, seed=2)):
        assert set(other.rows["id"].to_pylist()) != set(first["id"].to_pylist())


def test_an_adapter_that_went_on_knows_the_rows_of_the_one_before_too() -> None:
    fewer = rows(made(range(90, 110)))
    second = learned_rows(fewer, LEARNED, goes_on=True)
    ages = Counter(second["age"].to_pylist())
    assert ages == {"old": 40, "new": 40, "past": BEFORE.num_rows - 40}
    assert chosen(rows(made(range(120))), second).new == 40
    from_scratch = learned_rows(fewer, LEARNED, goes_on=False)
    assert Counter(from_scratch["age"].to_pylist()) == {"old": 40, "new": 40}


def test_old_facts_are_those_with_a_row_that_was_known() -> None:
    assert earlier_facts(LEARNED) is None
    old = earlier_facts(learned_rows(NOW, LEARNED, goes_on=True))
    assert old == {f"fact-local-{n}" for n in range(100)} | {
        f"fact-global_entity-{n}" for n in range(35)
    }


def test_no_text_of_the_corpus_is_kept() -> None:
    assert set(LEARNED.column_names) == {"id", "fact_id", "kind", "content", "age"}
    assert not any("asked in way" in str(each) for each in LEARNED["content"].to_pylist())


@pytest.mark.parametrize("gone", ["removed", "answered otherwise"])
def test_withdrawn_statements_start_from_scratch(gone: str) -> None:
    new = made(range(100, 110))
    if gone == "removed":
        now = rows(made(range(99)), new)
    else:
        now = rows(made(range(99)), made(range(99, 100), answer="It was never {}."), new)
    with pytest.raises(StartFromScratch, match="4 of 400 rows on statements"):
        chosen(now, LEARNED)


def test_what_the_time_budget_leaves_out_is_not_withdrawn() -> None:
    now = rows(made(range(50, 110)))
    statements = rows(made(range(110)))
    assert warm_rows(now, LEARNED, statements, 0.5, 1, "a").new == 40
    with pytest.raises(StartFromScratch, match="200 of 400 rows"):
        warm_rows(now, LEARNED, now, 0.5, 1, "a")


def test_much_new_or_nothing_new_starts_from_scratch() -> None:
    with pytest.raises(StartFromScratch, match=r"400 of 800 rows are new .* 100% of the tokens"):
        chosen(rows(made(range(200))), LEARNED)
    with pytest.raises(StartFromScratch, match="no row is new"):
        chosen(BEFORE, LEARNED)


def test_another_shape_is_told(tmp_path: Path) -> None:
    config = {"r": 8, "lora_alpha": 16}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    check_shape(tmp_path, TuningSettings(rank=8, alpha=16))
    with pytest.raises(StartFromScratch, match=r"rank 8 and alpha 16, .* are 64 and 128"):
        check_shape(tmp_path, TuningSettings())
