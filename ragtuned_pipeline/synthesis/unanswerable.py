"""Questions about names that the corpus does not know, and the refusals that answer them.

Fine-tuning on facts teaches a model to answer anything; a share of refusals about look-alike
names counters it (2405.05904, 2502.14502).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.settings import SynthesisSettings
from ragtuned_pipeline.synthesis.facts import (
    LOCAL,
    RELATIONSHIP,
    UNANSWERABLE,
    Fact,
    Links,
)
from ragtuned_pipeline.synthesis.forms import FACT_NEEDS, entity_fields
from ragtuned_pipeline.synthesis.sources import Names

GOLD = "I do not know"
REFUSALS = (
    "I do not know: nothing I remember mentions {name}.",
    "I do not know. The name {name} does not occur in what I remember.",
    "I do not know anything about {name}.",
)
_GENERATOR = "template:unanswerable@1"
_HELD_OUT_SHARE = 0.25  # of the absent names, asked in evaluation only
_MOST_LOOK_ALIKES = 6  # of one name
_PEERS = 8  # whose parts a name may borrow
_CONSONANTS, _VOWELS = "bdfgklmnprstv", "aeiou"


def unanswerable_facts(
    facts: Sequence[Fact], names: Names, corpus_text: str, settings: SynthesisSettings
) -> list[Fact]:
    """Return facts about absent names, `settings.unanswerable_share` of all facts then.

    Each takes the question of a real fact and puts a look-alike in the place of the entity's name;
    about every third asks for an overview of the absent name itself. Draws depend on a fact and its
    names alone: a name more in the corpus leaves nearly all of them as they are.
    """
    share = settings.unanswerable_share
    wanted = round(len(facts) * share / (1 - share))
    models = [
        fact
        for fact in facts
        if fact.drop is None
        and fact.kind in (LOCAL, RELATIONSHIP)
        and len(fact.links.entities) > 0
        and "source" not in fact.asked
    ]
    models.sort(key=lambda fact: (seeded_int(settings.seed, "unanswerable", fact.id), fact.id))
    absent_names = AbsentNames(names, corpus_text, settings.seed)
    made: dict[str, Fact] = {}
    used: set[str] = set()
    # A name gets its second look-alike where every name has had its first.
    for fact, turn in ((fact, turn) for turn in range(_MOST_LOOK_ALIKES) for fact in models):
        if len(made) >= wanted:
            break
        if fact.id in used:
            continue
        for entity in fact.links.entities:
            name = names.titles[entity]
            absent = absent_names.like(name, turn)
            if absent is None or absent in made:
                continue
            overview = seeded_int(settings.seed, "overview", absent) % 3 == 0
            about = _asked_about(fact, name, absent, names.kinds[name], overview)
            if about is not None:
                made[absent] = _refused(about, absent, settings.seed)
                used.add(fact.id)
                break
    return list(made.values())


class AbsentNames:
    """Names that look like those of the corpus and stand nowhere in it."""

    def __init__(self, names: Names, corpus_text: str, seed: int) -> None:
        self._names = names
        self._seed = seed
        self._text = corpus_text.casefold()
        # What holds no space stands in the text where it stands in one of these.
        self._words = "\n".join(sorted(set(self._text.split())))
        self._known: dict[str, list[str]] = {}
        # By type, on a ring (Karger et al. 1997): a name takes the peers that follow its own point,
        # so that a name more is a peer of a few others only.
        self._peers: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for title in names.titles.values():
            if " " in title:
                point = seeded_int(seed, "peer", title)
                self._peers[names.kinds[title]].append((point, title))
        for ring in self._peers.values():
            ring.sort()

    def like(self, name: str, turn: int) -> str | None:
        """Return the name like `name`, number `turn`, that stands nowhere in the corpus."""
        if name not in self._known:
            candidates = dict.fromkeys(self._look_alikes(name))
            absent = (one for one in candidates if not self._stands(one))
            self._known[name] = list(islice(absent, _MOST_LOOK_ALIKES))
        known = self._known[name]
        return known[turn] if turn < len(known) else None

    def _stands(self, name: str) -> bool:
        folded = name.casefold()
        if name in self._names.all:
            return True
        parts = folded.split()
        return all(part in self._words for part in parts) and (
            len(parts) == 1 or folded in self._text
        )

    def _look_alikes(self, name: str) -> Iterator[str]:
        """A known first part with another known last part, then one letter changed."""
        parts = name.split()
        draw = seeded_int(self._seed, "look-alike", name)
        if len(parts) > 1:
            ring = self._peers[self._names.kinds[name]]
            first = bisect_left(ring, (draw, ""))
            following = (ring[(first + step) % len(ring)][1] for step in range(len(ring)))
            for peer in islice((each for each in following if each != name), _PEERS):
                other = peer.split()
                yield " ".join([*parts[:-1], other[-1]])
                yield " ".join([other[0], *parts[1:]])
        for step in range(6):
            yield _one_letter_changed(name, draw + step)


def _one_letter_changed(name: str, draw: int) -> str:
    """Change one letter inside a word, a vowel to a vowel and a consonant to a consonant."""
    places = [
        i for i in range(1, len(name)) if name[i] in _CONSONANTS + _VOWELS and name[i - 1] != " "
    ]
    if not places:
        return name
    place = places[draw % len(places)]
    pool = _VOWELS if name[place] in _VOWELS else _CONSONANTS
    letter = pool[(pool.index(name[place]) + 1 + draw // 7 % (len(pool) - 1)) % len(pool)]
    return name[:place] + letter + name[place + 1 :]


def _asked_about(fact: Fact, name: str, absent: str, kind: str, overview: bool) -> Fact | None:
    """Return `fact` with `absent` for `name` in every question, or None where a core lacks it."""
    if overview:
        asked = {"entity": (entity_fields(absent, kind == "person"),)}
        return replace(fact, asked=asked, wordings=())
    for fields in fact.asked.values():
        for one in fields:
            if not any(name in text for text in one.values()):
                return None
    if "direct" in fact.asked:
        one = fact.asked["direct"][0]
        if not all(name in one[core] for core in FACT_NEEDS if core in one):
            return None
    renamed: dict[str, tuple[dict[str, str], ...]] = {
        core: tuple({k: text.replace(name, absent) for k, text in one.items()} for one in fields)
        for core, fields in fact.asked.items()
    }
    wordings = tuple(
        replace(wording, question=wording.question.replace(name, absent))
        for wording in fact.wordings
        if name in wording.question and wording.drop is None
    )
    if fact.wordings and not wordings:
        return None
    return replace(fact, asked=renamed, wordings=wordings)


def _refused(about: Fact, absent: str, seed: int) -> Fact:
    draw = seeded_int(seed, "refusal", absent)
    answer = REFUSALS[draw % len(REFUSALS)].format(name=absent)
    return replace(
        about,
        kind=UNANSWERABLE,
        key=absent,
        gold=GOLD,
        short=answer,
        long=answer,
        links=Links(),
        generator=_GENERATOR,
        importance=0.0,
        subject=absent,
        draw="",
        sentences=(),
        held_out=draw % 1000 < _HELD_OUT_SHARE * 1000,
        prompt_tokens=0,
        completion_tokens=0,
    )
