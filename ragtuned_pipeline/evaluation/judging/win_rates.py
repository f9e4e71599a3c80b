"""Win rates from pairwise judgements, and how far the judge that gave them can be trusted.

Each pair was judged in both orders. A system has won a (query, dimension) where it was preferred in
both; where the orders disagree, the judge went by the place of an answer, and the result is a tie.

All intervals are percentile bootstraps over queries (2000 resamples, seeded), so that rows of one
query, which are alike, are never taken for independent ones. One query of mean size is added that
is lost in whole where the lower limit is looked for, and won where the upper one is, as in the
exact interval of a share (Clopper & Pearson 1934, Biometrika 26, 404): without it 125 wins of 125
would claim certainty. Four added queries at once, after Agresti & Coull (1998), draw both limits
inwards: 2 wins of 125 would then exclude a true rate of 0.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.judging.judge import DIMENSIONS, ORDERS, SAME
from ragtuned_pipeline.evaluation.metrics import alternatives, contains, tokens
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.tables import SCHEMAS

OVERALL = "overall"
SCOPES = ("local", "global")

_VERDICTS = ("b", "tie", "a")  # worth 0, a half and 1 to system_a
_RESAMPLES = 2000
_BINS = 4  # of differences in length, on either side


def win_rates(judgements: pa.Table, queries: pa.Table, seed: int) -> pa.Table:
    """Return the win_rates table: by scope, dimension and pair, the dimension "overall" last.

    A query counts for a dimension with 1 (won in both orders), 0 or a half, and overall with the
    mean of its judged dimensions: there it is won where this mean is above a half, a tie where it
    is a half, and a disagreement where the orders disagree on any dimension. `win_rate` is the mean
    over the judged queries; it and its interval are null where there are none.

    Raises:
        ValueError: judgements are to no query, hold an unknown word, or stand there twice.
    """
    items = _items(judgements)
    pairs = len(items.pairs)
    _, first, place = np.unique(
        items.query * pairs + items.pair, return_index=True, return_inverse=True
    )
    judged = np.bincount(place, weights=items.judged)
    worth = np.bincount(place, weights=np.nan_to_num(items.result))
    overall = np.divide(worth, judged, out=np.full(len(first), np.nan), where=judged > 0)

    dimensions = (*DIMENSIONS, OVERALL)
    query = np.concatenate([items.query, items.query[first]])
    dimension = np.concatenate([items.dimension, np.full(len(first), len(DIMENSIONS))])
    pair = np.concatenate([items.pair, items.pair[first]])
    results = np.concatenate([items.result, overall])
    disagree = np.concatenate([items.disagree, np.bincount(place, weights=items.disagree) > 0])

    scope = _scopes(items.query_ids, queries)[query]
    groups = (scope * len(dimensions) + dimension) * pairs + pair
    order = np.argsort(groups, kind="stable")
    found, starts = np.unique(groups[order], return_index=True)
    rows = []
    for group, members in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        system_a, system_b = items.pairs[group % pairs]
        named = {
            "scope": SCOPES[group // pairs // len(dimensions)],
            "dimension": dimensions[group // pairs % len(dimensions)],
            "system_a": system_a,
            "system_b": system_b,
        }
        counted = _counted(results[members], seeded_int(seed, *named.values()))
        rows.append(named | counted | {"disagreements": int(disagree[members].sum())})
    return pa.Table.from_pylist(rows, schema=SCHEMAS["win_rates"])


def _counted(results: np.ndarray, seed: int) -> dict[str, Any]:
    """Return one row's numbers; `results` is nan where a query was not judged."""
    judged = results[~np.isnan(results)]
    rate, (low, high) = _share(judged, np.arange(len(judged)), seed) or (None, (None, None))
    return {
        "n": len(judged),
        "wins_a": int((judged > 0.5).sum()),
        "wins_b": int((judged < 0.5).sum()),
        "ties": int((judged == 0.5).sum()),
        "unjudged": len(results) - len(judged),
        "win_rate": rate,
        "low": low,
        "high": high,
    }


# ---- the judge ----


def judge_quality(
    judgements: pa.Table, queries: pa.Table, answers: pa.Table, seed: int
) -> dict[str, Any]:
    """Return what shows a judge that goes by something else than the answers' worth.

    order: of the (query, pair, dimension) items judged in both orders, the share in which the
    orders disagree; and of their decisive verdicts the share that went to the answer shown first,
    a half for a judge to whom the order means nothing.

    length: of the decisive verdicts on answers that differ in their number of words, the share that
    went to the longer one. More than a half is no proof of a bias: longer answers may be better.
    "bins" holds the win rate (ties count as a half) of an answer that has "low" to "high" words
    more than the other one, in quantiles of the difference. Each verdict is in two bins, once from
    the side of each answer.

    Pairs of equal answers, which are ties without the judge being asked, are in none of these.

    agreement: of the items of usefulness_correctness in which exactly one answer contains the
    reference, the share in which the judge preferred that one; a tie counts as a half.

    Shares and intervals are None where "n" is 0. An answer that is missing has no words.

    Raises:
        ValueError: as `win_rates`.
    """
    # Answers that are the same were shown to nobody: their ties say nothing of the judge.
    shown = judgements.filter(pc.fill_null(pc.not_equal(judgements["reason"], SAME), True))
    items = _items(shown)
    _scopes(items.query_ids, queries)
    known = _answers(items, queries, answers)
    return {
        "judgements": judgements.num_rows,
        "unjudged": judgements["verdict"].null_count,
        "order": _order(items, seed),
        "length": _length(items, known, seed),
        "agreement": _agreement(items, known, seed),
    }


def _order(items: _Items, seed: int) -> dict[str, Any]:
    judged = items.judged
    worth = items.worth[judged]
    decisive = worth != 0.5
    first_won = np.stack([worth[:, 0] == 1, worth[:, 1] == 0], axis=1)[decisive]
    query = items.query[judged]
    return {
        "n": int(judged.sum()),
        **_named("disagreements", items.disagree[judged], query, seed),
        **_named("first_wins", first_won, np.repeat(query, 2)[decisive.ravel()], seed),
    }


def _length(items: _Items, known: _Answers, seed: int) -> dict[str, Any]:
    words = known.of_pairs(items, known.words)
    difference = words[:, 0] - words[:, 1]
    compared = ~np.isnan(items.worth) & (difference != 0)[:, None]
    longer = np.where(difference[:, None] > 0, items.worth, 1 - items.worth)[compared]
    apart = np.abs(np.repeat(difference, 2)[compared.ravel()])
    decisive = longer != 0.5
    query = np.repeat(items.query, 2)[compared.ravel()]
    return {
        "n": int(decisive.sum()),
        **_named("longer_wins", longer[decisive], query[decisive], seed),
        "bins": _bins(apart, longer),
    }


def _bins(apart: np.ndarray, longer: np.ndarray) -> list[dict[str, Any]]:
    """Return the bins of `judge_quality`, from the shortest answer to the longest.

    Args:
        apart: how many words more the longer answer has, int64 of shape (n,).
        longer: what the verdict is worth to it.
    """
    if not len(apart):
        return []
    quantiles = np.arange(1, _BINS) / _BINS
    edges = np.unique(np.quantile(apart, quantiles, method="lower"))
    place = np.searchsorted(edges, apart)  # a bin holds its upper edge
    above = [
        {
            "low": int(apart[place == bin].min()),
            "high": int(apart[place == bin].max()),
            "n": int((place == bin).sum()),
            "win_rate": float(longer[place == bin].mean()),
        }
        for bin in np.unique(place)
    ]
    below = [
        {
            "low": -each["high"],
            "high": -each["low"],
            "n": each["n"],
            "win_rate": 1 - each["win_rate"],
        }
        for each in reversed(above)
    ]
    return below + above


def _agreement(items: _Items, known: _Answers, seed: int) -> dict[str, Any]:
    right = known.of_pairs(items, known.right)
    counted = (
        items.judged
        & (items.dimension == DIMENSIONS.index("usefulness_correctness"))
        & (right[:, 0] != right[:, 1])
    )
    to_right = np.where(right[:, 0], items.result, 1 - items.result)[counted]
    named = _named("share", to_right, items.query[counted], seed)
    return {"n": len(to_right), "share": named["share"], "interval": named["share_interval"]}


def _named(name: str, values: np.ndarray, query: np.ndarray, seed: int) -> dict[str, Any]:
    share = _share(values, query, seeded_int(seed, "judge", name))
    mean, interval = (share[0], list(share[1])) if share else (None, None)
    return {name: mean, f"{name}_interval": interval}


# ---- counting ----


@dataclass(frozen=True)
class _Items:
    """What was judged: one entry a (query, pair of systems, dimension), sorted by these.

    Attributes:
        query, pair, dimension: places in `query_ids`, `pairs`, DIMENSIONS; int64 of shape (n,).
        worth: to system_a, of the verdict in each of ORDERS, float64 of shape (n, 2); nan where
            there is none.
    """

    query_ids: list[str]
    pairs: list[tuple[str, str]]
    query: np.ndarray
    pair: np.ndarray
    dimension: np.ndarray
    worth: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Whether there is a verdict in both orders."""
        both: np.ndarray = ~np.isnan(self.worth).any(axis=1)
        return both

    @property
    def disagree(self) -> np.ndarray:
        """Whether the verdicts of the two orders differ."""
        differ: np.ndarray = self.judged & (self.worth[:, 0] != self.worth[:, 1])
        return differ

    @property
    def result(self) -> np.ndarray:
        """What both orders together are worth to system_a; nan where one has no verdict."""
        agreed = np.where(self.disagree, 0.5, self.worth[:, 0])
        both: np.ndarray = np.where(self.judged, agreed, np.nan)
        return both


def _items(judgements: pa.Table) -> _Items:
    query, query_ids = _codes(judgements["query_id"])
    a, systems_a = _codes(judgements["system_a"])
    b, systems_b = _codes(judgements["system_b"])
    found, pair = np.unique(a * len(systems_b) + b, return_inverse=True)
    pairs = [
        (systems_a[each // len(systems_b)], systems_b[each % len(systems_b)])
        for each in found.tolist()
    ]
    dimension = _places(judgements["dimension"], DIMENSIONS)
    keys = (query * len(pairs) + pair) * len(DIMENSIONS) + dimension
    found, item = np.unique(keys, return_inverse=True)
    cells = item * len(ORDERS) + _places(judgements["order"], ORDERS)
    if np.bincount(cells, minlength=1).max() > 1:
        raise ValueError("judgements: a pair stands there twice in one dimension and order")
    verdict = _places(judgements["verdict"], _VERDICTS, null=True)
    worth = np.full(len(found) * len(ORDERS), np.nan)
    worth[cells] = np.where(verdict < 0, np.nan, verdict / 2)
    rest, of_dimension = np.divmod(found, len(DIMENSIONS))
    of_query, of_pair = np.divmod(rest, max(len(pairs), 1))
    return _Items(query_ids, pairs, of_query, of_pair, of_dimension, worth.reshape(-1, len(ORDERS)))


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return each value's place in the list of all values, which is sorted, and the list."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    return rank[encoded.indices.to_numpy()], [values[place] for place in order]


def _places(column: pa.ChunkedArray, words: tuple[str, ...], null: bool = False) -> np.ndarray:
    """Return each value's place in `words`, int64 of shape (n,); -1 for null where that may be."""
    places = pc.index_in(column, value_set=pa.array(words))
    if places.null_count > (column.null_count if null else 0):
        unknown = column.filter(pc.is_null(places)).unique().to_pylist()
        raise ValueError(f"judgements: {unknown[:3]} are not all among {list(words)}")
    made: np.ndarray = pc.fill_null(places, -1).to_numpy().astype(np.int64)
    return made


def _scopes(query_ids: list[str], queries: pa.Table) -> np.ndarray:
    """Return each query's place in SCOPES, int64 of shape (n,)."""
    wanted = pa.array(query_ids, pa.string())
    rows = pc.index_in(wanted, value_set=queries["id"])
    if rows.null_count:
        raise ValueError(f"judgements: {rows.null_count} queries are not among the queries")
    places = pc.index_in(queries["scope"], value_set=pa.array(SCOPES)).take(rows)
    if places.null_count:
        raise ValueError(f"queries: a scope is not among {list(SCOPES)}")
    made: np.ndarray = places.to_numpy().astype(np.int64)
    return made


def _share(
    values: np.ndarray, query: np.ndarray, seed: int
) -> tuple[float, tuple[float, float]] | None:
    """Return the mean of `values` and its interval (the module says how); None without values.

    Args:
        values: between 0 and 1, shape (n,).
        query: which query each belongs to, int64 of shape (n,).
    """
    if not len(values):
        return None
    sizes = np.bincount(query).astype(np.float64)
    totals = np.bincount(query, weights=values)[sizes > 0]
    sizes = sizes[sizes > 0]
    share = float(totals.sum() / sizes.sum())
    draw = np.random.default_rng(seed)
    return share, (
        float(np.quantile(_resampled(totals, sizes, 0.0, draw), 0.025)),
        float(np.quantile(_resampled(totals, sizes, 1.0, draw), 0.975)),
    )


def _resampled(
    totals: np.ndarray, sizes: np.ndarray, added: float, draw: np.random.Generator
) -> np.ndarray:
    """Return the means of resamples; `added` is the mean of the query that is added."""
    size = sizes.mean()
    # A resample is a multinomial count over the distinct queries, which are few whatever n. Each
    # is one complex number: total + size i.
    distinct, counts = np.unique(
        np.append(totals + 1j * sizes, size * (added + 1j)).round(6), return_counts=True
    )
    drawn = draw.multinomial(counts.sum(), counts / counts.sum(), size=_RESAMPLES)
    means: np.ndarray = (drawn @ distinct.real) / (drawn @ distinct.imag)
    return means


@dataclass(frozen=True)
class _Answers:
    """The judged answers, by query and system: places in `systems` and of _Items.query_ids.

    Attributes:
        words: how many, int64 of shape (queries, systems).
        right: whether the answer contains the reference, bool of that shape.
    """

    systems: list[str]
    words: np.ndarray
    right: np.ndarray

    def of_pairs(self, items: _Items, values: np.ndarray) -> np.ndarray:
        """Return `values` of both answers of each item, shape (items, 2)."""
        places = {system: place for place, system in enumerate(self.systems)}
        sides = np.array([[places[system] for system in pair] for pair in items.pairs], np.int64)
        both: np.ndarray = values[items.query[:, None], sides.reshape(-1, 2)[items.pair]]
        return both


def _answers(items: _Items, queries: pa.Table, answers: pa.Table) -> _Answers:
    systems = sorted({system for pair in items.pairs for system in pair})
    row = pc.index_in(answers["query_id"], value_set=pa.array(items.query_ids, pa.string()))
    column = pc.index_in(answers["system"], value_set=pa.array(systems, pa.string()))
    known = pc.and_(pc.is_valid(row), pc.is_valid(column))
    row, column = (each.filter(known).to_numpy() for each in (row, column))
    texts = pc.fill_null(answers["answer"].filter(known), "").to_pylist()
    words = np.zeros((len(items.query_ids), len(systems)), np.int64)
    words[row, column] = [len(text.split()) for text in texts]
    right = np.zeros(words.shape, bool)
    references = dict(
        zip(queries["id"].to_pylist(), queries["reference_answer"].to_pylist(), strict=True)
    )
    golds = [
        list(filter(None, map(tokens, alternatives(references[query_id] or ""))))
        for query_id in items.query_ids
    ]
    right[row, column] = [
        _contains_one(text, golds[place]) for text, place in zip(texts, row.tolist(), strict=True)
    ]
    return _Answers(systems, words, right)


def _contains_one(answer: str, golds: list[list[str]]) -> bool:
    said = tokens(answer) if golds else []
    return any(contains(said, gold) for gold in golds)
