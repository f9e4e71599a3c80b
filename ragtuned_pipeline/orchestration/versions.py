"""What a scorecard was made with: packages, model, adapter, data."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from ragtuned_pipeline import __version__
from ragtuned_pipeline.tables import content_hash

if TYPE_CHECKING:
    import pyarrow as pa

    from ragtuned_pipeline.orchestration.training import Training

_PACKAGES = ("dagster", "torch", "transformers", "trl", "peft", "graspologic-native", "pyarrow")


def versions(
    training: Training | None, training_rows: pa.Table, queries: pa.Table, engine: str
) -> dict[str, str]:
    """Return versions by name; the adapter and its base by content hash.

    Args:
        engine: what the models answered with.
    """
    made = {
        "ragtuned-pipeline": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "answering engine": engine,
        "data training_rows": content_hash(training_rows),
        "data queries": content_hash(queries),
    }
    if training:
        made |= {"adapter": training.adapter, "base model": training.base_model}
    return made
