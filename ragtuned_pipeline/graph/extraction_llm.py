"""Entities and relationships as a teacher reads them off each text unit.

The teacher sees a unit's sentences numbered and names those that state what it extracts, so that
every row goes back to sentences of the corpus without the teacher copying any. All units are
extracted, then gleaned (asked again for what was missed) and, where settings.claims says so, read
for claims; then names are resolved (aliases.py), evidence is merged, and long descriptions are
summarised (descriptions.py).

A claim with an object becomes evidence of a relationship, one without becomes part of what is told
of its subject: GraphRAG's covariates have no table here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import BaseModel

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.aliases import Aliases, Embed, Occurrence, resolve_aliases
from ragtuned_pipeline.graph.descriptions import CountTokens, Told, describe
from ragtuned_pipeline.graph.extraction_replies import (
    Claims,
    Extraction,
    Findings,
    Gleaning,
    Mention,
    Passage,
    Reader,
    Statement,
    shares,
    votes,
)
from ragtuned_pipeline.graph.lines import (
    GraphTables,
    Unit,
    Units,
    degrees_of,
    in_corpus_order,
    lines_of,
    linked,
    without_units,
)
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.inference.calls import Call, Completed, Teacher
from ragtuned_pipeline.inference.engine import Message
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.settings import GraphSettings
from ragtuned_pipeline.tables import Failure

T = TypeVar("T", bound=BaseModel)

_PROMPTS = Path(__file__).parent / "prompts"
_REPLY_TOKENS = 4096  # a dense unit of 500 tokens gives about 2000


def extract_with_teacher(
    documents: pa.Table,
    base_text_units: pa.Table,
    teacher: Teacher,
    settings: GraphSettings,
    count_tokens: CountTokens,
    embed: Embed | None = None,
) -> GraphTables:
    """Return the graph of a corpus, as `extraction_offline.extract` does, read by a teacher.

    The same replies give the same tables whatever their order. A unit whose extraction failed, a
    gleaning or claims call that failed (the unit keeps what it has), what was dropped of a reply, a
    near tie that was not decided and a summary that failed are rows of failures: stages
    "extraction", "gleaning", "claims", "resolution" and "description".

    Args:
        documents: table `documents`.
        base_text_units: table `base_text_units` of the same documents.
        teacher: answers the calls; steps are named as the stages.
        settings: entity_types, gleanings, claims and max_description_tokens are read.
        count_tokens: of texts, int64 of shape (n,).
        embed: see `resolve_aliases`.
    """
    corpus = _Corpus(documents, base_text_units)
    found, failures = _findings(corpus, teacher, settings)
    occurrences = [
        Occurrence(each.name, each.type, each.description, corpus.units[number].document, number)
        for number, findings in found.items()
        for each in findings.mentions
    ]
    aliases = resolve_aliases(occurrences, teacher, embed)
    entities, relationships = _merged(corpus, found, aliases, settings)
    descriptions, undescribed = describe(
        [row.told for row in (*entities, *relationships)],
        teacher,
        settings.max_description_tokens,
        count_tokens,
    )
    rows = [
        row.columns | {"description": text}
        for row, text in zip((*entities, *relationships), descriptions, strict=True)
    ]
    entity_table = tables.table("entities", rows[: len(entities)])
    relationship_table = tables.table("relationships", rows[len(entities) :])
    text_units = linked(base_text_units, "entity_ids", entity_table)
    text_units = linked(text_units, "relationship_ids", relationship_table)
    failures += [*corpus.failures, *aliases.failures, *undescribed]
    return GraphTables(
        entity_table, relationship_table, text_units, tables.failures_table(failures)
    )


# --- reading ----------------------------------------------------------------------------------


class _Corpus:
    """The text units in the order of the corpus, and the lines of each."""

    def __init__(self, documents: pa.Table, base_text_units: pa.Table) -> None:
        self._rows = in_corpus_order(documents)
        self.places = Units(base_text_units, [row["id"] for row in self._rows])
        self.units = self.places.all()
        self.failures = without_units(self._rows, self.places)
        self.lines = [
            line for number, row in enumerate(self._rows) for line in lines_of(number, row)
        ]
        self.line_units = self.places.of(self.lines)
        self._held: list[list[int]] = [[] for _ in self.units]
        for line, units in enumerate(self.line_units):
            for unit in units:
                self._held[unit].append(line)

    def passage(self, number: int) -> Passage:
        """Return what is shown of a unit: whole sentences, of longer ones the part inside."""
        unit, held = self.units[number], self._held[number]
        row = self._rows[unit.document]
        return Passage(
            row["title"] or row["path"] or "untitled",
            row["creation_date"] or "",
            tuple(held),
            tuple(self._shown(line, unit, row["text"]) for line in held),
        )

    def _shown(self, number: int, unit: Unit, text: str) -> str:
        line = self.lines[number]
        words = line.text
        if line.start < unit.start or line.end > unit.end:
            words = " ".join(text[max(line.start, unit.start) : min(line.end, unit.end)].split())
        return f"{line.speaker}: {words}" if line.speaker else words

    def spoken(self) -> list[int]:
        """Return the numbers of the units that have a line to show."""
        return [number for number, held in enumerate(self._held) if held]


def _findings(
    corpus: _Corpus, teacher: Teacher, settings: GraphSettings
) -> tuple[dict[int, Findings], list[Failure]]:
    """Return what each unit's replies say, in the order of the corpus."""
    ask = _Asking(corpus, teacher, settings)
    first = ask.extraction()
    replies: dict[int, list[Extraction]] = {number: [reply] for number, reply in first.items()}
    open_units = list(replies)
    for round_ in range(settings.gleanings):
        gleaned = ask.gleaning(round_, {number: replies[number] for number in open_units})
        for number, reply in gleaned.items():
            replies[number].append(reply)
        # Nothing missed, or no answer: asking again would be paid for in vain.
        open_units = [n for n, reply in gleaned.items() if reply.entities or reply.relationships]
    claims = ask.claims(replies) if settings.claims else {}
    found = {}
    for number in replies:
        reader = Reader(corpus.passage(number), settings.entity_types)
        found[number] = reader.read(replies[number], claims.get(number))
        ask.failures += [
            Failure(
                stage,
                corpus.units[number].id,
                f"{len(about)} {reason} {', '.join(dict.fromkeys(about))}",
            )
            for (stage, reason), about in found[number].dropped.items()
        ]
    return found, ask.failures


class _Asking:
    """One pass of calls over the units at a time; `failures` are those of all passes."""

    def __init__(self, corpus: _Corpus, teacher: Teacher, settings: GraphSettings) -> None:
        self._corpus, self._teacher, self._settings = corpus, teacher, settings
        self._number = {unit.id: number for number, unit in enumerate(corpus.units)}
        self.failures: list[Failure] = []

    def extraction(self) -> dict[int, Extraction]:
        return self._complete("extraction", "", Extraction, self._corpus.spoken(), self._shown)

    def gleaning(
        self, round_: int, replies: Mapping[int, Sequence[Extraction]]
    ) -> dict[int, Gleaning]:
        """Ask what was missed, after the conversation so far."""
        (question,) = load_prompt(_PROMPTS / "gleaning.md.j2").messages(
            entity_types=list(self._settings.entity_types)
        )

        def messages(number: int) -> tuple[Message, ...]:
            conversation = list(self._shown(number))
            for reply in replies[number]:
                conversation += [
                    {"role": "assistant", "content": reply.model_dump_json()},
                    question,
                ]
            return tuple(conversation)

        later = f" {round_ + 1}" if round_ else ""
        return self._complete("gleaning", later, Gleaning, list(replies), messages)

    def claims(self, replies: Mapping[int, Sequence[Extraction]]) -> dict[int, Claims]:
        prompt = load_prompt(_PROMPTS / "claims.md.j2")
        names = {
            number: list(dict.fromkeys(e.name for reply in each for e in reply.entities if e.name))
            for number, each in replies.items()
        }

        def messages(number: int) -> tuple[Message, ...]:
            passage = self._corpus.passage(number)
            return prompt.messages(
                names=names[number],
                title=passage.title,
                date=passage.date,
                sentences=list(passage.shown),
            )

        named = [number for number in replies if names[number]]
        return self._complete("claims", "", Claims, named, messages)

    def _shown(self, number: int) -> tuple[Message, ...]:
        passage = self._corpus.passage(number)
        return load_prompt(_PROMPTS / "extraction.md.j2").messages(
            entity_types=list(self._settings.entity_types),
            title=passage.title,
            date=passage.date,
            sentences=list(passage.shown),
        )

    def _complete(
        self,
        step: str,
        later: str,
        schema: type[T],
        numbers: Iterable[int],
        messages: Callable[[int], tuple[Message, ...]],
    ) -> dict[int, T]:
        """Return the replies by unit, in the order of the corpus.

        `later` tells the calls of a further gleaning from those of the first.
        """

        def calls() -> Iterator[Call[T]]:
            for number in numbers:
                item = self._corpus.units[number].id + later
                yield Call(step, item, messages(number), schema, _REPLY_TOKENS)

        replies: dict[int, T] = {}
        for outcome in self._teacher.complete(calls()):
            unit = outcome.call.item_id.removesuffix(later)
            if isinstance(outcome, Completed):
                replies[self._number[unit]] = outcome.value
            else:
                self.failures.append(Failure(step, unit, outcome.reason, outcome.attempts))
        return dict(sorted(replies.items()))


# --- merging ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A row of a table without its description, and what that is made from."""

    columns: dict[str, Any]
    told: Told


def _merged(
    corpus: _Corpus,
    found: Mapping[int, Findings],
    aliases: Aliases,
    settings: GraphSettings,
) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of entities and of relationships, each piece of evidence counted once."""
    mentions: list[list[tuple[int, Mention]]] = [[] for _ in aliases.things]
    pairs: dict[tuple[int, int], list[Statement]] = defaultdict(list)
    owners = iter(aliases.owners)
    for number, findings in found.items():
        owner: dict[str, int] = {}
        for mention in findings.mentions:
            owner[mention.key] = next(owners)
            mentions[owner[mention.key]].append((number, mention))
        for statement in findings.statements:
            pair = owner[statement.source], owner[statement.target]
            if pair[0] != pair[1]:
                pairs[pair].append(statement)
    degrees = degrees_of(pairs, len(mentions))
    entities = [
        _entity(corpus, number, aliases, mentions[number], degrees[number], settings)
        for number in range(len(mentions))
    ]
    relationships = [
        _relationship(corpus, number, [entities[end] for end in pair], pairs[pair])
        for number, pair in enumerate(sorted(pairs))
    ]
    return entities, relationships


def _entity(
    corpus: _Corpus,
    number: int,
    aliases: Aliases,
    mentions: Sequence[tuple[int, Mention]],
    degree: int,
    settings: GraphSettings,
) -> _Row:
    thing = aliases.things[number]
    given = votes(mentions)
    order = {kind: i for i, kind in enumerate(settings.entity_types)}
    lines = sorted({line for _, mention in mentions for line in mention.lines})
    held = corpus.places.ids(
        [corpus.line_units[line] for line in lines]
        + [range(unit, unit + 1) for unit, _ in mentions]
    )
    # What only a relationship names is told of by its sentences.
    told = _distinct(mention.description for _, mention in mentions) or tuple(
        dict.fromkeys(corpus.lines[line].text for line in lines[: settings.description_sentences])
    )
    identity = content_id("ent", thing.title.casefold())
    columns: dict[str, Any] = {
        "id": identity,
        "human_readable_id": number,
        "title": thing.title,
        "type": min(given, key=lambda kind: (-given[kind], order.get(kind, len(order)))),
        "text_unit_ids": held,
        "frequency": len(held),
        "degree": degree,
        "aliases": list(thing.aliases),
        "type_votes": sorted(given.items()),
    }
    return _Row(columns, Told(identity, thing.title, told))


def _relationship(
    corpus: _Corpus, number: int, ends: Sequence[_Row], statements: Sequence[Statement]
) -> _Row:
    source, target = (end.columns for end in ends)
    lines, weight = shares(statements)
    identity = content_id("rel", str(source["id"]), str(target["id"]))
    sentences = list(dict.fromkeys(corpus.lines[line].text for line in lines))
    columns: dict[str, Any] = {
        "id": identity,
        "human_readable_id": number,
        "source": source["title"],
        "target": target["title"],
        "weight": weight,
        "combined_degree": source["degree"] + target["degree"],
        "text_unit_ids": corpus.places.ids(corpus.line_units[line] for line in lines),
        "source_id": source["id"],
        "target_id": target["id"],
        "sentences": sentences,
        "inverse": None,
    }
    # A reply without a description leaves the sentences to tell.
    told = _distinct(statement.description for statement in statements) or tuple(sentences)
    return _Row(columns, Told(identity, f"{source['title']} -> {target['title']}", told))


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are not empty, each once, whatever its case and last stop."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.rstrip(".").casefold(), text)
    first.pop("", None)
    return tuple(first.values())
