"""What "I", "she" and "it" stand for, as far as the sentences just before tell.

Light on purpose: the person last spoken of as a subject for he and she, the thing last spoken of
for it and they, the speaker for I. Whether a person is he or she is a vote over the whole corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.mentions import Tokens
from ragtuned_pipeline.graph.statements import Place

_SPEAKER = w.word_set("i me my mine myself")
_HE = w.word_set("he him his himself")
_SHE = w.word_set("she her hers herself")
_THING = w.word_set("it its itself they their them")
_OBJECTS = w.word_set("him her it them")
_MALE = w.word_set("mr sir lord king prince duke baron count father brother uncle")
_FEMALE = w.word_set("mrs ms miss dame lady queen princess duchess mother sister aunt")
_MALE_KIN = w.word_set(
    "father dad son brother uncle nephew grandfather grandad grandson husband widower "
    "stepfather stepson brother-in-law father-in-law son-in-law godfather great-uncle "
    "great-grandfather half-brother boyfriend fiancé chairman"
)
_FEMALE_KIN = w.word_set(
    "mother mum daughter sister aunt niece grandmother granddaughter wife widow stepmother "
    "stepdaughter sister-in-law mother-in-law daughter-in-law godmother great-aunt "
    "great-grandmother half-sister girlfriend fiancée chairwoman"
)
_ADDRESS_MARKS = frozenset((",", ".", "?", "!", '"', "“", "”", "-", "–", "—", ""))
_FIRST_PERSON_SHARE = 0.2  # of the sentences of a corpus that one person writes
_AGE = 3  # sentences for which a subject stays in mind


@dataclass(frozen=True)
class Reading:
    """One sentence: its document, tokens, named things and speaker (-1 for none).

    `head`: a header line, of which no pronoun speaks; `quoted`: it starts inside quotation marks.
    """

    document: int
    tokens: Tokens
    named: tuple[Place, ...]
    speaker: int
    head: bool
    quoted: bool


@dataclass
class _Mind:
    """What a reader has in mind: persons and things with the sentence that last named them."""

    persons: list[tuple[int, int]]
    things: list[tuple[int, int]]


def refer(
    readings: Sequence[Reading], types: Sequence[str], honorifics: Sequence[str]
) -> list[list[Place]]:
    """Return each sentence's places, those of pronouns among them, in the order of its words.

    Args:
        readings: the sentences of the corpus, each document's in order.
        types: the type of each thing.
        honorifics: the honorifics of each thing, joined by spaces.
    """
    votes = _gender_votes(readings, types, honorifics)
    writer = _writer(readings, types)
    mind = _Mind([], [])
    document = -1
    places = []
    for number, reading in enumerate(readings):
        if reading.document != document:
            mind, document = _Mind([], []), reading.document
        here = sorted([*reading.named, *_pronouns(reading, writer, types, votes, mind, number)])
        if not reading.head:
            _remember(mind, here, reading, types, number)
        places.append(here)
    return places


def _gender_votes(
    readings: Sequence[Reading], types: Sequence[str], honorifics: Sequence[str]
) -> dict[int, int]:
    """Return for each person the he votes less the she votes."""
    votes: Counter[int] = Counter()
    for thing, words in enumerate(honorifics):
        for word in words.lower().replace(".", "").split():
            votes[thing] += 5 * ((word in _MALE) - (word in _FEMALE))
    for reading in readings:
        for place in reading.named:
            before = reading.tokens.words[place.first - 1] if place.first else ""
            votes[place.thing] += 3 * ((before in _MALE_KIN) - (before in _FEMALE_KIN))
    last = (-1, -1)  # document, the only person of the sentence before
    for reading in readings:
        persons = {place.thing for place in reading.named if types[place.thing] == w.PERSON}
        if not persons and last[0] == reading.document and reading.tokens.words:
            first = reading.tokens.words[0].lower()
            votes[last[1]] += (first == "he") - (first == "she")
        last = (reading.document, min(persons)) if len(persons) == 1 else (-1, -1)
    return dict(votes)


def _with_quotes(reading: Reading) -> Iterator[tuple[str, bool]]:
    """Yield each word and whether it stands inside quotation marks."""
    quoted = reading.quoted
    for word in reading.tokens.words:
        quoted = inside_quotes(word, quoted)
        yield word, quoted


def inside_quotes(text: str, quoted: bool) -> bool:
    """Return whether what follows `text` is inside quotation marks, given whether it starts so."""
    for mark in text:
        if mark == '"':
            quoted = not quoted
        elif mark in "“”":
            quoted = mark == "“"
    return quoted


def _writer(readings: Sequence[Reading], types: Sequence[str]) -> int:
    """Return the person who says "I" all through a corpus without speakers, -1 if none is named.

    A writer's name stands where others address or sign it ("Dear Ann", "tell me, Ann,", "I am
    Ann") and, unlike all other names, hardly ever where it would be a subject.
    """
    if any(reading.speaker >= 0 for reading in readings):
        return -1
    personal = 0
    votes: Counter[int] = Counter()
    for reading in readings:
        marked = list(_with_quotes(reading))
        personal += any(word.lower() in _SPEAKER and not quoted for word, quoted in marked)
        for place in reading.named:
            if types[place.thing] == w.PERSON and not reading.head:
                votes[place.thing] += _writer_vote(reading.tokens, place, marked)
    if personal < _FIRST_PERSON_SHARE * len(readings) or not votes:
        return -1
    best = min(votes, key=lambda thing: (-votes[thing], thing))
    return best if votes[best] > 1 else -1


def _writer_vote(tokens: Tokens, place: Place, marked: Sequence[tuple[str, bool]]) -> int:
    words = [""] + [word.lower() for word, _ in marked] + [""]
    before, after = words[place.first], words[place.last + 1]
    quoted = marked[place.first][1]
    if before == "dear":
        return 2
    if not quoted and words[max(place.first - 1, 0) : place.first + 1] in (
        ["i", "am"],
        ["i", "'m"],
    ):
        return 2
    if quoted and before in _ADDRESS_MARKS and after in _ADDRESS_MARKS:
        return 1
    subject = place.last < len(tokens.tags) and tokens.tags[place.last].startswith(("VB", "MD"))
    return -int(subject and not quoted)


def _pronouns(
    reading: Reading,
    writer: int,
    types: Sequence[str],
    votes: dict[int, int],
    mind: _Mind,
    number: int,
) -> list[Place]:
    found: list[Place] = []
    done: set[str] = set()
    starts = {place.first: place.thing for place in reading.named}
    persons: list[int] = []  # named so far in the sentence
    others: list[int] = []
    speaker = reading.speaker if reading.speaker >= 0 else writer
    for i, (word, quoted) in enumerate(_with_quotes(reading)):
        if i in starts:
            (persons if types[starts[i]] == w.PERSON else others).append(starts[i])
        low = word.lower()
        thing = -1
        if low in _SPEAKER and not quoted:
            kind, thing = "speaker", speaker
        elif low in _HE or low in _SHE:
            kind = "person"
            if not persons or _is_object(reading.tokens, i):
                thing = _person(mind, votes, low in _HE, {speaker, *persons}, number)
        elif low in _THING:
            kind = "thing"
            if not others or _is_object(reading.tokens, i):
                thing = _thing(mind, others, number)
        else:
            continue
        if thing >= 0 and kind not in done:
            done.add(kind)
            found.append(Place(i, i + 1, thing, named=False))
    return found


def _is_object(tokens: Tokens, i: int) -> bool:
    """Tell whether the pronoun at `i` is an object, which its clause's subject cannot be."""
    if tokens.words[i].lower() not in _OBJECTS or i == 0:
        return False
    owns = i + 1 < len(tokens.tags) and tokens.tags[i + 1].startswith(("NN", "JJ", "CD"))
    if tokens.words[i].lower() == "her" and owns:
        return False
    return tokens.tags[i - 1].startswith("VB")


def _thing(mind: _Mind, here: Sequence[int], number: int) -> int:
    if not mind.things:
        return -1
    thing, at = mind.things[-1]
    return thing if number - at <= 1 and thing not in here else -1


def _person(mind: _Mind, votes: dict[int, int], male: bool, others: set[int], number: int) -> int:
    for thing, at in reversed(mind.persons):
        vote = votes.get(thing, 0)
        contrary = vote < 0 if male else vote > 0
        if thing not in others and not contrary and number - at <= _AGE:
            return thing
    return -1


def _remember(
    mind: _Mind, here: Sequence[Place], reading: Reading, types: Sequence[str], number: int
) -> None:
    """Move the things of a sentence to the front of the mind, its first ones foremost."""
    for place in reversed(here):
        known = mind.persons if types[place.thing] == w.PERSON else mind.things
        known[:] = [(thing, at) for thing, at in known[-8:] if thing != place.thing]
        known.append((place.thing, number))
