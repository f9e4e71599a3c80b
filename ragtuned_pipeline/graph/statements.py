"""Which things a sentence links, in what direction, and how that reads backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ragtuned_pipeline.graph import words as w
from ragtuned_pipeline.graph.mentions import Tokens

# Chosen on the news and podcast samples; the journal sample had no part in it.
_NEAR, _FAR = 5, 25  # tokens between two things
_REPORTING = w.word_set("said says told tells thinks think argued added recalled")
_SUBORDINATE = w.word_set("while when after before because although but so if until")

# Verbs that say all with a subject and an object, so that they can be turned round.
_COMPLETE = w.word_set(
    "abandon adopt appoint arrest attack beat bite build buy challenge choose commission compose "
    "cook conduct create defeat design direct discover dismiss dissolve divorce edit elect employ "
    "establish found hire illustrate inherit invent invite kill lead marry meet mend nominate own "
    "paint photograph praise produce promote publish rescue repair replace restore review sail "
    "save sell sink steal succeed sue teach translate visit win write"
)


class Place(NamedTuple):
    """A thing's place in a sentence: tokens first to last (exclusive), by name or by pronoun."""

    first: int
    last: int
    thing: int
    named: bool = True


class Link(NamedTuple):
    """`source` and `target` are things; `inverse` reads from target to source, or is None."""

    source: int
    target: int
    inverse: str | None


def links(tokens: Tokens, places: Sequence[Place]) -> list[Link]:
    """Return the links that a sentence states between different things, each pair once."""
    found: dict[frozenset[int], Link] = {}
    for i, left in enumerate(places):
        for step, right in enumerate(places[i + 1 :]):
            pair = frozenset((left.thing, right.thing))
            if len(pair) == 2 and pair not in found and _linked(tokens, left, right, i == 0, step):
                found[pair] = Link(left.thing, right.thing, _inverse(tokens, left, right))
    return list(found.values())


def _linked(tokens: Tokens, left: Place, right: Place, first: bool, between: int) -> bool:
    """Tell whether a sentence links two things, of which `between` others stand in between.

    The first thing is taken for the subject, linked to what its clause goes on to name; others
    are linked to their neighbours only. What somebody says is no statement about the speaker.
    """
    words = [word.lower() for word in tokens.words[left.last : right.first]]
    if not _REPORTING.isdisjoint(words):
        return False
    if not first:
        return between == 0 and len(words) <= _NEAR
    if between == 0:
        return len(words) <= _FAR and _SUBORDINATE.isdisjoint(words)
    owned = right.first > 0 and tokens.words[right.first - 1] == "of"
    return (
        left.first <= 2 and between <= 2 and len(words) <= _FAR and ";" not in words and not owned
    )


def _inverse(tokens: Tokens, left: Place, right: Place) -> str | None:
    """Return the phrase from right to left where the words between are one plain verb phrase.

    Only for verbs that need nothing after their object, between two things that are named: what it
    says is taught, and "She was handed by him" or "The town was kept by her" would be wrong.
    """
    if not (left.named and right.named):
        return None
    if left.first and tokens.tags[left.first - 1] in {"IN", "TO"}:
        return None  # "118 employees of the cannery founded ...": the cannery did not
    words = [word.lower() for word in tokens.words[left.last : right.first]]
    tags = tokens.tags[left.last : right.first]
    while words and (tags[-1] in {"DT", "PRP$"} or words[-1].rstrip(".") in w.HONORIFICS):
        words.pop()
        tags = tags[:-1]
    while words and tags[0] == "RB":
        words.pop(0)
        tags = tags[1:]
    if len(words) == 1 and tags[0] in {"VBD", "VBN"} and w.lemma(words[0]) in _COMPLETE:
        return f"was {w.participle(words[0])} by"
    if len(words) == 3 and words[0] in {"was", "were"} and words[2] == "by":
        return words[1] if tags[1] in {"VBN", "VBD"} else None
    return None
