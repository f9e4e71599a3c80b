"""Which rows a re-tuning takes, and when it must start from scratch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning.warm_start import (
    StartFromScratch,
    WarmRows,
    check_shape,
    earlier_facts,
    learned_rows,
    row_contents,
    statements,
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


def stated(now: pa.Table) -> pa.Table:
    """The pairs behind the rows that are statements."""
    told = now.filter(pc.field("kind") == "local").select(["id", "prompt", "completion"])
    return told.rename_columns(["id", "question", "answer"])


def chosen(
    now: pa.Table, learned: pa.Table, share: float = 0.5, seed: int = 1, start: str = "a"
) -> WarmRows:
    return warm_rows(now, learned, stated(now), share, seed, start)


BEFORE = rows(made(range(100)), made(range(40), "global_entity"))
LEARNED = learned_rows(BEFORE, stated(BEFORE), None, goes_on=False)
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
    assert sum(each not in known for each in row_contents(warm.rows)) == 60
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
    second = learned_rows(fewer, stated(fewer), LEARNED, goes_on=True)
    ages = Counter(second["age"].to_pylist())
    assert ages == {"old": 40, "new": 40, "past": BEFORE.num_rows - 40}
    assert pc.sum(second["statement"]).as_py() == 110 * WORDINGS
    assert chosen(rows(made(range(120))), second).new == 40
    from_scratch = learned_rows(fewer, stated(fewer), LEARNED, goes_on=False)
    assert Counter(from_scratch["age"].to_pylist()) == {"old": 40, "new": 40}


def test_old_facts_are_those_with_a_row_that_was_known() -> None:
    assert earlier_facts(LEARNED) is None
    old = earlier_facts(learned_rows(NOW, stated(NOW), LEARNED, goes_on=True))
    assert old == {f"fact-local-{n}" for n in range(100)} | {
        f"fact-global_entity-{n}" for n in range(35)
    }


def test_no_text_of_the_corpus_is_kept() -> None:
    kept = json.dumps(LEARNED.to_pylist())
    assert "asked in way" not in kept
    assert "It is" not in kept


@pytest.mark.parametrize("gone", ["removed", "answered otherwise", "answers of two exchanged"])
def test_a_statement_withdrawn_starts_from_scratch(gone: str) -> None:
    rest = [*made(range(98)), *made(range(100, 110))]
    now = {
        "removed": rows(rest, made(range(99, 100))),
        "answered otherwise": rows(rest, made(range(98, 100), answer="It was never {}.")),
        "answers of two exchanged": rows(
            rest, made(range(98, 99), answer="It is 99."), made(range(99, 100), answer="It is 98.")
        ),
    }[gone]
    count = WORDINGS if gone == "removed" else 2 * WORDINGS
    with pytest.raises(StartFromScratch, match=f"^{count} rows that the promoted adapter has"):
        chosen(now, LEARNED)


def test_a_statement_in_other_wordings_and_a_summary_that_grew_are_not_withdrawn() -> None:
    other = [row | {"prompt": f"Otherwise: {row['prompt']}"} for row in made(range(1))]
    now = rows(other, made(range(1, 110)), made(range(40), "global_entity", "More: {}."))
    assert chosen(now, LEARNED, share=0.1).new == 4 + 40 + 160


def test_what_the_time_budget_leaves_out_is_not_withdrawn() -> None:
    now, pairs = rows(made(range(50, 110))), rows(made(range(110)))
    assert warm_rows(now, LEARNED, stated(pairs), 0.5, 1, "a").new == 40
    with pytest.raises(StartFromScratch, match=r"^200 rows"):
        warm_rows(now, LEARNED, stated(now), 0.5, 1, "a")


def test_a_withdrawn_statement_is_still_one_two_adapters_later() -> None:
    """It was learned by an adapter that the present one was made from."""
    second = learned_rows(rows(made(range(50, 110))), stated(BEFORE), LEARNED, goes_on=True)
    with pytest.raises(StartFromScratch, match=f"^{WORDINGS} rows"):
        chosen(rows(made(range(1, 120))), second)


def test_statements_are_local_pairs_that_may_be_tuned_on_but_passages() -> None:
    def pair(number: int, **changes: Any) -> dict[str, Any]:
        usual = {"kind": "local", "kept": True, "split": "train", "generator": "template:local@1"}
        return {"id": str(number), **usual, **changes}

    pairs = [
        pair(0),
        pair(1, kind="global_entity"),
        pair(2, kept=False),
        pair(3, split="held_out_wording"),
        pair(4, generator=PASSAGE_GENERATOR),
        pair(5, generator="llm:some-model"),
    ]
    assert statements(pa.Table.from_pylist(pairs))["id"].to_pylist() == ["0", "5"]


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
