"""What a training tells while it runs: speed, work, memory, and where curves are drawn."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ragtuned_pipeline.settings import SettingsError, TuningSettings

_PEAK_SIZE = 8192  # of the square matrices that a GPU's peak is measured with


def matrix_peak() -> float | None:
    """Return the bfloat16 operations a second of this GPU's matrix products; None on a CPU.

    Measured, in about 0.1 s and 400 MB: the median of 20 products. By its data sheet a GPU has more
    than any program gets.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    a, b = (
        torch.randn(_PEAK_SIZE, _PEAK_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    times = []
    for turn in range(25):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        if turn >= 5:
            times.append(time.perf_counter() - started)
    del a, b
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return float(2 * _PEAK_SIZE**3 / statistics.median(times))


def peak_memory_gib() -> float:
    """Return what this process has held at most: of the GPU's memory, or without one of RAM."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**30)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass(frozen=True)
class Meter:
    """Turns a training's time into its speed.

    Attributes:
        tokens: of all rows in all epochs, padding not counted.
        work: useful operations a token.
        peak: operations a second of all processes' devices together; None where that is unknown.
    """

    tokens: int
    work: float
    peak: float | None

    def tokens_per_second(self, steps: int, of_steps: int, seconds: float) -> float:
        """Return the speed of `steps` steps of `of_steps` that took `seconds`."""
        return self.tokens * steps / of_steps / max(seconds, 1e-9)

    def mfu(self, tokens_per_second: float) -> float | None:
        """Return useful operations over the devices' peak, from 0 to 1."""
        return self.work * tokens_per_second / self.peak if self.peak else None


def check_trackers(settings: TuningSettings) -> None:
    """Raise SettingsError where a tracker's package is not installed."""
    for tracker in settings.trackers:
        if find_spec(tracker) is None:  # each bears its package's name
            raise SettingsError(
                f"setting tuning.trackers: {tracker} needs the package {tracker}; "
                f"install it, or take {tracker} out of the setting"
            )


def direct_trackers(settings: TuningSettings, logs: Path) -> None:
    """Have the trackers write below `logs`, by the variables that they read.

    Where MLFLOW_TRACKING_URI is set, MLflow goes there; otherwise nothing leaves this machine.
    """
    if not settings.trackers:
        return
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs / "tensorboard")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{logs / 'mlflow.sqlite'}")
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", "ragtuned")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of its use
    os.environ.setdefault("TRACKIO_DIR", str(logs / "trackio"))
