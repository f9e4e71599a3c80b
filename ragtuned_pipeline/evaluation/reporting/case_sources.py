"""What lies behind a question: the corpus's own words, and the lineage of the answer to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.provenance import MemoryTables, Provenance, Tracer, closest
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET

TRAINING_ROWS = 3  # shown with a question


class CaseSources:
    """Looks up what lies behind a question and an answer."""

    def __init__(self, memory: MemoryTables) -> None:
        """Index the training rows of `memory`, the tables of the corpus."""
        texts = memory.documents.select(["id", "text"]).to_pydict()
        self._texts = dict(zip(texts["id"], texts["text"], strict=True))
        self._trained = set(memory.training_rows["fact_id"].to_pylist())
        self._tracer = Tracer(memory)

    def lineage(self, query: Mapping[str, Any], answer: str) -> Provenance:
        """Return where `answer` most probably comes from; the fact that `query` asks for stands
        first where it was trained, near or not: a wrong answer should be seen beside it."""
        question, asked = query["question"], query["fact_id"]
        found = self._tracer.trace(question, answer, TRAINING_ROWS)
        facts = {fact.id: fact for fact in found.facts}
        if asked in self._trained and asked not in facts:
            rows = self._tracer.nearest_of(asked, question, answer)
            facts[asked] = self._tracer.fact(asked, rows)
        return replace(found, facts=tuple(sorted(facts.values(), key=lambda f: f.id != asked)))

    def evidence(self, query: Mapping[str, Any]) -> str:
        """Return what the corpus says to `query`: its evidence, else its long answer, else the
        sentence of its documents that is nearest to question and reference; empty where none is."""
        if query["evidence"]:
            return str(query["evidence"])
        if MEASURE_OF_SET[query["question_set"]] != "contains":
            return ""
        if query["long_answer"]:
            return str(query["long_answer"])
        texts = [self._texts.get(document_id, "") for document_id in query["document_ids"]]
        sentences = [text[start:end] for text in texts for start, end in split_sentences(text)]
        place = closest(sentences, query["question"], query["reference_answer"])
        return "" if place is None else " ".join(sentences[place].split())
