"""Whether a text names an entity of the corpus, whatever the capitals."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa

from ragtuned_pipeline.synthesis.clauses import word_set

_WORD = re.compile(r"\w+")
# A name of nothing but these ("WHO", "It") is one only where it is written so.
_PLAIN = word_set(
    "a all am an and any are as at be but by can did do does for from had has have he her here him "
    "his how i if in is it its may me might more most must my no nor not of on one or our she so "
    "than that the their them then there they this those to us was we were what when where which "
    "who whom whose why will with you your"
)


class EntityNames:
    """The titles and aliases of the entities, as runs of words."""

    def __init__(self, entities: pa.Table) -> None:
        self._names: dict[tuple[str, ...], str] = {}
        self._lengths: dict[str, set[int]] = defaultdict(set)
        for title, aliases in zip(
            entities["title"].to_pylist(), entities["aliases"].to_pylist(), strict=True
        ):
            for name in (title, *(aliases or ())):
                words = tuple(_WORD.findall(name.casefold()))
                if words:
                    # The same words may be written in several ways: the first in the alphabet.
                    self._names[words] = min(name, self._names.get(words, name))
                    self._lengths[words[0]].add(len(words))

    def first_in(self, text: str) -> str | None:
        """Return the first name that stands in `text` as whole words, the longest there, or None.

        Punctuation between words makes no difference.
        """
        return next(self._in(text), None)

    def _in(self, text: str) -> Iterator[str]:
        written = _WORD.findall(text)
        folded = [word.casefold() for word in written]
        for at, word in enumerate(folded):
            for length in sorted(self._lengths.get(word, ()), reverse=True):
                name = self._names.get(tuple(folded[at : at + length]))
                if name is None:
                    continue
                plain = _PLAIN.issuperset(folded[at : at + length])
                if not plain or written[at : at + length] == _WORD.findall(name):
                    yield name
