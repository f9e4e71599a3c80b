"""Which names name the same thing.

Full names come first: they differ unless one is the other with a middle name left out or an
initial written out. Short forms (a surname, a first name, a head noun with "the", initials) are
then given, occurrence by occurrence, to the full name that was last used in the same document,
else to the one used most in it, else in the corpus. Two full names are never made one because
they share a part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.mentions import Mention, name_kind

_HEAD_VOTES = 5  # a name's own words against the words around one occurrence
_INITIALS_USE = 5  # times as often as the name itself that two initials may stand for it
_SMALL = w.NAME_JOINERS | {"the", "and", "&", "'s", "for", "in"}


@dataclass
class _Form:
    """One spelling (case folded) of a name, over the whole corpus."""

    count: int = 0
    weak: int = 0
    definite: int = 0
    bare: int = 0  # without an honorific
    spellings: Counter[str] = field(default_factory=Counter)
    honorifics: Counter[str] = field(default_factory=Counter)
    votes: Counter[str] = field(default_factory=Counter)

    def add(self, mention: Mention) -> None:
        self.count += 1
        self.weak += mention.weak
        self.definite += mention.definite
        self.spellings[mention.name] += 1
        if mention.honorific:
            self.honorifics[mention.honorific] += 1
        else:
            self.bare += 1
        self.votes.update(dict(mention.votes))


@dataclass(frozen=True)
class NamedThing:
    """An entity: its title, aliases (sorted, without the title) and votes for its type."""

    title: str
    type: str
    aliases: tuple[str, ...]
    votes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Resolution:
    """`things`, and for each mention of each document the index of its thing, -1 for none."""

    things: list[NamedThing]
    owners: list[list[int]]


def resolve(documents: Sequence[Sequence[Mention]]) -> Resolution:
    """Resolve the mentions of each document, given in the order of its text."""
    forms: dict[str, _Form] = defaultdict(_Form)
    for mentions in documents:
        for mention in mentions:
            forms[_key(mention.name)].add(mention)
    definite = {
        key for key, form in forms.items() if form.definite * 2 > form.count and " " not in key
    }
    kinds = {key: _kind(form, definite) for key, form in forms.items()}
    roots = _full_names(forms, kinds)
    short = _short_forms(forms, kinds, roots)
    owners = [_assign(mentions, forms, roots, short) for mentions in documents]
    return _things(documents, owners, forms, kinds)


def _key(name: str) -> str:
    return name.casefold()


def _parts(key: str) -> list[str]:
    return [part for part in key.replace("'s ", " 's ").split() if part != "'s"]


def _kind(form: _Form, definite: set[str]) -> str:
    """Return the type that a form's own words and its occurrences speak for most.

    `definite` holds the one-word forms that mostly follow "the".
    """
    parts = _best(form.spellings).split()
    votes = form.votes
    own = name_kind(parts)
    mostly_definite = form.definite * 2 > form.count
    if own:
        votes[own] += _HEAD_VOTES * form.count
    elif len(parts) in (2, 3) and not mostly_definite:
        votes[w.PERSON] += form.count * _person_name(parts, votes[w.PERSON] > 0, definite)
    if votes:
        return max(w.TYPES, key=lambda kind: votes[kind])
    if mostly_definite:
        return w.OBJECT
    acronym = len(parts[0]) > 1 and parts[0].isupper()
    return w.PERSON if len(parts) == 1 and not acronym else w.ORGANIZATION


def _person_name(parts: list[str], spoken_of: bool, definite: set[str]) -> int:
    """Return how much two or three words without a telling head look like a person's name: 0-2."""
    if _is_initial(parts[0]):
        return 2
    small = any(part.lower() in _SMALL - w.NAME_JOINERS for part in parts)
    if small or w.is_common(parts[0]):
        return 0
    if parts[-1].casefold() in definite:
        return int(w.tagger_lexicon().get(parts[0], "") == "NNP")
    if not w.is_common(parts[-1]) or spoken_of:
        return 2
    return int(len(parts) == 2)


def _is_initial(part: str) -> bool:
    return len(part) == 2 and part[0].isupper() and part[1] == "."


def _best(counted: Counter[str]) -> str:
    return min(counted, key=lambda name: (-counted[name], name))


def _full_names(forms: dict[str, _Form], kinds: dict[str, str]) -> dict[str, str]:
    """Return for each full form the form that stands for its thing."""
    roots = {key: key for key in forms if len(_parts(key)) > 1}
    people: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in sorted(roots):
        if kinds[key] == w.PERSON:
            parts = key.split()
            people[parts[0], parts[-1]].append(key)
    # A middle name left out: "Mira Ann Voss" and "Mira Voss", where no second middle name is known.
    for group in people.values():
        two = [key for key in group if len(key.split()) == 2]
        more = [key for key in group if len(key.split()) > 2]
        if len(two) == 1 and len(more) == 1:
            roots[more[0]] = two[0]
    # An initial written out: "J. Voss" where only one Voss has a first name in J.
    for (first, last), group in sorted(people.items()):
        if first.endswith(".") and len(first) == 2:
            fits = sorted(
                {
                    roots[key]
                    for (other, name), keys in people.items()
                    if name == last and other[0] == first[0] and not other.endswith(".")
                    for key in keys
                }
            )
            if len(fits) == 1:
                for key in group:
                    roots[key] = fits[0]
    return roots


def _short_forms(
    forms: dict[str, _Form], kinds: dict[str, str], roots: dict[str, str]
) -> dict[str, list[str]]:
    """Return for each form that may be short for full names those names, most used first."""
    everything = _FullNames(forms, kinds, roots)
    # "Harbour Board" is short for "Brannock Harbour Board": what is short for the one ("HB") is
    # short for the other.
    longest = {}
    for key, root in roots.items():
        meant = everything.meant_by(key)
        if len(meant) < 2:
            longest[key] = min(meant, default=root)
    full = _FullNames(forms, kinds, longest)
    found = {key: full.meant_by(key) for key in sorted(forms)}
    return {
        key: sorted(names, key=lambda name: (-forms[name].count, name))
        for key, names in found.items()
        if names
    }


class _FullNames:
    """Full names by what may stand for them: first or last name, ending, beginning, initials."""

    def __init__(
        self, forms: dict[str, _Form], kinds: dict[str, str], roots: dict[str, str]
    ) -> None:
        self._forms, self._kinds = forms, kinds
        self._people: dict[str, set[str]] = defaultdict(set)
        self._surnames: dict[str, set[str]] = defaultdict(set)
        self._endings: dict[str, set[str]] = defaultdict(set)
        self._beginnings: dict[str, set[str]] = defaultdict(set)
        self._initials: dict[str, set[str]] = defaultdict(set)
        self._holders: dict[str, set[str]] = defaultdict(set)  # full names that hold a word
        for key, root in roots.items():
            parts = _parts(key)
            for part in parts:
                self._holders[part].add(root)
            if kinds[key] == w.PERSON:
                self._people[parts[0]].add(root)
                self._people[parts[-1]].add(root)
                self._surnames[parts[-1]].add(root)
                continue
            for cut in range(1, len(parts)):
                if parts[cut - 1] not in _SMALL and parts[cut] not in _SMALL:
                    self._endings[" ".join(parts[cut:])].add(root)
                self._beginnings[" ".join(parts[:cut])].add(root)
            initials = "".join(part[0] for part in parts if part not in _SMALL)
            if len(initials) > 1:
                self._initials[initials].add(root)

    def meant_by(self, key: str) -> set[str]:
        """Return the full names, other than itself, that the form `key` may be short for."""
        found = self._by_one_word(key) if len(_parts(key)) == 1 else self._by_ending(key)
        return found - {key}

    def _by_one_word(self, key: str) -> set[str]:
        form = self._forms[key]
        letters = _best(form.spellings).replace(".", "").replace("&", "")
        if letters.isupper() and letters.lower() in self._initials:
            # Two letters are the initials of many things ("GP" of a pub, the Gilded Pear).
            return {
                full
                for full in self._initials[letters.lower()]
                if len(letters) > 2 or form.count <= _INITIALS_USE * self._forms[full].count
            }
        definite = form.definite * 2 > form.count
        endings, alone = self._endings.get(key, set()), len(self._holders.get(key, ())) == 1
        if definite and (w.is_common(key) or alone):
            return endings or self._surnames.get(key, set())  # "the Trust", "the Wherrymen"
        if not definite and self._is_person(form):
            people = self._people.get(key, set())
            if people:
                return people
        if len(endings) == 1 and alone and not form.weak:
            return endings
        beginnings = self._beginnings.get(key, set())
        if len(beginnings) == 1 and alone and not definite and self._kinds[key] != w.GEO:
            (full,) = beginnings
            return beginnings if form.count <= self._forms[full].count else set()
        return set()

    def _is_person(self, form: _Form) -> bool:
        other = max(form.votes[kind] for kind in w.TYPES if kind != w.PERSON)
        return other <= 1 or form.votes[w.PERSON] >= other or bool(form.honorifics)

    def _by_ending(self, key: str) -> set[str]:
        spelled = _best(self._forms[key].spellings).split()
        if self._kinds[key] == w.PERSON and not name_kind(spelled):
            return set()
        endings = self._endings.get(key, set())
        return (
            endings
            if len(endings) == 1 and self._kinds[key] == self._kinds[min(endings)]
            else set()
        )


def _assign(
    mentions: Sequence[Mention],
    forms: dict[str, _Form],
    roots: dict[str, str],
    short: dict[str, list[str]],
) -> list[str]:
    """Return for each mention of one document the form that stands for its thing, "" for none."""
    here: Counter[str] = Counter()
    for mention in mentions:
        key = _key(mention.name)
        if key in roots and key not in short:
            here[roots[key]] += 1
    latest: dict[str, int] = {}
    owners: list[str] = []
    for position, mention in enumerate(mentions):
        key = _key(mention.name)
        fits = short.get(key)
        if fits:
            seen = [full for full in fits if full in latest]
            active = [full for full in fits if here[full]]
            if seen:
                owner = max(seen, key=lambda full: (latest[full], full))
            elif active:
                owner = max(active, key=lambda full: (here[full], full))
            else:
                owner = fits[0] if not (mention.weak and len(fits) > 1) else ""
        elif key in roots:
            owner = roots[key]
        else:
            owner = "" if mention.weak else key
        if owner:
            latest[owner] = position
        owners.append(owner)
    return owners


def _things(
    documents: Sequence[Sequence[Mention]],
    owners: Sequence[Sequence[str]],
    forms: dict[str, _Form],
    kinds: dict[str, str],
) -> Resolution:
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for mentions, owned in zip(documents, owners, strict=True):
        for mention, owner in zip(mentions, owned, strict=True):
            if owner:
                spellings[owner][mention.name] += 1
                if mention.honorific:
                    spellings[owner][f"{mention.honorific} {mention.name}"] += 0
                votes[owner].update(dict(mention.votes))
    titles = {owner: _title(owner, forms[owner], counted) for owner, counted in spellings.items()}
    order = sorted(spellings, key=lambda owner: (titles[owner].casefold(), owner))
    number = {owner: i for i, owner in enumerate(order)}
    number[""] = -1
    things = []
    for owner in order:
        kind = kinds[owner]
        counted = votes[owner] + Counter({kind: 3})
        if name_kind(titles[owner].split()) == kind:
            counted[kind] += _HEAD_VOTES
        best = max(w.TYPES, key=lambda name: (counted[name], name == kind))
        aliases = sorted(set(spellings[owner]) - {titles[owner]})
        things.append(
            NamedThing(titles[owner], best, tuple(aliases), tuple(sorted((+counted).items())))
        )
    return Resolution(things, [[number[owner] for owner in owned] for owned in owners])


def _title(owner: str, form: _Form, spellings: Counter[str]) -> str:
    """Return the longest common full form; an honorific stays where the name is never bare."""
    most = max(spellings.values())
    common = [name for name, count in spellings.items() if count * 5 >= most and count]
    words = len(owner.split())
    full = [name for name in common if len(name.split()) >= words] or [_best(form.spellings)]
    title = min(full, key=lambda name: (-len(name.split()), -spellings[name], name))
    if not form.bare and form.honorifics and len(title.split()) == 1:
        return f"{_best(form.honorifics)} {title}"
    return title
