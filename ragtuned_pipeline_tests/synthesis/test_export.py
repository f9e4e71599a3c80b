"""Rows in other trainers' formats say what the rows say, whatever characters they hold."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.synthesis.export import FORMATS, Row, lines
from ragtuned_pipeline.tables import table

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # what Arrow holds: no lone surrogates
ROWS = st.lists(st.tuples(st.none() | TEXTS, TEXTS, TEXTS), max_size=5)


def written(rows: Sequence[Row], form: str) -> list[str]:
    given = table(
        "training_rows",
        [
            {
                "id": f"qa-{place}",
                "fact_id": "fact",
                "kind": "local",
                "system": system,
                "prompt": prompt,
                "completion": completion,
                "n_tokens": 9,
                "epochs": 1,
            }
            for place, (system, prompt, completion) in enumerate(rows)
        ],
    )
    return list(lines(given, form))


def read(form: str, row: dict[str, object]) -> Row:
    """What a trainer makes of a row."""
    if form == "alpaca":
        return row.get("system"), row["instruction"], row["output"]  # type: ignore[return-value]
    turns: list[dict[str, str]]
    if form == "messages":
        assert row.keys() == {"messages"}
        turns = row["messages"]  # type: ignore[assignment]
        told = {turn["role"]: turn["content"] for turn in turns}
    else:
        assert row.keys() == {"conversations"}
        turns = row["conversations"]  # type: ignore[assignment]
        names = {"system": "system", "human": "user", "gpt": "assistant"}
        told = {names[turn["from"]]: turn["value"] for turn in turns}
    assert len(told) == len(turns)
    return told.get("system"), told["user"], told["assistant"]


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None)
@given(ROWS)
@example([(None, "a\u2028b\u2029c\x85d\x0b\x1c\n\r", 'quo"te\\ 𝒳 ﷽ \x00')])
def test_every_row_comes_back_from_its_line(form: str, rows: list[Row]) -> None:
    text = "".join(written(rows, form))
    split = text.splitlines()  # as the strictest reader of lines does
    assert split == text.split("\n")[:-1]
    assert [read(form, json.loads(line)) for line in split] == list(dict.fromkeys(rows))


@pytest.mark.parametrize("form", FORMATS)
def test_equal_rows_stand_once_and_the_order_is_that_of_the_table(form: str) -> None:
    rows: list[Row] = [
        (None, "b?", "B."),
        (None, "a?", "A."),
        (None, "b?", "B."),
        ("s", "b?", "B."),
    ]
    made = [read(form, json.loads(line)) for line in written(rows, form)]
    assert made == [rows[0], rows[1], rows[3]]


def test_the_formats_are_those_that_trainers_know() -> None:
    told, untold = ("Be brief.", "Who?", "Ada."), (None, "Who?", "Ada.")
    assert json.loads(written([told], "messages")[0]) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "Ada."},
        ]
    }
    assert json.loads(written([untold], "alpaca")[0]) == {
        "instruction": "Who?",
        "input": "",
        "output": "Ada.",
    }
    assert json.loads(written([told], "alpaca")[0])["system"] == "Be brief."
    assert json.loads(written([untold], "sharegpt")[0]) == {
        "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]
    }


def test_trl_reads_the_lines_as_conversations() -> None:
    from trl.data_utils import is_conversational

    row = json.loads(written([("Be brief.", "Who?", "Ada.")], "messages")[0])
    assert is_conversational(row)
