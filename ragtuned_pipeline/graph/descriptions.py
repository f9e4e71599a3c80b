"""What several text units tell of one thing, as one description of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.graph.lines import ended
from ragtuned_pipeline.inference.calls import Call, Completed, Failed, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.tables import Failure

CountTokens = Callable[[Sequence[str]], np.ndarray]

_PROMPT = Path(__file__).parent / "prompts" / "description.md.j2"
_LIMITS_A_CALL = 4  # so many times the limit are summarised at once: each round leaves a quarter
_WORDS_A_TOKEN = 0.6  # asked for; English has about 0.75


class Description(BaseModel):
    """A summary of descriptions."""

    description: Annotated[
        str,
        Field(max_length=20_000),
        BeforeValidator(lambda v: " ".join(v.split()) if isinstance(v, str) else v),
    ]


@dataclass(frozen=True)
class Told:
    """What is told of one thing: distinct texts in the order of the corpus.

    Attributes:
        id: of the entity or relationship.
        subject: its name, for the teacher.
    """

    id: str
    subject: str
    texts: tuple[str, ...]


def describe(
    things: Sequence[Told], teacher: Teacher, limit: int, count_tokens: CountTokens
) -> tuple[list[str], list[Failure]]:
    """Return a description a thing, and a failure, stage "description", a summary that failed.

    Texts are joined as they are; only what is longer than `limit` tokens is summarised, chunk by
    chunk and then the summaries, until one is left. Where a call fails, the joined texts are kept
    up to the last sentence within the limit.
    """
    joined = [" ".join(map(ended, thing.texts)) for thing in things]
    lengths = count_tokens(joined)
    long = {things[i].id: things[i] for i in np.flatnonzero(lengths > limit).tolist()}
    made, failed = _summaries(long, teacher, limit, count_tokens)
    descriptions = [
        made.get(thing.id) or (_cut(text, limit, count_tokens) if thing.id in failed else text)
        for thing, text in zip(things, joined, strict=True)
    ]
    failures = [
        Failure("description", thing, outcome.reason, outcome.attempts)
        for thing, outcome in failed.items()
    ]
    return descriptions, failures


@dataclass(frozen=True)
class _Chunk:
    thing: str
    number: int
    texts: tuple[str, ...]


def _summaries(
    things: Mapping[str, Told], teacher: Teacher, limit: int, count_tokens: CountTokens
) -> tuple[dict[str, str], dict[str, Failed[Description]]]:
    """Return the summaries, and for each thing without one the first call that failed."""
    open_texts = {name: thing.texts for name, thing in things.items()}
    made: dict[str, str] = {}
    failed: dict[str, Failed[Description]] = {}
    level = 0
    while open_texts:
        level += 1
        chunks = {
            f"{chunk.thing} {level}.{chunk.number}": chunk
            for chunk in _chunks(open_texts, _LIMITS_A_CALL * limit, count_tokens)
        }
        replies: dict[str, dict[int, str]] = {name: {} for name in open_texts}
        wrong: dict[str, dict[int, Failed[Description]]] = {}
        for outcome in teacher.complete(
            _call(item, things[chunk.thing].subject, chunk.texts, limit, count_tokens)
            for item, chunk in chunks.items()
        ):
            chunk = chunks[outcome.call.item_id]
            if isinstance(outcome, Completed):
                replies[chunk.thing][chunk.number] = outcome.value.description
            else:
                wrong.setdefault(chunk.thing, {})[chunk.number] = outcome
        failed |= {name: numbered[min(numbered)] for name, numbered in wrong.items()}
        done = {name: numbered for name, numbered in replies.items() if name not in wrong}
        made |= {name: numbered[0] for name, numbered in done.items() if len(numbered) == 1}
        open_texts = {
            name: tuple(numbered[i] for i in sorted(numbered))
            for name, numbered in done.items()
            if len(numbered) > 1
        }
    return made, failed


def _chunks(
    texts: Mapping[str, Sequence[str]], most: int, count_tokens: CountTokens
) -> Iterator[_Chunk]:
    """Yield each thing's texts in runs of at most `most` tokens, but of two at least.

    So each round has half as many texts left at most, whatever their lengths.
    """
    lengths = iter(count_tokens([text for each in texts.values() for text in each]).tolist())
    for thing, each in texts.items():
        number, total = 0, 0
        held: list[str] = []
        for text in each:
            length = next(lengths)
            if len(held) > 1 and total + length > most:
                yield _Chunk(thing, number, tuple(held))
                number, total, held = number + 1, 0, []
            held.append(text)
            total += length
        yield _Chunk(thing, number, tuple(held))


def _call(
    item: str, subject: str, texts: Sequence[str], limit: int, count_tokens: CountTokens
) -> Call[Description]:
    words = int(limit * _WORDS_A_TOKEN)
    messages = load_prompt(_PROMPT).messages(subject=subject, descriptions=list(texts), words=words)

    def check(reply: Description) -> str | None:
        if not reply.description:
            return "the description is empty"
        if (length := int(count_tokens([reply.description])[0])) > limit:
            return f"the description has {length} tokens: write at most {words} words"
        return None

    return Call("description", item, messages, Description, 2 * limit + 100, check)


def _cut(text: str, limit: int, count_tokens: CountTokens) -> str:
    """Return the sentences of `text` that fit `limit` tokens, or the words if not one does."""
    for ends in (
        [end for _, end in split_sentences(text)],
        [i for i, character in enumerate(text) if character == " "],
    ):
        parts = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        fit = int(np.searchsorted(np.cumsum(count_tokens(parts)), limit, side="right"))
        if fit:
            return text[: ends[fit - 1]]
    return ""
