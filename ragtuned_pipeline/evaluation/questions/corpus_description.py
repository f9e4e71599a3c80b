"""What a corpus is about as a whole, in a few sentences.

Global questions are made from it and judged by it. It is made by map and reduce, so that no corpus
is too large: batches of bounded length are described, then batches of descriptions, until one is
left. What is described are the reports on the top-level communities, which retell the whole graph;
where there are none, the text units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.evaluation.questions.quotes import flat
from ragtuned_pipeline.inference.calls import Call, Completed, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.tables import Failure

STAGE = "generated_queries"
_STEP = "corpus_description"
_PROMPTS = Path(__file__).parent / "prompts"
_BATCH = 24_000  # characters of one call, about 6000 tokens: within the context of any model
_LONGEST = 2_400  # characters of a description
_WORDS = 250  # asked for
_EXTRACT = 1_500  # characters of an extractive description
_FEWEST_WORDS = 6  # of a sentence that says something
# A sentence that starts so leans on the one before it.
_LEANS = re.compile(
    r"\W*(?:he|she|it|they|we|i|his|her|its|their|our|my|this|that|these|those|him|them|"
    r"but|and|so|yet|then|there)\b",
    re.IGNORECASE,
)


class CorpusDescription(BaseModel):
    """What a part of a corpus is about, or all of it."""

    description: Annotated[
        str,
        Field(max_length=20_000),
        BeforeValidator(lambda v: flat(v) if isinstance(v, str) else v),
    ]


@dataclass(frozen=True)
class Telling:
    """A report or a text unit: its id, the sentences that sum it up, and all that a teacher reads
    of it."""

    id: str
    summary: str
    text: str


def tellings(community_reports: pa.Table, text_units: pa.Table) -> list[Telling]:
    """Return the reports on the top-level communities, the most important first; where there are
    none the text units in their order."""
    if community_reports.num_rows:
        top = pc.min(community_reports["level"])
        rows = community_reports.filter(pc.field("level") == top).to_pylist()
        rows.sort(key=lambda row: (-(row["rank"] or 0.0), row["id"]))
        return [_of_report(row) for row in rows]
    units = text_units.select(["human_readable_id", "id", "text"]).to_pylist()
    units.sort(key=lambda row: (row["human_readable_id"], row["id"]))
    return [Telling(row["id"], row["text"], row["text"]) for row in units if row["text"].strip()]


def _of_report(row: dict[str, Any]) -> Telling:
    findings = [finding["summary"] or "" for finding in row["findings"] or ()]
    lines = [row["title"] or "", row["summary"] or "", *(f"- {each}" for each in findings if each)]
    return Telling(row["id"], row["summary"] or "", "\n".join(filter(None, lines)))


def extracted(texts: Sequence[str], limit: int = _EXTRACT) -> tuple[str, list[int]]:
    """Return sentences of `texts` within `limit` characters, and the places of the texts used.

    The first sentence of each text, then the second of each, until one no longer fits; told in the
    order of the texts. Short sentences, and those that lean on the one before ("He ..."), are
    passed over where the text has others.
    """
    chosen: dict[str, tuple[int, int]] = {}
    room = limit
    for turn, place, sentence in _in_turns(texts):
        if len(sentence) > room:
            if not chosen:  # the only sentence is longer than all that is wanted
                chosen[sentence[:limit].rsplit(" ", 1)[0]] = place, turn
            break
        if sentence not in chosen:
            chosen[sentence] = place, turn
            room -= len(sentence) + 1
    told = sorted(chosen, key=chosen.__getitem__)
    return " ".join(told), sorted({place for place, _ in chosen.values()})


def _in_turns(texts: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (turn, place of the text, its sentence)."""
    split: dict[int, list[str]] = {}
    left = list(range(len(texts)))
    turn = 0
    while left:
        for place in left:
            if place not in split:
                split[place] = _sentences(texts[place])
            if turn < len(split[place]):
                yield turn, place, split[place][turn]
        turn += 1
        left = [place for place in left if turn < len(split[place])]


def _sentences(text: str) -> list[str]:
    every = [flat(text[start:end]) for start, end in split_sentences(text)]
    whole = [s for s in every if not _LEANS.match(s) and len(s.split()) >= _FEWEST_WORDS]
    return whole or every


def described(told: Sequence[Telling], teacher: Teacher) -> tuple[str, list[Failure]]:
    """Return the teacher's description of what `told` tells, and the calls that failed.

    In the place of a description that failed stand sentences of what it was to be made from.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    texts, failures = [telling.text for telling in told], []
    prompt, level = "corpus_description_map", 1
    while level == 1 or len(texts) > 1:
        texts, failed = _round(texts, prompt, level, teacher)
        failures += failed
        prompt, level = "corpus_description_reduce", level + 1
    return (texts[0] if texts else ""), failures


def _round(
    texts: Sequence[str], prompt: str, level: int, teacher: Teacher
) -> tuple[list[str], list[Failure]]:
    """Describe `texts` batch by batch."""
    batches = {
        f"level {level} part {number}": batch for number, batch in enumerate(_batches(texts), 1)
    }
    made: dict[str, str] = {}
    failures: list[Failure] = []
    for outcome in teacher.complete(_call(item, parts, prompt) for item, parts in batches.items()):
        item = outcome.call.item_id
        if isinstance(outcome, Completed):
            made[item] = outcome.value.description
        else:
            reason = f"{_STEP}: {outcome.reason}; sentences of its parts stand in its place"
            failures.append(Failure(STAGE, item, reason, outcome.attempts))
            made[item], _ = extracted(batches[item])
    return [made[item] for item in batches], failures


def _call(item: str, parts: Sequence[str], prompt: str) -> Call[CorpusDescription]:
    messages = load_prompt(_PROMPTS / f"{prompt}.md.j2").messages(parts=list(parts), words=_WORDS)
    return Call(_STEP, item, messages, CorpusDescription, 1000, _fault)


def _fault(reply: CorpusDescription) -> str | None:
    if not reply.description:
        return "the description is empty"
    if len(reply.description) > _LONGEST:
        return f"the description is too long: write at most {_WORDS} words"
    return None


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield runs of `texts` of at most _BATCH characters; a longer text is cut at white space.

    A description has at most a tenth of that, so that every round leaves fewer than it found.
    """
    held: list[str] = []
    room = _BATCH
    for text in texts:
        for piece in _pieces(text):
            if held and len(piece) > room:
                yield held
                held, room = [], _BATCH
            held.append(piece)
            room -= len(piece)
    if held:
        yield held


def _pieces(text: str) -> Iterator[str]:
    while len(text) > _BATCH:
        cut = text.rfind(" ", 1, _BATCH) + 1 or _BATCH
        yield text[:cut].rstrip()
        text = text[cut:].lstrip()
    if text:
        yield text
