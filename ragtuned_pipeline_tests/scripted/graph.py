"""A scripted teacher's graph: a sample's gold, as far as the sentences in the prompt tell of it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

_SENTENCE = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)
_FIRST_PERSON = re.compile(r"\b(?:I|me|my|mine|myself)\b")
_PRONOUN = re.compile(r"\b(?:he|she|it|they|him|her|his|them|their|its)\b", re.IGNORECASE)
_TYPES = {"object": "specific object"}  # the gold's word and the settings'
_DESCRIPTION = 400  # characters
_MANY = 4  # relationships of a passage, of which the last is only gleaned


class GraphScript:
    """Answers the calls of the extraction as a good LLM would, from `gold_folder` and the prompt.

    An entity is found where a sentence holds its name or an alias. An alias that several things
    share stands for the one that is named in full in the same passage, else for none. Two things
    are related where the gold relates them and a sentence holds both, or holds one and a pronoun
    that may stand for the other, named in the sentence before; of many relationships one is missed
    at first. `writer` is meant by "I", "me" and "my" too.
    """

    def __init__(self, gold_folder: Path, writer: str | None = None) -> None:
        self._writer = writer
        self._things = _read(gold_folder / "entities.jsonl")
        self._types = {row["name"]: row["type"] for row in self._things}
        self._meanings: dict[str, set[str]] = defaultdict(set)
        for row in self._things:
            for name in (row["name"], *row["aliases"]):
                self._meanings[name].add(row["name"])
        longest = sorted(self._meanings, key=lambda name: (-len(name), name))
        self._any_name = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
        self._relations: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in _read(gold_folder / "relationships.jsonl"):
            self._relations[row["source"], row["target"]].append(row["relation"])

    def reply(self, name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the reply to a conversation, as the schema `name` has it."""
        first = next(m["content"] for m in messages if m["role"] == "user")
        match name:
            case "Extraction":
                entities, relationships, _ = self._graph(_sentences(first))
                return {"entities": entities, "relationships": relationships}
            case "Gleaning":
                _, _, missed = self._graph(_sentences(first))
                asked = sum(message["role"] == "assistant" for message in messages)
                return {"entities": [], "relationships": missed if asked == 1 else []}
            case "Claims":
                return {"claims": []}
            case "SameEntity":
                return self._same_entity(first)
            case "Description":
                words = int(re.findall(r"at most (\d+) words", first)[-1])
                told = " ".join(text for _, text in _sentences(first)).split()
                return {"description": " ".join(told[:words])}
        raise ValueError(f"no script for {name}")

    def _graph(
        self, sentences: Sequence[tuple[int, str]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the entities, the relationships, and those that only a gleaning finds."""
        named = self._named(sentences)
        lines = dict(sentences)
        places: dict[str, list[int]] = defaultdict(list)
        for number, things in named.items():
            for thing in things:
                places[thing].append(number)
        entities = [
            {
                "name": thing,
                "type": _TYPES.get(self._types[thing], self._types[thing]),
                "description": lines[numbers[0]][:_DESCRIPTION],
                "sentences": numbers,
            }
            for thing, numbers in sorted(places.items())
        ]
        stated: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, things in named.items():
            before = named.get(number - 1, set()) if _PRONOUN.search(lines[number]) else set()
            for a, b in combinations(sorted(things | before), 2):
                for pair in ((a, b), (b, a)):
                    if pair in self._relations and things & set(pair):
                        stated[pair].append(number)
        relationships = [
            {
                "source": source,
                "target": target,
                "description": f"{source} {self._relations[source, target][0]} {target}.",
                "strength": 7,
                "sentences": numbers,
            }
            for (source, target), numbers in sorted(stated.items())
        ]
        found = len(relationships) - (len(relationships) >= _MANY)
        return entities, relationships[:found], relationships[found:]

    def _named(self, sentences: Sequence[tuple[int, str]]) -> dict[int, set[str]]:
        """Return for each sentence the things that it names."""
        found = {number: self._any_name.findall(text) for number, text in sentences}
        if self._writer:
            for number, text in sentences:
                found[number] += [self._writer] if _FIRST_PERSON.search(text) else []
        sure = {
            thing
            for names in found.values()
            for name in names
            if len(self._meanings[name]) == 1
            for thing in self._meanings[name]
        }
        return {
            number: {
                thing
                for name in names
                for thing in self._meanings[name]
                if len(self._meanings[name] & sure) == 1 and thing in sure
            }
            for number, names in found.items()
        }

    def _same_entity(self, asked: str) -> dict[str, Any]:
        first, second = re.findall(r"^(?:First|Second): (.*) \([^()]*\)$", asked, re.MULTILINE)
        shared = self._meanings.get(first, set()) & self._meanings.get(second, set())
        same = len(shared) == 1
        reason = "Both are names of it." if same else "They are names of different things."
        return {"reason": reason, "same": same}


def _sentences(content: str) -> list[tuple[int, str]]:
    return [(int(number), text) for number, text in _SENTENCE.findall(content)]


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
