"""Which pairs are trained: as many as fit the time budget, chosen the same way on every machine."""

from __future__ import annotations

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


class NothingToTrain(ValueError):
    """No pair can be trained; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingSelection:
    """The chosen rows and what was left out.

    Attributes:
        training_rows: the table, in the order of a seeded shuffle.
        tokens: seen in all epochs together, prompts included; within `token_budget`.
        left_out: reason -> count; the reason says of what.
    """

    training_rows: pa.Table
    tokens: int
    token_budget: int
    left_out: dict[str, int]


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
    questions, answers = pairs["question"].to_pylist(), pairs["answer"].to_pylist()
    told = system_message(settings.base_model)
    tokens = count_tokens([(told, q, a) for q, a in zip(questions, answers, strict=True)])
    fits = tokens <= settings.max_tokens
    left_out = {"rows longer than tuning.max_tokens": int((~fits).sum())}
    pairs, tokens = pairs.filter(pa.array(fits)), tokens[fits]
    if not pairs.num_rows:
        raise NothingToTrain(
            "no question-answer pair could be made from this corpus: it needs sentences that state "
            "something about people, places, dates or things"
            if not questions
            else f"all {len(questions)} training rows are longer than the setting "
            f"tuning.max_tokens = {settings.max_tokens}; raise it, or lower "
            "synthesis.max_answer_characters"
        )
    budget = int(settings.time_budget_minutes * 60 * settings.assumed_tokens_per_second)
    passage = np.array(pc.equal(pairs["generator"], PASSAGE_GENERATOR))
    first = np.flatnonzero(passage & (turn_in_fact(pairs) == 0))
    epochs = settings.epochs
    passage_epochs = min(settings.passage_epochs, epochs)
    within = np.cumsum(tokens[first]) * passage_epochs <= _PASSAGE_SHARE * budget
    shown = first[within]
    general = np.array(pc.equal(pairs["kind"], REPLAY))
    replay = np.flatnonzero(general)
    replay = replay[np.cumsum(tokens[replay]) * epochs <= replay_share * budget]
    spent = int(tokens[shown].sum()) * passage_epochs + int(tokens[replay].sum()) * epochs
    candidates = np.flatnonzero(~passage & ~general)
    facts = _chosen_facts(pairs, tokens, candidates, (budget - spent) // epochs, settings)
    others = len(shown) + len(facts.rows)
    replay = replay[: int(replay_share / (1 - replay_share) * others)]
    left_out |= {
        "replay rows beyond synthesis.replay_share": int(general.sum()) - len(replay),
        "passages left out by the time budget": int((~within).sum()),
        "further wordings of passages, which are shown once": int(passage.sum()) - len(first),
        "facts left out by the time budget": facts.facts_left_out,
        "wordings left out by the time budget": facts.wordings_left_out,
    }
    chosen = np.concatenate([shown, facts.rows, replay])
    if not len(chosen):
        raise NothingToTrain(
            f"the setting tuning.time_budget_minutes = {settings.time_budget_minutes:g} holds "
            f"{budget:,} tokens for {epochs} epochs, too few for any fact; raise it"
        )
    order = np.random.default_rng(settings.seed).permutation(len(chosen))
    places = np.sort(chosen)[order]
    seen = np.where(passage[places], passage_epochs, epochs)
    rows = _rows(pairs, tokens, places, seen, told)
    spent = int((tokens[places] * seen).sum())
    return TrainingSelection(rows, spent, budget, {k: v for k, v in left_out.items() if v})


@dataclass(frozen=True)
class _Chosen:
    rows: np.ndarray
    facts_left_out: int
    wordings_left_out: int


def _chosen_facts(
    pairs: pa.Table,
    tokens: np.ndarray,
    candidates: np.ndarray,
    budget: int,
    settings: TuningSettings,
) -> _Chosen:
    """Choose among the rows `candidates` for `budget` tokens: whole facts, kinds in fair turns."""
    turn = turn_in_fact(pairs)[candidates]
    # As many wordings as all facts can have; where not even the least fit, facts are left out.
    spent = np.cumsum(np.bincount(turn, weights=tokens[candidates]))
    wordings = max(settings.min_wordings, int((spent <= budget).sum()))
    rows = candidates[turn < wordings]
    fact = _codes(pairs["fact_id"])[rows]
    # Rows of a fact stand together and facts by importance, so a fact's place is its first row's.
    places, first, inverse = np.unique(fact, return_index=True, return_inverse=True)
    cost = np.bincount(inverse, weights=tokens[rows])
    kinds = np.array(pairs["kind"].take(pa.array(rows[first])).to_pylist(), dtype=object)
    finish = np.zeros(len(places))
    for kind, share in _KIND_SHARES.items():
        of_kind = np.flatnonzero(kinds == kind)
        of_kind = of_kind[np.argsort(first[of_kind])]
        # Weighted fair queueing (Demers, Keshav, Shenker 1989): the fact that would end first in
        # its kind's share of the budget comes first.
        finish[of_kind] = np.cumsum(cost[of_kind]) / share
    order = np.lexsort((first, finish))
    taken = order[np.cumsum(cost[order]) <= budget]
    chosen = rows[np.isin(inverse, taken)]
    unused = np.isin(_codes(pairs["fact_id"])[candidates], places[taken]).sum() - len(chosen)
    return _Chosen(chosen, len(places) - len(taken), int(unused))


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
    taken = pairs.take(pa.array(places))
    columns = {
        "id": taken["id"],
        "fact_id": taken["fact_id"],
        "kind": taken["kind"],
        "system": pa.array([told] * len(places), pa.string()),
        "prompt": taken["question"],
        "completion": taken["answer"],
        "n_tokens": pa.array(tokens[places], pa.int64()),
        "epochs": pa.array(seen, pa.int64()),
    }
    return pa.table(columns, schema=SCHEMAS["training_rows"])
