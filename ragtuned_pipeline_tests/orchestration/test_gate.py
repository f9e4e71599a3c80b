"""Whether an adapter may be promoted, by the scorecard alone."""

from typing import Any

from ragtuned_pipeline.orchestration.gate import gate
from ragtuned_pipeline.settings import ChecksSettings

CHECKS = ChecksSettings(min_gain_over_base=0.05)


def scorecard(**contains: float | None) -> dict[str, Any]:
    """Systems by name; None for one that was not asked held-out wordings."""
    systems = {
        name: {} if share is None else {"held_out_wording": {"n": 10, "contains": share}}
        for name, share in contains.items()
    }
    return {"systems": systems, "skipped": {"base": "Left out by the setting."}}


def test_an_adapter_that_beats_its_base_passes() -> None:
    assert gate(scorecard(tuned=0.6, base=0.1), CHECKS) == ""
    assert gate(scorecard(tuned=0.05, base=0.0), CHECKS) == ""


def test_the_refusal_says_which_number_and_by_how_much() -> None:
    refusal = gate(scorecard(tuned=0.12, base=0.1), CHECKS)
    assert "scores 0.120 and the base 0.100: a gain of 0.020" in refusal
    assert "checks.min_gain_over_base asks for 0.050" in refusal
    assert gate(scorecard(tuned=0.1, base=0.4), CHECKS)


def test_an_adapter_that_nothing_can_be_compared_with_is_refused() -> None:
    assert "'base': Left out by the setting." in gate(scorecard(tuned=0.9), CHECKS)
    assert "'tuned': it has no answers" in gate(scorecard(base=0.9), CHECKS)


def test_a_corpus_too_small_to_hold_a_wording_out_passes() -> None:
    assert gate(scorecard(tuned=None, base=None), CHECKS) == ""
