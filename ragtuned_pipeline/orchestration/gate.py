"""Whether an adapter may answer under its corpus's name: a pure function of its numbers, those of
the adapter that answers now, and the settings of `checks`.

The numbers hold no text of the corpus: ids, question sets, scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.evaluation.scorecard import score_each
from ragtuned_pipeline.ids import seeded_int
from ragtuned_pipeline.settings import ChecksSettings

# The sets whose answers are known by more than a description of the corpus, as sentences name them.
SETS = {
    "held_out_wording": "held-out wordings",
    "gold_local": "gold questions about facts",
    "gold_global": "gold questions about the whole corpus",
    "unanswerable": "questions without an answer (the share declined)",
}
BASE, PROMOTED, LIMIT = "base", "promoted", "limit"

_SYSTEMS = ("tuned", "base")
# Refusals are not in it: the base knows nothing of the corpus, so that one that declines everything
# scores 1 there, and one that cannot decline 0; neither says what the tuned model should reach.
_GOLD = ("gold_local", "gold_global")
_GENERAL_SUITE = "language_loss"
_CHANCE = 0.025  # a fall that chance gives less often than this is real
_MOST_ENUMERATED = 12  # differing facts, whose 4096 signs are all tried
_DRAWS = 9999  # of the signs of more facts
_SEED = 0  # of the draws: the same numbers give the same verdict
_EXACT = 1e-9  # 0.8 - 0.75 is no more than 0.05


@dataclass(frozen=True)
class Question:
    """A question of a set that the gate reads, and what its set is read by: scores of 0 to 1.

    `fact` is the id of the fact that it asks for, or its own where there is none.
    """

    id: str
    question_set: str
    fact: str
    tuned: float
    base: float


@dataclass(frozen=True)
class Numbers:
    """What the gate knows of an adapter.

    `absent` says why it cannot be judged, if so; `general_loss` is in nats a token; `covered` is
    how many of the corpus's sentences its training rows hold, `coverage` the share of them;
    `failed` has, for each stage, how many items failed, of how many.
    """

    adapter: str
    base_model: str
    data_version: str
    absent: str
    questions: tuple[Question, ...]
    general_loss: float | None
    coverage: float | None
    covered: int
    failed: Mapping[str, tuple[int, int]]

    def share(self, question_set: str) -> float | None:
        """The tuned model's mean score on a set; None where nothing of it was asked."""
        scores = [each.tuned for each in self.questions if each.question_set == question_set]
        return float(np.mean(scores)) if scores else None


@dataclass(frozen=True)
class Compared:
    """One number beside what it was compared with.

    Args:
        number: a question set, "general_loss", "coverage", or "failed <stage>".
        against: BASE, PROMOTED (the adapter that answers now), or LIMIT (nothing but the setting).
        other: what it was compared with; of LIMIT the setting itself.
        worse: by how much `value` is worse than `other`; negative where it is better.
        allowed: how much worse it may be; negative where it must be better.
        setting: that says so.
        passed: whether it is within it, or worse for a reason that does not count.
        reason: the sentence for a refusal.
        remark: what to know of one that passed all the same; empty mostly.
        questions: that both were asked, where the number is a mean over questions.
        chance: how probable so large a fall is by chance, where it is paired: the one-sided p of
            a sign-flip test over the facts.
    """

    number: str
    against: str
    value: float
    other: float
    worse: float
    allowed: float
    setting: str
    passed: bool
    reason: str
    remark: str = ""
    questions: int | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Everything that was compared; the adapter may be promoted where nothing is refused.

    `absent` says why nothing could be, `alone` why nothing was compared with the promoted adapter
    although there is one; both are empty mostly.
    """

    compared: tuple[Compared, ...]
    absent: str = ""
    alone: str = ""

    @property
    def refusals(self) -> tuple[Compared, ...]:
        return tuple(each for each in self.compared if not each.passed)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it must not be promoted, a sentence each; empty where it may be."""
        return (*filter(None, [self.absent]), *(each.reason for each in self.refusals))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know beside the reasons, a sentence each."""
        return tuple(filter(None, [self.alone, *(each.remark for each in self.compared)]))


def numbers_of(
    scorecard: Mapping[str, Any],
    queries: pa.Table,
    answers: pa.Table,
    failed: Mapping[str, tuple[int, int]],
) -> Numbers:
    """Return the numbers of the adapter that a scorecard was made with.

    Args:
        queries, answers: the tables behind the scorecard.
        failed: stage -> (items that failed, items).
    """
    systems, versions = scorecard["systems"], scorecard["versions"]
    absent = [
        f"the adapter cannot be judged without the system {system!r}: "
        f"{scorecard['skipped'].get(system, 'it has no answers')}"
        for system in _SYSTEMS
        if system not in systems
    ]
    ability = scorecard["general_ability"].get(_GENERAL_SUITE)
    coverage = scorecard["coverage"]
    return Numbers(
        adapter=versions.get("adapter", ""),
        base_model=versions.get("base model", ""),
        data_version=versions["data training_rows"],
        absent=absent[0] if absent else "",
        questions=() if absent else tuple(_questions(queries, answers)),
        general_loss=ability["tuned"] if ability else None,
        coverage=coverage["sentences_covered"] / coverage["sentences"]
        if coverage["sentences"]
        else None,
        covered=coverage["sentences_covered"],
        failed=failed,
    )


def _questions(queries: pa.Table, answers: pa.Table) -> Iterator[Question]:
    asked = queries.filter(pc.field("question_set").isin(list(SETS)))
    given = answers.filter(
        pc.field("system").isin(_SYSTEMS) & pc.field("query_id").isin(asked["id"].combine_chunks())
    )
    scores: dict[str, dict[str, float]] = {system: {} for system in _SYSTEMS}
    for cell in score_each(asked, given):
        scores[cell.system][cell.query["id"]] = round(cell.quality, 6)
    for query in asked.select(["id", "question_set", "fact_id"]).to_pylist():
        # A system that answered none of these questions has no scores here: empty answers.
        tuned, base = (scores[system].get(query["id"], 0.0) for system in _SYSTEMS)
        fact = query["fact_id"] or query["id"]
        yield Question(query["id"], query["question_set"], fact, tuned, base)


def gate(new: Numbers, promoted: Numbers | None, checks: ChecksSettings) -> Verdict:
    """Return what `new` was compared with, and whether it may be promoted.

    - On held-out wordings the tuned model must beat the base by `checks.min_gain_over_base`. A
      corpus too small to hold a wording out cannot be judged by them, and passes.
    - On gold questions it must not be worse than the base, nor on any set of `SETS` worse than the
      promoted adapter, by more than `checks.max_drop` and by more than chance: over the questions
      that both were asked, p < 0.025 in a one-sided sign-flip test, a fact one observation.
    - Its loss on general text must be within `checks.max_probe_rise` of the promoted adapter's,
      where that one is a number.
    - Its coverage must be within `checks.max_drop`, unless it covers no fewer sentences: a corpus
      may outgrow the tokens that `tuning.time_budget_minutes` pays for.
    - No stage may have more failed items than `checks.max_failed_share`.

    Args:
        promoted: the adapter that answers now, or None. One of another base model is not compared
            with: what it may take of an old model, a new one need not give.
    """
    if new.absent:
        return Verdict((), new.absent)
    compared = [*_against_base(new, checks), *_failed(new, checks)]
    if promoted is not None and promoted.base_model == new.base_model:
        compared += _against_promoted(new, promoted, checks)
    return Verdict(tuple(compared))


def _against_base(new: Numbers, checks: ChecksSettings) -> Iterator[Compared]:
    if held_out := _of_set(new, "held_out_wording"):
        tuned, base = (
            float(np.mean([getattr(each, system) for each in held_out])) for system in _SYSTEMS
        )
        yield Compared(
            number="held_out_wording",
            against=BASE,
            value=tuned,
            other=base,
            worse=base - tuned,
            allowed=-checks.min_gain_over_base,
            setting="checks.min_gain_over_base",
            passed=tuned - base >= checks.min_gain_over_base - _EXACT,
            reason=f"on held-out wordings the tuned model scores {tuned:.3f} and the base "
            f"{base:.3f}: a gain of {tuned - base:.3f}, and the setting "
            f"checks.min_gain_over_base asks for {checks.min_gain_over_base:.3f}",
            questions=len(held_out),
        )
    for question_set in _GOLD:
        of_set = _of_set(new, question_set)
        yield from _paired(question_set, BASE, of_set, lambda each: each.base, checks)


def _against_promoted(
    new: Numbers, promoted: Numbers, checks: ChecksSettings
) -> Iterator[Compared]:
    before = {each.id: each.tuned for each in promoted.questions}
    for question_set in SETS:
        both = [each for each in _of_set(new, question_set) if each.id in before]
        yield from _paired(question_set, PROMOTED, both, lambda each: before[each.id], checks)
    before_loss = promoted.general_loss
    if new.general_loss is not None and before_loss is not None and math.isfinite(before_loss):
        rise, limit = new.general_loss - before_loss, checks.max_probe_rise
        yield Compared(
            number="general_loss",
            against=PROMOTED,
            value=new.general_loss,
            other=before_loss,
            worse=rise,
            allowed=limit,
            setting="checks.max_probe_rise",
            passed=rise <= limit + _EXACT,
            reason=f"the loss on general text is {new.general_loss:.3f} nats a token and the "
            f"promoted adapter's {before_loss:.3f}: a rise of {rise:.3f}, and the "
            f"setting checks.max_probe_rise allows {limit:.3f}",
        )
    if new.coverage is not None and promoted.coverage is not None:
        yield _coverage(new, new.coverage, promoted, promoted.coverage, checks.max_drop)


def _coverage(
    new: Numbers, share: float, promoted: Numbers, other: float, limit: float
) -> Compared:
    fall = other - share
    within, outgrown = fall <= limit + _EXACT, new.covered >= promoted.covered
    told = (
        f"the training rows hold {share:.3f} of the corpus's sentences ({new.covered:,}) and the "
        f"promoted adapter's {other:.3f} ({promoted.covered:,})"
    )
    return Compared(
        number="coverage",
        against=PROMOTED,
        value=share,
        other=other,
        worse=fall,
        allowed=limit,
        setting="checks.max_drop",
        passed=within or outgrown,
        reason=f"{told}: {fall:.3f} less, and the setting checks.max_drop allows {limit:.3f}",
        remark=f"{told}: the corpus has outgrown what the setting tuning.time_budget_minutes "
        "leaves time for; a higher one covers more of it"
        if outgrown and not within
        else "",
    )


def _of_set(numbers: Numbers, question_set: str) -> list[Question]:
    """The questions of a set by id, so that their order does not show in a sum."""
    of_set = [each for each in numbers.questions if each.question_set == question_set]
    return sorted(of_set, key=lambda each: each.id)


def _paired(
    question_set: str,
    against: str,
    questions: Sequence[Question],
    other_score: Callable[[Question], float],
    checks: ChecksSettings,
) -> Iterator[Compared]:
    """Compare two scores of the same questions; nothing where there are none."""
    if not questions:
        return
    new = np.array([each.tuned for each in questions])
    other = np.array([other_score(each) for each in questions])
    fall, limit = float((other - new).mean()), checks.max_drop
    chance = _chance(other - new, [each.fact for each in questions])
    named = "base" if against == BASE else "promoted adapter"
    yield Compared(
        number=question_set,
        against=against,
        value=float(new.mean()),
        other=float(other.mean()),
        worse=fall,
        allowed=limit,
        setting="checks.max_drop",
        passed=fall <= limit + _EXACT or chance >= _CHANCE,
        reason=f"on {SETS[question_set]} the new adapter scores {new.mean():.3f} and the {named} "
        f"{other.mean():.3f}, over the {len(questions)} that both were asked: {fall:.3f} less "
        f"(by chance with a probability of {chance:.4f}), and the setting checks.max_drop allows "
        f"{limit:.3f}",
        questions=len(questions),
        chance=chance,
    )


def _chance(falls: np.ndarray, facts: Sequence[str]) -> float:
    """Return how probable so large a mean fall is where nothing is really worse.

    Then a fact's mean fall might as well have had the other sign (Fisher's sign-flip test,
    one-sided; wordings of one fact are one observation). Facts that have not changed say nothing.
    All signs are tried where few facts differ, so that fewer than six are never too improbable;
    else they are drawn, and the fall itself counts as one of the draws.

    Args:
        falls: shape (questions,), of -1 to 1.
        facts: of each question.
    """
    _, place, wordings = np.unique(np.array(facts), return_inverse=True, return_counts=True)
    means = (np.bincount(place, weights=falls) / wordings).round(6)
    differing = means[means != 0]
    least, count = differing.sum() - _EXACT, len(differing)
    if count <= _MOST_ENUMERATED:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float((signs @ differing >= least).mean())
    # Of n equal sizes, the number with a plus is binomial; there are few distinct sizes.
    sizes, counts = np.unique(np.abs(differing), return_counts=True)
    draw = np.random.default_rng(seeded_int(_SEED, "signs", str(count)))
    plus = draw.binomial(counts, 0.5, size=(_DRAWS, len(counts)))
    return float((1 + ((2 * plus - counts) @ sizes >= least).sum()) / (1 + _DRAWS))


def _failed(new: Numbers, checks: ChecksSettings) -> Iterator[Compared]:
    limit = checks.max_failed_share
    for stage, (failed, items) in sorted(new.failed.items()):
        share = failed / items if items else 0.0
        yield Compared(
            number=f"failed {stage}",
            against=LIMIT,
            value=share,
            other=limit,
            worse=share - limit,
            allowed=0.0,
            setting="checks.max_failed_share",
            passed=share <= limit + _EXACT,
            reason=f"{failed} of {items} {stage.replace('_', ' ')} failed: a share of "
            f"{share:.3f}, and the setting checks.max_failed_share allows {limit:.3f}",
        )
