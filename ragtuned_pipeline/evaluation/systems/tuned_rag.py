"""The tuned model with retrieval: the honest upper line, memory and sources together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragtuned_pipeline.evaluation.metrics import is_refusal
from ragtuned_pipeline.evaluation.systems.interface import (
    Answer,
    Answerer,
    ClosedBook,
    Setup,
    SkippedSystem,
    combined,
)
from ragtuned_pipeline.evaluation.systems.reading import (
    QUOTES,
    ExtractiveReader,
    GeneratingReader,
)
from ragtuned_pipeline.evaluation.systems.vanilla_rag import NO_TEXT, corpus_retriever


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return the tuned model with VanillaRAG's chunks before the question.

    The embedded base cannot read, nor can its adapter: there the tuned model is asked, and where it
    declines, the extractive reader is. That is a fallback, not reading.
    """
    if setup.adapter is None:
        return SkippedSystem("There is no adapter for this corpus yet; tune it first.")
    retriever = corpus_retriever(setup)
    if retriever is None:
        return NO_TEXT
    engine = setup.load_engine(setup.base_model, setup.adapter, setup.settings.batch_size)
    if setup.follows_instructions:
        found = f"{retriever.description}, read by the tuned model"
        return GeneratingReader(found, setup, retriever, engine)
    return TunedFirst(
        "the tuned model, which cannot read; where it declines, "
        f"{retriever.description}, read by {QUOTES}",
        ClosedBook("", setup, engine),
        ExtractiveReader("", setup, retriever),
    )


@dataclass(frozen=True)
class TunedFirst:
    """Answers by memory, and from the sources what memory declines."""

    description: str
    tuned: ClosedBook
    extractive: ExtractiveReader

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        answers = self.tuned.answer(questions)
        declined = [place for place, each in enumerate(answers) if is_refusal(each.text)]
        read = self.extractive.answer([questions[place] for place in declined])
        for place, second in zip(declined, read, strict=True):
            parts = answers[place], second
            answers[place] = combined(parts, second.text, second.context_ids)
        return answers
