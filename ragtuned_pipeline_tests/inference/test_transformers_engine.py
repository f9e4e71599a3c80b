"""Batched greedy answers equal single ones, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine

QUESTIONS = [
    "Who opened the Harrow Bakery in 1987?",
    "Tell me about Mirela Voss.",
    "Why?",
    "I came across the name Tobin Calder in an old letter about the mill. Who is that?",
    "Fill in: Sanne Orrick repaired ___ in the spring of 2031.",
]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine("embedded", batch_size=3)


def test_a_batch_answers_as_one_by_one(engine: TransformersEngine) -> None:
    together = engine.generate([chat(q) for q in QUESTIONS], 24)
    alone = [engine.generate([chat(q)], 24)[0] for q in QUESTIONS]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.prompt_tokens for r in together] == [r.prompt_tokens for r in alone]
    assert [r.completion_tokens for r in together] == [r.completion_tokens for r in alone]


def test_replies_are_measured(engine: TransformersEngine) -> None:
    (reply,) = engine.generate([chat("Tell me about Mirela Voss.", system="Be brief.")], 5)
    (bare,) = engine.generate([chat("Tell me about Mirela Voss.")], 5)
    assert reply.prompt_tokens > bare.prompt_tokens > 0
    assert 1 <= reply.completion_tokens <= 5
    assert reply.seconds > 0
    assert "<|" not in reply.text
    assert engine.generate([], 5) == []


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        TransformersEngine("embedded", tmp_path / "none")
