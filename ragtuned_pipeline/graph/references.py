"""From ids to rows: what one table of the graph says of another, as integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def rows_of(ids: pa.ChunkedArray | pa.Array, known: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the row of each id in `known`, int64 of shape (n,).

    Raises:
        ValueError: an id is not there; the message names it.
    """
    rows = pc.index_in(ids, value_set=known)
    if rows.null_count:
        missing = ids.filter(pc.is_null(rows))[0].as_py()
        raise ValueError(f"{missing} is named in the graph but is not in its table; build it again")
    return np.array(rows, dtype=np.int64)


def rows_of_lists(lists: pa.ChunkedArray, known: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each element of a column of lists its list's row and its own row in `known`.

    Raises:
        ValueError: as `rows_of`.
    """
    column: Any = lists.combine_chunks()
    owner = np.array(pc.list_parent_indices(column), dtype=np.int64)
    return owner, rows_of(pc.list_flatten(column), known)
