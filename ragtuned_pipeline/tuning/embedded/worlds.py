"""Invented worlds: people, places, organisations and things, and plain sentences about them.

Everything is drawn from a random generator and English word lists: no sentence is anyone's, and no
name is meant to be real. The sentences need not make sense; they must have the shapes of ordinary
prose, so that the model learns how English states facts, and its names must be of every kind, so
that it learns to read and repeat names it has never met.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from ragtuned_pipeline.tuning.embedded.lexicon import WORDS, Lexicon, Verb

# Sentence shapes. {x} draws a part (see Writer); [y] is there half of the time.
# P person, O organisation, L place, T named thing, N noun phrase, X any of P O L T.
_SHAPES = """
{P}[, {a_role},] {past} {N}[ in {L}][ {when}].
{P} {past} {T}[ {when}].
{P} {past} {N} with {P}[ in {L}].
{P} {past} {N} for {money}[ {when}].
{P} {past} {number} {plural}[ in {L}][ {when}].
{O}[, {the_noun} in {L},] {past} {N}[ {when}].
{O} {past} {T}[ {when}].
{O} {past} {number} {plural} in {L}[ {when}].
{O} {past} {N} from {O}[ for {money}].
{T} {past} {N}[ {when}].
{L} {past} {N}[ {when}].
{P} is the {role} of {O}.
{P} is {a_role} in {L}.
{P} was the {role} of {O} until {year}.
{P} has been the {role} of {O} since {year}.
{P} works as {a_role} for {O}[ in {L}].
{P} worked for {O} for {small} years.
{P} lives in {L}[ with {P}].
{P} grew up in {L}[ and {past} {N} there].
{P} was born in {L} in {year}.
{P} died {in_time}[ in {L}].
{P} moved from {L} to {L}[ {when}].
{P} married {P}[ in {L}][ {when}].
{P} is {P}'s {kin}.
{P}'s {kin} {P} {past} {N}[ {when}].
{P}'s {kin} is {a_role}.
{P}, {the_role} of {O}, {past} {N}[ in {L}][ {when}].
{P}, who {past} {N}, {past} {N}[ {when}].
{P}, {age}, {past} {N}[ {when}].
{O} is based in {L}.
{O} belongs to {P}.
{O} was founded in {year} by {P}.
{O}, founded by {P} in {year}, {past} {N}.
{O} employs {number} people[ in {L}].
{O} will {base} {N} in {L}[ by {year}].
{O} plans to {base} {N}[ in {L}].
{O} hired {P} as {role}[ {when}].
{O} and {O} {past} {N} together[ {when}].
{L} lies on {L}.
{L} is home to {number} people.
{L} has {small} {plural} and one {noun}.
{L} lies {number} {unit} north of {L}.
{T} is {number} {unit} long.
{T} cost {money}.
{T} opened in {L}[ {in_time}].
{T} belongs to {O}.
{T} stands in {L}[, beside {T}].
{T} was {part} by {P}[ {when}].
{T} was {part} in {year}[ by {O}].
{T} was named after {P}.
{T} is made of {material}.
The {noun} of {T} was {part} by {P}[ {when}].
The {adj} {noun} in {L} {past} {N}.
The {noun} at {O} has {number} {plural}.
The {role} of {O} is {P}.
The {role} of {L}, {P}, {past} {N}[ {when}].
In {year}, {P} {past} {N}[ in {L}].
In {month}, {O} {past} {N}[ with {O}].
On {date}, {P} {past} {N}[ in {L}].
Last {day}, {P} {past} {N}.
After {ing} {N}, {P} {past} {N}[ {when}].
Before that, {P} had {part} {N} in {L}.
When {P} {past} {N}, {P} {past} {N}.
Because {P} {past} {N}, {O} {past} {N}.
{P} {past} {N} because {O} {past} {N}.
{P} {past} {N}, but {P} {past} {N}.
{P} {past} {N} and {past} {N}.
{P} {past} {N} while {P} {past} {N}.
{P} {past} {N} so that {O} could {base} {N}.
{P} told {P} about {T}.
{P} told {O} that {P} {past} {N}.
{P} said that {O} would {base} {N}.
{P} asked {P} to {base} {N}.
{P} promised {money} to {O}.
{P} paid {money} for {N}.
{P} lent {P} {money}[ {when}].
{P} gave {N} to {P}[ {when}].
{P} sent {N} to {O}.
{P} taught {P} in {L}.
{P} wrote about {T}[ for {O}].
{P} found {N} under {N}[ in {L}].
{P} keeps {number} {plural}[ in {L}].
{P} keeps {N} at {O}.
{P} never {past} {N}.
{P} {adv} {past} {N}[ {when}].
{P} has {part} {N} since {year}.
{P} will {base} {N} {in_future}.
{P} {third} {N} every {day}.
{P} {third} {N} for {O}.
{P} and {P} {past} {N}[ in {L}][ {when}].
{P} and {P} met at {O}[ {in_time}].
{P} left {O} {in_time}[ and joined {O}].
{P} voted against {T}.
{N_cap} {past} {N}[ in {L}].
{N_cap} was {part} by {P}[ {when}].
It was {P} who {past} {N}.
"{Clause}," {P} said.
"{Clause}," said {P}, {the_role} of {O}.
""".strip().splitlines()

_FIRST_PERSON = """
I {past} {N}[ with {P}][ in {L}].
I {past} {N} for {money}.
I met {P} at {O}.
I {past} {T} {when}.
I owe {P} {money}.
I have {part} {N} since {year}.
We {past} {N} in {L}.
My {kin} {P} {past} {N}[ in {L}].
My {kin} is called {P}.
My {kin} {past} {N}[ {when}].
{P} gave me {N}.
{P} told me about {T}.
{P} and I {past} {N}[ {when}].
I bought {N} from {P} for {money}.
I work as {a_role} for {O}.
I live in {L}[ with {P}].
""".strip().splitlines()


_JOINING = (
    ", and",
    ", but",
    ", while",
    ";",
    ", so",
    " because",
    " after",
    ", where",
    ", which is why",
)


@dataclass(frozen=True)
class Name:
    """A named thing of a world; `kind` is GraphRAG's type."""

    text: str
    kind: str  # "person" | "organization" | "geo" | "event"


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the names of the world in it."""

    text: str
    names: tuple[Name, ...]
    speaker: str | None = None


@dataclass(frozen=True)
class Document:
    """Sentences under a title; `style` is "text", "chat" or "journal"."""

    title: str
    sentences: tuple[Sentence, ...]
    style: str

    def text(self) -> str:
        """Return the document as it would be written."""
        if self.style == "chat":
            lines = "\n".join(f"{s.speaker}: {s.text}" for s in self.sentences)
            return f"{self.title}\n{lines}"
        return f"{self.title}\n" + " ".join(s.text for s in self.sentences)


@dataclass(frozen=True)
class World:
    """A cast of names and what is written about them."""

    names: tuple[Name, ...]
    documents: tuple[Document, ...]

    def sentences_about(self, name: Name) -> list[Sentence]:
        """Return every sentence that mentions `name`, in order."""
        return [s for d in self.documents for s in d.sentences if name in s.names]


class Namer:
    """Draws names in a style of its own, so that worlds do not sound alike."""

    def __init__(self, rng: Random, lexicon: Lexicon) -> None:
        self._rng = rng
        self._lexicon = lexicon
        self._onsets = rng.sample(WORDS["onsets"], 14)
        self._vowels = rng.sample(WORDS["vowels"], 6)
        self._codas = rng.sample(WORDS["codas"], 8)
        self._plain = rng.random() * 0.5  # share of names that are English words

    def person(self) -> str:
        rng = self._rng
        first, last = self._word("first"), self._word("last")
        draw = rng.random()
        if draw < 0.08:
            return first
        if draw < 0.14:
            return f"{rng.choice(WORDS['titles'])} {last}"
        if draw < 0.18:
            return f"{first} {rng.choice('ABCDEFGHJKLMNPRSTW')}. {last}"
        if draw < 0.21:
            return f"{first} {rng.choice(['de', 'van', 'von', 'al', 'di', 'of'])} {last}"
        if draw < 0.24:
            return f"{first} {last}-{self._word('last')}"
        return f"{first} {last}"

    def place(self) -> str:
        rng = self._rng
        core = self._word("place")
        draw = rng.random()
        if draw < 0.15:
            return f"{rng.choice(WORDS['before_place'])} {core}"
        if draw < 0.45:
            return f"{core} {rng.choice(WORDS['after_place'])}"
        return core

    def organisation(self) -> str:
        rng = self._rng
        core = self._word(rng.choice(["last", "place"]))
        body = rng.choice(WORDS["organisation"])
        draw = rng.random()
        if draw < 0.1:
            return f"{core} & {self._word('last')}"
        if draw < 0.2:
            return f"the {core} {body} of {self._word('place')}"
        if draw < 0.3:
            return f"the {core} {self._common().capitalize()} {body}"
        if draw < 0.36:
            return "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVW") for _ in range(rng.choice([3, 4])))
        return f"{core} {body}"

    def thing(self) -> str:
        rng = self._rng
        core = self._word(rng.choice(["last", "place"]))
        draw = rng.random()
        if draw < 0.2:
            return f"the {self._adjective().capitalize()} {self._common().capitalize()}"
        if draw < 0.3:
            return f"the {self._common().capitalize()} of {self._word('place')}"
        if draw < 0.4:
            return f"the {core}"
        return f"{rng.choice(['the ', ''])}{core} {rng.choice(WORDS['thing'])}"

    def _word(self, kind: str) -> str:
        rng = self._rng
        if rng.random() < self._plain * (0.4 if kind == "first" else 1):
            return self._common().capitalize()
        parts = [
            self._syllable()
            for _ in range(rng.choice([1, 1, 2] if kind != "first" else [1, 1, 1, 2]))
        ]
        ending = (
            rng.choice(WORDS[f"{kind}_endings"]) if rng.random() < 0.6 else rng.choice(self._codas)
        )
        word = "".join(parts) + ending
        if len(word) < 4:
            word += rng.choice(self._vowels)
        return word[:12].capitalize()

    def _syllable(self) -> str:
        rng = self._rng
        coda = rng.choice(self._codas) if rng.random() < 0.45 else ""
        return rng.choice(self._onsets) + rng.choice(self._vowels) + coda

    def _common(self) -> str:
        return self._rng.choice(self._lexicon.nouns)

    def _adjective(self) -> str:
        return self._rng.choice(self._lexicon.adjectives)


class Writer:
    """Writes sentences about one cast."""

    def __init__(self, rng: Random, lexicon: Lexicon, cast: Sequence[Name]) -> None:
        self._rng = rng
        self._lexicon = lexicon
        self._cast = {
            kind: [n for n in cast if n.kind == kind]
            for kind in ("person", "organization", "geo", "event")
        }
        self._used: list[Name] = []
        self._parts: dict[str, Callable[[], str]] = {
            "P": lambda: self._name("person"),
            "O": lambda: self._name("organization"),
            "L": lambda: self._name("geo"),
            "T": lambda: self._name("event"),
            "N": self.noun_phrase,
            "N_cap": lambda: _capital(self.noun_phrase()),
            "past": lambda: self._verb().past,
            "part": lambda: self._verb().participle,
            "base": lambda: self._verb().base,
            "third": lambda: self._verb().third,
            "ing": lambda: self._verb().gerund,
            "noun": self._noun,
            "plural": lambda: self._pick(lexicon.plurals),
            "adj": lambda: self._pick(lexicon.adjectives),
            "adv": lambda: self._pick(lexicon.adverbs),
            "role": lambda: rng.choice(WORDS["roles"]),
            "a_role": lambda: _article(self._role()),
            "the_role": lambda: "the " + self._role(),
            "the_noun": lambda: "the " + self._pick(lexicon.adjectives) + " " + self._noun(),
            "kin": lambda: rng.choice(WORDS["kin"]),
            "age": lambda: str(rng.randint(17, 92)),
            "number": self.number,
            "small": lambda: rng.choice(WORDS["small_numbers"]),
            "unit": lambda: rng.choice(WORDS["units"]),
            "money": self.money,
            "material": lambda: rng.choice(WORDS["materials"]),
            "year": self.year,
            "month": lambda: rng.choice(WORDS["months"]),
            "day": lambda: rng.choice(WORDS["days"]),
            "date": self.date,
            "in_time": self._in_time,
            "in_future": lambda: rng.choice(
                [
                    f"in {self.year()}",
                    f"next {rng.choice(WORDS['months'])}",
                    f"on {rng.choice(WORDS['days'])}",
                ]
            ),
            "when": self._when,
            "Clause": self._clause,
        }

    def sentence(self, first_person: bool = False) -> Sentence:
        """Return one sentence."""
        rng = self._rng
        shapes = _FIRST_PERSON if first_person and rng.random() < 0.6 else _SHAPES
        self._used = []
        text = self._fill(rng.choice(shapes))
        if rng.random() < 0.3 and not text.startswith('"'):
            second = rng.choice(shapes)
            if second.startswith(("{P}", "{O}", "{L}", "{T}", "I ", "We ")):
                text = f"{text[:-1]}{rng.choice(_JOINING)} {self._fill(second)}"
        return Sentence(_capital(text), tuple(dict.fromkeys(self._used)))

    def noun_phrase(self) -> str:
        """Return a common noun phrase, now and then with a name in it."""
        rng, pick = self._rng, self._pick
        noun = self._noun()
        draw = rng.random()
        if draw < 0.25:
            return f"{_article(noun) if rng.random() < 0.5 else 'the ' + noun}"
        if draw < 0.5:
            adjective = pick(self._lexicon.adjectives)
            return (
                f"the {adjective} {noun}" if rng.random() < 0.5 else _article(f"{adjective} {noun}")
            )
        if draw < 0.6:
            return f"{rng.choice(WORDS['small_numbers'])} {pick(self._lexicon.plurals)}"
        if draw < 0.66:
            return f"the {rng.choice(WORDS['colours'])} {noun}"
        if draw < 0.72:
            return _article(f"{rng.choice(WORDS['materials'])} {noun}")
        if draw < 0.8:
            return f"the {noun} of {self._name(rng.choice(['geo', 'event', 'organization']))}"
        if draw < 0.86:
            return f"{self._name('person')}'s {noun}"
        if draw < 0.92:
            return f"the {pick(self._lexicon.nouns)} {noun}"
        return (
            f"the {rng.choice(['first', 'last', 'second', 'third', 'only', 'new', 'old'])} {noun}"
        )

    def number(self) -> str:
        """Return an amount in figures or words."""
        rng = self._rng
        draw = rng.random()
        if draw < 0.3:
            return rng.choice(WORDS["small_numbers"])
        if draw < 0.4:
            return f"{rng.randint(1, 99)}.{rng.randint(1, 9)}"
        if draw < 0.6:
            return f"{rng.randint(1, 400)},{rng.randint(0, 9)}00"
        return str(rng.randint(2, 999))

    def money(self) -> str:
        """Return a sum."""
        rng = self._rng
        scale = rng.choice(["", "", "", " million", " thousand"])
        amount = rng.randint(2, 999) if scale else self.number()
        return f"{amount}{scale} {rng.choice(WORDS['money'])}"

    def year(self) -> str:
        """Return a year."""
        return str(self._rng.choice([self._rng.randint(1890, 2060), self._rng.randint(2015, 2040)]))

    def date(self) -> str:
        """Return a day of the calendar."""
        rng = self._rng
        day, month = rng.randint(1, 28), rng.choice(WORDS["months"])
        draw = rng.random()
        if draw < 0.5:
            return f"{day} {month} {self.year()}"
        return f"{day} {month}" if draw < 0.8 else f"{month} {day}, {self.year()}"

    def _in_time(self) -> str:
        rng = self._rng
        return rng.choice(
            [
                f"in {self.year()}",
                f"in {rng.choice(WORDS['months'])} {self.year()}",
                f"on {self.date()}",
                f"in {rng.choice(['spring', 'summer', 'autumn', 'winter'])} {self.year()}",
            ]
        )

    def _when(self) -> str:
        rng = self._rng
        if rng.random() < 0.7:
            return self._in_time()
        return rng.choice(
            [
                f"on {rng.choice(WORDS['days'])}",
                f"in {rng.choice(WORDS['months'])}",
                "last year",
                f"{rng.choice(WORDS['small_numbers'])} years ago",
                f"at {rng.choice(['noon', 'midnight', 'dawn', 'seven', 'half past nine'])}",
            ]
        )

    def _clause(self) -> str:
        rng = self._rng
        subject = rng.choice(["we", "they", "you", "I", "nobody", "everyone", self.noun_phrase()])
        verb = self._verb()
        says = rng.choice(
            [verb.past, f"will {verb.base}", f"must {verb.base}", f"cannot {verb.base}"]
        )
        return _capital(f"{subject} {says} {self.noun_phrase()}")

    def _role(self) -> str:
        before = self._pick(self._lexicon.adjectives) + " " if self._rng.random() < 0.2 else ""
        return before + self._rng.choice(WORDS["roles"])

    def _noun(self) -> str:
        return self._pick(self._lexicon.nouns)

    def _verb(self) -> Verb:
        pool = self._lexicon.favourite_verbs if self._rng.random() < 0.7 else self._lexicon.verbs
        return self._rng.choice(pool)

    def _pick(self, words: Sequence[str]) -> str:
        """Common words more often: the draw is squared towards the front of the list."""
        return words[int(len(words) * self._rng.random() ** 1.5)]

    def _name(self, kind: str) -> str:
        left = [n for n in self._cast[kind] if n not in self._used] or self._cast[kind]
        name = left[int(len(left) * self._rng.random() ** 1.5)]
        self._used.append(name)
        return name.text

    def _fill(self, shape: str) -> str:
        kept = re.sub(r"\[([^\]]*)\]", lambda m: m[1] if self._rng.random() < 0.5 else "", shape)
        return re.sub(r"\{(\w+)\}", lambda m: self._parts[m[1]](), kept)


def make_world(rng: Random, lexicon: Lexicon, documents: int = 5) -> World:
    """Return a world of about twenty names, and short documents about them."""
    namer = Namer(rng, lexicon)
    sizes = (
        ("person", namer.person, rng.randint(4, 9)),
        ("organization", namer.organisation, rng.randint(2, 5)),
        ("geo", namer.place, rng.randint(2, 5)),
        ("event", namer.thing, rng.randint(2, 5)),
    )
    cast = tuple(
        dict.fromkeys(Name(draw(), kind) for kind, draw, count in sizes for _ in range(count))
    )
    writer = Writer(rng, lexicon, cast)
    return World(cast, tuple(_document(rng, writer, cast) for _ in range(documents)))


def _document(rng: Random, writer: Writer, cast: Sequence[Name]) -> Document:
    style = rng.choice(["text", "text", "chat", "journal"])
    people = [n.text for n in cast if n.kind == "person"]
    speakers = rng.sample(people, min(len(people), rng.randint(2, 3)))
    sentences = []
    for _ in range(rng.randint(4, 9)):
        sentence = writer.sentence(first_person=style != "text")
        speaker = rng.choice(speakers) if style == "chat" else None
        sentences.append(Sentence(sentence.text, sentence.names, speaker))
    titles = [
        _capital(writer.noun_phrase()).title(),
        f"{rng.choice(cast).text} and {writer.noun_phrase()}",
        f"Episode {rng.randint(1, 60)}: {writer.noun_phrase().title()}",
    ]
    title = writer.date() if style == "journal" else rng.choice(titles)
    return Document(_capital(title), tuple(sentences), style)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(words: str) -> str:
    return ("an " if words[:1] in "aeiou" else "a ") + words
