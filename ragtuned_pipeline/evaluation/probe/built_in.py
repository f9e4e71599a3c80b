"""The built-in probe: our own items, read by likelihood, with nothing downloaded.

- minimal_pairs: two sentences, one of them grammatical; the model should find it the likelier one
  (accuracy, chance 0.5). The method, and the sum over the whole sentence rather than the mean a
  token, are BLiMP's (Warstadt et al., 1912.00582). The pairs are built so that, within a
  phenomenon, the right sentences hold the same words as the wrong ones: word frequency alone wins
  half of them.
- choice: a question of common knowledge, or on a short text before it, with four replies; the model
  should find the right reply likeliest, in its chat template (accuracy, chance 0.25). The replies
  are shared by four questions that each has another right one: a model that does not read the
  question wins a quarter. They are not shown, so that their order does not matter.
- language_loss: short neutral texts; nats a token, the mean over texts of each text's mean.
- known_forms, the embedded base model only: questions about documents of invented worlds, made by
  the generator that made its pretraining rows, from a seed that pretraining did not use, with the
  document given; nats a token of the reply. It knows little else: its minimal_pairs and choice are
  at chance, so that those two cannot show what it forgets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragtuned_pipeline.evaluation.probe.likelihood import Likelihood
from ragtuned_pipeline.evaluation.probe.rows import ACCURACY, LOSS, probe_rows
from ragtuned_pipeline.settings import EMBEDDED_MODEL
from ragtuned_pipeline.tuning.embedded.build import Recipe
from ragtuned_pipeline.tuning.embedded.lessons import Lesson, lessons
from ragtuned_pipeline.tuning.embedded.lexicon import load

CHANCE = {"minimal_pairs": 0.5, "choice": 0.25}

_ITEMS = Path(__file__).parent / "items"
_KNOWN_FORMS = 100
_KNOWN_FORMS_SEED = 90_001  # pretraining used 6 and 7

_Scores = list[tuple[str, float]]


def score(base_model: str, adapter: Path | None, model: str) -> list[dict[str, Any]]:
    """Return the rows of every suite for one model; see probe()."""
    read = Likelihood(base_model, adapter)
    suites: list[tuple[str, str, Callable[[Likelihood], _Scores]]] = [
        ("minimal_pairs", ACCURACY, _minimal_pairs),
        ("choice", ACCURACY, _choice),
        ("language_loss", LOSS, _language_loss),
    ]
    if base_model == EMBEDDED_MODEL:
        suites.append(("known_forms", LOSS, _known_forms))
    try:
        return [
            row
            for suite, measure, scores in suites
            for row in probe_rows(suite, model, measure, scores(read))
        ]
    finally:
        read.close()


def items(suite: str) -> list[dict[str, Any]]:
    """Return the items of "minimal_pairs", "choice" or "language_loss", in their file's order."""
    lines = (_ITEMS / f"{suite}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _minimal_pairs(read: Likelihood) -> _Scores:
    pairs = items("minimal_pairs")
    losses, _ = read.of_texts([pair[side] for pair in pairs for side in ("good", "bad")])
    good, bad = losses.reshape(-1, 2).T
    return list(zip((pair["item"] for pair in pairs), good < bad, strict=True))


def _choice(read: Likelihood) -> _Scores:
    asked = items("choice")
    replies = [
        (f"{item['text']}\n\n{item['question']}" if "text" in item else item["question"], reply)
        for item in asked
        for reply in (item["answer"], *item["others"])
    ]
    losses, _ = read.of_replies([(question, f"{reply}.") for question, reply in replies])
    by_item = losses.reshape(len(asked), -1)
    right = by_item[:, 0] < by_item[:, 1:].min(axis=1)
    return list(zip((item["item"] for item in asked), right, strict=True))


def _language_loss(read: Likelihood) -> _Scores:
    texts = items("language_loss")
    losses, tokens = read.of_texts([item["text"] for item in texts])
    return list(zip((item["item"] for item in texts), losses / tokens, strict=True))


def _known_forms(read: Likelihood) -> _Scores:
    asked = known_forms()
    losses, tokens = read.of_replies(
        [(f"{lesson.given}\n\n{lesson.question}", lesson.answer) for lesson in asked]
    )
    names = (f"document-{number:03}" for number in range(1, len(asked) + 1))
    return list(zip(names, losses / tokens, strict=True))


def known_forms() -> list[Lesson]:
    """Return lessons as in pretraining, a document given: one a document, so that none depend."""
    source = lessons(
        _KNOWN_FORMS_SEED,
        load(),
        worlds=1,
        open_share=1.0,
        text_share=0.0,
        frame_share=Recipe().frame_share,
    )
    chosen: dict[str, Lesson] = {}
    while len(chosen) < _KNOWN_FORMS:
        lesson = next(source)
        chosen.setdefault(lesson.given, lesson)
    return list(chosen.values())
