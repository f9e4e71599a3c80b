"""Whether an adapter may answer under its corpus's name: a pure function of the scorecard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragtuned_pipeline.settings import ChecksSettings


def gate(scorecard: Mapping[str, Any], checks: ChecksSettings) -> str:
    """Return why the adapter must not be promoted, or the empty string.

    The tuned model must beat the base on held-out wordings, in contains-gold, by
    `checks.min_gain_over_base`. A corpus too small to hold a wording out cannot be judged, and
    passes.
    """
    systems = scorecard["systems"]
    for system in ("tuned", "base"):
        if system not in systems:
            reason = scorecard["skipped"].get(system, "it has no answers")
            return f"the adapter cannot be judged without the system {system!r}: {reason}"
    scores = [
        systems.get(system, {}).get("held_out_wording", {}).get("contains")
        for system in ("tuned", "base")
    ]
    tuned, base = scores
    if tuned is None or base is None:
        return ""
    gain = tuned - base
    if gain >= checks.min_gain_over_base:
        return ""
    return (
        f"on held-out wordings the tuned model scores {tuned:.3f} and the base {base:.3f}: "
        f"a gain of {gain:.3f}, and the setting checks.min_gain_over_base asks for "
        f"{checks.min_gain_over_base:.3f}"
    )
