"""The model card of an exported adapter: what it is, what made it, what it reached, how to load it.

It names the corpus and holds no text of it, no question, no answer, and no place of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ragtuned_pipeline.inference.vllm_server import lora_rank
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning.export import EMBEDDED_COPY, Merged

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"


@dataclass(frozen=True)
class Base:
    """The base model.

    Attributes:
        name: a hub id, "embedded", or the name of a folder.
        kind: which of them.
        identity: of its weights.
        system: the message that stood before every question in tuning; None for none.
    """

    name: str
    kind: Literal["hub", "embedded", "folder"]
    identity: str
    system: str | None


@dataclass(frozen=True)
class TableVersion:
    """A table that the adapter was made from; `version` is its content hash."""

    name: str
    rows: int
    version: str


@dataclass(frozen=True)
class Score:
    """One set of questions: a mean from 0 to 1 of the tuned model and of its base, over `n`.

    `tuned` and `base` are written out, intervals with them; `base` is "" where it is not known.
    """

    questions: str
    n: int
    measure: str
    tuned: str
    base: str = ""


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        adapter: content hash.
        data: empty where it is not known any more.
        recipe: what was set and what came of it, by name, each as it is shown.
        scores: empty where it was never judged, or that was not kept.
        control: a sentence on the adapter tuned on shuffled answers; "" where there is none.
        decision: a sentence on promotion; "" where none was decided.
        merged: None for the adapter itself.
    """

    corpus: str
    adapter: str
    base: Base
    rank: int
    alpha: int
    data: tuple[TableVersion, ...]
    recipe: Mapping[str, str]
    scores: tuple[Score, ...]
    control: str
    decision: str
    merged: Merged | None = None


def model_card(card: Card) -> str:
    """Return README.md, with the metadata that the Hugging Face hub reads at its head.

    A license is not in it: the documents' is not known.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if card.merged is None:
        library, tags = "peft", ["lora", "ragtuned"]
    else:
        library, tags = "transformers", ["ragtuned"]
    head = ModelCardData(
        base_model=card.base.name if card.base.kind == "hub" else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
    )
    # Markdown, of values that are names, numbers and sentences of this package.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment.get_template(_TEMPLATE.name).render(
        card=card,
        head=head.to_yaml(),
        embedded_copy=EMBEDDED_COPY,
        served_rank=_served_rank(card.rank),
    )


def _served_rank(rank: int) -> int | None:
    """What vLLM is started with; None where it serves no rank so high."""
    try:
        return lora_rank(rank)
    except SettingsError:
        return None
