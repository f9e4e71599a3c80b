"""Which of the names that a teacher extracted name the same thing.

Three stages, from sure to doubtful:

1. Rules on the names' words. The same words (case, punctuation, articles aside) are one thing. A
   full name takes in its own forms of address ("Captain Jory Dunmoor") and, in a document that
   holds it, its short forms: a surname, a first name, initials, a general noun ("the Trust"), an
   acronym. A short form that more than one full name of its text unit, or else of its document,
   could mean stays a thing of its own there.
2. Near ties: names spelled nearly alike, names with near embeddings where an embedder is given,
   and short forms that only one full name of another document could mean.
3. The teacher is asked about each near tie, with what is told of both; only a yes merges.

What differs is never merged, whatever the teacher says: other numbers or years, "Mr" and "Mrs",
"upper" and "lower", other given names with one surname, a person and what is no person. Nor are
two names merged by way of a third where that would make one thing of two that differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field

from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.names import acronyms, fold, name_key
from ragtuned_pipeline.inference.calls import Call, Completed, Teacher
from ragtuned_pipeline.inference.prompts import load_prompt
from ragtuned_pipeline.tables import Failure

Embed = Callable[[Sequence[str]], np.ndarray]

_PROMPT = Path(__file__).parent / "prompts" / "same_entity.md.j2"
_REPLY_TOKENS = 300
_TOLD = 1200  # characters of what is told of each of two names

# Chosen by us: near enough to be worth a question, far enough from most pairs that differ.
_NEAR_SPELLING = 88.0  # rapidfuzz's ratio, 0 to 100
_NEAR_MEANING = 0.9  # cosine of the names' embeddings
_NEIGHBOURS = 3  # nearest by embedding that are looked at, for each name
_MOST_ASKED = 5  # near ties about one name
_BLOCK = 200  # names that are compared with each other at a time
_ROWS = 1024  # of the cosine matrix at a time

_PERSONS = w.word_set("person people human character individual")
_JOINERS = w.NAME_JOINERS | {"the", "and", "for", "in", "at", "on", "s"}


def _numbered(words: str) -> dict[str, str]:
    return {word: str(number) for number, word in enumerate(words.split(), 1)}


_NUMBERS = {
    **_numbered(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
    ),
    **_numbered("one two three four five six seven eight nine ten eleven twelve"),
    **_numbered("i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi"),
}
for _letter in "ivx":  # more often an initial than a number
    del _NUMBERS[_letter]
# Words of one row exclude those of the others in its group.
_CONTRASTS = tuple(
    tuple(w.word_set(row) for row in group)
    for group in (
        (
            "mr sir lord king prince duke baron count father brother son uncle nephew husband "
            "grandfather",
            "mrs ms miss lady dame queen princess duchess baroness countess mother sister "
            "daughter aunt niece wife grandmother",
        ),
        ("mrs", "miss"),
        ("father grandfather", "brother", "son", "uncle", "nephew", "husband"),
        ("mother grandmother", "sister", "daughter", "aunt", "niece", "wife"),
        ("north northern", "south southern", "east eastern", "west western"),
        ("upper", "lower", "middle"),
        ("inner", "outer"),
        ("old", "new"),
        ("great greater", "little lesser"),
        ("left", "right"),
        ("senior sr elder", "junior jr younger"),
    )
)
_CONTRASTING = frozenset(word for group in _CONTRASTS for row in group for word in row)


class SameEntity(BaseModel):
    """The teacher's verdict on two names."""

    reason: Annotated[str, BeforeValidator(lambda v: v.strip() if isinstance(v, str) else v)] = (
        Field(max_length=400)
    )
    same: bool


@dataclass(frozen=True)
class Occurrence:
    """A name in one text unit, as extracted.

    Attributes:
        name: cleaned.
        type: None where the reply gave none.
        description: may be empty.
        document, unit: their numbers in the order of the corpus.
    """

    name: str
    type: str | None
    description: str
    document: int
    unit: int


@dataclass(frozen=True)
class NamedThing:
    """An entity's names; `aliases` are sorted and do not hold the title."""

    title: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Aliases:
    """`things` by title, for each occurrence the number of its thing, and what went unanswered."""

    things: list[NamedThing]
    owners: list[int]
    failures: list[Failure]


def resolve_aliases(
    occurrences: Sequence[Occurrence], teacher: Teacher, embed: Embed | None = None
) -> Aliases:
    """Return which occurrences name the same thing; the same whatever the order of replies.

    Args:
        occurrences: in the order of the corpus; their names hold a letter or digit each.
        teacher: is asked about near ties, step "resolution", one call a pair.
        embed: gives a vector a name, of shape (names, dimensions).
    """
    forms = _forms(occurrences)
    groups = _Groups(forms)
    _join_same_words(forms, groups)
    fits = _ShortForms(forms, groups).fits()
    owner = _assign(occurrences, forms, groups, fits)
    things = sorted({owner(each) for each in occurrences})
    pairs = _near_ties(things, forms, groups, fits, embed)
    yes, failures = _ask(pairs, forms, groups, teacher)
    for first, second in yes:
        groups.join(first, second)
    return _named(occurrences, [groups.root(owner(each)) for each in occurrences], groups, failures)


# --- forms of a name --------------------------------------------------------------------------


@dataclass
class _Form:
    """All spellings with one key over the whole corpus."""

    key: str
    spellings: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    descriptions: dict[str, None] = field(default_factory=dict)
    units: set[int] = field(default_factory=set)
    documents: set[int] = field(default_factory=set)

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(self.key.split())

    @cached_property
    def honorifics(self) -> tuple[str, ...]:
        """The words of address before the name, "" where there are none or nothing else."""
        count = 0
        while count < len(self.words) - 1 and self.words[count] in w.HONORIFICS:
            count += 1
        return self.words[:count]

    @cached_property
    def core(self) -> tuple[str, ...]:
        return self.words[len(self.honorifics) :]

    @cached_property
    def type(self) -> str:
        return min(self.types, key=lambda kind: (-self.types[kind], kind), default="")

    @cached_property
    def person(self) -> bool:
        return fold(self.type) in _PERSONS

    @cached_property
    def numbers(self) -> frozenset[str]:
        """Numbers, years and counting letters: what tells instances of one kind apart."""
        found = {number for word in self.core for number in re.findall(r"\d+", word)}
        found |= {_NUMBERS[word] for word in self.core if word in _NUMBERS}
        last = self.core[-1]
        if len(self.core) > 1 and len(last) == 1 and last != "s" and not self.person:
            found.add(last)
        return frozenset(number.lstrip("0") or "0" for number in found)


def _forms(occurrences: Sequence[Occurrence]) -> dict[str, _Form]:
    forms: dict[str, _Form] = {}
    for each in occurrences:
        key = name_key(each.name)
        form = forms.setdefault(key, _Form(key))
        form.spellings[each.name] += 1
        form.units.add(each.unit)
        form.documents.add(each.document)
        if each.type:
            form.types[each.type] += 1
        if each.description:
            form.descriptions[each.description] = None
    return forms


def differ(first: _Form, second: _Form) -> bool:
    """Tell whether two names cannot name one thing."""
    return (
        first.numbers != second.numbers
        or _contrast(first, second)
        or _one_person(first, second)
        or _one_person(second, first)
        or _other_given_names(first, second)
    )


def _contrast(first: _Form, second: _Form) -> bool:
    own, other = _CONTRASTING.intersection(first.words), _CONTRASTING.intersection(second.words)
    if not (own and other):
        return False
    for group in _CONTRASTS:
        mine = {i for i, row in enumerate(group) if row & own}
        theirs = {i for i, row in enumerate(group) if row & other}
        if mine and theirs and not mine & theirs:
            return True
    return False


def _one_person(first: _Form, second: _Form) -> bool:
    """Tell whether the first is a person and the second was never taken for one."""
    return (
        first.person
        and bool(second.types)
        and not any(fold(kind) in _PERSONS for kind in second.types)
    )


def _other_given_names(first: _Form, second: _Form) -> bool:
    if not (first.person or second.person) or min(len(first.core), len(second.core)) < 2:
        return False
    if first.core[-1] != second.core[-1]:
        return False
    return not all(
        _same_given_name(a, b) for a, b in zip(first.core[:-1], second.core[:-1], strict=False)
    )


def _same_given_name(first: str, second: str) -> bool:
    """Tell whether two given names may be one: equal, an initial, other accents or doublings."""
    if 1 in (len(first), len(second)):
        return first[0] == second[0]
    return _plain(first) == _plain(second)


def _plain(word: str) -> str:
    return re.sub(r"(.)\1+", r"\1", _without_accents(word))


def _without_accents(text: str) -> str:
    letters = unicodedata.normalize("NFD", text)
    return "".join(c for c in letters if not unicodedata.combining(c))


class _Groups:
    """Disjoint sets of forms, by key, no two forms in one set that differ."""

    def __init__(self, forms: Mapping[str, _Form]) -> None:
        self._forms = forms
        self._root = {key: key for key in forms}
        self._members = {key: [key] for key in forms}

    def root(self, key: str) -> str:
        return self._root[key]

    def members(self, key: str) -> list[_Form]:
        """Return the forms in the set of `key`, sorted by key."""
        return [self._forms[member] for member in sorted(self._members[self._root[key]])]

    def agree(self, first: str, second: str) -> bool:
        """Tell whether no form of the one set differs from one of the other."""
        return not any(differ(a, b) for a in self.members(first) for b in self.members(second))

    def join(self, first: str, second: str) -> None:
        """Make one set of two, unless they differ."""
        kept, gone = sorted((self._root[first], self._root[second]))
        if kept == gone or not self.agree(first, second):
            return
        for member in self._members[gone]:
            self._root[member] = kept
        self._members[kept] += self._members.pop(gone)


def _join_same_words(forms: Mapping[str, _Form], groups: _Groups) -> None:
    """Join full names that only their forms of address tell apart."""
    same: dict[tuple[str, ...], list[_Form]] = defaultdict(list)
    for form in forms.values():
        if len(form.core) > 1:
            same[form.core].append(form)
    for members in same.values():
        agreeing = _agreeing(members)
        for form in agreeing[1:]:
            groups.join(agreeing[0].key, form.key)


def _agreeing(forms: Iterable[_Form]) -> list[_Form]:
    """Return those forms, sorted by key, that differ from none of the others."""
    every = sorted(forms, key=lambda form: form.key)
    return [a for a in every if not any(differ(a, b) for b in every if b is not a)]


# --- short forms ------------------------------------------------------------------------------


class _ShortForms:
    """Full names by what may stand for them, so that no two names are compared in vain."""

    def __init__(self, forms: Mapping[str, _Form], groups: _Groups) -> None:
        self._forms, self._groups = forms, groups
        self._by_part: dict[str, set[str]] = defaultdict(set)
        for key, form in forms.items():
            for part in _parts(form):
                self._by_part[part].add(key)

    def fits(self) -> dict[str, list[str]]:
        """Return for each short form the sets (roots) of full names that it may stand for."""
        every = {key: self._full_names(form) for key, form in self._forms.items()}
        # "Harbour Trust" is no full name for "the Trust" where it is itself short for one.
        return {
            key: sorted({self._groups.root(full) for full in fulls if not fulls & every[full]})
            for key, fulls in every.items()
            if fulls
        }

    def _full_names(self, form: _Form) -> set[str]:
        found = self._by_part.get(" ".join(form.core), set())
        if len(form.core) > 1:
            found = found | self._by_part.get(_by_initial(form), set())
        return {
            key
            for key in found
            if key != form.key
            and is_short_for(form, self._forms[key])
            and self._groups.agree(form.key, key)
            and self._groups.root(key) != self._groups.root(form.key)
        }


def _parts(form: _Form) -> Iterator[str]:
    """Yield what may stand for a full name, as it would be spelled."""
    core = form.core
    if form.person:
        yield from {core[0], core[-1], _by_initial(form)}
        return
    for cut in range(1, len(core)):
        yield " ".join(core[cut:])
    yield core[0]
    yield from acronyms(core)


def _by_initial(form: _Form) -> str:
    """Return what "J. Voss", "Jonas Voss" and "Jonas Emil Voss" share."""
    return f"{form.core[0][0]}. {form.core[-1]}"


def is_short_for(short: _Form, full: _Form) -> bool:
    """Tell whether `short` may stand for the full name `full` where that is known."""
    if differ(short, full):
        return False
    if full.person:
        return _is_short_person(short, full)
    if len(full.core) < 2 or (short.types and short.type != full.type):
        return False
    count = len(short.core)
    if count < len(full.core) and full.core[-count:] == short.core:
        dropped = full.core[:-count]
        plain = dropped[-1] not in _JOINERS and _CONTRASTING.isdisjoint(dropped)
        return plain and (count > 1 or w.is_common(short.core[0]))
    if count > 1:
        return False
    shouted = any(spelling.isupper() for spelling in short.spellings)
    if shouted and len(short.key) > 2 and short.key in acronyms(full.core):
        return True
    return (
        short.core[0] == full.core[0]
        and full.type.startswith("org")
        and not w.is_common(short.core[0])
    )


def _is_short_person(short: _Form, full: _Form) -> bool:
    if len(full.core) == 1:  # "Sunter" and "Mr Sunter"
        return bool(full.honorifics) and not short.honorifics and short.core == full.core
    if len(short.core) == 1:
        return short.core[0] in (full.core[0], full.core[-1])
    if short.core[-1] != full.core[-1] or len(short.core) > len(full.core):
        return False
    longer = len("".join(full.core)) > len("".join(short.core))
    return longer and short.core[0] in (full.core[0], full.core[0][0])


def _needs_context(short: _Form) -> bool:
    """Tell whether a short form means what its surroundings name; others mean the same anywhere."""
    return not short.types or short.person or (len(short.core) == 1 and w.is_common(short.core[0]))


def _assign(
    occurrences: Sequence[Occurrence],
    forms: Mapping[str, _Form],
    groups: _Groups,
    fits: Mapping[str, Sequence[str]],
) -> Callable[[Occurrence], str]:
    """Return which set (root) an occurrence belongs to."""
    units: dict[str, set[int]] = defaultdict(set)
    documents: dict[str, set[int]] = defaultdict(set)
    for full in {full for fulls in fits.values() for full in fulls}:
        for form in groups.members(full):
            units[full] |= form.units
            documents[full] |= form.documents
    chosen: dict[tuple[str, int], str] = {}
    claims: dict[str, set[str]] = defaultdict(set)
    for each in occurrences:
        key = name_key(each.name)
        fulls = fits.get(key, ())
        if len(fulls) > 1 and not _needs_context(forms[key]):
            continue
        near = [full for full in fulls if each.unit in units[full]]
        near = near or [full for full in fulls if each.document in documents[full]]
        if len(near) == 1:
            chosen[key, each.unit] = near[0]
            claims[near[0]].add(key)
    # "Mr Voss" and "Mrs Voss" may each be Robin Voss; as both cannot be, neither is taken to be.
    agreed = {
        full: {form.key for form in _agreeing(forms[key] for key in keys)}
        for full, keys in claims.items()
    }

    def owner(each: Occurrence) -> str:
        key = name_key(each.name)
        full = chosen.get((key, each.unit))
        return full if full is not None and key in agreed[full] else groups.root(key)

    return owner


# --- near ties --------------------------------------------------------------------------------

_Pair = tuple[str, str]


def _near_ties(
    things: Sequence[str],
    forms: Mapping[str, _Form],
    groups: _Groups,
    fits: Mapping[str, Sequence[str]],
    embed: Embed | None,
) -> list[_Pair]:
    """Return the pairs of sets (roots) to ask about, nearest first; none that differ."""
    titles = [_title(groups.members(key)) for key in things]
    scores: dict[_Pair, float] = {}
    alike = _alike([name_key(title) for title in titles])
    if embed is not None and len(things) > 1:
        alike = _merged(alike, _alike_in_meaning(embed(titles)))
    for (i, j), score in alike.items():
        scores[things[i], things[j]] = score
    live = set(things)
    for short, fulls in fits.items():
        root = groups.root(short)
        if root in live and len(fulls) == 1 and fulls[0] in live and root != fulls[0]:
            first, second = sorted((root, fulls[0]))
            scores.setdefault((first, second), _NEAR_SPELLING)
    asked: Counter[str] = Counter()
    chosen = []
    for pair in sorted(scores, key=lambda pair: (-scores[pair], pair)):
        if max(asked[pair[0]], asked[pair[1]]) < _MOST_ASKED and groups.agree(*pair):
            asked.update(pair)
            chosen.append(pair)
    return chosen


def _alike(keys: Sequence[str]) -> dict[tuple[int, int], float]:
    """Return the pairs of names (i < j) that are spelled nearly alike, with their score of 100.

    Names are compared inside blocks that share a word or a beginning; of a large block, with their
    neighbours in the order of the alphabet. Accents, the order of words and the spaces between them
    do not count.
    """
    from rapidfuzz import fuzz, process

    keys = [_without_accents(key) for key in keys]
    blocks: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        for mark in {key.replace(" ", "")[:3] + "…", *(p for p in key.split() if len(p) > 2)}:
            blocks[mark].append(i)
    found: dict[tuple[int, int], float] = {}
    for block in blocks.values():
        if len(block) < 2:
            continue
        ordered = sorted(block, key=lambda i: (keys[i], i))
        for start in range(0, max(len(ordered) - _BLOCK // 2, 1), _BLOCK // 2):
            part = sorted(ordered[start : start + _BLOCK])
            sorted_words = [" ".join(sorted(keys[i].split())) for i in part]
            one_word = [keys[i].replace(" ", "") for i in part]
            near = np.maximum(
                *(
                    process.cdist(each, each, scorer=fuzz.ratio, score_cutoff=_NEAR_SPELLING)
                    for each in (sorted_words, one_word)
                )
            )
            for a, b in np.argwhere(np.triu(near, 1) > 0).tolist():
                found[part[a], part[b]] = float(near[a, b])
    return found


def _alike_in_meaning(vectors: np.ndarray) -> dict[tuple[int, int], float]:
    """Return the pairs (i < j) of near embeddings with their cosine times 100."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1)
    count = min(_NEIGHBOURS, len(vectors) - 1)
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(vectors), _ROWS):
        near = vectors[start : start + _ROWS] @ vectors.T
        near[np.arange(len(near)), start + np.arange(len(near))] = -1
        rows = np.flatnonzero(near.max(axis=1) >= _NEAR_MEANING)
        best = np.argpartition(-near[rows], count - 1, axis=1)[:, :count]
        for row, columns in zip(rows.tolist(), best.tolist(), strict=True):
            for column in columns:
                if near[row, column] >= _NEAR_MEANING:
                    i, j = sorted((start + row, column))
                    found[i, j] = round(100 * float(near[row, column]), 2)
    return found


def _merged(
    first: Mapping[tuple[int, int], float], second: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    return {pair: max(first.get(pair, 0.0), second.get(pair, 0.0)) for pair in {**first, **second}}


def _ask(
    pairs: Sequence[_Pair], forms: Mapping[str, _Form], groups: _Groups, teacher: Teacher
) -> tuple[list[_Pair], list[Failure]]:
    """Return the pairs that the teacher calls the same, in the order of `pairs`."""
    names = {pair: tuple(_title(groups.members(key)) for key in pair) for pair in pairs}
    told = {" = ".join(titles): pair for pair, titles in names.items()}

    def call(item: str, pair: _Pair) -> Call[SameEntity]:
        values: dict[str, str] = {}
        for which, key, title in zip(("first", "second"), pair, names[pair], strict=True):
            members = groups.members(key)
            types: Counter[str] = sum((form.types for form in members), Counter())
            lines = dict.fromkeys(text for form in members for text in form.descriptions)
            values[f"{which}_name"] = title
            values[f"{which}_type"] = ", ".join(sorted(types)) or "unknown"
            values[f"{which}_description"] = " ".join(lines)[:_TOLD] or "Nothing is told of it."
        messages = load_prompt(_PROMPT).messages(**values)
        return Call("resolution", item, messages, SameEntity, _REPLY_TOKENS)

    same: set[_Pair] = set()
    failures = []
    for outcome in teacher.complete(call(item, pair) for item, pair in told.items()):
        item = outcome.call.item_id
        if not isinstance(outcome, Completed):
            failures.append(Failure("resolution", item, outcome.reason, outcome.attempts))
        elif outcome.value.same:
            same.add(told[item])
    return [pair for pair in pairs if pair in same], failures


# --- titles -----------------------------------------------------------------------------------


def _title(members: Sequence[_Form]) -> str:
    """Return the spelling that names a thing: full, not shouted, without a form of address."""

    def order(choice: tuple[_Form, str]) -> tuple[bool, bool, bool, bool, int, int, str]:
        form, spelling = choice
        return (
            any(is_short_for(form, other) for other in members if other is not form),
            spelling.isupper(),
            bool(form.honorifics),
            fold(spelling) != form.key,  # with an article
            -form.spellings[spelling],
            -len(spelling),
            spelling,
        )

    return min(((form, s) for form in members for s in form.spellings), key=order)[1]


def _named(
    occurrences: Sequence[Occurrence],
    roots: Sequence[str],
    groups: _Groups,
    failures: list[Failure],
) -> Aliases:
    spellings: dict[str, set[str]] = defaultdict(set)
    for each, root in zip(occurrences, roots, strict=True):
        spellings[root].add(each.name)
    titles = {root: _title(groups.members(root)) for root in spellings}
    order = sorted(titles, key=lambda root: (titles[root].casefold(), root))
    number = {root: i for i, root in enumerate(order)}
    things = [
        NamedThing(titles[root], tuple(sorted(spellings[root] - {titles[root]}))) for root in order
    ]
    return Aliases(things, [number[root] for root in roots], failures)
