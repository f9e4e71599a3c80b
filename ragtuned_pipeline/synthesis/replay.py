"""Replay rows: general questions in the base model's own words, against forgetting.

Self-synthesised rehearsal (Huang et al., 2403.01244): a tuned model keeps what it could do where
about a tenth of its rows are of that kind, and the base model's own answers move it least.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.inference.engine import ChatEngine, Reply, chat
from ragtuned_pipeline.synthesis.facts import REPLAY
from ragtuned_pipeline.tables import table

_QUESTIONS = Path(__file__).parent / "replay_questions.txt"
_GENERATOR = "base:replay@1"
_LINKS = ("document_ids", "text_unit_ids", "entity_ids", "relationship_ids", "community_ids")


def replay_questions() -> list[str]:
    """Return the general questions: knowledge, reasoning, arithmetic, writing, code, advice."""
    return _QUESTIONS.read_text(encoding="utf-8").splitlines()


def replay_pairs(
    base: ChatEngine, count: int, seed: int, max_tokens: int, system: str | None
) -> pa.Table:
    """Return `count` rows of qa_pairs, or as many as there are questions, answered by `base`.

    The questions are drawn by `seed`; a larger count keeps those of a smaller one. A row has no
    links and an empty gold. One without an answer, or whose answer takes all of `max_tokens` and
    so was cut off, is dropped with its reason.

    Args:
        max_tokens: of one answer.
        system: what stands before every question, see inference.engine.system_message.
    """
    drawn = sorted(replay_questions(), key=lambda question: seeded_int(seed, REPLAY, question))
    questions = drawn[:count]
    replies = base.generate([chat(question, system) for question in questions], max_tokens)
    rows = [
        _row(question, reply, max_tokens)
        for question, reply in zip(questions, replies, strict=True)
    ]
    return table("qa_pairs", rows)


def _row(question: str, reply: Reply, max_tokens: int) -> dict[str, Any]:
    answer = reply.text.strip()
    fact_id = content_id("fact", REPLAY, question)
    drop = _drop_reason(answer, reply.completion_tokens, max_tokens)
    return {
        "id": content_id("qa", fact_id, question, answer),
        "kind": REPLAY,
        "question": question,
        "answer": answer,
        "wording": 0,
        "fact_id": fact_id,
        **{name: [] for name in _LINKS},
        "split": "train",
        "kept": drop is None,
        "drop_reason": drop,
        "generator": _GENERATOR,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "gold": "",
        "form": REPLAY,
        "style": "long",
    }


def _drop_reason(answer: str, tokens: int, max_tokens: int) -> str | None:
    if not answer:
        return "empty answer"
    return "answer cut off" if tokens >= max_tokens else None
