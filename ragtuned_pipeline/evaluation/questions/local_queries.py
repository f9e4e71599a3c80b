"""Local questions by a teacher: on one fact that a text unit states, with its answer and evidence.

They are drawn evenly over the text units, and over the entities and relationships that those tell
of. Three fifths ask about one of these; a fifth are reverse (they ask for the source of a
relationship from its target) and a fifth need two hops (two relationships that share an entity).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, Field

from ragtuned_pipeline.evaluation.metrics import tokens
from ragtuned_pipeline.evaluation.questions.corpus_description import STAGE
from ragtuned_pipeline.evaluation.questions.local_samples import (
    LOCAL,
    MULTI_HOP,
    REVERSE,
    Sample,
    Samples,
)
from ragtuned_pipeline.evaluation.questions.queries import query_row
from ragtuned_pipeline.evaluation.questions.query_draw import evenly
from ragtuned_pipeline.evaluation.questions.quotes import flat, stands_in
from ragtuned_pipeline.inference.calls import Call, Failed, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.synthesis import gates
from ragtuned_pipeline.synthesis.facts import normalised
from ragtuned_pipeline.synthesis.questions import gives_away
from ragtuned_pipeline.tables import Failure

SET = "generated_local"
SHARES: Mapping[str, float] = {LOCAL: 0.6, MULTI_HOP: 0.2, REVERSE: 0.2}
_STEP = "evaluation_question"
_DRAWS = 3  # for each question that is wanted, at most
_NEAR = 90.0  # rapidfuzz's ratio from which on two questions are nearly the same
_MOST_WORDS = 15  # of an answer; ten are asked for
_PROMPTS = Path(__file__).parent / "prompts"
_PROPER = re.compile(r"\b[A-Z]\w{3,}")


class EvaluationQuestion(BaseModel):
    """A question with its answer and what states it, or the decision that there is none."""

    thought: Annotated[str, Field(max_length=3000)]
    decline: bool
    question: Annotated[str, Field(max_length=400)]
    answer: Annotated[str, Field(max_length=300)]
    evidence: list[Annotated[str, Field(max_length=1500)]] = Field(max_length=8)


def questions_with_teacher(
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    teacher: Teacher,
    model: str,
    settings: EvaluationSettings,
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Return `settings.local_queries` rows of the queries table, or as many as can be made.

    Where the teacher declines, fails, or asks what is asked already, the next sample is drawn, up
    to three for each question that is wanted.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    samples = Samples(documents, text_units, entities, relationships, settings.seed)
    drawn = evenly(
        text_units["id"].to_pylist(),
        samples.of_unit,
        SHARES,
        key=lambda sample: sample.elements,
        once=False,
        seed=settings.seed,
    )
    wanted = settings.local_queries
    left = _DRAWS * wanted
    kept = _Kept()
    failures: list[Failure] = []
    declined = 0
    while batch := list(islice(drawn, min(wanted - len(kept.asked), left))):
        left -= len(batch)
        calls = (_call(sample, samples) for sample in batch)
        outcomes = {outcome.call.item_id: outcome for outcome in teacher.complete(calls)}
        for sample in batch:
            outcome = outcomes[sample.id]
            if isinstance(outcome, Failed):
                reason = f"{_STEP}: {outcome.reason}"
                failures.append(Failure(STAGE, sample.id, reason, outcome.attempts))
            elif outcome.value.decline:
                declined += 1
            else:
                kept.add(sample, outcome.value)
    made = len(kept.asked)
    counted = {
        f"{declined} samples that the teacher declined to ask about": declined,
        f"{kept.repeated} questions that nearly repeat others": kept.repeated,
        f"{made} of {wanted} questions: there is no more to ask about": wanted - made,
    }
    failures += [Failure(STAGE, SET, reason) for reason, count in counted.items() if count]
    return [_row(sample, reply, samples, model, settings) for sample, reply in kept.asked], failures


class _Kept:
    """The questions so far; one that nearly repeats another with the same answer is counted."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sample, EvaluationQuestion]] = []
        self.repeated = 0
        self._known: dict[str, list[str]] = defaultdict(list)

    def add(self, sample: Sample, reply: EvaluationQuestion) -> None:
        from rapidfuzz.fuzz import ratio
        from rapidfuzz.process import extractOne

        known = self._known[normalised(reply.answer)]
        plain = normalised(reply.question)
        if extractOne(plain, known, scorer=ratio, score_cutoff=_NEAR):
            self.repeated += 1
            return
        known.append(plain)
        self.asked.append((sample, reply))


def _row(
    sample: Sample,
    reply: EvaluationQuestion,
    samples: Samples,
    model: str,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    return query_row(
        question_set=SET,
        scope="local",
        kind=sample.kind,
        question=flat(reply.question),
        reference_answer=flat(reply.answer),
        document_ids=sorted({samples.document(unit) for unit in sample.units}),
        evidence="\n".join(dict.fromkeys(map(flat, reply.evidence))),
        source_ids=[*sample.units, *sample.entities, *sample.relationships],
        generator=model,
        seed=settings.seed,
    )


def _call(sample: Sample, samples: Samples) -> Call[EvaluationQuestion]:
    titles = [samples.title(entity) for entity in sample.entities]
    slots: Mapping[str, Any]
    if sample.kind == LOCAL:
        slots = {"subject": titles}
    elif sample.kind == REVERSE:
        slots = dict(zip(("source", "target"), titles, strict=True))
    else:
        slots = dict(zip(("start", "bridge", "end"), titles, strict=True))
    messages = load_prompt(_PROMPTS / f"{sample.kind}_question.md.j2").messages(
        about=list(filter(None, map(samples.about, sample.entities))),
        sources=[samples.written_in(unit) for unit in sample.units],
        evidence=[samples.text(unit) for unit in sample.units],
        **slots,
    )
    check = partial(_fault, sample, samples)
    return Call(_STEP, sample.id, messages, EvaluationQuestion, 800, check)


def _fault(sample: Sample, samples: Samples, reply: EvaluationQuestion) -> str | None:
    """Return why the reply cannot be used, or None.

    An answer counts as stated where it stands in a text unit as it is, where all of its words
    stand in the quoted evidence, or where it is the name of one of the entities in question.
    """
    if reply.decline:
        return None
    question, answer = flat(reply.question), flat(reply.answer)
    texts = [flat(samples.text(unit)) for unit in sample.units]
    if not normalised(question) or not normalised(answer):
        return "decline is false and question or answer is empty: ask and answer, or decline"
    if gates.speaks_of_its_source(question) or gates.is_undated(question):
        return "the question cannot be understood without the evidence: name subject and time"
    if gates.is_refusal(answer):
        return "the answer is a refusal: decline instead"
    if len(answer.split()) > _MOST_WORDS:
        return f"the answer has {len(answer.split())} words: write at most ten"
    if gives_away(question, answer):
        return "the question holds its answer"
    return (
        _fault_of_names(sample, samples, question, answer)
        or _fault_of_evidence(reply, texts)
        or _fault_of_answer(reply, texts, samples.names(*sample.entities))
    )


def _fault_of_names(sample: Sample, samples: Samples, question: str, answer: str) -> str | None:
    """Return which name the question or the answer lacks, or which the question gives away."""
    *others, last = (samples.names(entity) for entity in sample.entities)
    if sample.kind == LOCAL:
        named, hidden = last.union(*others), frozenset[str]()
    elif sample.kind == REVERSE:
        named, hidden = last, others[0]
    else:
        named, hidden = others
    if not gates.names_one_of(question, named):
        return f"the question must name {' or '.join(sorted(named))}"
    secret = hidden - named
    given = [name for name in sorted(secret) if gates.names_one_of(question, [name])]
    # A part of a name gives it away too, as "Okrent" does, but for what both names share.
    parts = _proper(" ".join(secret)) - _proper(" ".join(named))
    given += sorted(parts & _proper(question))
    if given:
        return f"the question must not name {given[0]}: say who or what it is instead"
    if sample.kind == REVERSE and not gates.names_one_of(answer, hidden):
        return f"the answer must be {samples.title(sample.entities[0])}: ask for it"
    return None


def _proper(text: str) -> set[str]:
    return {word.casefold() for word in _PROPER.findall(text)}


def _fault_of_evidence(reply: EvaluationQuestion, texts: list[str]) -> str | None:
    if not reply.evidence:
        return "evidence is empty: copy the sentence that states the answer"
    for quotation in reply.evidence:
        if not any(stands_in(quotation, text) for text in texts):
            return (
                f"{flat(quotation)[:200]!r} does not stand in the evidence word for word: copy it"
            )
    if not all(any(stands_in(q, text) for q in reply.evidence) for text in texts):
        return "one piece of evidence is not quoted: quote a sentence of each"
    return None


def _fault_of_answer(
    reply: EvaluationQuestion, texts: list[str], names: frozenset[str]
) -> str | None:
    answer = normalised(reply.answer)
    if answer in set(map(normalised, names)):
        return None
    if any(f" {answer} " in f" {normalised(text)} " for text in texts):
        return None
    quoted = " ".join(reply.evidence)
    # As they are written, or with numbers brought to one spelling: "forty-two", "42".
    if set(answer.split()) <= set(normalised(quoted).split()):
        return None
    unknown = [word for word in tokens(reply.answer) if word not in tokens(quoted)]
    return f"the evidence does not hold {unknown[0]!r} of the answer" if unknown else None
