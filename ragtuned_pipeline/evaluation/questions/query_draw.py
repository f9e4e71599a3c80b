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

    The kind that a unit gives is drawn by the shares of those that it has left, from the unit's id
    alone, so that a unit more leaves what the others give alone; of that kind it gives what was
    drawn least often so far, the first of several.

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
    turn = 0
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
            ones = left[unit][_drawn_kind(able, shares, seeded_int(seed, "kind", unit, str(turn)))]
            one = ones.pop(min(range(len(ones)), key=lambda place: drawn[key(ones[place])]))
            drawn[key(one)] += 1
            giving.append(unit)
            yield one
        order = giving
        turn += 1


def _drawn_kind(able: Sequence[str], shares: Mapping[str, float], draw: int) -> str:
    """Return one of `able` by its share of theirs; `draw` is a 64-bit number."""
    at = draw / 2**64 * sum(shares[kind] for kind in able)
    for kind in able:
        at -= shares[kind]
        if at < 0:
            return kind
    return able[0]
