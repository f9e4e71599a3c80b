"""What became of general ability: both models on the same items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ragtuned_pipeline.evaluation.metrics import interval
from ragtuned_pipeline.evaluation.probe.built_in import CHANCE
from ragtuned_pipeline.evaluation.probe.rows import ACCURACY, LOSS
from ragtuned_pipeline.ids import seeded_int

_RESAMPLES = 2000
_MEASURES = {
    ACCURACY: "accuracy, higher is better",
    LOSS: "loss in nats a token, higher is worse",
}


def ability_summary(rows: pa.Table, seed: int) -> dict[str, Any]:
    """Return, for each suite, what both models score and how that changed.

    Args:
        rows: table "probe", of the base model and of the tuned one.
        seed: of the bootstrap.

    Returns:
        suite -> {"measure", "n" (items), "base", "base_interval", "tuned", "tuned_interval",
        "change" (tuned - base), "change_interval", "chance" (of guessing; None where it means
        nothing)}. Values are means over items; intervals are at 95 %: as metrics.interval gives
        them for shares of right items, else percentile bootstraps over items. The change is
        paired: its bootstrap (Efron 1979) draws items, each with both scores.

    Raises:
        ValueError: the two models were not scored on the same items.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    measures: dict[str, str] = {}
    for row in rows.to_pylist():
        of_suite = found.setdefault(row["suite"], {"base": {}, "tuned": {}})
        of_suite[row["model"]][row["item"]] = row["score"]
        measures[row["suite"]] = row["measure"]
    return {
        suite: {"measure": _MEASURES.get(measures[suite], measures[suite])}
        | _compare(suite, scores["base"], scores["tuned"], seed)
        | {"chance": CHANCE.get(suite)}
        for suite, scores in found.items()
    }


def _compare(
    suite: str, base: dict[str, float], tuned: dict[str, float], seed: int
) -> dict[str, Any]:
    if base.keys() != tuned.keys():
        raise ValueError(f"probe {suite}: the base and the tuned model have different items")
    order = sorted(base)
    before = np.array([base[item] for item in order])
    after = np.array([tuned[item] for item in order])
    return {
        "n": len(order),
        "base": float(before.mean()),
        "base_interval": _interval(before, seed),
        "tuned": float(after.mean()),
        "tuned_interval": _interval(after, seed),
        "change": float((after - before).mean()),
        "change_interval": _bootstrap(after - before, seed),
    }


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    shares = bool(np.isin(values, (0, 1)).all())
    return interval(values, seed) if shares else _bootstrap(values, seed)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean, without the rounding of metrics.interval."""
    count = len(values)
    draw = np.random.default_rng(seeded_int(seed, "probe", str(count)))
    means = [values[draw.integers(count, size=count)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
