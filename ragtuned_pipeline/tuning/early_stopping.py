"""When a training has learned what it can: its held-out losses fall no longer.

Everything is read from the losses so far, which a checkpoint holds, so that a resumed training
stops where an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Sequence

Curve = Sequence[tuple[int, float]]  # (step, value)


def best(held_out: Curve) -> tuple[int, float]:
    """Return the step of the lowest loss and that loss; the first of equal ones."""
    return min(held_out, key=lambda point: (point[1], point[0]))


def is_over(held_out: Curve, patience: int) -> bool:
    """Whether the last `patience` losses have not fallen below an earlier one; never with 0."""
    if not patience or not held_out:
        return False
    step, _ = best(held_out)
    return sum(later > step for later, _ in held_out) >= patience
