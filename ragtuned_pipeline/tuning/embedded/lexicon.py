"""English words by part of speech, from the word lists that TextBlob bundles.

Two files, both free to use and read at build time only: Brill's lexicon (MIT licence), which gives
tags, and Norvig's counts over public domain books, which tell common words from rare ones.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path


def _word_lists() -> dict[str, tuple[str, ...]]:
    with (Path(__file__).parent / "words.toml").open("rb") as handle:
        lists: dict[str, str] = tomllib.load(handle)
    return {
        name: tuple(" ".join(part.split()) for part in text.split("," if "," in text else None))
        for name, text in lists.items()
    }


WORDS = _word_lists()  # of words.toml, by name

_STRESSED_LAST = {"permit", "refer", "prefer", "admit", "submit", "occur"}
_NO_BASE = {"be", "let", "get", "put", "don", "please", "thank", "happen", "ensue"}


@dataclass(frozen=True)
class Verb:
    """A verb in the forms that sentences and questions need."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str


@dataclass(frozen=True)
class Lexicon:
    """Words in a fixed order, common ones first; `counts` are Norvig's."""

    nouns: tuple[str, ...]
    plurals: tuple[str, ...]
    adjectives: tuple[str, ...]
    adverbs: tuple[str, ...]
    verbs: tuple[Verb, ...]
    favourite_verbs: tuple[Verb, ...]
    counts: dict[str, int]


@cache
def load() -> Lexicon:
    """Return the word lists. Reads two files of the installed textblob package."""
    import textblob

    folder = Path(textblob.__file__).parent / "en"
    counts = {word: int(number) for word, number in _pairs(folder / "en-spelling.txt")}
    tagged: dict[str, set[str]] = defaultdict(set)
    for word, tag in _pairs(folder / "en-lexicon.txt"):
        if word.isalpha() and word.islower() and word.isascii():
            tagged[tag].add(word)

    def common(tag: str, least: int) -> tuple[str, ...]:
        words = [w for w in tagged[tag] if counts.get(w, 0) >= least and 3 <= len(w) <= 12]
        return tuple(sorted(words, key=lambda w: (-counts[w], w)))

    irregular = {verb[0]: verb for verb in (text.split() for text in WORDS["irregular_verbs"])}
    past_words = tagged["VBD"] | tagged["VBN"]
    bases = [w for w in common("VB", 2) if w not in _NO_BASE]
    regular = [w for w in bases if w not in irregular and _past(w) in past_words]
    return Lexicon(
        nouns=common("NN", 4),
        plurals=common("NNS", 4),
        adjectives=common("JJ", 4),
        adverbs=tuple(w for w in common("RB", 4) if w.endswith("ly")),
        verbs=tuple(_verb(w, irregular) for w in [*regular, *sorted(set(irregular) - _NO_BASE)]),
        favourite_verbs=tuple(_verb(w, irregular) for w in WORDS["favourite_verbs"]),
        counts=counts,
    )


def _pairs(file: Path) -> list[tuple[str, str]]:
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return [(parts[0], parts[1]) for parts in lines if len(parts) == 2 and parts[0] != ";;;"]


def _verb(base: str, irregular: dict[str, list[str]]) -> Verb:
    past, participle = irregular[base][1:] if base in irregular else (_past(base), _past(base))
    return Verb(base, _third(base), past, participle, _gerund(base))


def _past(base: str) -> str:
    return _stem(base, "e", "i") + "ed"


def _gerund(base: str) -> str:
    return _stem(base, "e" if not base.endswith("ee") else "", "") + "ing"


def _third(base: str) -> str:
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return base + "es"
    return (base[:-1] + "ies") if _consonant_y(base) else base + "s"


def _stem(base: str, drop: str, y: str) -> str:
    """The base as it stands before a vowel: bak(e), carr(i), pla(n)n."""
    if drop and base.endswith(drop):
        return base[: -len(drop)]
    if y and _consonant_y(base):
        return base[:-1] + y
    vowels = [c in "aeiou" for c in base]
    doubles = len(base) >= 3 and vowels[-3:] == [False, True, False] and base[-1] not in "wxy"
    # Only one-syllable verbs and the few stressed on their last syllable double the letter.
    if doubles and (
        sum(vowels) == 1 or base in {"permit", "refer", "prefer", "admit", "submit", "occur"}
    ):
        return base + base[-1]
    return base


def _consonant_y(word: str) -> bool:
    return word.endswith("y") and word[-2:-1] not in set("aeiou")
