"""The base model before tuning: what it knows, or guesses, without the corpus."""

from __future__ import annotations

from ragtuned_pipeline.evaluation.systems.interface import Answerer, ClosedBook, Setup


def prepare(setup: Setup) -> Answerer:
    """Return the base model, ready to answer."""
    engine = setup.load_engine(setup.base_model, None, setup.settings.batch_size)
    return ClosedBook("the same base model before tuning, no retrieval", setup, engine)
