"""A training's plan in words: for the terminal, the log and Dagster's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        ("memory of a device", f"{memory.total / _GIB:.1f} GiB ({parts}); free: {free}"),
        ("minutes", f"{plan.minutes_assumed:,.1f} at tuning.assumed_tokens_per_second"),
        ("minutes here", f"{minutes}: {plan.estimated_from}"),
        (
            "bits",
            f"{plan.bits_to_learn:,} to learn (distinct answers, compressed) against at most "
            f"{plan.capacity_bits:,} that the adapter may hold ({100 * share:.2g} %)",
        ),
    ]
