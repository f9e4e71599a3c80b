"""What can be asked, before it is worded: one dataclass for all kinds of pair."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rapidfuzz.utils import default_process

from ragtuned_pipeline.ids import content_id, seeded_int
from ragtuned_pipeline.synthesis.forms import Style

LOCAL = "local"
ENTITY = "global_entity"
RELATIONSHIP = "global_relationship"
COMMUNITY = "global_community"
UNANSWERABLE = "unanswerable"
KINDS = (LOCAL, ENTITY, RELATIONSHIP, COMMUNITY, UNANSWERABLE)
REPLAY = "replay"  # not of the corpus: general questions, answered by the base model
TEACHER = "llm:"  # how the generator of a pair that a teacher made starts


@dataclass(frozen=True, slots=True)
class Links:
    """Where a fact comes from."""

    documents: tuple[str, ...] = ()
    text_units: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    relationships: tuple[str, ...] = ()
    communities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wording:
    """One way of asking, in full; `name` is that of its form, `drop` why it is not used."""

    question: str
    style: Style
    name: str
    drop: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that can be asked.

    Attributes:
        key: tells it from the other facts of its kind; part of its id.
        gold: the shortest string that a right answer contains.
        short, long: the answers to short and long forms.
        asked: for each core (see forms.Form.needs) the fields of one or more ways to fill it.
        subject: what every question must contain; empty where the core ensures it.
        draw: the forms are drawn by this key; facts that share it share their held-out forms.
        sentences: the normalised sentences that state it.
        importance: facts of a kind are ordered by it, highest first.
        drop: why it is not asked at all; None where it is.
        wordings: a teacher's ways of asking, the last ones to be held out; they take the place of
            the forms, which then ask the new wordings only.
        prompt_tokens, completion_tokens: of the calls that made it.
    """

    kind: str
    key: str
    gold: str
    short: str
    long: str
    asked: Mapping[str, tuple[Mapping[str, str], ...]]
    links: Links
    generator: str
    importance: float
    subject: str = ""
    draw: str = ""
    sentences: tuple[str, ...] = ()
    drop: str | None = None
    held_out: bool = False
    wordings: tuple[Wording, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", content_id("fact", self.kind, self.key))


def normalised(text: str) -> str:
    """Return `text` in lower case, letters and digits only, single spaces: for comparisons."""
    return " ".join(str(default_process(text)).split())


def is_held_out(seed: int, sentence: str, share: float) -> bool:
    """Say whether the facts of the normalised `sentence` are held out of tuning as a whole."""
    return seeded_int(seed, "held_out_fact", sentence) < share * 2**64


def telling_part(sentence: str, given: Iterable[str], most_words: int = 6) -> str:
    """Return the longest stretch of `sentence` that the question does not give away.

    Args:
        given: names that the question contains.
        most_words: the stretch is cut to so many words, at its start.
    """
    names = sorted({name for name in given if name}, key=lambda name: (-len(name), name))
    pattern = "|".join(re.escape(name) for name in names) or r"(?!)"
    parts = [part.strip(" ,;:.!?\"'“”’()-") for part in re.split(pattern, sentence)]
    best = max(parts, key=len) if parts else ""
    words = best.split()[:most_words]
    return " ".join(words).strip(" ,;:.!?\"'“”()") or sentence.strip()


def up_to(text: str, limit: int) -> str:
    """Return the leading sentences of `text` within `limit` characters, at least one of them."""
    from ragtuned_pipeline.corpus.sentences import split_sentences

    if len(text) <= limit:
        return text
    ends = [end for _, end in split_sentences(text)]
    fitting = [end for end in ends if end <= limit]
    return text[: fitting[-1] if fitting else ends[0]].rstrip()
