"""Training stops where held-out losses fall no longer, and the best weights are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning import sft
from ragtuned_pipeline.tuning.base_models import encode_rows, load_tokenizer
from ragtuned_pipeline.tuning.early_stopping import best, is_over
from ragtuned_pipeline.tuning.sft import TrainResult, train
from ragtuned_pipeline_tests.tuning.conftest import FACTS, FRAMES, rows, write_rows

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("losses", "patience", "over"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 2.0], 1, False),
        ([3.0, 3.0], 1, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.1], 2, True),
        ([3.0, 2.0, 2.5, 1.9], 2, False),
        ([3.0, 4.0, 5.0, 6.0], 0, False),
    ],
)
def test_it_is_over_after_so_many_losses_without_a_fall(
    losses: list[float], patience: int, over: bool
) -> None:
    assert is_over([(10 * turn, loss) for turn, loss in enumerate(losses)], patience) is over


def test_the_first_of_equal_losses_is_the_best() -> None:
    assert best([(2, 3.0), (4, 1.0), (6, 1.0)]) == (4, 1.0)


class Stop(Exception):
    pass


def tuned(folder: Path, stop_at: int = 0, **changed: Any) -> TrainResult:
    """Twenty steps on four facts, watched on answers that are others', which soon get worse."""
    settings = TuningSettings(rank=4, alpha=8, learning_rate=2e-2, batch_size=4, epochs=20)
    folder.mkdir(exist_ok=True)
    right = rows(FRAMES[:1], FACTS[:4])
    answers = [answer for *_, answer in right]
    wrong = [
        (*row[:2], answer) for row, answer in zip(right, answers[1:] + answers[:1], strict=True)
    ]
    told = write_rows(right, folder / "rows.parquet")
    watched = write_rows(wrong, folder / "held_out.parquet")

    def progress(line: dict[str, Any]) -> None:
        if stop_at and line.get("step") == stop_at:
            raise Stop

    return train(told, watched, settings.model_copy(update=changed), folder / "run", progress)


def test_the_best_weights_are_kept_and_a_resumed_training_keeps_the_same(tmp_path: Path) -> None:
    early = {"early_stopping": 2, "checkpoint_steps": 4}
    result = tuned(tmp_path / "whole", **early)
    steps, losses = zip(*result.held_out_losses, strict=True)
    assert result.stopped_at_step == steps[-1] < result.steps == 20
    assert result.best_held_out_loss == min(losses) == losses[-3]
    assert result.kept_step == steps[-3]
    assert not list((tmp_path / "whole" / "run").glob("best-*"))
    # A step is an epoch here.
    epoch = encode_rows(load_tokenizer("embedded"), rows(FRAMES[:1], FACTS[:4]))
    assert result.tokens == steps[-1] * sum(len(row.input_ids) for row in epoch)
    # The adapter is what the training had come to at that step.
    with pytest.raises(Stop):
        tuned(tmp_path / "until", stop_at=result.kept_step + 1, checkpoint_steps=4)
    then = tmp_path / "until" / "run" / f"checkpoint-{result.kept_step}" / WEIGHTS
    assert (Path(result.adapter) / WEIGHTS).read_bytes() == then.read_bytes()

    with pytest.raises(Stop):
        tuned(tmp_path / "again", stop_at=result.kept_step + 1, **early)
    resumed = tuned(tmp_path / "again", **early)
    assert resumed.resumed_from_step == result.kept_step
    measured: dict[str, Any] = {
        "adapter": "",
        "resumed_from_step": 0,
        "seconds": 0.0,
        "tokens_per_second": 0.0,
        "peak_memory_gib": 0.0,
    }
    assert replace(resumed, **measured) == replace(result, **measured)
    assert (Path(resumed.adapter) / WEIGHTS).read_bytes() == then.read_bytes()


def test_a_training_that_was_killed_after_it_had_stopped_claims_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Stop

    early = {"early_stopping": 1, "checkpoint_steps": 4}
    with monkeypatch.context() as before:
        before.setattr(sft, "_finish", killed)
        with pytest.raises(Stop):
            tuned(tmp_path, **early)
    result = tuned(tmp_path, **early)
    assert result.resumed_from_step == result.stopped_at_step
    assert (result.seconds, result.tokens_per_second, result.mfu) == (0, 0, None)


def test_without_held_out_rows_it_is_off(tmp_path: Path) -> None:
    settings = TuningSettings(rank=4, epochs=1, early_stopping=1)
    told = write_rows(rows(FRAMES[:1], FACTS[:4]), tmp_path / "rows.parquet")
    result = train(told, None, settings, tmp_path / "run", lambda _line: None)
    assert (result.stopped_at_step, result.best_held_out_loss) == (None, None)
    assert result.kept_step == result.steps
