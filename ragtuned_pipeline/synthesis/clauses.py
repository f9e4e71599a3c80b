"""One declarative sentence, read as subject, verb group and the phrases after it.

Word tags come from TextBlob's bundled lexicon tagger; its mistakes between nouns and verbs are
repaired by position. The reading is shallow on purpose: what it cannot read it gives up, and the
sentence then makes no question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

Kind = Literal["NP", "PP", "VP", "ADV", "ADJ"]

_TOKEN = re.compile(
    r"(?:Mrs|Mr|Ms|Dr|St|Prof|Capt|Sgt|Rev|Jr|Sr|No)\.|[ap]\.m\.|(?:[A-Z]\.)+"
    r"|[$£€]?\d+(?:[.,:]\d+)*(?:st|nd|rd|th|s|am|pm|km|kg|m|%)?\b%?"
    r"|[^\W_]+(?:['’\-][^\W_]+)*|\S"
)
_CONTRACTION = re.compile(r"(?i)^(.+?)(n't|'(?:s|re|ve|ll|d|m))$")
_EXPANDED = {"n't": "not", "'re": "are", "'ve": "have", "'ll": "will", "'m": "am"}
_STEM = {"ca": "can", "wo": "will", "sha": "shall"}


def word_set(text: str) -> frozenset[str]:
    """Return the words of `text`."""
    return frozenset(text.split())


MONTHS = word_set(
    """
    january february march april may june july august september october november december
    """
)
DAYS = frozenset(["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])
TIME_NOUNS = word_set(
    """
    morning afternoon evening night noon midnight day days week weeks weekend month months year
    years decade decades century centuries summer winter spring autumn hour hours minute minutes
    second seconds season o'clock fortnight today yesterday tomorrow tonight moment time
    """
)
DEICTIC = word_set(
    """
    today yesterday tomorrow tonight now last next this ago earlier later recently soon just
    already then
    """
)
NEGATIVE = word_set(
    """
    not no never nobody nothing none neither nor nowhere hardly barely scarcely cannot
    """
)
UNREAL = word_set(
    """
    would could might may should if unless whether maybe perhaps
    """
)
PRONOUNS = word_set(
    """
    i me my mine myself we us our ours you your yours he him his she her hers it its they them
    their theirs this that these those there one himself herself itself themselves someone
    somebody something everyone everybody everything anyone anybody anything
    """
)
_DAY_WORDS = frozenset(["yesterday", "today", "tomorrow", "tonight"])
_WHICH_TIME = frozenset(["last", "next", "this", "that", "every", "each"])
BE = {"be", "am", "is", "are", "was", "were", "been", "being"}
HAVE = {"have", "has", "had", "having"}
DO = {"do", "does", "did"}
MODALS = {"will", "can", "must", "shall", "would", "could", "might", "may", "should"}
_CLAUSE_STARTS = word_set(
    """
    because while although though when where if unless whether since that as than so but which
    who whom whose what how why until before after once and or
    """
)
# Forms that simplemma takes for other words.
_BASE = {
    "left": "leave",
    "felt": "feel",
    "was": "be",
    "were": "be",
    "is": "be",
    "are": "be",
    "am": "be",
    "been": "be",
    "found": "find",
    "lay": "lie",
    "lit": "light",
    "bore": "bear",
    "bound": "bind",
    "wound": "wind",
    "saw": "see",
    "fell": "fall",
    "ground": "grind",
    "rose": "rise",
    "shot": "shoot",
    "bit": "bite",
    "won": "win",
    "met": "meet",
    "drove": "drive",
    "wove": "weave",
    "spoke": "speak",
    "broke": "break",
    "leaves": "leave",
    "lives": "live",
    "better": "better",
    "founded": "found",
    "learnt": "learn",
    "learned": "learn",
    "burnt": "burn",
    "dealt": "deal",
    "lent": "lend",
    "leant": "lean",
    "hung": "hang",
    "sewn": "sew",
    "dug": "dig",
    "swum": "swim",
}


@dataclass(frozen=True, slots=True)
class Token:
    text: str  # as the question writes it; contractions expanded
    tag: str
    start: int  # offsets in the sentence
    end: int
    spaced: bool  # a space stands before it

    @property
    def low(self) -> str:
        return self.text.lower()


@dataclass(frozen=True, slots=True)
class Phrase:
    kind: Kind
    tokens: tuple[Token, ...]
    prep: int = 0  # leading tokens that are the preposition

    @property
    def inner(self) -> tuple[Token, ...]:
        """The noun phrase of a prepositional phrase."""
        return self.tokens[self.prep :]


@dataclass(frozen=True, slots=True)
class VerbGroup:
    aux: Token | None  # the word that moves before the subject; None where "do" must be added
    adverbs: tuple[Token, ...]  # between the auxiliary and the main verb, or before a plain verb
    chain: tuple[Token, ...]  # further auxiliaries and the main verb
    passive: bool = False

    @property
    def main(self) -> Token | None:
        return self.chain[-1] if self.chain else None

    @property
    def tokens(self) -> tuple[Token, ...]:
        first = () if self.aux is None else (self.aux,)
        return (*first, *self.adverbs, *self.chain)

    @property
    def copula(self) -> bool:
        return self.aux is not None and not self.chain


@dataclass(frozen=True, slots=True)
class Clause:
    fronted: tuple[Phrase, ...]
    subject: tuple[Token, ...]
    verb: VerbGroup
    rest: tuple[Phrase, ...]
    source: tuple[Token, ...] = ()  # who says it, in reported speech


@cache
def base_form(verb: str) -> str:
    """Return the base form of an English verb form: "opened" -> "open"."""
    import simplemma

    low = verb.lower()
    return _BASE.get(low) or str(simplemma.lemmatize(low, lang="en")).lower()


@cache
def third_person(base: str) -> str:
    """Return the third person singular of the present: "carry" -> "carries"."""
    irregular = {"be": "is", "have": "has", "do": "does", "go": "goes"}
    if base in irregular:
        return irregular[base]
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return base + "es"
    if base.endswith("y") and base[-2:-1] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def words(tokens: tuple[Token, ...]) -> str:
    """Return the tokens as text, spaced as in their sentence."""
    parts: list[str] = []
    for number, token in enumerate(tokens):
        if number and token.spaced:
            parts.append(" ")
        parts.append(token.text)
    return "".join(parts)


@lru_cache(maxsize=65536)
def _tags(tokens: tuple[str, ...]) -> tuple[str, ...]:
    from textblob.en import parser

    return tuple(str(tag) for _, tag in parser.find_tags(list(tokens)))


@cache
def lexicon_tag(word: str) -> str | None:
    """Return the tag of a lower-case word in TextBlob's lexicon, None where it is unknown."""
    from textblob.en import parser

    tag = parser.lexicon.get(word)
    return None if tag is None else str(tag)


def tokenise(sentence: str) -> list[Token]:
    """Return the tagged tokens of one sentence, contractions expanded."""
    raw: list[tuple[str, int, int, bool]] = []
    for match in _TOKEN.finditer(sentence):
        word, start = match.group().replace("’", "'"), match.start()
        spaced = start > 0 and sentence[start - 1].isspace()
        split = _CONTRACTION.match(word)
        if split is None:
            raw.append((word, start, match.end(), spaced))
        else:
            stem, clitic = split.group(1), split.group(2).lower()
            middle = start + len(stem)
            raw.append((_STEM.get(stem, stem), start, middle, spaced))
            raw.append((clitic, middle, match.end(), False))
    tags = list(_tags(tuple(word for word, *_ in raw)))
    tokens: list[Token] = []
    for number, (word, start, end, spaced) in enumerate(raw):
        following = tags[number + 1] if number + 1 < len(tags) else "."
        before = tokens[-1] if tokens else None
        if word in ("'s", "'d") or word in _EXPANDED:
            word, tag, spaced = _clitic(word, before, following, raw, number)
        else:
            tag = _repaired(word, tags[number], before)
        tokens.append(Token(word, tag, start, end, spaced))
    return tokens


def _clitic(
    word: str, before: Token | None, following: str, raw: list[tuple[str, int, int, bool]], at: int
) -> tuple[str, str, bool]:
    if word in _EXPANDED:
        full = _EXPANDED[word]
        tag = {"not": "RB", "will": "MD"}.get(full, "VBP")
        return full, tag, True
    after = raw[at + 1][0].lower() if at + 1 < len(raw) else ""
    if word == "'d":
        past = following in ("VBN", "VBD", "DT", "CD") or after in ("been", "had")
        return ("had", "VBD", True) if past else ("would", "MD", True)
    is_pronoun = before is not None and before.tag in ("PRP", "EX", "WP", "WRB", "WDT", "IN", "DT")
    if is_pronoun or following in ("DT", "VBG", "RB", "IN") or after in ("been", "got"):
        perfect = after in ("been", "got", "had", "gone", "become")
        return ("has" if perfect else "is"), "VBZ", True
    return "'s", "POS", False


def _repaired(word: str, tag: str, before: Token | None) -> str:
    low = word.lower()
    if before is None and word.istitle() and tag != "NNP" and lexicon_tag(low) is None:
        return "NNP"
    if low in MONTHS and word[0].isupper():
        # "May" opens a question or a wish only at the start of a sentence.
        return "NNP"
    if low in DAYS:
        return "NNP"
    if low in MODALS and tag != "NNP":
        return "MD"
    if low in ("n't", "not"):
        return "RB"
    if word[0].isdigit() or word[0] in "$£€":
        return "CD"
    if low in ("this", "that", "these", "those") and tag == "IN":
        return "IN"
    if before is not None and word[0].isupper() and tag in ("NN", "NNS", "JJ", "VB", "VBN", "VBG"):
        return "NNP"
    if before is not None and before.low == "to" and tag in ("NN", "VBP", "VBD"):
        return "VB" if low == base_form(low) else tag
    return tag


_NOUN = ("NN", "NNS", "NNP", "NNPS")
_INSIDE = frozenset((*_NOUN, "JJ", "JJR", "JJS", "CD", "POS", "VBN", "VBG", "FW"))
_FINITE = frozenset(("VBD", "VBZ", "VBP", "MD"))
_ADVERB = ("RB", "RBR", "RBS")


class Reader:
    """Reads one sentence from left to right; positions are indices into its tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens

    def tag(self, at: int) -> str:
        return self.tokens[at].tag if at < len(self.tokens) else "."

    def low(self, at: int) -> str:
        return self.tokens[at].low if at < len(self.tokens) else ""

    def repair(self, at: int) -> None:
        """Give a verb to the clause at `at` where the tagger found none."""
        self.tokens[at:] = repaired_verbs(self.tokens[at:])

    def boundary(self, at: int) -> int:
        """Return the first position behind `at` where another clause may start."""
        for mark in range(at + 1, len(self.tokens)):
            if self.low(mark) in (";", ":", "and", "but", "so", "\u2013", "\u2014"):
                return mark + 1
        return len(self.tokens)

    def part(self, start: int, end: int) -> tuple[Token, ...]:
        return tuple(self.tokens[start:end])

    def time_word(self, at: int) -> int:
        """Return the end of "yesterday", "last week", "that morning" at `at`, else `at`."""
        if self.low(at) in _DAY_WORDS:
            end = at + 1 + (self.low(at + 1) in TIME_NOUNS)
        elif self.low(at) in _WHICH_TIME and self.low(at + 1) in TIME_NOUNS | DAYS | MONTHS:
            end = at + 2
        else:
            return at
        return at if self.tag(end) == "POS" else end

    def plain_noun_phrase(self, at: int) -> int:
        """Return the end of the noun phrase that starts at `at`, without its complements."""
        start = at
        if (end := self.time_word(at)) > at:
            return end
        if self.tag(at) in ("PRP", "EX"):
            return at + 1
        if self.low(at) in ("all", "both", "half") and self.tag(at + 1) in ("DT", "PRP$"):
            at += 1
        determiner = self.tag(at) in ("DT", "PRP$", "PDT") or self.low(at) in ("that", "these")
        if determiner:
            at += 1
        if self.tag(at) in _ADVERB and self.tag(at + 1) in ("JJ", "CD", "VBN"):
            at += 1
        head = start
        while True:
            tag = self.tag(at)
            if tag == "CD" and head > start and self._counts(at):
                break  # "lent Brannoch Yard 40,000 crowns": a second object
            if head > start and self.time_word(at) > at:
                break  # "sold honey last week"
            if tag in _NOUN or tag == "CD" or (tag == "POS" and head):
                if tag != "POS":
                    head = at + 1
                at += 1
                if self._year_after_comma(at):
                    at += 2
                    head = at
            elif tag in _INSIDE and not (tag == "VBN" and head > start and not determiner):
                if tag in ("VBN", "VBG") and head > start and self.tag(at - 1) in _NOUN:
                    break  # a participle after the noun starts something else
                at += 1
            elif self._joins(at):
                at += 1
            else:
                break
        if head > start:
            return head
        if determiner and at == start + 1 and self.tag(start) == "DT":
            return at if self.low(start) in ("this", "that", "these", "those") else start
        return start

    def _joins(self, at: int) -> bool:
        """ "a long, cold night", "Berg & Sons", "a long and cold night"."""
        before, here, after = self.tag(at - 1), self.low(at), self.tag(at + 1)
        if here == "&":
            return after in ("NNP", "NN")
        return here in (",", "and") and before in ("JJ", "JJR") and after == "JJ"

    def _counts(self, at: int) -> bool:
        before = self.tokens[at - 1]
        return before.tag == "NNP" and before.low not in MONTHS | DAYS and self.tag(at + 1) in _NOUN

    def _year_after_comma(self, at: int) -> bool:
        """ "14 March, 2021": the year belongs to the date."""
        return (
            self.tag(at) == ","
            and self.low(at - 1) in MONTHS | DAYS | {str(n) for n in range(1, 32)}
            and re.fullmatch(r"1\d{3}|20\d{2}", self.low(at + 1)) is not None
        )

    def noun_phrase(self, at: int) -> int:
        """Return the end of the noun phrase at `at`, with "of ..." and "and ..." parts."""
        end = self.plain_noun_phrase(at)
        if end == at:
            return at
        while True:
            if self.low(end) == "of":
                inner = self.plain_noun_phrase(end + 1)
                if inner == end + 1:
                    return end
                end = inner
            elif self.low(end) == "and" or (
                self.low(end) == "," and self.tag(at) in ("NNP", "CD", "DT", "NN", "NNS")
            ):
                joined = self._conjunct(at, end)
                if joined == end:
                    return end
                end = joined
            else:
                return end

    def _conjunct(self, start: int, at: int) -> int:
        """Return the end of "and NP" or ", NP and NP" at `at`, or `at` where a clause follows."""
        if self.low(at) == ",":
            middle = self.plain_noun_phrase(at + 1)
            if middle == at + 1 or not (
                self.low(middle) == "and"
                or (self.low(middle) == "," and self.low(middle + 1) == "and")
            ):
                return at
            last = self._conjunct(start, middle + (self.low(middle) == ","))
            return last if last > middle + 1 else at
        end = self.plain_noun_phrase(at + 1)
        if end == at + 1 or self.tag(at + 1) in ("PRP", "EX", "VBN", "VBG"):
            return at
        if self.tag(end) in _FINITE and self.tag(start) != self.tag(at + 1):
            return at
        if self.tag(end) in ("VBD", "VBZ", "VBN") and self.low(end) not in ("were", "are"):
            # A singular verb, or a past one, may start a second clause here.
            return at if start and self.tag(end) != "VBD" else end if start == 0 else at
        return end

    def verb_group(self, at: int) -> tuple[VerbGroup, int] | None:
        """Return the finite verb group at `at` and its end, None where there is none."""
        adverbs: list[Token] = []
        while self.tag(at) in _ADVERB or self.low(at) in ("also", "still", "then", "once"):
            adverbs.append(self.tokens[at])
            at += 1
        if at >= len(self.tokens):
            return None
        word = self.tokens[at]
        low = word.low
        if word.tag not in (*_FINITE, "VBN", "VB") and low not in BE | HAVE | DO | MODALS:
            return None
        if low not in BE | HAVE | DO | MODALS:
            return VerbGroup(None, tuple(adverbs), (word,)), at + 1
        first, at = word, at + 1
        inner: list[Token] = []
        while self.tag(at) in _ADVERB and self.low(at) not in NEGATIVE:
            inner.append(self.tokens[at])
            at += 1
        chain: list[Token] = []
        previous = low
        while at < len(self.tokens):
            token = self.tokens[at]
            if (
                (
                    previous in MODALS | DO
                    and (token.tag.startswith("VB") or (token.tag in ("NN", "JJ") and not chain))
                )
                or (previous in HAVE and token.tag in ("VBN", "VBD"))
                or (
                    previous in BE
                    and (
                        token.tag in ("VBN", "VBG")
                        or (token.tag == "VBD" and token.low.endswith("ed"))
                    )
                )
            ):
                pass
            else:
                break
            chain.append(token)
            previous = token.low
            at += 1
            while (
                self.tag(at) in _ADVERB
                and self.tag(at + 1) in ("VBN", "VBG", "VB")
                and previous in BE | HAVE | MODALS
            ):
                chain.append(self.tokens[at])
                at += 1
            if previous not in BE | HAVE:
                break
        passive = (
            bool(chain)
            and any(t.low in BE for t in (first, *chain[:-1]))
            and chain[-1].tag in ("VBN", "VBD")
        )
        if not chain:
            if low in BE:
                # The adverbs of a copula belong to what follows: "is still a baker".
                return VerbGroup(first, tuple(adverbs + inner), ()), at
            if low in MODALS:
                return None
            return VerbGroup(None, tuple(adverbs), (first, *inner)), at
        return VerbGroup(first, tuple(adverbs + inner), tuple(chain), passive), at

    def phrases(self, at: int) -> tuple[list[Phrase], int]:
        """Return the phrases from `at` to the end of the clause, and where it ends."""
        found: list[Phrase] = []
        while at < len(self.tokens):
            tag, low = self.tag(at), self.low(at)
            end = self._infinitive(at)
            if end > at:
                found.append(Phrase("VP", self.part(at, end)))
            elif tag in ("IN", "TO") or low in ("to", "near", "like", "out"):
                prep = 2 if self.tag(at + 1) in ("IN", "TO") and low not in _CLAUSE_STARTS else 1
                end = self.noun_phrase(at + prep)
                if low in ("that", "if", "unless", "because", "while", "whether", "though", "than"):
                    break
                if end == at + prep:
                    if self.tag(at + prep) == "VBG" and low in ("by", "for", "after", "before"):
                        break
                    if tag == "IN" and (
                        at + 1 >= len(self.tokens) or self.tag(at + 1) in (".", ",")
                    ):
                        found.append(Phrase("ADV", self.part(at, at + 1)))
                        at += 1
                        continue
                    break
                if self.clause_at(end) and low in _CLAUSE_STARTS:
                    break
                found.append(Phrase("PP", self.part(at, end), prep))
            elif tag in _ADVERB or tag == "RP" or low in ("ago", "together", "home", "up", "down"):
                end = at + 1
                found.append(Phrase("ADV", self.part(at, end)))
            else:
                participle = tag in ("VBN", "VBG") and bool(found) and found[-1].kind != "ADV"
                end = at if participle else self.noun_phrase(at)
                if end > at:
                    if self.clause_at(end) and found:
                        break
                    found.append(Phrase("NP", self.part(at, end)))
                elif tag in ("JJ", "JJR", "CD") or (tag == "VBN" and not found):
                    end = at + 1
                    found.append(Phrase("ADJ", self.part(at, end)))
                elif tag == "VBG" and not found:
                    end = at + 1
                    found.append(Phrase("VP", self.part(at, end)))
                else:
                    break
            at = end
        return found, at

    def _infinitive(self, at: int) -> int:
        if self.low(at) != "to":
            return at
        end = at + 1
        if self.tag(end) in _ADVERB:
            end += 1
        if self.tag(end) == "VB" or self.low(end) in ("be", "have", "do"):
            end += 1
            while self.tag(end) in ("VBN",) and self.low(end - 1) in ("be", "have", "been"):
                end += 1
            return end
        return at

    def clause_at(self, at: int) -> bool:
        return self.tag(at) in _FINITE or self.low(at) in BE | HAVE | DO


def is_time(tokens: tuple[Token, ...]) -> bool:
    """Say whether a noun phrase names a time: "9 January", "last week", "1987", "5:30 pm"."""
    if not tokens:
        return False
    for token in tokens:
        low = token.low
        if (low in MONTHS and token.text[0].isupper()) or low in DAYS:
            return True
        if re.fullmatch(
            r"\d{1,2}:\d{2}|1[5-9]\d\d|20\d\d|\d{4}s|\d{1,2}(?:am|pm)|a\.m\.|p\.m\.", low
        ):
            return len(tokens) <= 3 and not any(t.tag in ("NN", "NNS", "NNP") for t in tokens[:-1])
    return tokens[-1].low in TIME_NOUNS


def repaired_verbs(tokens: list[Token]) -> list[Token]:
    """Give a verb to a sentence that has none: a lexicon tagger calls "lives" a plural noun.

    Only where no finite verb stands in the first clause, and the word follows a noun or pronoun
    and is followed by what follows verbs.
    """
    stop = next(
        (n for n, t in enumerate(tokens) if t.low in (";", ":", "and", "but", "who", "which")),
        len(tokens),
    )
    if any(t.tag in _FINITE or t.low in BE | HAVE | DO for t in tokens[:stop]):
        return tokens
    for at in range(1, min(stop, len(tokens) - 1)):
        token, before, after = tokens[at], tokens[at - 1], tokens[at + 1]
        if token.text[0].isupper() or before.tag not in (*_NOUN, "PRP", "RB", "CD", ","):
            continue
        follows = after.tag in (
            "DT",
            "PRP$",
            "PRP",
            "NNP",
            "IN",
            "TO",
            "CD",
            "RB",
            "JJ",
            "NNS",
            "POS",
        )
        if token.tag == "VBN" or token.tag == "VBD":
            return [*tokens[:at], _as(token, "VBD"), *tokens[at + 1 :]]
        if token.tag == "NNS" and follows and before.tag in ("NN", "NNP", "PRP", "RB"):
            return [*tokens[:at], _as(token, "VBZ"), *tokens[at + 1 :]]
        if token.tag in ("NN", "VB") and follows and before.tag in ("PRP", "NNS"):
            return [*tokens[:at], _as(token, "VBP"), *tokens[at + 1 :]]
    return tokens


def _as(token: Token, tag: str) -> Token:
    return Token(token.text, tag, token.start, token.end, token.spaced)


def read_clauses(tokens: list[Token]) -> list[Clause]:
    """Return the clauses of a sentence that state something, in order, at most four.

    Questions, commands, negated and conditional clauses and what is not understood are left out.
    """
    cut = _unconditional(tokens)
    reader = Reader([*tokens[:cut], *tokens[-1:]] if cut < len(tokens) else tokens)
    found: list[Clause] = []
    at, shared = 0, None
    while at < len(reader.tokens) and len(found) < 4:
        reader.repair(at)
        read = _read_clause(reader, at, shared)
        if read is None and reader.low(at) in _SUBORDINATORS:
            read = _after_subordinate(reader, at)
        if read is None:
            at, shared = reader.boundary(at), None
            continue
        clause, stop = read
        if _states(clause, reader, stop):
            found.append(clause)
        at, shared = _next_start(reader, stop, clause)
    return found


_CONDITIONS = word_set("if unless whether")


def _unconditional(tokens: list[Token]) -> int:
    """Return where the part of a sentence ends that holds whatever its "if" comes to."""
    for at, token in enumerate(tokens):
        if token.low not in _CONDITIONS:
            continue
        before = tokens[at - 1].low if at else ""
        if token.low == "whether":
            return at
        if before in ("as", "even", "and", "but"):
            return at - 1  # "as if", "even if", "..., and if ...": what stands before holds
        return next((n for n in range(at, -1, -1) if tokens[n].text == ";"), 0)
    return len(tokens)


_SUBORDINATORS = word_set("when while as after before since because although though once until")
_REPORTING = word_set(
    "say tell write report announce explain claim argue add note promise warn declare state admit "
    "insist confirm reply answer recall"
)
_OPINION = word_set(
    "think believe hope suppose wish wonder doubt guess expect pretend imagine seem want fear feel"
)


def _read_clause(reader: Reader, at: int, shared: Clause | None) -> tuple[Clause, int] | None:
    """Read one clause; `shared` gives its subject where it starts with its verb."""
    openers = ("so", "then", "yes", "well", "anyway", "oh")
    while reader.tag(at) in ("CC", "UH", ",", ";", ":") or reader.low(at) in openers:
        at += 1
        if at >= len(reader.tokens):
            return None
    fronted: list[Phrase] = []
    if shared is not None and (group := reader.verb_group(at)) is not None:
        subject = shared.subject
    else:
        at, fronted = _fronted(reader, at)
        end = reader.noun_phrase(at)
        if end == at:
            return None
        end = _with_attributes(reader, end)
        subject = reader.part(at, end)
        group = reader.verb_group(_after_insertion(reader, end))
        if group is None:
            return None
    verb, at = group
    main = base_form(verb.main.text) if verb.main is not None else ""
    if main in _REPORTING:
        reported = _reported(reader, at, subject)
        if reported is not None:
            return reported
    rest, stop = reader.phrases(at)
    return Clause(tuple(fronted), subject, verb, tuple(rest)), stop


def _reported(reader: Reader, at: int, source: tuple[Token, ...]) -> tuple[Clause, int] | None:
    """Read what someone says: "said that X opened Y", "told me X opened Y"."""
    if reader.tag(at) == "PRP" and (
        reader.low(at + 1) == "that" or reader.plain_noun_phrase(at + 1) > at + 1
    ):
        at += 1
    elif reader.tag(at) == "NNP" and reader.low(reader.plain_noun_phrase(at)) == "that":
        at = reader.plain_noun_phrase(at)
    if reader.low(at) == "that":
        at += 1
    read = _read_clause(reader, at, None)
    if read is None:
        return None
    clause, stop = read
    return Clause(clause.fronted, clause.subject, clause.verb, clause.rest, source), stop


def _after_subordinate(reader: Reader, at: int) -> tuple[Clause, int] | None:
    """Read the main clause behind "When I reached home at seven, "."""
    for comma in range(at + 2, len(reader.tokens)):
        if reader.tag(comma) == ",":
            read = _read_clause(reader, comma + 1, None)
            if read is not None:
                return read
    return None


def _next_start(reader: Reader, stop: int, clause: Clause) -> tuple[int, Clause | None]:
    """Return where the next clause starts, and the clause whose subject it may share."""
    at = stop + 1 if reader.tag(stop) == "," else stop
    if reader.low(at) in ("and", "but", "then"):
        return at + 1, clause
    if reader.low(stop) in (";", ":", "-", "\u2013", "\u2014"):
        return stop + 1, None
    return reader.boundary(stop), None


def _states(clause: Clause, reader: Reader, stop: int) -> bool:
    """Say whether the clause states something that holds, and was read to a clean end."""
    parts = (*clause.subject, *clause.verb.tokens, *_all(clause.rest), *_all(clause.fronted))
    said = {token.low for token in parts if token.tag != "NNP"}
    unreal = UNREAL - {"would"} if clause.source else UNREAL
    if said & NEGATIVE or said & unreal or reader.low(stop) in ("not", "no"):
        return False
    main = clause.verb.main
    if main is not None and base_form(main.text) in _OPINION and not clause.rest:
        return False
    if main is not None and reader.low(stop) in ("that", "how", "what", "why") and not clause.rest:
        return False
    if reader.tag(stop) in ("VBD", "VBZ", "MD", "VBP", "VB"):
        return False  # a second finite verb: what was read as the verb was a participle
    return not (reader.tag(stop) == "VBN" and clause.verb.aux is None)


def _all(phrases: tuple[Phrase, ...]) -> Iterator[Token]:
    for phrase in phrases:
        yield from phrase.tokens


def _fronted(reader: Reader, at: int) -> tuple[int, list[Phrase]]:
    """Read "In 1987," "Last week" "On the hill," before the subject."""
    begin = at
    found: list[Phrase] = []
    if reader.tag(at) in _ADVERB and reader.tag(at + 1) == ",":
        return at + 2, []
    other = ("that", "if", "because", "as", "like")
    while reader.tag(at) in ("IN", "TO") and reader.low(at) not in other:
        end = reader.noun_phrase(at + 1)
        if end == at + 1 or reader.clause_at(end):
            return begin, []
        found.append(Phrase("PP", reader.part(at, end), 1))
        at = end + 1 if reader.tag(end) == "," else end
    if not found:
        end = reader.plain_noun_phrase(at)
        if end > at and is_time(reader.part(at, end)) and not reader.clause_at(end):
            found.append(Phrase("NP", reader.part(at, end)))
            at = end + 1 if reader.tag(end) == "," else end
    return (at, found) if reader.noun_phrase(at) > at else (begin, [])


def _with_attributes(reader: Reader, at: int) -> int:
    """Return the end of the subject with "at Harrow Mill", "for the harbour" after its noun."""
    end = at
    while reader.tag(end) == "IN" and reader.low(end) not in ("that", "if", "because", "as"):
        inner = reader.noun_phrase(end + 1)
        if inner == end + 1:
            return at
        end = inner
    return end if reader.verb_group(end) is not None else at


def _after_insertion(reader: Reader, at: int) -> int:
    """Skip ", the mayor," and ", who runs the yard," between subject and verb."""
    if reader.tag(at) != "," or at + 1 >= len(reader.tokens):
        return at
    for close in range(at + 2, min(at + 16, len(reader.tokens))):
        if reader.tag(close) == ",":
            after = reader.verb_group(close + 1)
            return close + 1 if after is not None else at
    return at
