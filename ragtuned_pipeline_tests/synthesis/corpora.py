"""Corpora for synthesis, run through the rooms before it: sentences to documents, units, graph."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers

from ragtuned_pipeline.corpus.chunking import chunk_documents
from ragtuned_pipeline.corpus.readers import read_folder
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import Settings, SynthesisSettings
from ragtuned_pipeline.synthesis.synthesise import Synthesis, synthesise
from ragtuned_pipeline.tables import table

HARBOUR = Path(__file__).parents[1] / "fixtures" / "harbour"
GOLDEN = Path(__file__).parent / "qa_pairs_golden.json"


@dataclass(frozen=True)
class World:
    """The tables that synthesis reads."""

    documents: pa.Table
    text_units: pa.Table
    entities: pa.Table
    relationships: pa.Table
    communities: pa.Table
    community_reports: pa.Table

    def synthesise(self, **changes: Any) -> Synthesis:
        return synthesise(
            self.documents,
            self.text_units,
            self.entities,
            self.relationships,
            self.communities,
            self.community_reports,
            SynthesisSettings.model_validate(changes),
        )


def world_of(documents: pa.Table, chunk_tokens: int = 60) -> World:
    """Return the graph of `documents`, cut into units of `chunk_tokens` words."""
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    documents, units = chunk_documents(documents, words, chunk_tokens, chunk_tokens // 4)
    settings = Settings().graph
    graph = extract(documents, units, settings)
    communities = cluster(graph.entities, graph.relationships, settings)
    reports = extractive_reports(
        communities, graph.entities, graph.relationships, graph.text_units, settings
    )
    return World(
        documents, graph.text_units, graph.entities, graph.relationships, communities, reports
    )


def documents_of(texts: Mapping[str, str]) -> pa.Table:
    """Return documents from path -> text; a path may be "2041-02-03|Title.md": with its date."""
    rows: list[dict[str, Any]] = []
    for path, text in texts.items():
        date, _, title = path.rpartition(".")[0].rpartition("|")
        rows.append(
            {
                "id": content_id("doc", path, text),
                "human_readable_id": len(rows),
                "title": title,
                "text": text,
                "text_unit_ids": [],
                "creation_date": date or None,
                "raw_data": None,
                "path": path.replace("|", "-"),
                "format": {"md": "markdown", "chat": "chat"}.get(path.rpartition(".")[2], "text"),
            }
        )
    return table("documents", rows)


def small(texts: Mapping[str, str] | Iterable[str]) -> World:
    """Return the world of a few texts."""
    named = texts if isinstance(texts, Mapping) else {f"{n}.txt": t for n, t in enumerate(texts)}
    return world_of(documents_of(named))


@cache
def harbour() -> World:
    """The corpus of the other rooms' tests: seven documents, one of them a chat."""
    documents, failures = read_folder(HARBOUR, 20)
    assert not failures
    return world_of(documents)


TINY = {
    "2041-02-03|Ferry bought by the trust.md": (
        "# Ferry bought by the trust\n\n"
        "The Tollen Trust bought the ferry Blue Marten from Aldous Fenn in January 2041. "
        "Petra Lindqvar, the chair of the Tollen Trust, signed the contract in Saltwick."
    ),
    "2041-02-05|A crew for the ferry.md": (
        "Maud Okrent lives in Saltwick. Petra Lindqvar hired Maud Okrent on 4 February 2041."
    ),
    "2041-11-02|chat.chat": (
        "Maud Okrent: I sold the old nets to Aldous Fenn.\nAldous Fenn: They are torn!"
    ),
}


def golden_rows() -> list[dict[str, Any]]:
    """What the golden file holds: few wordings, a third of the sentences held out."""
    made = small(TINY).synthesise(
        train_wordings=1, held_out_wordings=1, held_out_fact_share=0.3, unanswerable_share=0.1
    )
    return list(made.qa_pairs.to_pylist())


def as_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """One row a line, so that a change shows as the lines it changes."""
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":  # python -m ragtuned_pipeline_tests.synthesis.corpora
    GOLDEN.write_text(as_text(golden_rows()), encoding="utf-8")
