"""A fictional county's newspaper: any number of short articles about people who know each other.

Unlike copies of a sample, its articles share their names, so that the graph is one large component
with circles of acquaintance in it, and an edit touches a small part of something connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

_FIRST = "Ada Berit Corin Dorte Edvin Freya Gorm Hilde Ivo Jorun Karl Liv Mats Nora Odd Petra Rolf"
_FIRST += " Sigrid Tove Ulf Vera Wim Ylva Anselm Brita Clara Dag Elin Finn Greta Henrik Ingrid"
_ONSET = [
    "B",
    "Br",
    "D",
    "F",
    "G",
    "Gr",
    "H",
    "K",
    "Kr",
    "L",
    "M",
    "N",
    "P",
    "R",
    "S",
    "Sk",
    "St",
    "T",
    "Tr",
    "V",
]
_NUCLEUS = ["a", "e", "i", "o", "u", "ae", "ei"]
_CODA = ["ld", "lm", "nd", "ng", "rd", "rn", "sk", "st", "th", "vik"]
_PLACES = ["dale", "ford", "holm", "mere", "stead", "wick"]
_ORGANISATIONS = ["Dairy", "Boatyard", "Choir", "Library", "Museum", "School", "Brewery", "Trust"]
_THINGS = ["a lantern", "a map", "a bell", "a loom", "a clock", "a ferry", "a barrel organ"]
_CIRCLE = 14  # people
_STATEMENTS = (
    "{a} works for the {o} in {p}.",
    "{a} married {b} in {p} on {d}.",
    "{a} sold {t} to {b} for {n} crowns.",
    "{a} founded the {o} with {b}.",
    "{b} taught {a} to sail at {p}.",
    "{a} moved from {p} to {q} in {y}.",
    "The {o} bought {t} from {a} on {d}.",
    "{a} repaired {t} for the {o}.",
    "{a} met {b} at the {o} on {d}.",
    "{b} lent {a} {n} crowns for the house in {p}.",
    "{a} wrote a letter to {b} about the {o}.",
    "The {o} opened a hall in {p} on {d}.",
)
_MONTHS = ["January", "March", "April", "June", "July", "September", "October", "December"]


@dataclass(frozen=True)
class _Circle:
    people: list[str]
    places: list[str]
    organisations: list[str]


def write_county(folder: Path, articles: int, seed: int = 5, sentences: int = 9) -> int:
    """Write `articles` files of about `sentences` sentences to `folder`; return bytes written."""
    rng = Random(seed)
    circles = [_circle(rng) for _ in range(max(1, articles // 25))]
    written = 0
    for number in range(articles):
        own = circles[number % len(circles)]
        lines = [_statement(rng, own, rng.choice(circles)) for _ in range(sentences)]
        day = f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1961, 1989)}"
        text = f"# News from {own.places[0]}, number {number}\n\n{day}\n\n{' '.join(lines)}\n"
        (folder / f"{number:05}.md").write_text(text, encoding="utf-8")
        written += len(text)
    return written


def statement(seed: int) -> str:
    """Return one further sentence about people whom no article knows."""
    rng = Random(seed)
    return _statement(rng, _circle(rng), _circle(rng))


def _circle(rng: Random) -> _Circle:
    families = [_word(rng) + rng.choice(["sen", "berg", "lund", "by"]) for _ in range(5)]
    people = sorted(
        {f"{rng.choice(_FIRST.split())} {rng.choice(families)}" for _ in range(_CIRCLE)}
    )
    places = [_word(rng) + rng.choice(_PLACES) for _ in range(3)]
    kinds = rng.sample(_ORGANISATIONS, 3)
    return _Circle(people, places, [f"{_word(rng)} {kind}" for kind in kinds])


def _word(rng: Random) -> str:
    return rng.choice(_ONSET) + rng.choice(_NUCLEUS) + rng.choice(_CODA)


def _statement(rng: Random, own: _Circle, other: _Circle) -> str:
    """One sentence of a circle; one in eight names somebody of another circle."""
    a, b = rng.sample(own.people, 2)
    if rng.random() < 0.125:
        b = rng.choice(other.people)
    return rng.choice(_STATEMENTS).format(
        a=a,
        b=b,
        o=rng.choice(own.organisations),
        p=rng.choice(own.places),
        q=rng.choice(other.places),
        t=rng.choice(_THINGS),
        n=rng.randint(2, 999),
        d=f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1961, 1989)}",
        y=rng.randint(1961, 1989),
    )
