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
    "gold_local": "your questions, local",
    "gold_global": "your questions, whole corpus",
    "unanswerable": "unanswerable questions",
}
_ASKED = {
    "held_out_wording": "Asked about facts it was tuned on, in wordings it has not seen",
    "new_wording": "Asked about facts it was tuned on, in forms that neither it nor its base "
    "model has ever seen",
    "held_out_fact": "Asked about facts left out of tuning",
    "gold_local": "Asked questions that people wrote, about one fact or a few",
    "gold_global": "Asked questions that people wrote, about the corpus as a whole",
    "unanswerable": "Asked what the corpus does not say",
}
_REACHES = {
    "contains": "the {system} gives the right words in {share} of its answers",
    "f1": "the {system} reaches a word overlap (F1) of {share} with the reference answers",
    "refused": "the {system} rightly declines in {share} of its answers",
}
_HEADLINE_SETS = ("held_out_wording", "gold_local", "new_wording", *QUESTION_SETS)


def label(system: str) -> str:
    """Return a system's name as a reader sees it."""
    return SYSTEM_LABELS.get(system, system.replace("_", " "))


def percent(share: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * share:.0f} %"


def headline(scorecard: Mapping[str, Any]) -> str:
    """Return the one sentence that sums the scorecard up, whoever is ahead."""
    tuned = scorecard["systems"].get("tuned")
    if not tuned:
        reason = scorecard["skipped"].get("tuned", "It was not asked.")
        return f"The tuned model was not evaluated. {reason}"
    question_set = next(name for name in _HEADLINE_SETS if name in tuned)
    return sentence(scorecard, question_set)


def sentence(scorecard: Mapping[str, Any], question_set: str) -> str:
    """Return what the tuned model reached on `question_set`, and the others beside it."""
    measure = MEASURE_OF_SET[question_set]
    tuned = scorecard["systems"]["tuned"][question_set]
    low, high = tuned[f"{measure}_interval"]
    reached = _REACHES[measure].format(system="tuned model", share=percent(tuned[measure]))
    others = [
        f"{percent(sets[question_set][measure])} for {_the(system)}"
        for system, sets in _others(scorecard)
        if question_set in sets
    ]
    against = f", against {_list(others)}" if others else ""
    return (
        f"{_ASKED[question_set]}, {reached}{against} "
        f"({tuned['n']} questions; 95 % interval {100 * low:.0f} to {100 * high:.0f} %)."
    )


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
