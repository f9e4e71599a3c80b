"""A model card is read by the hub and by people."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from ragtuned_pipeline.tuning.export import Merged
from ragtuned_pipeline.tuning.model_card import Base, Card, Score, TableVersion, model_card

ON_HUB = Base("some-org/some-model", "hub", "some-org/some-model", 'Answer "briefly".')
EMBEDDED = Base("embedded", "embedded", "base-12", None)
FOLDER = Base("my-model", "folder", "base-34", "Answer.")
CARD = Card(
    corpus="letters",
    adapter="abc",
    base=ON_HUB,
    rank=24,
    alpha=48,
    data=(TableVersion("documents", 1234, "d0c5"),),
    recipe={"seed": "42"},
    scores=(Score("held-out wordings", 40, "holds the right words", "0.900", "0.100"),),
    control="Shuffled: nothing.",
    decision="The gate let it pass.",
)
MERGED = Merged(parameters=2_600_000, dtype="bfloat16", lost=0.0059)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def read(card: Card) -> tuple[dict[str, object], str]:
    """The metadata as the hub's own reader finds it, and the text."""
    text = model_card(card)
    parsed = ModelCard(text)
    metadata: dict[str, object] = parsed.data.to_dict()
    return metadata, text


def test_the_hub_reads_what_it_shows() -> None:
    metadata, _ = read(CARD)
    assert metadata == {
        "base_model": "some-org/some-model",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "ragtuned"],
    }
    metadata, _ = read(replace(CARD, merged=MERGED))
    assert metadata["library_name"] == "transformers"
    assert "lora" not in str(metadata["tags"])


@pytest.mark.parametrize("base", [EMBEDDED, FOLDER])
def test_a_base_that_no_hub_has_is_not_named_as_if_it_had(base: Base) -> None:
    assert "base_model" not in read(replace(CARD, base=base))[0]


@pytest.mark.parametrize("base", [ON_HUB, EMBEDDED, FOLDER])
@pytest.mark.parametrize("merged", [None, MERGED])
def test_the_code_on_the_card_is_code_and_says_what_was_said_in_tuning(
    base: Base, merged: Merged | None
) -> None:
    _, text = read(replace(CARD, base=base, merged=merged))
    [code] = CODE.findall(text)
    strings = {n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)}
    assert (base.system in strings) == (base.system is not None)
    assert ("system" in strings) == (base.system is not None)
    assert ("peft" in code) == (merged is None)


def test_the_card_says_what_made_it_and_what_it_reached() -> None:
    _, text = read(replace(CARD, merged=MERGED))
    for line in (
        "| documents | 1,234 | `d0c5` |",
        "| LoRA rank, alpha | 24, 48 |",
        "| seed | 42 |",
        "| held-out wordings | 40 | holds the right words | 0.900 | 0.100 |",
        "Shuffled: nothing.",
        "The gate let it pass.",
        "2,600,000 parameters in bfloat16",
        "rounding moved them by 0.59 % of the adapter's change",
    ):
        assert line in text
    assert "These weights hold what the documents say" in text


def test_what_is_not_known_is_said() -> None:
    _, text = read(replace(CARD, data=(), recipe={}, scores=(), control="", decision=""))
    assert "is not known any more" in text
    assert "It was not scored" in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(("rank", "served"), [(8, 8), (24, 32), (512, 512)])
def test_vllm_is_given_a_rank_that_it_knows(rank: int, served: int) -> None:
    _, text = read(replace(CARD, rank=rank))
    assert f"--max-lora-rank {served} --lora-modules letters=THIS_FOLDER" in text


def test_a_rank_that_vllm_does_not_serve_is_said() -> None:
    assert "Its rank is higher than vLLM serves" in read(replace(CARD, rank=600))[1]
