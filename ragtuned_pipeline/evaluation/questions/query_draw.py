"""How questions are drawn: evenly over the text units of a corpus, and by kind in stated shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from ragtuned_pipeline.ids import seeded_int

T = TypeVar("T")


def evenly(
    units: Iterable[str],
    offers: Callable[[str], Mapping[str, Sequence[T]]],
    shares: Mapping[str, float],
    key: Callable[[T], Hashable],
    once: bool,
    seed: int,
) -> Iterator[T]:
    """Yield what the units offer: one of each unit before a second of any, until all is drawn.

    A unit gives the kind that is furthest behind its share among those that it has left, and of
    that kind what was drawn least often so far, the first of several.

    Args:
        units: their ids; the order is drawn by `seed`.
        offers: of a unit, by kind; called when its turn comes first.
        shares: of the kinds, which sum to 1; a kind of share 0 is given only where the unit has
            nothing else left.
        key: tells what is the same in several units, such as an entity.
        once: whether what was drawn in one unit is drawn in no other.
    """
    order = sorted(units, key=lambda unit: (seeded_int(seed, "unit", unit), unit))
    left: dict[str, dict[str, list[T]]] = {}
    drawn: Counter[Hashable] = Counter()
    made: Counter[str] = Counter()
    while order:
        giving = []
        for unit in order:
            if unit not in left:
                left[unit] = {kind: list(ones) for kind, ones in offers(unit).items()}
            if once:
                left[unit] = {
                    kind: [one for one in ones if key(one) not in drawn]
                    for kind, ones in left[unit].items()
                }
            able = [kind for kind in shares if left[unit].get(kind)]
            if not able:
                continue
            next_one = made.total() + 1
            kind = max(able, key=lambda k: (shares[k] > 0, shares[k] * next_one - made[k]))
            ones = left[unit][kind]
            one = ones.pop(min(range(len(ones)), key=lambda place: drawn[key(ones[place])]))
            drawn[key(one)] += 1
            made[kind] += 1
            giving.append(unit)
            yield one
        order = giving
