"""Where names stand in the corpus's sentences, and what the words around them say of their kind.

A capital letter proves little where a sentence starts, and much elsewhere; so each word's capitals
are first counted over the whole corpus (`Evidence`), and only then are names read off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from unicodedata import category

from ragtuned_pipeline.graph import words as w

_TOKEN = re.compile(
    r"(?P<initials>(?:[A-Z]\.){2,}|[A-Z]\.(?=\s[A-Z]))"
    r"|(?P<short>(?:Mr|Mrs|Ms|Mx|Dr|Prof|St|Rev|Capt|Col|Gen|Lt|Sgt|Cpl|Hon|Jr|Sr|Mt|Ltd|Co|Inc)\.)"
    r"|(?P<number>[$€£]?\d+(?:[.,:/-]\d+)*(?:st|nd|rd|th|s|%)?)"
    r"|(?P<word>[^\W\d_]+(?:[-'’&][^\W\d_]+)*)"
    r"|(?P<other>\S)"
)
_CONTRACTION = re.compile(r"(?i)(?:n['’]t|['’](?:s|m|re|ve|ll|d|em))$")
_OPENERS = frozenset("\"“‘'«([—–-:*_#>|•;…!?")
_QUOTES = frozenset((("*", "*"), ("_", "_"), ('"', '"'), ("“", "”"), ("‘", "’"), ("'", "'")))
_PARTNERS = w.word_set("sons daughters co company partners associates brothers sisters")
_ADDRESS = w.word_set("Mr Mr. Mrs Mrs. Ms Ms. Miss Dr Dr. Prof Prof.")
_PERSON_MONTHS = w.word_set("April May June August")
_BEFORE_DATES = w.word_set("in on of last this next by since until")
_TITLE_WORDS = w.word_set("for in on at to with from by under over and")
_AT = w.word_set("at in into to from outside near by")
_ACRONYM = 5  # letters of the longest acronym
_OPENS = 3  # names, in front of which a word only opens sentences
_HEADING_WORDS = 4  # fewer capitalised words than this make no headline


class Tokens(NamedTuple):
    """One sentence's tokens: parallel lists; starts and ends are offsets in the sentence."""

    words: list[str]
    tags: list[str]
    starts: list[int]
    ends: list[int]


class Mention(NamedTuple):
    """A name in a sentence.

    `first` and `last` are token indices, `last` exclusive, article and honorific outside;
    `definite`: "the" stands before it and belongs to it; `weak`: a plain English word that only
    its capital lifts ("the Trust"), a name only if it is short for one.
    """

    first: int
    last: int
    name: str
    honorific: str
    definite: bool
    weak: bool
    votes: tuple[tuple[str, int], ...]


def tokenise(text: str) -> Tokens:
    """Return the sentence's tokens, tagged; what an apostrophe adds is a token of its own."""
    found: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def add(start: int, end: int) -> None:
        found.append(text[start:end].replace("’", "'"))
        starts.append(start)
        ends.append(end)

    for match in _TOKEN.finditer(text):
        start, end = match.span()
        cut = _CONTRACTION.search(match.group()) if match.lastgroup == "word" else None
        if cut and cut.start():
            add(start, start + cut.start())
            add(start + cut.start(), end)
        else:
            add(start, end)
    return Tokens(found, w.tag(found), starts, ends)


@dataclass
class Evidence:
    """How often the corpus writes each word capitalised inside sentences, and in lower case."""

    inside: Counter[str] = field(default_factory=Counter)
    lower: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)  # capitalised sequences inside sentences
    joined: Counter[tuple[str, str]] = field(default_factory=Counter)  # "A and B", A inside
    alone: Counter[str] = field(default_factory=Counter)  # not followed by "'s"
    houses: Counter[str] = field(default_factory=Counter)  # "at Quillon's": shops and homes
    openings: dict[str, set[str]] = field(default_factory=dict)  # what follows a first word

    @classmethod
    def of(cls, sentences: Iterable[Tokens], speakers: Iterable[str]) -> Evidence:
        """Count over distinct sentences; a speaker's name counts as seen inside one."""
        self = cls()
        for tokens in sentences:
            self._count(tokens)
        for speaker in sorted(set(speakers)):
            name = speaker.split()
            self.runs[speaker] += 2
            self.inside.update(part for part in name if part[:1].isupper())
        return self

    def _count(self, tokens: Tokens) -> None:
        run: list[str] = []
        if is_headline(tokens):
            return
        for i, word in enumerate(tokens.words):
            if _capital(word):
                if tokens.words[i + 1 : i + 2] != ["'s"]:
                    self.alone[word] += 1
                elif (
                    i and tokens.words[i - 1].lower() in _AT and _ends_in_possessive(tokens, i + 1)
                ):
                    self.houses[word] += 1
            if _capital(word) and not starts_sentence(tokens, i):
                self.inside[word] += 1
                run.append(word)
                if len(run) == 1 and tokens.words[i + 1 : i + 2] == ["and"]:
                    self.joined[word, "".join(tokens.words[i + 2 : i + 3])] += 1
                continue
            if run:
                self.runs[" ".join(run)] += 1
                run = []
            if word[:1].islower():
                self.lower[word] += 1
        if run:
            self.runs[" ".join(run)] += 1
        if len(tokens.words) > 1 and _capital(tokens.words[0]) and _capital(tokens.words[1]):
            self.openings.setdefault(tokens.words[0], set()).add(tokens.words[1])

    def only_opens(self, word: str) -> bool:
        """Tell whether `word` only starts sentences, in front of several names ("Hiya Ann!")."""
        if self.inside[word] or word.rstrip(".").lower() in w.HONORIFICS:
            return False
        return sum(self.runs[name] > 0 for name in self.openings.get(word, ())) >= _OPENS

    def is_house(self, word: str) -> bool:
        """Tell whether "'s" is part of the name: a shop's, whose owner is not spoken of."""
        return self.houses[word] > self.alone[word]

    def is_name(self, word: str) -> bool:
        """Tell whether `word`, capitalised, is a name wherever it stands."""
        low = word.lower()
        if low in w.FUNCTION_WORDS or low in w.CALENDAR:
            return False
        if low in w.FAMILY_NAMES:
            return self.inside[word] > 0
        if w.is_common(word):
            return self.inside[word] > 2 * self.lower[low]
        if self.inside[word]:
            return self.inside[word] >= self.lower[low]
        return self.lower[low] == 0 and self.lower[word.lower() + "s"] == 0


def _capital(word: str) -> bool:
    """Tell whether a capital may mark a name; words shouted in capitals are none."""
    if not word[0].isupper() or word == "I" or w.is_interjection(word):
        return False
    return not (len(word) > _ACRONYM and word.isupper())


def starts_sentence(tokens: Tokens, i: int) -> bool:
    """Tell whether a capital at token `i` may be due to its place."""
    before = tokens.words[i - 1]
    return (
        i == 0
        or before[0] in _OPENERS
        or before in {".", "..."}
        or category(before[0]) == "So"  # a smiley
        or w.is_interjection(before)
    )


def is_headline(tokens: Tokens) -> bool:
    """Tell whether the sentence is written in title case, so that capitals prove nothing."""
    if tokens.words and tokens.words[-1] in {".", "!", "?"}:
        return False
    long = [word for word in tokens.words if len(word) > 3 and word[0].isalpha()]
    return len(long) >= _HEADING_WORDS and sum(x[0].isupper() for x in long) >= 0.8 * len(long)


def find_mentions(tokens: Tokens, evidence: Evidence) -> list[Mention]:
    """Return the names in one sentence, from left to right, without overlap."""
    found: list[Mention] = []
    headline = is_headline(tokens)
    i = 0
    while i < len(tokens.words):
        if not _may_start(tokens, i, evidence):
            i += 1
            continue
        end = _run_end(tokens, i, evidence)
        mention = _mention(tokens, i, end, evidence, headline)
        if mention is None:
            i += 1
        else:
            found.append(mention)
            i = mention.last
    return found


def _may_start(tokens: Tokens, i: int, evidence: Evidence) -> bool:
    word = tokens.words[i]
    if not _capital(word) or tokens.tags[i] == "POS":
        return False
    low = word.lower()
    following = tokens.words[i + 1] if i + 1 < len(tokens.words) else ""
    if low in w.FUNCTION_WORDS:
        inside = following and _capital(following) and not starts_sentence(tokens, i)
        return bool(inside) and low in w.NUMBER_WORDS
    if low not in w.CALENDAR:
        return True
    if not following or not _capital(following) or following.lower() in w.CALENDAR:
        return False
    before = tokens.words[i - 1].lower() if i else ""
    if word in _PERSON_MONTHS:
        return before not in {
            "in",
            "on",
            "of",
            "last",
            "this",
            "next",
            "by",
            "since",
            "until",
        } and (evidence.runs[f"{word} {following}"] > 1)
    return following.lower() in w.HEADS or before == "the"


def _run_end(tokens: Tokens, first: int, evidence: Evidence) -> int:
    """Return the token index just after the name that starts at `first`."""
    words, end = tokens.words, first + 1
    while end < len(words):
        if not _touches(tokens, end):
            break
        word = words[end]
        low = word.lower()
        if _capital(word):
            if low in w.CALENDAR or low in w.FUNCTION_WORDS - w.NUMBER_WORDS or word in _ADDRESS:
                break
            end += 1
            continue
        step = _joiner(tokens, first, end, evidence)
        if not step:
            break
        end += step
    if (
        end < len(words)
        and words[end].isdigit()
        and len(words[end]) <= 3
        and w.HEADS.get(words[end - 1].lower()) in {w.GEO, w.OBJECT}
    ):
        end += 1
    return end


def _touches(tokens: Tokens, i: int) -> bool:
    return tokens.starts[i] - tokens.ends[i - 1] <= 1


def _joiner(tokens: Tokens, first: int, i: int, evidence: Evidence) -> int:
    """Return how many tokens from `i` on carry the name over a small word, 0 if it ends there."""
    words = tokens.words

    def capital_at(j: int) -> bool:
        return (
            j < len(words)
            and _capital(words[j])
            and words[j].lower() not in w.FUNCTION_WORDS | w.CALENDAR
        )

    head = words[i - 1]
    low = words[i].lower()
    if low in {"&", "de", "van", "von", "der", "den", "la", "le", "du", "di", "da", "del", "bin"}:
        steps = (
            2
            if low in {"de", "van", "von"}
            and i + 1 < len(words)
            and (words[i + 1].lower() in {"la", "le", "der", "den"})
            else 1
        )
        return steps + 1 if capital_at(i + steps) else 0
    if low == "of":
        step = 2 if i + 1 < len(words) and words[i + 1].lower() == "the" else 1
        plain = (
            w.is_common(head) and head.lower() not in w.HONORIFICS and not w.is_role(head.lower())
        )
        return step + 1 if i == first + 1 and plain and capital_at(i + step) else 0
    if low == "and" and i == first + 1 and capital_at(i + 1):
        return 2 if _one_name(tokens, i, evidence) else 0
    if low in _TITLE_WORDS and i == first + 1 and _is_work(tokens, first) and w.is_common(head):
        step = 2 if i + 1 < len(words) and words[i + 1].lower() in {"the", "a"} else 1
        return step + 1 if capital_at(i + step) else 0
    if low in {"'s", "'"} and capital_at(i + 1):
        owned = words[i + 1]
        longer = i + 2 < len(words) and _capital(words[i + 2])
        if (
            (longer and low == "'s")
            or owned.lower() in w.FAMILY_NAMES
            or owned.lower() in w.HONORIFICS
        ):
            return 0
        if low == "'":
            return 2 if head.endswith("s") and owned.lower() in w.HEADS else 0
        single = i == first + 1 or low == "'" or words[first] in {"St", "St.", "Saint"}
        return 2 if single and w.is_common(owned) and not evidence.runs[owned] else 0
    return 0


def _one_name(tokens: Tokens, i: int, evidence: Evidence) -> bool:
    """Tell whether "A and B ..." with "and" at `i` is one name ("Brine and Timber")."""
    words = tokens.words
    head, following = words[i - 1], words[i + 1]
    if following.lower() in _PARTNERS:
        return True
    if head.lower() in w.HONORIFICS:
        return False
    end = i + 2
    while end < len(words) and _capital(words[end]):
        end += 1
    times = evidence.joined[head, following]
    only_here = w.is_common(head) and evidence.inside[head] <= times
    if end > i + 2:
        return words[end - 1].lower() in w.HEADS and (times > 1 or only_here)
    return only_here and w.is_common(following) and times > 0


def _is_work(tokens: Tokens, first: int) -> bool:
    """Tell whether a title of a work may start at `first`: "the novel Salt for the Ferryman"."""
    before = tokens.words[first - 1].lower() if first else ""
    return before in {'"', "“", "‘", "*", "_"} or w.NOUN_KINDS.get(before) == w.OBJECT


def _mention(
    tokens: Tokens, first: int, last: int, evidence: Evidence, headline: bool
) -> Mention | None:
    """Return the name at tokens[first:last] without sentence-initial words and titles."""
    words = tokens.words
    if starts_sentence(tokens, first) or headline:
        first = _drop_common_start(words, first, last, evidence, headline)
    honorific: list[str] = []
    while (
        last - first > 1
        and words[first].rstrip(".").lower() in w.HONORIFICS
        and words[first + 1] not in {"'s", "'", "of", "and"}
        and (words[last - 1].lower() not in w.HEADS or len(honorific) > 0)
    ):
        honorific.append(words[first])
        first += 1
    if first >= last:
        return None
    if last - first == 1 and not honorific and not _single(tokens, first, evidence, headline):
        return None
    before = words[first - 1 - len(honorific)].lower() if first > len(honorific) else ""
    weak = (
        last - first == 1
        and not honorific
        and w.is_common(words[first])
        and not evidence.is_name(words[first])
    )
    votes = _votes(tokens, first, last, before, bool(honorific))
    if last - first == 1 and evidence.is_house(words[first]):
        last += int(words[last : last + 1] == ["'s"])
    elif last - first > 1 and before in _AT and _ends_in_possessive(tokens, last):
        last += 1
    text = _join(words[first:last])
    modifies = last < len(words) and tokens.tags[last].startswith("NN") and words[last].islower()
    definite = before == "the" and not modifies
    return Mention(first, last, text, " ".join(honorific), definite, weak, votes)


def _ends_in_possessive(tokens: Tokens, last: int) -> bool:
    if last >= len(tokens.words) or tokens.words[last] != "'s":
        return False
    return last + 1 >= len(tokens.words) or tokens.tags[last + 1] in {"IN", ".", ",", "CC", "TO"}


def _drop_common_start(
    words: list[str], first: int, last: int, evidence: Evidence, headline: bool
) -> int:
    """Skip capitalised plain words that start a sentence before the name itself."""
    while last - first > 1:
        word = words[first]
        whole = _join(words[first:last])
        if evidence.runs[whole] or word.rstrip(".").lower() in w.HONORIFICS:
            break
        if words[first + 1] in {"of", "and", "&", "'s", "'"}:
            break
        if evidence.only_opens(word):
            first += 1
            continue
        if not w.is_common(word) or evidence.is_name(word):
            break
        rest = _join(words[first + 1 : last])
        # "Rose Tyler" and "Candle Flood" stay whole, "Yesterday Tyler" and "Poor Tyler" do not.
        noun_or_verb = w.tag([word.lower()])[0].startswith(("NN", "VB"))
        if noun_or_verb and not evidence.runs[rest] and not headline:
            break
        first += 1
    return first


def _single(tokens: Tokens, i: int, evidence: Evidence, headline: bool) -> bool:
    """Tell whether the lone capitalised word at `i` is a name or may be short for one."""
    word = tokens.words[i]
    tag = w.tagger_lexicon().get(word, "")
    if tag.startswith("JJ") and not evidence.lower[word.lower()]:
        return False  # nationalities and the like
    if len(word) == 1 or word.rstrip(".").lower() in w.HONORIFICS - w.FAMILY_NAMES:
        return False
    if evidence.is_name(word):
        return True
    if starts_sentence(tokens, i) or headline:
        return False
    return word.lower() not in w.FUNCTION_WORDS


def _join(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text.replace(" 's", "'s").replace("s ' ", "s' ")


def _votes(
    tokens: Tokens, first: int, last: int, before: str, honorific: bool
) -> tuple[tuple[str, int], ...]:
    """Return what the words around a name say of its type: (type, votes)."""
    words, tags = tokens.words, tokens.tags
    votes: Counter[str] = Counter()
    kind = name_kind(words[first:last])
    if honorific and kind is None:
        votes[w.PERSON] += 5
    after = words[last].lower() if last < len(words) else ""
    second = words[last + 1].lower() if last + 1 < len(words) else ""
    third = words[last + 2].lower() if last + 2 < len(words) else ""
    if _is_quoted(words, first, last):
        votes[w.OBJECT] += 6
    if before in w.PLACE_PREPOSITIONS and after != "'s":
        votes[w.GEO] += 2 if before == "in" else 1
    if before == "of" and first > 1:
        noun = words[first - 2].lower()
        if noun in w.NOUN_KINDS:
            votes[w.NOUN_KINDS[noun]] += 2
        elif noun in {"north", "south", "east", "west", "out"}:
            votes[w.GEO] += 2
    if before.islower():
        if before in w.KIN or (w.is_role(before) and tags[first - 1].startswith("NN")):
            votes[w.PERSON] += 2
        elif before in w.NOUN_KINDS:
            votes[w.NOUN_KINDS[before]] += 2
        elif before in w.VESSEL_WORDS:
            votes[w.OBJECT] += 2
    if last < len(words) and tags[last].startswith("VB") and w.lemma(after) in w.PERSON_VERBS:
        votes[w.PERSON] += 1
    elif after == "'s" and (second in w.KIN or third in w.KIN):
        votes[w.PERSON] += 2
    elif after == ",":
        if second in {"who", "whose"} or (second.isdigit() and len(second) == 2):
            votes[w.PERSON] += 2
        else:
            noun = _apposed_noun(tokens, last + 1)
            if noun in w.NOUN_KINDS:
                votes[w.NOUN_KINDS[noun]] += 2
            elif noun and w.is_role(noun):
                votes[w.PERSON] += 2
    if before in {"said", "says", "asked", "replied", "told"}:
        votes[w.PERSON] += 1
    return tuple(sorted(votes.items()))


def _is_quoted(words: Sequence[str], first: int, last: int) -> bool:
    """Tell whether quotation marks or italics hold the name and nothing else but its article."""
    if first and words[first - 1] in {"The", "A", "An"}:
        first -= 1
    if last < len(words) and words[last] in {",", "."}:
        last += 1
    return first > 0 and last < len(words) and (words[first - 1], words[last]) in _QUOTES


def _apposed_noun(tokens: Tokens, i: int) -> str:
    """Return the head noun of the phrase "a/the/his ... noun" that starts at token `i`, or ""."""
    words, tags = tokens.words, tokens.tags
    if i >= len(words) or tags[i] not in {"DT", "PRP$"}:
        return ""
    noun = ""
    for j in range(i + 1, min(i + 6, len(words))):
        if tags[j].startswith("NN") and words[j].islower():
            noun = words[j].lower()
        elif noun or not tags[j].startswith(("JJ", "VB", "RB", "CD", "NN")):
            break
    return noun


def name_kind(parts: Sequence[str]) -> str | None:
    """Return the type that a name's own words tell ("Harbour Council"), or None."""
    if len(parts) < 2:
        return w.ORGANIZATION if parts[0].endswith("'s") else None
    first, last = parts[0].lower(), parts[-1].lower().rstrip(".")
    if last.isdigit() and len(parts) > 1:
        last = parts[-2].lower()
    if "of" in parts[1:-1] and first in w.HEADS:
        return w.HEADS[first]
    if first in w.FIRST_HEADS:
        return w.FIRST_HEADS[first]
    if last in w.HEADS:
        return w.HEADS[last]
    if last in _PARTNERS and ("and" in parts or "&" in parts):
        return w.ORGANIZATION
    return None
