"""Names and types as language models write them, brought into one form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

OTHER = "other"  # the type of what none of the given types fits

_ARTICLES = ("the ", "a ", "an ")
_OUTER = " \t\n\"'“”‘’«»`*_<>|#"
_ABBREVIATED = re.compile(r"(?:^|[\s.])[^\W\d_]{1,3}\.$")  # "Inc.", "J.", "U.S."
_IN_PARENTHESES = re.compile(r"(.*\S)\s*\(([^()\s]+)\)")
_INNER_STOP = re.compile(r"(?<=\b\w)\.(?=\w)")
_NO_NAME = re.compile(r"[^\w+#%$€]+|_+")
_SMALL = frozenset(("of", "the", "and", "for", "in", "de", "la", "von", "van", "der", "a", "an"))

# Other words for the types that GraphRAG and its kin ask for; used where the type is among those
# given.
_SYNONYMS = {
    "people": "person",
    "human": "person",
    "individual": "person",
    "character": "person",
    "org": "organization",
    "company": "organization",
    "institution": "organization",
    "group": "organization",
    "location": "geo",
    "place": "geo",
    "geography": "geo",
    "geographic": "geo",
    "country": "geo",
    "city": "geo",
    "region": "geo",
    "object": "specific object",
    "product": "specific object",
    "artifact": "specific object",
    "work": "specific object",
    "thing": "specific object",
    "concept": "abstract object",
    "idea": "abstract object",
    "abstract": "abstract object",
}
_NEAR = 80.0  # rapidfuzz ratio from which a misspelt type is taken for a given one


def fold(text: str) -> str:
    """Return `text` for comparison: lower case, one space between words, no punctuation.

    "U.S." and "US" fold to the same, "C", "C++" and "C#" do not.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _INNER_STOP.sub("", text).replace("&", " and ")
    return _NO_NAME.sub(" ", text).strip()


def name_key(name: str) -> str:
    """Return what two spellings of a name share: its folded form without a leading article."""
    key = fold(name)
    for article in _ARTICLES:
        key = key.removeprefix(article)
    return key


def names_in(folded: str, key: str) -> bool:
    """Tell whether the folded text holds the folded name as whole words."""
    return f" {key} " in f" {folded} "


def clean_name(name: str, text: str) -> str:
    """Return a name without quotes, outer punctuation and an acronym of itself in parentheses.

    A name in capitals or in small letters only is spelled as `text`, where it was found, spells
    it. "" where no letter or digit is left.
    """
    name = " ".join(name.replace("_", " ").split()).strip(_OUTER)
    name = name.lstrip(",;:.!?-–— ").rstrip(",;:!?-–— ")
    while name.endswith(".") and not _ABBREVIATED.search(name):
        name = name[:-1].rstrip()
    inner = _IN_PARENTHESES.fullmatch(name)
    if inner and fold(inner[2]).replace(" ", "") in acronyms(fold(inner[1]).split()):
        name = inner[1]
    name = name.strip(_OUTER)
    if not fold(name):
        return ""
    if name in (name.upper(), name.lower()):
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
        if found:
            return found[0]
    return name


def acronyms(words: Sequence[str]) -> frozenset[str]:
    """Return the initials of folded words, with and without small words: {"bht"}."""
    return frozenset(
        initials
        for initials in (
            "".join(word[0] for word in words),
            "".join(word[0] for word in words if word not in _SMALL),
        )
        if len(initials) > 1
    )


def nearest_type(given: str, types: Sequence[str]) -> str:
    """Return the one of `types` that `given` stands for, else "other".

    Case, plural, "-isation" for "-ization", common synonyms, misspellings and the first of several
    ("person/character") are seen through.
    """
    from rapidfuzz import fuzz, process

    known = {fold(kind): kind for kind in types}
    for part in re.split(r"[/,;|]|\bor\b|\band\b", given):
        word = fold(part).replace("isation", "ization")
        for form in (word, word.removesuffix("s"), word.removesuffix("es"), _ies(word)):
            meant = form if form in known else _SYNONYMS.get(form, "")
            if meant in known:
                return known[meant]
        best = process.extractOne(word, sorted(known), scorer=fuzz.ratio, score_cutoff=_NEAR)
        if best:
            return known[best[0]]
    return OTHER


def _ies(word: str) -> str:
    return f"{word[:-3]}y" if word.endswith("ies") else word
