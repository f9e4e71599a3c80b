"""How right an answer is: normalised text, exact match, contains-gold, token F1, refusal, and the
interval around a mean.

The normalisation follows SQuAD's evaluation script (Rajpurkar et al., 1606.05250: lower case, no
punctuation, no articles, single spaces) and adds what free answers need: possessives, thousands
separators, ordinal endings and number words are brought to one spelling.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragtuned_pipeline.ids import seeded_int

MEASURES = ("exact", "contains", "f1", "refused")

_ARTICLES = frozenset(("a", "an", "the"))
_APOSTROPHES = str.maketrans("‘’ʼ`´", "'''''")
_POSSESSIVE = re.compile(r"'s\b|(?<=s)'(?!\w)")
_INITIALISM = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_TOKEN = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+")
_ORDINAL_ENDING = re.compile(r"(?<=\d)(?:st|nd|rd|th)\b")

_UNITS = re.findall(
    r"\w+",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_VALUES = (
    {"zero": 0}
    | {word: value for value, word in enumerate(_UNITS, start=1)}
    | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
)
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?: (?:{'|'.join(_UNITS[:9])})\b)?|{'|'.join(_VALUES)})\b"
_BELOW_1000 = rf"(?:(?:{'|'.join(_UNITS)}) hundred\b(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
# Millions stay words, as they mostly do beside digits: "14 million", "fourteen million".
_NUMBER = re.compile(rf"\b{_BELOW_1000}(?: thousand\b(?: (?:and )?{_BELOW_1000})?)?")


def tokens(text: str) -> list[str]:
    """Return the normalised words of `text`; see the module's description.

    >>> tokens("The U.S.A.'s forty-two bakers, on May 3rd: $1,200.50")
    ['usa', '42', 'bakers', 'on', 'may', '3', '1200.50']
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(_APOSTROPHES)
    text = _INITIALISM.sub(lambda found: found[0].replace(".", ""), text)
    text = _ORDINAL_ENDING.sub("", _POSSESSIVE.sub("", text)).replace("'", "")
    words = [word.replace(",", "") for word in _TOKEN.findall(text)]
    # A text of nothing but articles (a band called "The The") keeps them.
    words = [word for word in words if word not in _ARTICLES] or words
    return _digits(words)


def _digits(words: list[str]) -> list[str]:
    """Write number words as digits: seven, forty two, three hundred and five, two thousand."""
    if _VALUES.keys().isdisjoint(words):
        return words
    return _NUMBER.sub(lambda found: str(_number(found[0].split())), " ".join(words)).split()


def _number(words: Sequence[str]) -> int:
    total = current = 0
    for word in words:
        if word == "thousand":
            total, current = current * 1000, 0
        elif word == "hundred":
            current *= 100
        else:
            current += _VALUES.get(word, 0)  # "and" adds nothing
    return total + current


def alternatives(reference: str) -> list[str]:
    """Return the answers that a reference accepts: one a line."""
    return reference.split("\n")


def exact(answer: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether the normalised answer is the normalised gold."""
    return list(answer) == list(gold)


def contains(answer: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether the gold's words stand in the answer, in order and without a gap.

    A gold without any word is contained in nothing.
    """
    return bool(gold) and f" {' '.join(gold)} " in f" {' '.join(answer)} "


def token_f1(answer: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of the shares of words in common (SQuAD); 0 where either has no word."""
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


@dataclass(frozen=True)
class AnswerScores:
    """One value an answer, float64 of shape (answers,), each between 0 and 1."""

    exact: np.ndarray
    contains: np.ndarray
    f1: np.ndarray
    refused: np.ndarray


def score_answers(answers: Sequence[str], references: Sequence[str]) -> AnswerScores:
    """Score each answer against its reference, by the best of the alternatives it accepts.

    Raises:
        ValueError: there are not as many references as answers.
    """
    known: dict[str, list[list[str]]] = {}
    values = np.zeros((len(MEASURES), len(answers)))
    for place, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if reference not in known:
            known[reference] = [tokens(gold) for gold in alternatives(reference)]
        words, golds = tokens(answer), known[reference]
        values[:, place] = (
            any(exact(words, gold) for gold in golds),
            any(contains(words, gold) for gold in golds),
            max(token_f1(words, gold) for gold in golds),
            is_refusal(answer),
        )
    return AnswerScores(*values)


_OPENER = r"""(?:
    (?:i\ am|i'm|we\ are|we're)?\s*(?:very\ |so\ |really\ )?(?:sorry|afraid)
    | (?:i|we)\ apologi[sz]e
    | unfortunately | regrettably | honestly | actually | alas | hmm+ | well | no | but | that
    | as\ an?\ [\w\s-]{1,40}
    | (?:based\ on|according\ to|from|in|within|given|of\ all)\ [^,.;:]{1,80}
    )[\s,;:.!-]+"""
_KNOW = r"(?:know|remember|recall|have|find|see|hold|possess|recognise|recognize)"
_TOLD = (
    r"(?:mention|say|state|specif|record|tell|contain|provide|describe|include|answer|explain|speak|"
    r"note|reveal|disclose|give|identif|name|cover|discuss|known|have|hold)"
)
_SOURCE = (
    r"(?:text|texts|document|documents|context|passage|passages|source|sources|corpus|memory|"
    r"memories|article|articles|information|data|records?|notes?|excerpts?|question|it|they|"
    r"anything\ i\ \w+)"
)
_NOT = r"(?:\ not|n't|not)"
_REFUSALS = (
    # I do not know who ...; we have no record of ...; I cannot find ...; I have never heard of ...
    rf"(?:i|we)\ (?:really\ |simply\ |just\ )?(?:do|can|could|did){_NOT}\ (?:\w+\ )?{_KNOW}\b",
    r"(?:i|we)(?:\ have|'ve)\ (?:no|never|not|nothing)\b",
    r"(?:i|we)\ (?:know|remember|recall|hold|find|found)\ (?:nothing|no|of\ no)\b",
    r"(?:i|we)(?:\ am|'m|\ are|'re)\ "
    r"(?:not\ (?:sure|aware|able|certain|familiar)|unable|unaware)\b",
    rf"(?:i|we)\ (?:can|could|do|wo|will|would){_NOT}\ "
    r"(?:answer|say|tell|help|provide|determine|confirm|be\ sure)\b",
    r"(?:no\ idea|not\ sure|don't\ know|do\ not\ know|cannot\ say|can't\ say)\b",
    # Nothing I remember mentions ...; no information about ...; there is no record of ...
    rf"(?:nothing|none|no\ (?:\w+\ )?{_SOURCE})\b[^.!?]{{0,60}}\b{_TOLD}(?:s|es|ies)?\b",
    r"(?:there\ (?:is|are|was|were)\ |there's\ )?(?:no|not\ any|not\ enough|insufficient|nothing)\ "
    r"(?:\w+\ ){0,2}(?:information|mention|record|records|details?|answer|evidence|data|trace|"
    r"memory|memories|context|indication|known|in\ my\ memory)\b",
    r"there\ (?:is|was)\ nothing\b",
    rf"(?:the|this|that|my|these|those|your)?\s*(?:\w+\ ){{0,2}}{_SOURCE}\ "
    rf"(?:do|does|did|is|are|was|were|has|have|can|could){_NOT}\b[^.!?]{{0,40}}?"
    rf"(?:{_TOLD}|\bin\ my\ memory|available|clear|stated|given)",
    rf"(?:it|this|that)(?:\ is|'s)\ (?:unclear\b|unknown\b|(?:not|never|nowhere)\b[^.!?]{{0,30}}"
    rf"(?:{_TOLD}|clear\b|in\ (?:my|the)\ memory\b))",
    r"(?:that|this|it|the\ answer)\ (?:is|was)\ not\ (?:something|part)\b",
    r"unable\ to\ (?:answer|generate|find|determine|say|tell)\b",
    r"(?:cannot|can't|could\ not|couldn't)\ (?:be\ )?(?:answer|find|found|determine|say|tell)",
    r"(?:n/?a|none|unknown|unanswerable|no\ answer|not\ (?:stated|mentioned|known|given|"
    r"specified|answerable|available))[\s.!]*$",
)
_REFUSAL = re.compile(rf"^\W*(?:{_OPENER})*(?:{'|'.join(_REFUSALS)})", re.IGNORECASE | re.VERBOSE)


def is_refusal(answer: str) -> bool:
    """Whether `answer` says, at its beginning, that it does not know; an empty answer does too.

    Only the beginning counts, after words such as "Sorry," or "Based on the documents,": an answer
    that states something and then admits a gap is an answer.
    """
    plain = answer.strip().translate(_APOSTROPHES)
    return not plain or _REFUSAL.match(plain) is not None


def interval(
    values: np.ndarray, seed: int, groups: Sequence[str] = (), resamples: int = 2000
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values` (shape (n,), between 0 and 1).

    Values of one group are alike (wordings of one fact) and are drawn together: Wilson's interval
    is that of as many observations as there are groups.

    Args:
        groups: of each value; none where every value stands for itself.

    Shares of yes and no get Wilson's score interval (1927): a bootstrap of 50 rights out of 50
    would claim certainty. Other means get a percentile bootstrap with `resamples` draws, seeded.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    mean, shares = float(values.mean()), np.isin(values, (0, 1)).all()
    if len(groups):
        _, place, sizes = np.unique(np.array(groups), return_inverse=True, return_counts=True)
        values = np.bincount(place, weights=values)
    else:
        sizes = np.ones(len(values), dtype=np.int64)
    count = len(values)
    if shares:
        z2 = 1.959963984540054**2
        middle = (mean + z2 / (2 * count)) / (1 + z2 / count)
        half = np.sqrt(z2 * (mean * (1 - mean) + z2 / (4 * count)) / count) / (1 + z2 / count)
        return max(0.0, float(middle - half)), min(1.0, float(middle + half))
    # Resampling n groups is a multinomial count over the distinct ones (sum and size); three
    # decimals keep those few, whatever n.
    pairs = np.column_stack([values.round(3), sizes])
    (sums, sizes), counts = (each.T for each in np.unique(pairs, axis=0, return_counts=True))
    draw = np.random.default_rng(seeded_int(seed, "bootstrap", str(count)))
    drawn = draw.multinomial(count, counts / count, size=resamples)
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
