"""GraphRAG's global search: community reports mapped to scored points, and those to an answer.

Every batch of reports is read with the question (map); the points found, the highest scores first,
are read once more (reduce). Batches, scores and the order are GraphRAG's; see graph_contexts. A map
reply that cannot be read is a failure, and its batch has no point.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ragtuned_pipeline.evaluation.systems.graph_contexts import ReportBatch, report_batches
from ragtuned_pipeline.evaluation.systems.graphrag_local import LEAST_TOKENS, no_room, of_tokens
from ragtuned_pipeline.evaluation.systems.interface import (
    RESERVED_TOKENS,
    Answer,
    Answerer,
    Setup,
    SkippedSystem,
    combined,
    replies,
)
from ragtuned_pipeline.evaluation.systems.reader import UNKNOWN, Reader
from ragtuned_pipeline.evaluation.systems.tokens import Tokens, context_tokens
from ragtuned_pipeline.inference.backend import RawReply
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.inference.engine import ChatEngine, Message
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.inference.structured import ReplyInvalid, read_reply

_PROMPTS = Path(__file__).parent / "prompts"
_MAP, _REDUCE = _PROMPTS / "graphrag_map.md.j2", _PROMPTS / "graphrag_reduce.md.j2"
MAP_TOKENS = 1000  # of a map reply; GraphRAG asks for as many words
MAP_POINTS = 8  # asked for, so that a reply ends within its tokens
_POINT_CHARACTERS = 4000  # at most
_PROMPTS_AT_ONCE = 256  # in memory


class Point(BaseModel):
    """Something in the reports that helps to answer the question; a higher score helps more."""

    model_config = ConfigDict(strict=True, extra="forbid")

    description: Annotated[str, Field(min_length=1, max_length=_POINT_CHARACTERS)]
    score: Annotated[int, Field(ge=0, le=100)]


def _by_score(point: Point) -> int:
    """The key that sorts points, those of one score as they were found."""
    return -point.score


class Points(BaseModel):
    """A map reply."""

    model_config = ConfigDict(strict=True, extra="forbid")

    points: Annotated[list[Point], Field(max_length=100)]


def prepare(setup: Setup) -> Answerer | SkippedSystem:
    """Return global search with the base model, or in extractive form where the base model is the
    embedded one, which can neither read reports nor write points."""
    settings, tokens = setup.settings, Tokens(setup.base_model)
    most = settings.graphrag_context_tokens
    room = min(most, _map_room(setup, tokens)) if setup.follows_instructions else most
    if room < LEAST_TOKENS:
        return SkippedSystem(no_room(room))
    level = settings.graphrag_community_level
    batches = report_batches(setup.tables, level, room, settings.seed, tokens)
    if not batches:
        return SkippedSystem(f"The corpus's graph has no report of community level {level}.")
    cut = sum(batch.cut for batch in batches)
    reports = sum(len(batch.reports) for batch in batches)
    description = (
        f"GraphRAG's global search: the {reports:,} reports of community level {level} in "
        f"{len(batches):,} batches of at most {of_tokens(room, most)}"
        + (f", {cut:,} of the reports cut to that" if cut else "")
    )
    if setup.follows_instructions:
        description += ", mapped to points and reduced to an answer by the base model"
        return MapReduce(description, setup, setup.load_base(room), tokens, batches)
    description += (
        "; no model: points are the reports' sentences, scored by how much of the question they "
        "hold, and the best ones are the answer"
    )
    return ExtractiveMapReduce(description, setup, tokens, batches)


def _map_room(setup: Setup, tokens: Tokens) -> int:
    prompt = int(tokens.count([message["content"] for message in _map_prompt("", "")]).sum())
    return context_tokens(setup.base_model) - MAP_TOKENS - prompt - RESERVED_TOKENS


@dataclass(frozen=True)
class MapReduce:
    """The base model maps and reduces."""

    description: str
    setup: Setup
    engine: ChatEngine
    tokens: Tokens
    batches: Sequence[ReportBatch]

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        at_once = max(1, _PROMPTS_AT_ONCE // len(self.batches))
        return [
            answer
            for start in range(0, len(questions), at_once)
            for answer in self._answer(questions[start : start + at_once])
        ]

    def _answer(self, questions: Sequence[str]) -> Iterator[Answer]:
        mapped = [self._read(reply) for reply in self._map(questions)]
        count = len(self.batches)
        maps = [mapped[start : start + count] for start in range(0, len(mapped), count)]
        chosen = [self._chosen([points for points, _ in each]) for each in maps]
        reduced = iter(self._reduce(questions, chosen))
        ids = report_ids(self.setup, self.batches)
        for each, points in zip(maps, chosen, strict=True):
            costs = [answer for _, answer in each]
            if points:
                costs.append(next(reduced))
            yield combined(costs, costs[-1].text if points else UNKNOWN, ids)

    def _map(self, questions: Sequence[str]) -> list[Answer]:
        asked = [
            _map_prompt(batch.text, question) for question in questions for batch in self.batches
        ]
        return replies(self.engine, asked, MAP_TOKENS)

    def _read(self, reply: Answer) -> tuple[list[Point], Answer]:
        """Return a map reply's points, and what it cost and whether it could be read."""
        raw = RawReply(reply.text, "stop", None, reply.prompt_tokens, reply.completion_tokens)
        try:
            return read_reply(raw, Call("map", "", (), Points, MAP_TOKENS)).points, reply
        except ReplyInvalid as invalid:
            fault = f"a map reply cannot be read: {invalid.reason}"
            return [], replace(reply, faults=(fault,))

    def _chosen(self, points: Sequence[Sequence[Point]]) -> list[str]:
        """Return the points of the batches as the reduce prompt shows them: those of some use, by
        score and then by batch, as many as fit."""
        told = [
            f"Score {point.score}: {point.description}"
            for point in sorted((p for each in points for p in each if p.score), key=_by_score)
        ]
        prompt = int(self.tokens.count([_reduce_prompt([], "")])[0])
        room = min(self.setup.settings.graphrag_context_tokens, self.setup.room - prompt)
        lengths = self.tokens.count([f"{text}\n\n" for text in told])
        return told[: int(np.searchsorted(np.cumsum(lengths), room, side="right"))]

    def _reduce(self, questions: Sequence[str], points: Sequence[Sequence[str]]) -> list[Answer]:
        """Return the answers to those questions that there are points for."""
        asked = [
            self.setup.conversation(_reduce_prompt(each, question))
            for question, each in zip(questions, points, strict=True)
            if each
        ]
        return replies(self.engine, asked, self.setup.settings.max_answer_tokens)


class ExtractiveMapReduce:
    """Sentences of the reports are the points, and the best of them the answer.

    As many points a batch as a model is asked for; tokens and calls are counted as a model's would
    be in the reader's place.
    """

    def __init__(
        self, description: str, setup: Setup, tokens: Tokens, batches: Sequence[ReportBatch]
    ) -> None:
        self.description = description
        contents = setup.tables["community_reports"]["full_content"]
        self._texts = [contents.take(list(batch.reports)).to_pylist() for batch in batches]
        self._reader = Reader([text for texts in self._texts for text in texts])
        self._tokens = tokens
        self._most = setup.settings.max_answer_tokens
        self._ids = report_ids(setup, batches)
        prompts = [_map_prompt(batch.text, "") for batch in batches]
        self._map_tokens = tokens.count(["\n".join(m["content"] for m in p) for p in prompts])

    def answer(self, questions: Sequence[str]) -> list[Answer]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: str) -> Answer:
        started = time.perf_counter()
        mapped = [self._map(question, texts) for texts in self._texts]
        points = sorted({p.description: p for each in mapped for p in each}.values(), key=_by_score)
        sentences = [f"{point.description} " for point in points]
        fit = np.searchsorted(np.cumsum(self._tokens.count(sentences)), self._most, side="right")
        text = "".join(sentences[: max(1, int(fit))]).strip() or UNKNOWN
        text = self._tokens.cut(text, self._most)
        seconds = time.perf_counter() - started

        noted = [Points(points=each).model_dump_json() for each in mapped]
        asked, *written = self._tokens.count([question, *noted]).tolist()
        costs = [
            Answer("", int(prompt) + asked, reply, seconds / len(mapped))
            for prompt, reply in zip(self._map_tokens, written, strict=True)
        ]
        if points:
            read, said = self._tokens.count([_reduce_prompt(sentences, question), text]).tolist()
            costs.append(Answer("", read, said, 0.0))
        return combined(costs, text, self._ids)

    def _map(self, question: str, texts: Sequence[str]) -> list[Point]:
        scored = {s: round(100 * share) for s, share in self._reader.weigh(question, texts).items()}
        best = sorted((s for s in scored if scored[s]), key=lambda s: -scored[s])[:MAP_POINTS]
        return [Point(description=s[:_POINT_CHARACTERS], score=scored[s]) for s in best]


def report_ids(setup: Setup, batches: Sequence[ReportBatch]) -> tuple[str, ...]:
    """Return the ids of the reports that are read, in the order of the batches."""
    rows = [row for batch in batches for row in batch.reports]
    return tuple(setup.tables["community_reports"]["id"].take(rows).to_pylist())


def _map_prompt(reports: str, question: str) -> tuple[Message, ...]:
    return load_prompt(_MAP).messages(reports=reports, question=question, points=MAP_POINTS)


def _reduce_prompt(points: Sequence[str], question: str) -> str:
    """Return the question with the points before it, as Setup.conversation asks it."""
    messages = load_prompt(_REDUCE).messages(points="\n\n".join(points), question=question)
    return messages[0]["content"]
