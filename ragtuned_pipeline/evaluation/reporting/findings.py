"""What the scorecard's numbers say, in sentences: computed, and the same when the news is bad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET

SYSTEM_LABELS = {
    "tuned": "tuned model",
    "base": "base model",
    "tuned_rag": "tuned + retrieval",
    "vanilla_rag": "VanillaRAG",
    "graphrag_local": "GraphRAG local",
    "graphrag_global": "GraphRAG global",
    "long_context": "long context",
}
SET_LABELS = {
    "held_out_wording": "held-out wordings",
    "new_wording": "new forms of asking",
    "held_out_fact": "facts never trained",
    "generated_local": "questions drawn over the texts",
    "generated_global": "questions on the whole corpus",
    "gold_local": "your local questions",
    "gold_global": "your whole-corpus questions",
    "unanswerable": "unanswerable questions",
}
_ASKED = {
    "held_out_wording": "Asked about facts it was tuned on, in wordings it has not seen,",
    "new_wording": "In forms of asking that neither it nor its base model has ever seen,",
    "held_out_fact": "Asked about facts left out of tuning,",
    "generated_local": "On questions drawn evenly over the texts of the corpus,",
    "generated_global": "On questions about the corpus as a whole,",
    "gold_local": "On questions that people wrote about one fact or a few,",
    "gold_global": "On questions that people wrote about the corpus as a whole,",
    "unanswerable": "Asked what the corpus does not say,",
}
_REACHES = {
    "contains": "the tuned model gives the right words in {share} of its answers",
    "f1": "the tuned model reaches a word overlap (F1) of {share} with the references",
    "refused": "the tuned model rightly declines in {share} of its answers",
}
MAX_LISTED = 3  # systems that a sentence names one by one
# The first of these that was asked makes the headline.
_HEADLINE_SETS = ("held_out_wording", "gold_local", "new_wording", *QUESTION_SETS)


def label(system: str) -> str:
    """Return a system's name as a reader sees it."""
    return SYSTEM_LABELS.get(system, system.replace("_", " "))


def percent(share: float) -> str:
    """Return a share as a whole percentage: the digits that the command line prints as 0.69."""
    # No line breaks within it.
    return f"{100 * float(f'{share:.2f}'):.0f}\u00a0%"


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
        (system, sets[question_set][measure])
        for system, sets in _others(scorecard)
        if question_set in sets
    ]
    against = f", against {_against(others)}" if others else ""
    reached = _REACHES[measure].format(share=percent(tuned[measure]))
    return f"{_ASKED[question_set]} {reached}{against}."


def _against(others: Sequence[tuple[str, float]]) -> str:
    """The scores of the others: each where they are few, else the base's and the range."""
    if len(others) <= MAX_LISTED:
        return listed([f"{percent(value)} for {the(system)}" for system, value in others])
    base = [f"{percent(value)} for {the(system)}" for system, value in others if system == "base"]
    rest = [(value, system) for system, value in others if system != "base"]
    ends = (min(rest), max(rest))
    shown = " to ".join(f"{percent(value)} ({label(system)})" for value, system in ends)
    return listed([*base, f"{shown} for the {len(rest)} others"])


def basis(scorecard: Mapping[str, Any], question_set: str) -> str:
    """Return what `sentence` rests on: how many questions, and the interval."""
    tuned = scorecard["systems"]["tuned"][question_set]
    low, high = tuned[f"{MEASURE_OF_SET[question_set]}_interval"]
    questions = "one question" if tuned["n"] == 1 else f"{tuned['n']:,} questions"
    return f"{questions}; 95\u00a0% interval {100 * low:.0f} to {percent(high)}"


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
            f"{words} {listed(names)}"
            for words, names in (
                ("clearly ahead on", ahead),
                ("clearly behind on", behind),
                ("not clearly different on", open_),
            )
            if names
        ]
        if parts:
            sentences.append(f"Beside {the(system)}, the tuned model is {'; '.join(parts)}.")
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
    apart = control_apart(scorecard)
    if apart is None:
        return f"{reached}."
    tuned = scorecard["systems"]["tuned"]["held_out_wording"]
    return f"{reached}, against {percent(tuned['contains'])} with the true answers: " + (
        "the score measures what was taught."
        if apart
        else "the two are not clearly apart, so the score cannot be read as knowledge."
    )


def control_apart(scorecard: Mapping[str, Any]) -> bool | None:
    """Return whether the tuned model is clearly above the shuffled control on held-out wordings;
    None where either was not asked."""
    control = scorecard["control_shuffled"]
    tuned = scorecard["systems"].get("tuned", {}).get("held_out_wording")
    if not control or not tuned:
        return None
    return bool(tuned["contains_interval"][0] > control["contains_interval"][1])


def ordered(systems: Iterable[str]) -> list[str]:
    """Return `systems` in the order in which every sentence, table and plot has them."""
    found = set(systems)
    named = [name for name in SYSTEM_LABELS if name in found]
    return named + sorted(found - set(named))


def _others(scorecard: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    systems = scorecard["systems"]
    return [(system, systems[system]) for system in ordered(systems) if system != "tuned"]


def the(system: str) -> str:
    """Return a system's name as it stands within a sentence."""
    return f"the {label(system)}" if system == "base" else label(system)


def listed(parts: Sequence[str]) -> str:
    """Return `parts` as one enumeration: a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
