"""What lies behind a question: the corpus's own words, and the training rows that teach it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.retrieval import Bm25Index, terms
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET

TRAINING_ROWS = 3  # shown with a question


@dataclass(frozen=True)
class TrainingRow:
    """A row of tuning: `same_fact` where it teaches the fact that is asked for, else it is one of
    those nearest to the question by their words."""

    prompt: str
    completion: str
    same_fact: bool


class CaseSources:
    """Looks up what lies behind a question."""

    def __init__(self, documents: pa.Table, training_rows: pa.Table) -> None:
        """Index the training rows.

        Args:
            documents: of the corpus; id and text are read.
            training_rows: what tuning has seen.
        """
        columns = documents.select(["id", "text"]).to_pydict()
        self._texts = dict(zip(columns["id"], columns["text"], strict=True))
        self._rows = training_rows.select(["fact_id", "prompt", "completion"]).to_pylist()
        self._of_fact: dict[str, list[int]] = defaultdict(list)
        for place, row in enumerate(self._rows):
            self._of_fact[row["fact_id"]].append(place)
        texts = [f"{row['prompt']} {row['completion']}" for row in self._rows]
        self._index = Bm25Index(texts) if texts else None

    def training_rows(self, query: Mapping[str, Any]) -> list[TrainingRow]:
        """Return the rows of the fact that `query` asks for, then the rows nearest to it."""
        of_fact = self._of_fact.get(query["fact_id"] or "", [])
        near = self._index.nearest(query["question"], 2 * TRAINING_ROWS) if self._index else []
        places = list(dict.fromkeys([*of_fact, *near]))[:TRAINING_ROWS]
        return [
            TrainingRow(
                self._rows[place]["prompt"], self._rows[place]["completion"], place in of_fact
            )
            for place in places
        ]

    def evidence(self, query: Mapping[str, Any]) -> str:
        """Return what the corpus says to `query`: its evidence, else its long answer, else the
        sentence of its documents that is nearest to question and reference; empty where none is."""
        if query["evidence"]:
            return str(query["evidence"])
        if MEASURE_OF_SET[query["question_set"]] != "contains":
            return ""
        if query["long_answer"]:
            return str(query["long_answer"])
        wanted = set(terms(f"{query['question']} {query['reference_answer']}"))
        gold = set(terms(query["reference_answer"]))
        best, sentence = (0, 0), ""
        for document_id in query["document_ids"]:
            text = self._texts.get(document_id, "")
            for start, end in split_sentences(text):
                words = set(terms(text[start:end]))
                shared = (len(words & gold), len(words & wanted))
                if shared > best:
                    best, sentence = shared, " ".join(text[start:end].split())
        return sentence
