"""A remembering engine asks its model what is new, once, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ragtuned_pipeline.inference.engine import Message, Reply, chat
from ragtuned_pipeline.inference.remembered import RememberingEngine
from ragtuned_pipeline.item_store import open_items


class Echo:
    """Answers with the question, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        questions = [conversation[-1]["content"] for conversation in conversations]
        self.asked += questions
        return [Reply(f"{q} in {max_tokens}", len(q), 3, 0.1) for q in questions]


def ask(
    file: Path, questions: Sequence[str], identity: str = "weights", most: int = 9
) -> tuple[list[str], list[str], int]:
    """Return the replies, what the model was asked, and how often it was loaded."""
    echo, loads = Echo(), []

    def load() -> Echo:
        loads.append(1)
        return echo

    with open_items(file, "answers") as items:
        engine = RememberingEngine(identity, load, items)
        replies = engine.generate([chat(question) for question in questions], most)
    return [reply.text for reply in replies], echo.asked, len(loads)


def test_only_what_is_new_is_asked_and_order_and_repeats_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "items.sqlite"
    assert ask(file, ["b", "a", "b"]) == (["b in 9", "a in 9", "b in 9"], ["b", "a"], 1)
    assert ask(file, ["a", "c", "b"]) == (["a in 9", "c in 9", "b in 9"], ["c"], 1)
    assert ask(file, ["c", "b"]) == (["c in 9", "b in 9"], [], 0)


def test_other_weights_and_lengths_remember_nothing(tmp_path: Path) -> None:
    file = tmp_path / "items.sqlite"
    ask(file, ["a"])
    assert ask(file, ["a"], most=4) == (["a in 4"], ["a"], 1)
    assert ask(file, ["a"], identity="other", most=4)[1:] == (["a"], 1)


def test_a_reply_comes_back_whole(tmp_path: Path) -> None:
    file = tmp_path / "items.sqlite"
    for _ in range(2):
        with open_items(file, "answers") as items:
            [reply] = RememberingEngine("w", Echo, items).generate([chat("why é")], 5)
        assert reply == Reply("why é in 5", 5, 3, 0.1)
