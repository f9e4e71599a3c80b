"""What the scorecard's numbers say, in sentences: computed, and the same when the news is bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ragtuned_pipeline.evaluation.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET

SYSTEM_LABELS = {
    "tuned": "tuned model",
    "base": "base model",
    "vanilla_rag": "VanillaRAG",
    "long_context": "long context",
}
SET_LABELS = {
    "held_out_wording": "held-out wordings",
    "new_wording": "new forms of asking",
    "held_out_fact": "facts never trained",
    "gold_local": "your local questions",
    "gold_global": "your whole-corpus questions",
    "unanswerable": "unanswerable questions",
}
_ASKED = {
    "held_out_wording": "Asked about facts it was tuned on, in wordings it has not seen,",
    "new_wording": "In forms of asking that neither it nor its base model has ever seen,",
    "held_out_fact": "Asked about facts left out of tuning,",
    "gold_local": "On questions that people wrote about one fact or a few,",
    "gold_global": "On questions that people wrote about the corpus as a whole,",
    "unanswerable": "Asked what the corpus does not say,",
}
_REACHES = {
    "contains": "the tuned model gives the right words in {share} of its answers",
    "f1": "the tuned model reaches a word overlap (F1) of {share} with the references",
    "refused": "the tuned model rightly declines in {share} of its answers",
}
# The first of these that was asked makes the headline.
_HEADLINE_SETS = ("held_out_wording", "gold_local", "new_wording", *QUESTION_SETS)


def label(system: str) -> str:
    """Return a system's name as a reader sees it."""
    return SYSTEM_LABELS.get(system, system.replace("_", " "))


def percent(share: float) -> str:
    """Return a share as a whole percentage: the digits that the command line prints as 0.69."""
    return f"{100 * float(f'{share:.2f}'):.0f} %"


def headline(scorecard: Mapping[str, Any]) -> str:
    """Return the one sentence that sums the scorecard up, whoever is ahead."""
    question_set = headline_set(scorecard)
    if question_set is None:
        reason = scorecard["skipped"].get("tuned", "No question could be asked.")
        return f"The tuned model was not evaluated. {reason}"
    return sentence(scorecard, question_set)


def headline_set(scorecard: Mapping[str, Any]) -> str | None:
    """Return the question set that the headline is about, None where nothing was asked."""
    tuned = scorecard["systems"].get("tuned", {})
    return next((name for name in _HEADLINE_SETS if name in tuned), None)


def sentence(scorecard: Mapping[str, Any], question_set: str) -> str:
    """Return what the tuned model reached on `question_set`, and the others beside it."""
    measure = MEASURE_OF_SET[question_set]
    tuned = scorecard["systems"]["tuned"][question_set]
    others = [
        f"{percent(sets[question_set][measure])} for {_the(system)}"
        for system, sets in _others(scorecard)
        if question_set in sets
    ]
    against = f", against {_list(others)}" if others else ""
    reached = _REACHES[measure].format(share=percent(tuned[measure]))
    return f"{_ASKED[question_set]} {reached}{against}."


def basis(scorecard: Mapping[str, Any], question_set: str) -> str:
    """Return what `sentence` rests on: how many questions, and the interval."""
    tuned = scorecard["systems"]["tuned"][question_set]
    low, high = tuned[f"{MEASURE_OF_SET[question_set]}_interval"]
    questions = "one question" if tuned["n"] == 1 else f"{tuned['n']:,} questions"
    return f"{questions}; 95 % interval {100 * low:.0f} to {percent(high)}"


def verdicts(scorecard: Mapping[str, Any]) -> list[str]:
    """Return one sentence on each other system: where the tuned model is ahead, and where behind.

    A difference counts as clear where the two 95 % intervals do not overlap; that is stricter than
    a test at 5 %.
    """
    if "tuned" not in scorecard["systems"]:
        return []
    sentences = []
    for system, sets in _others(scorecard):
        ahead: list[str] = []
        behind: list[str] = []
        open_: list[str] = []
        for name in QUESTION_SETS:
            if name not in sets or name not in scorecard["systems"]["tuned"]:
                continue
            key = f"{MEASURE_OF_SET[name]}_interval"
            mine, theirs = scorecard["systems"]["tuned"][name][key], sets[name][key]
            chosen = ahead if mine[0] > theirs[1] else behind if mine[1] < theirs[0] else open_
            chosen.append(SET_LABELS[name])
        parts = [
            f"{words} {_list(names)}"
            for words, names in (
                ("clearly ahead on", ahead),
                ("clearly behind on", behind),
                ("not clearly different on", open_),
            )
            if names
        ]
        if parts:
            sentences.append(f"Beside {_the(system)}, the tuned model is {'; '.join(parts)}.")
    return sentences


def control_sentence(scorecard: Mapping[str, Any]) -> str:
    """Return what the shuffled control says about the score of the tuned model."""
    control = scorecard["control_shuffled"]
    if not control:
        return "There was no shuffled control: no fact could be given another fact's answer."
    reached = (
        f"An adapter tuned the same way on the same questions with the answers shuffled among them "
        f"gives the right words in {percent(control['contains'])} of its answers "
        f"({control['n']} questions on {control['facts']} facts)"
    )
    tuned = scorecard["systems"].get("tuned", {}).get("held_out_wording")
    if not tuned:
        return f"{reached}."
    apart = tuned["contains_interval"][0] > control["contains_interval"][1]
    return f"{reached}, against {percent(tuned['contains'])} with the true answers: " + (
        "the score measures what was taught."
        if apart
        else "the two are not clearly apart, so the score cannot be read as knowledge."
    )


def _others(scorecard: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    order = list(SYSTEM_LABELS)
    return sorted(
        ((system, sets) for system, sets in scorecard["systems"].items() if system != "tuned"),
        key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]),
    )


def _the(system: str) -> str:
    return f"the {label(system)}" if system == "base" else label(system)


def _list(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
