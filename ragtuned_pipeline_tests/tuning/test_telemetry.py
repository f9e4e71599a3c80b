"""Where a training's curves go, and what its speed is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.sft import train
from ragtuned_pipeline.tuning.telemetry import (
    Meter,
    check_trackers,
    direct_trackers,
    peak_memory_gib,
)
from ragtuned_pipeline_tests.tuning.conftest import FACTS, FRAMES, rows, write_rows
from ragtuned_pipeline_tests.tuning.tiny_models import FAMILIES, write_model

_VARIABLES = (
    "TENSORBOARD_LOGGING_DIR",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_DISABLE_TELEMETRY",
    "TRACKIO_DIR",
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.setenv(name, "")  # restored afterwards, also where the code sets it
        monkeypatch.delenv(name)


def test_speed_is_of_the_steps_that_were_made() -> None:
    meter = Meter(tokens=1000, work=2e9, peak=1e12)
    assert meter.tokens_per_second(steps=2, of_steps=10, seconds=4.0) == 50
    assert meter.mfu(50.0) == pytest.approx(0.1)
    assert Meter(1000, 2e9, None).mfu(50.0) is None


def test_memory_is_told_in_gib() -> None:
    assert 0.05 < peak_memory_gib() < 64


def test_the_curves_are_in_tensorboards_files(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    base = write_model(FAMILIES[0], tmp_path / "base")
    settings = TuningSettings(
        base_model=str(base), rank=4, batch_size=4, epochs=2, trackers=("tensorboard",)
    )
    told = write_rows(rows(FRAMES[:1], FACTS[:4]), tmp_path / "rows.parquet")
    logs = tmp_path / "logs"
    result = train(told, told, settings, tmp_path / "run", lambda _line: None, logs=logs)
    read = accumulator.EventAccumulator(str(logs / "tensorboard")).Reload()
    losses = [(each.step, round(each.value, 4)) for each in read.Scalars("train/loss")]
    assert losses == [(step, round(loss, 4)) for step, loss in result.losses]
    assert read.Scalars("eval/held_out_loss")
    assert {"train/accuracy", "train/tokens_per_second", "train/peak_memory_gib"} <= set(
        read.Tags()["scalars"]
    )


def test_mlflow_writes_here_unless_it_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    settings = TuningSettings(trackers=("mlflow",))
    direct_trackers(settings, tmp_path / "logs")
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/logs/mlflow.sqlite"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    direct_trackers(settings, tmp_path / "logs")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracking:5000"


def test_a_tracker_that_is_not_installed_is_named() -> None:
    if find_spec("trackio"):
        pytest.skip("trackio is installed here")
    with pytest.raises(SettingsError, match=r"tuning\.trackers: trackio needs the package trackio"):
        check_trackers(TuningSettings(trackers=("tensorboard", "trackio")))
