"""Training rows in the formats that other trainers read, as lines of JSON.

Every row stands once, in the order of the table. In how many epochs a row is seen is not told: none
of the formats has a place for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
# JSON leaves them as they are, and many readers end a line at them.
_ALSO_END_LINES = str.maketrans({each: f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"})

Row = tuple[str | None, str, str]  # system message, null where there is none; question; answer


def messages(row: Row) -> dict[str, Any]:
    """As OpenAI's chat fine-tuning, TRL and most others read it."""
    return {"messages": [{"role": role, "content": text} for role, text in _turns(row)]}


def alpaca(row: Row) -> dict[str, Any]:
    """As Stanford Alpaca has it, and the system message as LLaMA-Factory names it."""
    system, question, answer = row
    told = {} if system is None else {"system": system}
    return {"instruction": question, "input": "", "output": answer, **told}


def sharegpt(row: Row) -> dict[str, Any]:
    """As ShareGPT has it, which Axolotl and LLaMA-Factory read."""
    turns = [{"from": _SHAREGPT_ROLES[role], "value": text} for role, text in _turns(row)]
    return {"conversations": turns}


FORMATS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "messages": messages,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
}


def lines(training_rows: pa.Table, form: str) -> Iterator[str]:
    """Yield one line of JSON for each distinct row, its line break included.

    Args:
        training_rows: the table.
        form: one of FORMATS.
    """
    columns = (training_rows[name].to_pylist() for name in ("system", "prompt", "completion"))
    for row in dict.fromkeys(zip(*columns, strict=True)):
        text = json.dumps(FORMATS[form](row), ensure_ascii=False)
        yield f"{text.translate(_ALSO_END_LINES)}\n"


def _turns(row: Row) -> list[tuple[str, str]]:
    system, question, answer = row
    told = [] if system is None else [("system", system)]
    return [*told, ("user", question), ("assistant", answer)]
