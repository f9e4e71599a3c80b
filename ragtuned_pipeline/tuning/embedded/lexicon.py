"""English words by part of speech, from the word lists that TextBlob bundles.

Two files, both free to use and read at build time only: Brill's lexicon (MIT licence), which gives
tags, and Norvig's counts over public domain books, which tell common words from rare ones.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_IRREGULAR = """be was been; become became become; begin began begun; bend bent bent; bind bound bound;
bite bit bitten; blow blew blown; break broke broken; bring brought brought; build built built;
burn burnt burnt; buy bought bought; catch caught caught; choose chose chosen; cut cut cut;
dig dug dug; draw drew drawn; drink drank drunk; drive drove driven; eat ate eaten; feed fed fed;
feel felt felt; fight fought fought; find found found; forget forgot forgotten; forgive forgave forgiven;
freeze froze frozen; get got got; give gave given; grind ground ground; grow grew grown;
hang hung hung; hear heard heard; hide hid hidden; hit hit hit; hold held held; keep kept kept;
know knew known; lay laid laid; lead led led; leave left left; lend lent lent; let let let;
light lit lit; lose lost lost; make made made; meet met met; outgrow outgrew outgrown; pay paid paid;
put put put; read read read; ride rode ridden; ring rang rung; run ran run; see saw seen;
seek sought sought; sell sold sold; send sent sent; set set set; shake shook shaken; shoot shot shot;
show showed shown; shut shut shut; sing sang sung; sink sank sunk; spend spent spent; split split split;
spread spread spread; steal stole stolen; strike struck struck; sweep swept swept; take took taken;
teach taught taught; tear tore torn; tell told told; throw threw thrown; understand understood understood;
wear wore worn; weave wove woven; win won won; wind wound wound; withdraw withdrew withdrawn;
write wrote written; rebuild rebuilt rebuilt; oversee oversaw overseen; undertake undertook undertaken"""

# Verbs that read well with a named subject and object; the lexicon's regular ones join them.
_FAVOURITES = [
    "open",
    "close",
    "found",
    "join",
    "buy",
    "sell",
    "build",
    "repair",
    "paint",
    "restore",
    "design",
    "lead",
    "own",
    "run",
    "visit",
    "invent",
    "discover",
    "publish",
    "write",
    "record",
    "sign",
    "reject",
    "approve",
    "support",
    "oppose",
    "criticise",
    "praise",
    "accuse",
    "marry",
    "teach",
    "train",
    "hire",
    "employ",
    "appoint",
    "replace",
    "inherit",
    "donate",
    "lend",
    "borrow",
    "rent",
    "return",
    "hide",
    "steal",
    "lose",
    "find",
    "carry",
    "deliver",
    "collect",
    "measure",
    "survey",
    "map",
    "study",
    "examine",
    "describe",
    "photograph",
    "film",
    "translate",
    "cook",
    "bake",
    "brew",
    "plant",
    "harvest",
    "water",
    "feed",
    "rescue",
    "raise",
    "name",
    "launch",
    "sink",
    "tow",
    "sail",
    "drive",
    "ride",
    "climb",
    "cross",
    "reach",
    "leave",
    "enter",
    "guard",
    "protect",
    "attack",
    "defend",
    "win",
    "cancel",
    "delay",
    "finish",
    "start",
    "organise",
    "host",
    "attend",
    "invite",
    "announce",
    "promise",
    "refuse",
    "demand",
    "order",
    "test",
    "mend",
    "clean",
    "sweep",
    "lock",
    "break",
    "burn",
    "flood",
    "drain",
    "dig",
    "fill",
    "bury",
    "recover",
    "keep",
    "hold",
    "wear",
    "sing",
    "play",
    "compose",
    "perform",
    "conduct",
    "judge",
    "fine",
    "warn",
    "call",
    "phone",
    "email",
    "meet",
    "greet",
    "thank",
    "miss",
    "love",
    "hate",
    "fear",
    "trust",
    "doubt",
    "remember",
    "forget",
    "choose",
    "follow",
    "watch",
    "hear",
    "inspect",
    "license",
    "fund",
    "finance",
    "manage",
    "direct",
    "chair",
    "coach",
    "edit",
    "print",
    "bind",
    "carve",
    "weave",
    "knit",
    "sew",
    "forge",
    "cast",
]

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

    irregular = {parts[0]: parts for parts in (line.split() for line in _IRREGULAR.split(";"))}
    past_words = tagged["VBD"] | tagged["VBN"]
    bases = [w for w in common("VB", 2) if w not in _NO_BASE]
    regular = [w for w in bases if w not in irregular and _past(w) in past_words]
    return Lexicon(
        nouns=common("NN", 4),
        plurals=common("NNS", 4),
        adjectives=common("JJ", 4),
        adverbs=tuple(w for w in common("RB", 4) if w.endswith("ly")),
        verbs=tuple(_verb(w, irregular) for w in [*regular, *sorted(set(irregular) - _NO_BASE)]),
        favourite_verbs=tuple(_verb(w, irregular) for w in _FAVOURITES),
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
