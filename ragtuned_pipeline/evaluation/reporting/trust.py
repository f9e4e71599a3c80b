"""What speaks for and against trusting the page's numbers: the judge's own faults, what tuning made
the model forget, and the run's gaps. Computed, so that it is said also where it hurts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragtuned_pipeline.evaluation.reporting.findings import (
    SET_LABELS,
    control_apart,
    label,
    percent,
)

# Where a number of the judge's becomes a reason to doubt it; this project's choice.
MAX_DISAGREEMENTS = 0.2  # of the pairs, between the two orders
MAX_LENGTH_PULL = 0.1  # of longer_wins from one half, where its interval excludes one half
MAX_UNJUDGED = 0.05  # of the verdicts
FEW_QUESTIONS = 30  # fewer make a mean's interval wider than about 35 points


@dataclass(frozen=True)
class Remark:
    """One sentence; `doubt` where the numbers speak against trusting what it is about."""

    text: str
    doubt: bool = False


def judge_remarks(judge: Mapping[str, Any]) -> list[Remark]:
    """Return what the judge's numbers say of it, in the order in which a reader needs them.

    A judge that decides by position shows in the share of verdicts for the answer shown first, one
    that decides by chance in the orders that disagree, one that counts words in the share of longer
    answers that win, and one that prefers wrong answers in its agreement with the references.
    """
    if judge.get("engine", "none") == "none":
        return [Remark("No judge was asked (setting judge.engine).")]
    if not judge.get("judgements"):
        return [Remark("No two answers were there to compare.")]
    remarks = [Remark(f"The judge: {judge['identity']}{_settings(judge.get('settings', {}))}.")]
    if judge["engine"] == "rules":
        remarks.append(
            Remark(
                "This judge is a set of rules that compare words and lengths and read no meaning. "
                "Its win rates show that the protocol runs, and not which answers a reader would "
                "prefer; a language model judges with judge.engine set to teacher.",
                doubt=True,
            )
        )
    return [
        *remarks,
        *_order(judge["order"]),
        *_length(judge["length"]),
        *_agreement(judge["agreement"], judge.get("engine") == "rules"),
        _unjudged(judge),
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return f" ({shown})" if shown else ""


def _order(order: Mapping[str, Any]) -> list[Remark]:
    if not order["n"] or order["disagreements"] is None:
        return [
            Remark("No pair was judged in both orders, so position could not be checked.", True)
        ]
    share = order["disagreements"]
    unsteady = share > MAX_DISAGREEMENTS
    remarks = [
        Remark(
            f"Shown the same two answers in both orders, it contradicted itself on "
            f"{_share(share, order['disagreements_interval'])} of {order['n']:,} comparisons; "
            "each of these counts as a tie"
            + (
                f". That is more than {percent(MAX_DISAGREEMENTS)}: much of what it says is order "
                "or chance, and true differences look smaller than they are."
                if unsteady
                else "."
            ),
            unsteady,
        )
    ]
    if order["first_wins"] is None:
        return [*remarks, Remark("It preferred no answer to another, so no position shows.")]
    low, high = order["first_wins_interval"]
    biased = low > 0.5 or high < 0.5
    place = "first" if low > 0.5 else "second"
    remarks.append(
        Remark(
            f"Where it preferred one answer, that was the one shown first in "
            f"{_share(order['first_wins'], (low, high))} of its verdicts; a judge to whom position "
            "means nothing is at 50\u00a0%"
            + (f". This one leans to the answer shown {place}." if biased else "."),
            biased,
        )
    )
    return remarks


def _length(length: Mapping[str, Any]) -> list[Remark]:
    if not length["n"] or length["longer_wins"] is None:
        return [Remark("No decided pair has answers of different length.")]
    share, (low, high) = length["longer_wins"], length["longer_wins_interval"]
    pulled = (low > 0.5 or high < 0.5) and abs(share - 0.5) > MAX_LENGTH_PULL
    kind = "longer" if share > 0.5 else "shorter"
    return [
        Remark(
            f"The longer of two answers won {_share(share, (low, high))} of {length['n']:,} "
            "verdicts that preferred one"
            + (
                f". Either the better answers are the {kind} ones or {kind} answers win because "
                "of their length: no number here tells the two apart, so read the win rates beside "
                "the references."
                if pulled
                else "; length does not decide."
            ),
            pulled,
        )
    ]


def _agreement(agreement: Mapping[str, Any], own: bool) -> list[Remark]:
    if not agreement["n"] or agreement["share"] is None:
        return [
            Remark(
                "Agreement with the references could not be measured: no judged pair has one "
                "answer that they call right and one that they call wrong."
            )
        ]
    low, _ = agreement["interval"]
    blind = low <= 0.5
    return [
        Remark(
            f"Where the references call one of two answers right and the other wrong, it preferred "
            f"the right one in {_share(agreement['share'], agreement['interval'])} of "
            f"{agreement['n']:,} comparisons on correctness, a tie counted as half"
            + (". That is not clearly better than tossing a coin." if blind else ".")
            + (
                " The rules look for the reference themselves, so this proves nothing."
                if own
                else ""
            ),
            blind,
        )
    ]


def _unjudged(judge: Mapping[str, Any]) -> Remark:
    asked, missing = judge["judgements"], judge["unjudged"]
    if not missing:
        return Remark(f"It was asked for {asked:,} verdicts and gave every one.")
    many = missing > MAX_UNJUDGED * max(asked, 1)
    return Remark(
        f"It was asked for {asked:,} verdicts; {missing:,} could not be read, also when asked "
        "again. They are counted, and no win rate holds them"
        + ("; so many may change the picture." if many else "."),
        many,
    )


def ability_remarks(general_ability: Mapping[str, Any]) -> list[Remark]:
    """Return one sentence a suite: whether tuning changed what the model can do beside the corpus.

    For accuracy a fall is a loss of ability, for loss (nats a token) a rise is.
    """
    remarks = []
    for suite, row in sorted(general_ability.items()):
        low, high = row["change_interval"]
        falls = "loss" in row["measure"]
        worse = low > 0 if falls else high < 0
        better = high < 0 if falls else low > 0
        state = "clearly worse" if worse else "clearly better" if better else "not clearly changed"
        shown = f"{row['base']:.3g} before, {row['tuned']:.3g} after"
        remarks.append(
            Remark(
                f"{label(suite)}: {state} by tuning ({row['measure']} {shown}; change "
                f"{row['change']:+.3g}, 95\u00a0% interval {low:+.3g} to {high:+.3g}; "
                f"{row['n']:,} items).".replace(" -", " \N{MINUS SIGN}"),
                worse,
            )
        )
    return remarks


def doubts(scorecard: Mapping[str, Any]) -> list[str]:
    """Return what this run's own numbers give cause to doubt; empty where nothing does.

    Args:
        scorecard: also one of an earlier version, without a judge or general ability.
    """
    found = []
    if control_apart(scorecard) is False:
        found.append(
            "The shuffled control is not clearly below the tuned model: its score cannot be read "
            "as knowledge."
        )
    found += [remark.text for remark in judge_remarks(scorecard.get("judge", {})) if remark.doubt]
    ability = ability_remarks(scorecard.get("general_ability", {}))
    found += [remark.text for remark in ability if remark.doubt]
    found += _gaps(scorecard["systems"])
    return found


def _gaps(systems: Mapping[str, Any]) -> list[str]:
    sizes = {name: sets[name]["n"] for sets in systems.values() for name in sets}
    asked = [(name, sizes[name]) for name in SET_LABELS if name in sizes]
    few = [f"{SET_LABELS[name]} ({n})" for name, n in asked if n < FEW_QUESTIONS]
    found = []
    if few:
        found.append(f"Few questions, so wide intervals: {', '.join(few)}.")
    for system, sets in sorted(systems.items()):
        missing = sum(summary["missing"] for summary in sets.values())
        if missing:
            found.append(
                f"{label(system)} left {missing:,} questions without an answer; they count as "
                "empty answers."
            )
    return found


def _share(share: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{percent(share)} (95\u00a0% interval {100 * low:.0f} to {percent(high)})"
