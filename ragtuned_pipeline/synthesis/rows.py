"""Which pairs are trained: as many as fit the time budget, chosen the same way on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.inference.engine import system_message
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.synthesis.facts import (
    COMMUNITY,
    ENTITY,
    LOCAL,
    RELATIONSHIP,
    REPLAY,
    UNANSWERABLE,
)
from ragtuned_pipeline.synthesis.local import PASSAGE_GENERATOR
from ragtuned_pipeline.tables import SCHEMAS

CountTokens = Callable[[Sequence[tuple[str | None, str, str]]], np.ndarray]

_PASSAGE_SHARE = 0.5  # of the budget, at most, before passages are left out
# How the kinds share the tokens that passages leave; what one does not need goes to the others.
# Refusals are 5-10 % of the rows in the literature (2405.05904, 2502.14502). A small model needs
# more: with 8 % of the tokens it declined 39 % of what it could not know (docs/log.md).
_KIND_SHARES: Mapping[str, float] = {
    LOCAL: 0.52,
    ENTITY: 0.13,
    RELATIONSHIP: 0.16,
    COMMUNITY: 0.04,
    UNANSWERABLE: 0.15,
}


TOO_LONG = "rows longer than tuning.max_tokens"  # among TrainingSelection.left_out

_NO_PAIR = (
    "no question-answer pair could be made from this corpus: it needs sentences that state "
    "something about people, places, dates or things"
)
_COUNTED_AT_ONCE = 512  # rows or facts
_FRAME_SLACK = 8  # tokens that a template may gain where a text follows it


class NothingToTrain(ValueError):
    """No pair can be trained; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingSelection:
    """The chosen rows and what was left out.

    Attributes:
        training_rows: the table, in the order of a seeded shuffle.
        tokens: seen in all epochs together, prompts included; within `token_budget`.
        left_out: reason -> count; the reason says of what.
        longest: tokens of the longest row that tuning.max_tokens left out, 0 for none.
    """

    training_rows: pa.Table
    tokens: int
    token_budget: int
    left_out: dict[str, int]
    longest: int = 0


def select_training_rows(
    qa_pairs: pa.Table,
    count_tokens: CountTokens,
    settings: TuningSettings,
    replay_share: float = 0.0,
) -> TrainingSelection:
    """Return the rows to train on.

    Every passage is shown in one wording, so that each sentence of the corpus stands in an answer,
    in the first `settings.passage_epochs`; half of the budget at most.
    The rest of the budget goes to facts in all their wordings, in order of importance within a
    kind; where not all fit so, each is given fewer wordings, down to `settings.min_wordings`.
    A fact in one wording is stored and cannot be asked for (Allen-Zhu & Li, 2309.14316): hence
    fewer facts rather than fewer wordings than that.

    Args:
        count_tokens: (system, prompt, completion) triples to token counts, int64 of shape (n,).
        replay_share: of the chosen rows, at most, that are general questions answered by the base
            model (kind replay), and of the budget, at most, that is spent on them.

    Raises:
        NothingToTrain: no pair was kept, or none fits tuning.max_tokens.
    """
    pairs = qa_pairs.filter(pc.field("kept") & (pc.field("split") == "train"))
    told = system_message(settings.base_model)
    lengths = _Lengths(pairs, told, count_tokens)
    fits = lengths.within(settings.max_tokens)
    left_out = {TOO_LONG: int((~fits).sum())}
    longest = int(lengths[np.flatnonzero(~fits)].max(initial=0))
    pairs, lengths = pairs.filter(pa.array(fits)), lengths.of_rows(fits)
    if not pairs.num_rows:
        raise NothingToTrain(
            _NO_PAIR
            if not len(fits)
            else f"all {len(fits)} training rows are longer than the setting "
            f"tuning.max_tokens = {settings.max_tokens}; raise it ({longest} holds them all), or "
            "lower synthesis.max_answer_characters"
        )
    budget = int(settings.time_budget_minutes * 60 * settings.assumed_tokens_per_second)
    passage = np.array(pc.equal(pairs["generator"], PASSAGE_GENERATOR))
    first = np.flatnonzero(passage & (turn_in_fact(pairs) == 0))
    epochs = settings.epochs
    passage_epochs = min(settings.passage_epochs, epochs)
    shown = lengths.fitting(first, _PASSAGE_SHARE * budget / passage_epochs)
    general = np.array(pc.equal(pairs["kind"], REPLAY))
    replay = np.flatnonzero(general)
    replay = lengths.fitting(replay, replay_share * budget / epochs)
    spent = int(lengths[shown].sum()) * passage_epochs + int(lengths[replay].sum()) * epochs
    candidates = np.flatnonzero(~passage & ~general)
    facts = _chosen_facts(pairs, lengths, candidates, (budget - spent) // epochs, settings)
    others = len(shown) + len(facts.rows)
    replay = replay[: int(replay_share / (1 - replay_share) * others)]
    left_out |= {
        "replay rows beyond synthesis.replay_share": int(general.sum()) - len(replay),
        "passages left out by the time budget": len(first) - len(shown),
        "further wordings of passages, which are shown once": int(passage.sum()) - len(first),
        "facts left out by the time budget": facts.facts_left_out,
        "wordings left out by the time budget": facts.wordings_left_out,
    }
    chosen = np.concatenate([shown, facts.rows, replay])
    if not len(first) + len(candidates):
        raise NothingToTrain(_NO_PAIR)
    if not len(chosen):
        raise NothingToTrain(
            f"the setting tuning.time_budget_minutes = {settings.time_budget_minutes:g} holds "
            f"{budget:,} tokens for {epochs} epochs, too few for any fact; "
            f"{_least_minutes(pairs, lengths, first, candidates, settings, replay_share):g} "
            "would hold one"
        )
    order = np.random.default_rng(settings.seed).permutation(len(chosen))
    places = np.sort(chosen)[order]
    seen = np.where(passage[places], passage_epochs, epochs)
    rows = _rows(pairs, lengths[places], places, seen, told)
    spent = int((lengths[places] * seen).sum())
    left_out = {reason: count for reason, count in left_out.items() if count}
    return TrainingSelection(rows, spent, budget, left_out, longest)


def _least_minutes(
    pairs: pa.Table,
    lengths: _Lengths,
    passages: np.ndarray,
    candidates: np.ndarray,
    settings: TuningSettings,
    replay_share: float,
) -> float:
    """Return the time budget that holds a fact or a passage: the first of a kind, as it is these
    that are offered first (see _in_fair_turns)."""
    needs = []
    if len(passages):
        passage_epochs = min(settings.passage_epochs, settings.epochs)
        needs.append(int(lengths[passages[:1]][0]) * passage_epochs / _PASSAGE_SHARE)
    rows = candidates[turn_in_fact(pairs)[candidates] < settings.min_wordings]
    if len(rows):
        fact, kinds = _codes(pairs["fact_id"])[rows], pairs["kind"].take(pa.array(rows))
        firsts = {kind: fact[at] for at, kind in reversed(list(enumerate(kinds.to_pylist())))}
        costs = {kind: int(lengths[rows[fact == place]].sum()) for kind, place in firsts.items()}
        foremost = min(costs, key=lambda kind: costs[kind] / _KIND_SHARES[kind])
        needs.append(costs[foremost] * settings.epochs / (1 - replay_share))
    minutes = (min(needs) + 1) / settings.assumed_tokens_per_second / 60
    return math.ceil(minutes * 1e4) / 1e4


@dataclass(frozen=True)
class _Chosen:
    rows: np.ndarray
    facts_left_out: int
    wordings_left_out: int


def _chosen_facts(
    pairs: pa.Table,
    lengths: _Lengths,
    candidates: np.ndarray,
    budget: int,
    settings: TuningSettings,
) -> _Chosen:
    """Choose among the rows `candidates` for `budget` tokens: whole facts, kinds in fair turns."""
    turn = turn_in_fact(pairs)[candidates]
    wordings = max(settings.min_wordings, _wordings_that_fit(lengths, candidates, turn, budget))
    rows = candidates[turn < wordings]
    fact = _codes(pairs["fact_id"])[rows]
    # Rows of a fact stand together and facts by importance, so a fact's place is its first row's.
    places, first, inverse = np.unique(fact, return_index=True, return_inverse=True)
    kinds = np.array(pairs["kind"].take(pa.array(rows[first])).to_pylist(), dtype=object)
    streams = [
        _Stream(of_kind[np.argsort(first[of_kind])], share)
        for kind, share in _KIND_SHARES.items()
        if len(of_kind := np.flatnonzero(kinds == kind))
    ]
    taken = _in_fair_turns(streams, rows, inverse, first, lengths, budget)
    chosen = rows[np.isin(inverse, taken)]
    unused = np.isin(_codes(pairs["fact_id"])[candidates], places[taken]).sum() - len(chosen)
    return _Chosen(chosen, len(places) - len(taken), int(unused))


@dataclass(frozen=True)
class _Stream:
    """The facts of a kind, by importance, and its share of the budget."""

    facts: np.ndarray
    share: float


def _in_fair_turns(
    streams: Sequence[_Stream],
    rows: np.ndarray,
    owner: np.ndarray,
    first: np.ndarray,
    lengths: _Lengths,
    budget: int,
) -> np.ndarray:
    """Return the facts that fit the budget: the one that would end first in its kind's share of it
    comes first (weighted fair queueing; Demers, Keshav, Shenker 1989).

    Facts are counted as far as the budget may reach: twice as far where a kind has not enough to
    use its share.

    Args:
        owner: the fact of each of `rows`; `first`: its place by importance.
    """
    by_fact = rows[np.argsort(owner, kind="stable")]
    held = np.split(by_fact, np.cumsum(np.bincount(owner))[:-1])
    reach = 1
    while streams:
        costs = [
            lengths.costs([held[fact] for fact in each.facts], int(reach * each.share * budget))
            for each in streams
        ]
        facts = np.concatenate([s.facts[: len(c)] for s, c in zip(streams, costs, strict=True)])
        ends = [np.cumsum(c) / s.share for s, c in zip(streams, costs, strict=True)]
        finish = np.concatenate(ends)
        order = np.lexsort((first[facts], finish))
        spent = np.cumsum(np.concatenate(costs)[order])
        counted_to = min(
            (e[-1] for s, e in zip(streams, ends, strict=True) if len(e) < len(s.facts)),
            default=np.inf,
        )
        # What was not counted ends later than all that fits.
        if counted_to == np.inf or (spent[finish[order] < counted_to] > budget).any():
            return np.asarray(facts[order[spent <= budget]])
        reach *= 2
    return np.zeros(0, dtype=np.int64)


def _wordings_that_fit(
    lengths: _Lengths, candidates: np.ndarray, turn: np.ndarray, budget: int
) -> int:
    """Return in how many wordings all facts can be had for `budget` tokens."""
    most = int(turn.max(initial=-1)) + 1
    for wordings in range(most):
        asked = candidates[turn == wordings]
        fitting = lengths.fitting(asked, budget)
        if len(fitting) < len(asked):
            return wordings
        budget -= int(lengths[asked].sum())
    return most


class _Lengths:
    """The tokens of rows, counted when they are asked for and once.

    A corpus gives many more rows than a budget holds, and counting is most of the choice's time.
    """

    def __init__(self, pairs: pa.Table, told: str | None, count_tokens: CountTokens) -> None:
        self._pairs = pairs.select(["question", "answer"]).combine_chunks()
        self._told = told
        self._count_tokens = count_tokens
        self._known = np.full(pairs.num_rows, -1, dtype=np.int64)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of the rows, int64 of shape (n,)."""
        new = np.unique(rows[self._known[rows] < 0])
        if len(new):
            texts = self._pairs.take(pa.array(new)).to_pydict()
            self._known[new] = self._count_tokens(
                [(self._told, *asked) for asked in zip(*texts.values(), strict=True)]
            )
        return np.asarray(self._known[rows])

    def within(self, most: int) -> np.ndarray:
        """Return which rows have at most so many tokens, bool of shape (n,).

        A token holds one byte at least: what is short enough in bytes need not be counted.
        """
        frame = int(self._count_tokens([(self._told, "", "")])[0]) + _FRAME_SLACK
        sizes = [
            pc.fill_null(pc.binary_length(self._pairs[name]), 0) for name in ("question", "answer")
        ]
        fits = np.array(pc.add(*sizes)) + frame <= most
        unsure = np.flatnonzero(~fits)
        fits[unsure] = self[unsure] <= most
        return np.asarray(fits)

    def of_rows(self, kept: np.ndarray) -> _Lengths:
        """Return the lengths of the rows that `kept`, bool of shape (n,), keeps."""
        some = _Lengths(self._pairs.filter(pa.array(kept)), self._told, self._count_tokens)
        some._known = self._known[kept]
        return some

    def fitting(self, rows: np.ndarray, budget: float) -> np.ndarray:
        """Return the first of `rows` that have at most `budget` tokens together."""
        spent, end = 0, 0
        while end < len(rows):
            part = np.cumsum(self[rows[end : end + _COUNTED_AT_ONCE]]) + spent
            taken = int((part <= budget).sum())
            end += taken
            if taken < len(part):
                break
            spent = int(part[-1])
        return rows[:end]

    def costs(self, owned: Sequence[np.ndarray], budget: int) -> np.ndarray:
        """Return the tokens of the first of `owned`, each the rows of one owner: of so many that
        they exceed `budget`, or of all."""
        costs: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        spent = 0
        for at in range(0, len(owned), _COUNTED_AT_ONCE):
            part = owned[at : at + _COUNTED_AT_ONCE]
            owner = np.repeat(np.arange(len(part)), [len(each) for each in part])
            cost = np.bincount(owner, self[np.concatenate(part)], len(part)).astype(np.int64)
            costs.append(cost)
            spent += int(cost.sum())
            if spent > budget:
                break
        return np.concatenate(costs)


def turn_in_fact(pairs: pa.Table) -> np.ndarray:
    """Return for each row how many rows of its fact stand before it; int64 of shape (n,)."""
    fact = _codes(pairs["fact_id"])
    order = np.argsort(fact, kind="stable")
    ordered = fact[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    turn = np.empty(len(fact), dtype=np.int64)
    turn[order] = np.arange(len(fact)) - np.repeat(starts, lengths)
    return turn


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Return the column's values as numbers by first appearance."""
    return np.asarray(column.combine_chunks().dictionary_encode().indices)


def _rows(
    pairs: pa.Table, tokens: np.ndarray, places: np.ndarray, seen: np.ndarray, told: str | None
) -> pa.Table:
    """Return training_rows: `places` of `pairs`, which have `tokens` and are `seen` so often."""
    taken = pairs.take(pa.array(places))
    columns = {
        "id": taken["id"],
        "fact_id": taken["fact_id"],
        "kind": taken["kind"],
        "system": pa.array([told] * len(places), pa.string()),
        "prompt": taken["question"],
        "completion": taken["answer"],
        "n_tokens": pa.array(tokens, pa.int64()),
        "epochs": pa.array(seen, pa.int64()),
    }
    return pa.table(columns, schema=SCHEMAS["training_rows"])
