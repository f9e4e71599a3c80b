"""What the teacher's replies on a text unit look like, and how their mess is read.

Real models write types of their own, names in quotes or capitals, relationships between names that
they did not list, and numbers of sentences that there are not. What is put right and what is
dropped is told at each rule; what is dropped is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.graph.names import OTHER, clean_name, fold, name_key, names_in, nearest_type

_STRENGTHS = (1.0, 10.0)
_UNKNOWN_END = "neither listed nor in the text are"
_NOTHING = frozenset(("", "none", "null", "n a", "unknown", "nobody", "no one"))


def _one_line(value: Any) -> Any:
    """White space a model pads a field with, or fills it with, is no part of it."""
    return " ".join(value.split()) if isinstance(value, str) else "" if value is None else value


def _a_list(value: Any) -> Any:
    return [] if value is None else value


def _numbers(value: Any) -> Any:
    """Read [1, "2", "[3]"], "1, 3" and 2 as lists of numbers; what holds no digit is left out."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [
        int(number)
        for item in items
        if isinstance(item, int | float | str) and not isinstance(item, bool)
        for number in re.findall(r"(?<![\d.])\d{1,6}(?![\d])", str(item))
    ]


def _strength(value: Any) -> Any:
    """Read 7, "7" and "7/10"; what is no number is 1, the weight GraphRAG gives it; 1 to 10."""
    found = re.search(r"-?\d+(?:\.\d+)?", str(value))
    number = float(found[0]) if found else _STRENGTHS[0]
    return min(max(number, _STRENGTHS[0]), _STRENGTHS[1])


_Name = Annotated[str, Field(max_length=200), BeforeValidator(_one_line)]
_Text = Annotated[str, Field(max_length=1500), BeforeValidator(_one_line)]
_Sentences = Annotated[list[int], Field(max_length=200), BeforeValidator(_numbers)]


class ExtractedEntity(BaseModel):
    name: _Name
    type: _Name = ""
    description: _Text = ""
    sentences: _Sentences = []


class ExtractedRelationship(BaseModel):
    source: _Name
    target: _Name
    description: _Text = ""
    strength: Annotated[float, BeforeValidator(_strength)] = _STRENGTHS[0]
    sentences: _Sentences = []


class Extraction(BaseModel):
    """The entities and relationships of a text unit; sentences are numbered from 1."""

    entities: Annotated[list[ExtractedEntity], Field(max_length=150), BeforeValidator(_a_list)] = []
    relationships: Annotated[
        list[ExtractedRelationship], Field(max_length=200), BeforeValidator(_a_list)
    ] = []


class Gleaning(Extraction):
    """What was missed before."""


class ExtractedClaim(BaseModel):
    subject: _Name
    object: _Name = ""
    description: _Text
    sentences: _Sentences = []


class Claims(BaseModel):
    claims: Annotated[list[ExtractedClaim], Field(max_length=100), BeforeValidator(_a_list)] = []


@dataclass(frozen=True)
class Passage:
    """A text unit as it is shown: `lines` are the numbers of its lines in the corpus."""

    title: str
    date: str
    lines: tuple[int, ...]
    shown: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.shown)


@dataclass(frozen=True)
class Mention:
    """An entity as a reply gives it; `type` is None where only a relationship names it."""

    name: str
    type: str | None
    description: str
    lines: tuple[int, ...]

    @property
    def key(self) -> str:
        return name_key(self.name)


@dataclass(frozen=True)
class Statement:
    """A relationship as a reply gives it; `source` and `target` are keys of mentions."""

    source: str
    target: str
    description: str
    strength: float
    lines: tuple[int, ...]


@dataclass
class Findings:
    """What the replies on one text unit say.

    `dropped` is what is left out: (stage, reason) -> one word on each piece.
    """

    mentions: list[Mention] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    dropped: dict[tuple[str, str], list[str]] = field(default_factory=dict)


class Reader:
    """Reads the replies on one text unit."""

    def __init__(self, passage: Passage, types: Sequence[str]) -> None:
        self._passage = passage
        self._types = types
        self._folded = [fold(line) for line in passage.shown]
        self._lines: dict[str, set[int]] = {}  # of the entities found so far
        self._found = Findings()

    def read(self, replies: Iterable[Extraction], claims: Claims | None = None) -> Findings:
        """Return what `replies`, in their order, and `claims` say.

        A claim with an object is a relationship of the least strength, one without is part of what
        is told of its subject. An entity without a name, and what relates a name to itself, says
        nothing and is left out.
        """
        replies = list(replies)
        for reply in replies:
            for entity in reply.entities:
                self._entity(entity)
        for reply in replies:
            for related in reply.relationships:
                self._relationship(related)
        for claim in claims.claims if claims else ():
            self._claim(claim)
        return self._found

    def _entity(self, entity: ExtractedEntity) -> None:
        name = clean_name(entity.name, self._passage.text)
        if name:
            kind = nearest_type(entity.type, self._types)
            lines = self._cited(entity.sentences) or self._naming(name_key(name))
            self._mention(Mention(name, kind, entity.description, lines))

    def _relationship(self, related: ExtractedRelationship) -> None:
        source, target = self._end(related.source), self._end(related.target)
        if not (source and target):
            named = related.target if source else related.source
            self._drop("extraction", "relationships dropped, " + _UNKNOWN_END, named)
            return
        if source == target:
            return
        lines = self._cited(related.sentences) or self._stating(source, target)
        if not lines:
            self._drop("extraction", "relationships dropped, no sentence tells of", source)
            return
        self._found.statements.append(
            Statement(source, target, related.description, related.strength, lines)
        )

    def _claim(self, claim: ExtractedClaim) -> None:
        subject = self._end(claim.subject)
        if not subject:
            self._drop("claims", "claims dropped, " + _UNKNOWN_END, claim.subject)
            return
        about = fold(claim.object) not in _NOTHING and self._end(claim.object)
        lines = self._cited(claim.sentences) or self._naming(subject)
        if about and about != subject and lines:
            self._found.statements.append(
                Statement(subject, about, claim.description, _STRENGTHS[0], lines)
            )
        else:
            name = clean_name(claim.subject, self._passage.text)
            self._mention(Mention(name, None, claim.description, lines))

    def _end(self, name: str) -> str:
        """Return the key of an end; one that is not listed becomes an entity if the text holds it.

        "" where the text does not hold it either.
        """
        name = clean_name(name, self._passage.text)
        key = name_key(name) if name else ""
        if key and key not in self._lines:
            lines = self._naming(key)
            if not lines:
                return ""
            self._mention(Mention(name, None, "", lines))
        return key

    def _mention(self, mention: Mention) -> None:
        self._found.mentions.append(mention)
        self._lines.setdefault(mention.key, set()).update(mention.lines)

    def _drop(self, stage: str, reason: str, about: str) -> None:
        self._found.dropped.setdefault((stage, reason), []).append(repr(about))

    def _cited(self, numbers: Sequence[int]) -> tuple[int, ...]:
        count = len(self._passage.lines)
        return tuple(self._passage.lines[n - 1] for n in sorted(set(numbers)) if 1 <= n <= count)

    def _naming(self, key: str) -> tuple[int, ...]:
        return tuple(
            line
            for line, folded in zip(self._passage.lines, self._folded, strict=True)
            if names_in(folded, key)
        )

    def _stating(self, source: str, target: str) -> tuple[int, ...]:
        """Return the lines that name both ends, else either, else those cited for the ends."""
        first, second = set(self._naming(source)), set(self._naming(target))
        cited = self._lines[source] | self._lines[target]
        return tuple(sorted(first & second or first | second or cited))


def shares(statements: Iterable[Statement]) -> tuple[list[int], float]:
    """Return the lines that state a relationship, in order, and its weight.

    A statement's strength is spread evenly over its lines; a line that several statements cite, as
    in the overlap of two text units or in what was gleaned, counts once, with the largest share.
    """
    best: dict[int, float] = {}
    for statement in statements:
        for line in statement.lines:
            share = statement.strength / len(statement.lines)
            best[line] = max(best.get(line, 0.0), share)
    return sorted(best), round(math.fsum(best.values()), 6)


def votes(mentions: Iterable[tuple[int, Mention]]) -> dict[str, int]:
    """Return type -> the sentences for which a reply gave it; {"other": 1} where none gave any.

    Args:
        mentions: of one entity, each with the number of its text unit, which counts where a
            mention has no sentence.
    """
    seen: dict[str, set[tuple[bool, int]]] = {}
    for unit, mention in mentions:
        if mention.type is not None:
            places = {(True, line) for line in mention.lines} or {(False, unit)}
            seen.setdefault(mention.type, set()).update(places)
    return {kind: len(places) for kind, places in seen.items()} or {OTHER: 1}
