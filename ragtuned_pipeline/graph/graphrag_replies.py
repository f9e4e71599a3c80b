"""Replies in the tuple format that GraphRAG and its kin ask for.

A well formed one reads ("entity"<|>NAME<|>TYPE<|>DESCRIPTION)##("relationship"<|>SOURCE<|>TARGET
<|>DESCRIPTION<|>WEIGHT)<|COMPLETE|>. Real ones lack end markers, quotes and parentheses, number
their records, put headings and code fences between them, and spell delimiters in their own way.
So a record is found by how it begins, and goes on to where the next one begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_QUOTES = "\"'“”‘’`*"
# "<|>" and its misspellings: "|>", "</|>", "<||>", "<|#|>", "<|"; a tab; LightRAG's older "<SEP>".
_DELIMITER = re.compile(r"\s*(?:<\s*/?\s*\|[|#]*\s*/?>|<SEP>|<\||\|>|\t+)\s*", re.IGNORECASE)
# A quoted field's end and the next one's beginning, where a tuple is written as in a program.
_PLAIN_DELIMITER = re.compile(r"(?<=[\"”'’])\s*[,;|]\s*|\s*\|\s*")
_MARKER = re.compile(r"<\s*\|?\s*/?\s*(?:complete[d]?|end[a-z_]*|im_end)\s*\|?\s*>", re.IGNORECASE)
# With a plain delimiter the parenthesis must be there: prose holds 'entity", "' as well.
_START = re.compile(
    rf"\(?\s*[{_QUOTES}]*(?<!\w)(?P<kind>entity|relationship|relation)[{_QUOTES}]*"
    rf"{_DELIMITER.pattern}"
    rf"|\(\s*[{_QUOTES}]*(?P<plain>entity|relationship|relation)[{_QUOTES}]*\s*[,;|]\s*",
    re.IGNORECASE,
)
_CLOSED = re.compile(rf"([{_QUOTES}\d.]\s*\))\s*(?:\n|##).*", re.DOTALL)
_NEXT_LINE = re.compile(r"\s*(?:##|\n\s*(?:\*\*|```|#|[-•]|\(?\d+[.)])).*", re.DOTALL)
_WEIGHT = re.compile(
    r"(?:(?:relationship[_ ])?(?:weight|strength|score)\s*[:=]?\s*)?"
    r"(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?[\s.)]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class EntityRecord:
    """An entity as a reply gives it; `type` and `description` may be empty."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class RelationshipRecord:
    """A relationship as a reply gives it; `weight` is None where it has none that is a number."""

    source: str
    target: str
    description: str
    weight: float | None


@dataclass(frozen=True)
class Records:
    """The records of a reply in its order, duplicates included."""

    entities: tuple[EntityRecord, ...]
    relationships: tuple[RelationshipRecord, ...]


def read_graphrag_reply(text: str) -> Records:
    """Return all records in `text`; a record without a name, or cut off before its end, is none.

    An end marker only ends a record: what was gleaned afterwards often follows without another
    separator.
    """
    text = _MARKER.sub("\n##\n", text)
    starts = list(_START.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    entities: list[EntityRecord] = []
    relationships: list[RelationshipRecord] = []
    for match, end in zip(starts, ends, strict=False):
        fields = _fields(text[match.end() : end])
        if (match["kind"] or match["plain"]).lower() == "entity":
            entities += _entity(fields)
        else:
            relationships += _relationship(fields)
    return Records(tuple(entities), tuple(relationships))


def _fields(body: str) -> list[str]:
    body = _NEXT_LINE.sub("", _CLOSED.sub(r"\1", body)).rstrip(" \n\t,;")
    while body.endswith(")") and body.count(")") > body.count("("):
        body = body[:-1].rstrip()
    delimiter = _DELIMITER if _DELIMITER.search(body) else _PLAIN_DELIMITER
    return [" ".join(field.strip(f" \n\t{_QUOTES}").split()) for field in delimiter.split(body)]


def _entity(fields: Sequence[str]) -> list[EntityRecord]:
    if len(fields) < 2 or not fields[0]:
        return []
    return [EntityRecord(fields[0], fields[1], " ".join(fields[2:]))]


def _relationship(fields: Sequence[str]) -> list[RelationshipRecord]:
    if len(fields) < 3 or not (fields[0] and fields[1]):
        return []
    weight = _WEIGHT.fullmatch(fields[-1])
    told = fields[2 : -1 if weight else None]
    return [
        RelationshipRecord(
            fields[0], fields[1], " ".join(told), float(weight[1]) if weight else None
        )
    ]
