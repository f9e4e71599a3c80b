"""The tuned model: the base model with the corpus's adapter, and no retrieval."""

from __future__ import annotations

from ragtuned_pipeline.evaluation.systems.interface import (
    Answerer,
    ClosedBook,
    Setup,
    SkippedSystem,
)


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return the tuned model, ready to answer."""
    if setup.adapter is None:
        return SkippedSystem("There is no adapter for this corpus yet; tune it first.")
    engine = setup.load_engine(setup.base_model, setup.adapter, setup.settings.batch_size)
    return ClosedBook("base model with this corpus's LoRA adapter, no retrieval", setup, engine)
