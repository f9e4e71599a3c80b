"""A scripted judge: an answer that holds a reference's words is the better one, and correct."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS
from ragtuned_pipeline.evaluation.metrics import contains, is_refusal, tokens

SCHEMAS = frozenset(["Comparison", "Grade"])


def reply(name: str, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the reply of schema `name`. Raises KeyError for a schema of another step."""
    asked = messages[-1]["content"]
    references = _between(asked, "reference")
    if name == "Grade":
        [answer] = _between(asked, "answer")
        right = _right(answer, references)
        wrong = "declined" if is_refusal(answer) else "incorrect"
        return {"reason": "By the reference.", "verdict": "correct" if right else wrong}
    first, second = (_between(asked, f"answer_{n}")[0] for n in (1, 2))
    worth = _right(first, references) - _right(second, references)
    verdict = {1: "first", -1: "second", 0: "tie"}[worth]
    compared = {"reason": "The reference decides.", "verdict": verdict}
    return dict.fromkeys({"Comparison": DIMENSIONS}[name], compared)


def _between(text: str, tag: str) -> list[str]:
    return re.findall(rf"^<{tag}>\n(.*?)\n</{tag}>$", text, re.DOTALL | re.MULTILINE)


def _right(answer: str, references: Sequence[str]) -> bool:
    return any(contains(tokens(answer), tokens(reference)) for reference in references)
