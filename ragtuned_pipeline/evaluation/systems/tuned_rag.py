"""The tuned model with retrieval."""

from __future__ import annotations

from ragtuned_pipeline.evaluation.systems.interface import Answerer, Setup, SkippedSystem


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return the system, ready to answer."""
    return SkippedSystem("Not built yet.")
