"""What is trained in which order: the rows of each epoch, fixed before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning.base_models import TokenRow
from ragtuned_pipeline.tuning.row_order import epoch_orders

if TYPE_CHECKING:
    from datasets import Dataset

_NO_LOSS = -100
_COUNTED_AT_ONCE = 10_000  # rows


@dataclass(frozen=True)
class Plan:
    """The rows of each epoch in the order in which they are seen, and how many tokens all are.

    It is fixed beforehand and read front to back: a resumed run goes on at exactly the next row.
    """

    epochs: list[list[int]]  # row numbers
    tokens: int

    @classmethod
    def of(cls, rows: Sequence[TokenRow], seen: Sequence[int], settings: TuningSettings) -> Plan:
        """Plan for `rows`, of which row i is seen in the first seen[i] epochs."""
        lengths = np.array([len(row.input_ids) for row in rows])
        epochs = epoch_orders(lengths, seen, settings)
        return cls(epochs, int((lengths * np.array(seen)).sum()))


def training_set(rows: Sequence[TokenRow], plan: Plan, settings: TuningSettings) -> Dataset:
    """Return what the trainer reads front to back: rows, or with packing sequences of rows.

    Each epoch is packed by itself, so that no sequence holds a row twice.
    """
    from datasets import concatenate_datasets
    from trl.data_utils import pack_dataset

    every = dataset(rows)
    if not settings.packing:
        return every.select([row for epoch in plan.epochs for row in epoch])
    packed = [
        # Best fit leaves the fullest sequences first; the order is drawn anew.
        pack_dataset(every.select(epoch), settings.max_tokens).shuffle(seed=settings.seed + turn)
        for turn, epoch in enumerate(plan.epochs)
        if epoch
    ]
    return concatenate_datasets(packed)


def dataset(rows: Sequence[TokenRow]) -> Dataset:
    """The tokens with labels: -100 (no loss) on the prompt, the answer and its stop token after."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [
                [_NO_LOSS] * row.prompt_tokens + row.input_ids[row.prompt_tokens :] for row in rows
            ],
        }
    )


def first_tokens(given: Dataset, sequences: int) -> int:
    """Return how many tokens the first `sequences` rows or packed sequences hold."""
    read: Any = given.select(range(min(sequences, len(given)))).with_format("arrow")
    parts = (part["input_ids"] for part in read.iter(_COUNTED_AT_ONCE))
    return sum(int(pc.sum(pc.list_value_length(part)).as_py()) for part in parts)


def shared_evenly(given: Dataset, at_once: int, token: int) -> Dataset:
    """Return `given` with rows behind it that teach nothing, for a whole number of `at_once`.

    Several processes take the same number of rows each; what is missing at the end would be taken
    from the beginning, and be learned once more.

    Args:
        at_once: rows that all processes together take in one pass.
        token: any token.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(given) % at_once
    if not missing:
        return given
    empty = {"input_ids": [[token, token]], "labels": [[_NO_LOSS, _NO_LOSS]], "seq_lengths": [[2]]}
    columns = {name: empty[name] * missing for name in given.column_names}
    filling = Dataset.from_dict(columns, features=given.features)
    return concatenate_datasets([given, filling])
