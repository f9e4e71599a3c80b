"""General ability before and after tuning, so that what tuning makes a model forget is seen.

The built-in probe works offline with any base model; lm-evaluation-harness tasks that the user
names (setting probe.harness_tasks) join it where that package is installed.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ragtuned_pipeline.evaluation.probe import built_in, harness
from ragtuned_pipeline.evaluation.probe.summary import ability_summary
from ragtuned_pipeline.settings import ProbeSettings
from ragtuned_pipeline.tables import table

__all__ = ["ability_summary", "probe"]


def probe(base_model: str, adapter: Path | None, settings: ProbeSettings) -> pa.Table:
    """Return the table "probe" for one model: the base alone ("base"), or with `adapter` ("tuned").

    Args:
        base_model: the setting tuning.base_model.
        adapter: a PEFT adapter folder.

    Raises:
        SettingsError: the base model cannot be loaded, or a harness task cannot be run.
        FileNotFoundError: there is no adapter in the folder `adapter`.
        ValueError: the model's likelihoods are not finite.
    """
    if settings.harness_tasks:
        harness.check_installed()  # before minutes are spent on the rest
    model = "base" if adapter is None else "tuned"
    rows = built_in.score(base_model, adapter, model)
    if settings.harness_tasks:
        rows += harness.score(base_model, adapter, model, settings)
    return table("probe", rows)
