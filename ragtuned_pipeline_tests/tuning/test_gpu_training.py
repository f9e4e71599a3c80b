"""The benchmark of training on a GPU runs on a CPU too, and measures what it says it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragtuned_pipeline_tests.benchmarks import gpu_training


def test_it_runs_at_toy_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "toy", "--steps", "1", "--output", str(tmp_path / "figures.json")]
    gpu_training.main([*arguments, "--ways", "ours", "plain loop"])
    found = json.loads((tmp_path / "figures.json").read_text())
    one, other = found["ways"]
    assert (one["name"], other["name"]) == ("ours", "plain loop")
    assert one["step_tokens"] == other["step_tokens"]  # the same rows in the same steps
    assert abs(one["losses"][0] - other["losses"][0]) < 0.05
    assert "| plain loop |" in capsys.readouterr().out


def test_rows_are_as_long_as_they_are_said_to_be(tmp_path: Path) -> None:
    bench = gpu_training.Bench.of(gpu_training.SHAPES["7b"], tmp_path, steps=1)
    rows = bench.encoded()
    answers = [len(row.input_ids) - row.prompt_tokens for row in rows]
    assert min(answers) < 60
    assert 580 < max(answers) <= 602  # the stop token, and the template's end
    assert 20 < sum(row.prompt_tokens for row in rows) / len(rows) < 30


def test_work_is_four_operations_a_weight_and_token(tmp_path: Path) -> None:
    """Qwen2.5-7B has 7.07 billion weights in matrices that a token goes through."""
    bench = gpu_training.Bench.of(gpu_training.SHAPES["7b"], tmp_path, steps=1)
    work = 1e9 * gpu_training.gflop_per_token(bench)
    lora, attention = 6 * 80.7e6, 3 * 28 * 4 * 3584 * 220
    assert 4 * 6.9e9 + lora < work < 4 * 7.07e9 + lora + attention


def test_speed_is_the_median_step_after_warm_up() -> None:
    log = gpu_training.StepLog(seconds=[0.0, 9.0, 11.0, 13.0, 14.0, 16.0, 20.0, 22.0])
    log.tokens = [99, 99, 10, 20, 30, 40, 50, 60]
    assert log.tokens_per_second() == pytest.approx(16.25)  # of 5, 10, 12.5, 20, 30, 30
