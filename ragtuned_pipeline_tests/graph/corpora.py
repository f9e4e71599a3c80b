"""Tiny corpora for the graph's tests: documents and text units from a few strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ragtuned_pipeline import tables
from ragtuned_pipeline.ids import content_id


def corpus(
    texts: Mapping[str, str], unit: int = 200, overlap: int = 40
) -> tuple[pa.Table, pa.Table]:
    """Return documents and overlapping text units of `unit` characters from path -> text."""
    documents: list[dict[str, Any]] = []
    units: list[dict[str, Any]] = []
    for path, text in texts.items():
        identity = content_id("doc", path, text)
        documents.append(
            {
                "id": identity,
                "human_readable_id": len(documents),
                "title": path,
                "text": text,
                "text_unit_ids": [],
                "creation_date": None,
                "raw_data": None,
                "path": path,
                "format": "chat" if path.endswith(".chat") else "text",
            }
        )
        for start in range(0, max(len(text) - overlap, 1), unit - overlap):
            part = text[start : start + unit]
            units.append(
                {
                    "id": content_id("tu", identity, str(start)),
                    "human_readable_id": len(units),
                    "text": part,
                    "n_tokens": len(part.split()),
                    "document_id": identity,
                    "entity_ids": [],
                    "relationship_ids": [],
                    "covariate_ids": [],
                    "start": start,
                    "end": start + len(part),
                }
            )
    return tables.table("documents", documents), tables.table("base_text_units", units)


GOLDEN = {
    "a.txt": (
        "Mirela Voss opened the Harrow Bakery in 1987. "
        "She sold it to Tom Aldane in 2004. "
        "The Brannock Harbour Trust bought a mill from Ms. Voss. "
        "The Trust was founded by Judge Ilse Corran."
    ),
    "b.txt": (
        "Captain Rurik Pell sailed the Grey Plover from Saltwick. "
        "Yesterday the BHT thanked Pell. "
        "Rain fell all day. "
        "Corran lives in Saltwick."
    ),
}
