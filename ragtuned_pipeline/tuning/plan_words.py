"""A training's plan in words: for the terminal, the log and Dagster's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragtuned_pipeline.tuning.training_plan import TrainingPlan

_GIB = 2**30


def plan_lines(plan: TrainingPlan) -> list[tuple[str, str]]:
    """Return (what, how much), with units and where a figure comes from."""
    memory = plan.memory
    parts = ", ".join(
        f"{what} {size / _GIB:.1f}"
        for what, size in (
            ("weights", memory.weights),
            ("adapter and optimizer", memory.adapter),
            ("activations", memory.activations),
            ("reserve", memory.reserve),
        )
    )
    free = "unknown" if plan.free_bytes is None else f"{plan.free_bytes / _GIB:.1f} GiB"
    checkpointing = ", gradient checkpointing" if plan.gradient_checkpointing else ""
    minutes = "unknown" if plan.minutes_estimated is None else f"{plan.minutes_estimated:,.1f}"
    share = plan.bits_to_learn / plan.capacity_bits
    return [
        ("rows", f"{plan.rows:,}"),
        ("tokens, all epochs", f"{plan.tokens:,}, {plan.answer_tokens:,} of them answers"),
        ("sequences, steps", f"{plan.sequences:,}, {plan.steps:,}"),
        (
            "adapter",
            f"{plan.trainable_parameters:,} numbers, {plan.adapter_bytes / 1e6:,.1f} MB on disk",
        ),
        ("machine", f"{plan.devices} x {plan.machine}"),
        ("at once", f"{plan.rows_at_once} a device{checkpointing}"),
        (
            "memory of a device",
            f"{memory.total / _GIB:.1f} GiB ({parts}); {plan.least_bytes / _GIB:.1f} at least, one "
            f"row with gradient checkpointing; free: {free}",
        ),
        ("minutes", f"{plan.minutes_assumed:,.1f} at tuning.assumed_tokens_per_second"),
        ("minutes here", f"{minutes}: {plan.estimated_from}"),
        (
            "bits",
            f"{plan.bits_to_learn:,} to learn (distinct answers, compressed) against at most "
            f"{plan.capacity_bits:,} that the adapter may hold ({100 * share:.2g} %)",
        ),
    ]


def planned_and_measured(
    plan: Mapping[str, Any], result: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return (what, planned, measured) of a finished training; empty without a plan.

    Args:
        plan: a TrainingPlan as a dict.
        result: a TrainResult as a dict.
    """
    if not plan:
        return []
    needed = sum(plan["memory"].values()) / _GIB
    measured = result.get("peak_memory_gib")
    estimated = plan["minutes_estimated"]
    here = "" if estimated is None else f"; {estimated:,.1f} from {plan['estimated_from']}"
    planned, trained = (f"{told['trainable_parameters']:,}" for told in (plan, result))
    bits = plan["bits_to_learn"], plan["capacity_bits"]
    return [
        ("rows", f"{plan['rows']:,}", f"{result['rows']:,}"),
        ("tokens", f"{plan['tokens']:,}", f"{result['tokens']:,}"),
        ("steps", f"{plan['steps']:,}", f"{result['steps']:,}"),
        (
            "minutes",
            f"{plan['minutes_assumed']:,.1f} at tuning.assumed_tokens_per_second{here}",
            f"{result['seconds'] / 60:,.1f}",
        ),
        (
            "memory of a device, GiB",
            f"at most {needed:.1f}",
            "" if measured is None else f"{measured:.1f}",
        ),
        ("rows at once", _at_once(plan), _at_once(result)),
        ("numbers trained", planned, trained),
        ("bits", f"{bits[0]:,} to learn; at most {bits[1]:,} held", ""),
    ]


def _at_once(told: Mapping[str, Any]) -> str:
    again = ", gradient checkpointing" if told["gradient_checkpointing"] else ""
    return f"{told['rows_at_once']}{again}"
