"""The graph as Microsoft's GraphRAG writes its own: a folder of Parquet files that it can query.

Its columns come first in ours, in its order; what follows them here is left out, so that a file has
the very columns of GraphRAG 3.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# GraphRAG 3.1, graphrag/data_model/schemas.py: table -> its last column, in our tables too.
_LAST_COLUMN = {
    "documents": "raw_data",
    "text_units": "covariate_ids",
    "entities": "degree",
    "relationships": "text_unit_ids",
    "communities": "size",
    "community_reports": "size",
}
GRAPHRAG_TABLES = tuple(_LAST_COLUMN)


def graphrag_tables(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Return the tables GRAPHRAG_TABLES with GraphRAG's columns alone."""
    return {
        name: tables[name].select(range(tables[name].column_names.index(last) + 1))
        for name, last in _LAST_COLUMN.items()
    }


def write_graphrag(tables: Mapping[str, pa.Table], folder: Path) -> None:
    """Write `graphrag_tables` into `folder`, each as <table>.parquet."""
    for name, data in graphrag_tables(tables).items():
        pq.write_table(data, folder / f"{name}.parquet")
