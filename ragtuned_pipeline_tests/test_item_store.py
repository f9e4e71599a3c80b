"""The item store gives back what was stored, and keeps only what the last run asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.item_store import item_key, open_items

RUNS = st.lists(st.sets(st.integers(0, 40), max_size=20), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(RUNS)
def test_each_run_computes_what_the_run_before_did_not_ask_for(
    tmp_path_factory: pytest.TempPathFactory, runs: list[set[int]]
) -> None:
    file = tmp_path_factory.mktemp("items") / "corpus.sqlite"
    before: set[int] = set()
    for asked in runs:
        with open_items(file, "step") as items:
            keys = {item_key(str(number)): number for number in sorted(asked)}
            found = items.get(list(keys))
            assert {keys[key] for key in found} == asked & before
            assert all(found[key] == f"made of {keys[key]}" for key in found)
            items.put({key: f"made of {n}" for key, n in keys.items() if key not in found})
            assert (items.asked, items.known) == (len(asked), len(asked & before))
        before = asked


def test_steps_do_not_see_each_others_items(tmp_path: Path) -> None:
    file, key = tmp_path / "corpus.sqlite", item_key("one")
    with open_items(file, "first") as items:
        items.put({key: "of the first"})
        items.get([key])
    with open_items(file, "second") as items:
        assert items.get([key]) == {}
    with open_items(file, "first") as items:
        assert items.get([key]) == {key: "of the first"}


def test_a_step_that_fails_keeps_what_it_made_and_what_was_there(tmp_path: Path) -> None:
    file, old, new = tmp_path / "corpus.sqlite", item_key("old"), item_key("new")
    with open_items(file, "step") as items:
        items.put({old: "old"})
        items.get([old])

    def failing() -> None:
        with open_items(file, "step") as items:
            items.put({new: "new"})
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        failing()
    with open_items(file, "step") as items:
        assert items.get([old, new]) == {old: "old", new: "new"}


def test_what_is_dropped_is_in_no_byte_of_the_file(tmp_path: Path) -> None:
    file, key = tmp_path / "corpus.sqlite", item_key("secret")
    with open_items(file, "step") as items:
        items.put({key: "the keeper's secret" * 400})
        items.get([key])
    assert b"the keeper's secret" in file.read_bytes()
    with open_items(file, "step"):
        pass
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in everything


def test_keys_tell_parts_apart() -> None:
    assert item_key("ab", "c") != item_key("a", "bc") != item_key("abc")
