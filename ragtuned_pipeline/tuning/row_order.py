"""In which order rows are told and seen, and into how many sequences packing puts them: a plan
knows it before a model is loaded."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ragtuned_pipeline.settings import TuningSettings

if TYPE_CHECKING:
    import pyarrow as pa

_TOLD = ("system", "prompt", "completion", "epochs")  # columns that a trainer reads
_LENGTH_GROUP_BATCHES = 32  # batches whose rows are sorted by length together
_PACKED_TOGETHER = 1000  # rows: Dataset.map's batch, in which TRL's pack_dataset packs


def in_order(rows: pa.Table) -> pa.Table:
    """Return a table's rows in the order in which a trainer is given them."""
    return rows.sort_by([(name, "ascending") for name in _TOLD])


def epoch_orders(
    lengths: Sequence[int] | np.ndarray, last: Sequence[int] | np.ndarray, settings: TuningSettings
) -> list[list[int]]:
    """Return the row numbers of each epoch in the order in which they are seen.

    Rows of like length share a batch, so that little of it is padding.

    Args:
        lengths: of the rows, in tokens.
        last: row i is seen in the first last[i] epochs.
    """
    lengths, last = np.asarray(lengths), np.asarray(last)
    draw = np.random.default_rng(settings.seed)
    epochs: list[list[int]] = []
    for epoch in range(settings.epochs):
        shuffled = draw.permutation(np.flatnonzero(last > epoch))
        batches: list[np.ndarray] = []
        group = settings.batch_size * _LENGTH_GROUP_BATCHES
        for start in range(0, len(shuffled), group):
            part = shuffled[start : start + group]
            part = part[np.argsort(-lengths[part], kind="stable")]
            batches += np.split(part, range(settings.batch_size, len(part), settings.batch_size))
        # A short batch stays last, or every later batch of the epoch would straddle two.
        full = [b for b in batches if len(b) == settings.batch_size]
        short = [b for b in batches if len(b) < settings.batch_size]
        mixed = [full[i] for i in draw.permutation(len(full))] + short
        epochs.append(np.concatenate(mixed).tolist() if mixed else [])
    return epochs


def packed_sequences(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> int:
    """Return how many sequences of `max_tokens` TRL's best fit (strategy "bfd") makes of the rows.

    Args:
        lengths: of the rows in the order in which they are packed, each `max_tokens` at most.
    """
    return sum(
        _best_fit(lengths[start : start + _PACKED_TOGETHER], max_tokens)
        for start in range(0, len(lengths), _PACKED_TOGETHER)
    )


def _best_fit(lengths: Sequence[int] | np.ndarray, space: int) -> int:
    """Each row, the longest first, goes where the least space is left after it."""
    left: list[int] = []  # space in each sequence, sorted
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(left, length)
        bisect.insort(left, (left.pop(place) if place < len(left) else space) - length)
    return len(left)
