"""What trains: how many devices, what they have free, and how fast they multiply matrices."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ragtuned_pipeline.settings import TuningSettings

# Dense bfloat16 operations a second, by a part of the name that nvidia-smi gives; from NVIDIA's
# data sheets. A name that two parts are in has the longer one's.
_DATA_SHEET = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
_FIELDS = "index,uuid,name,memory.free,memory.total"
_MATRIX, _REPEATS = 1024, 7


@dataclass(frozen=True)
class Machine:
    """What a training would run on.

    Attributes:
        devices: processes that share a training, one a GPU.
        free_bytes: of the device that has least; None where that is not known.
        total_bytes: likewise, of a GPU that nothing else uses.
        peak_flops: operations a second of one device; None where that is not known.
        peak_source: where `peak_flops` comes from, for people.
    """

    name: str
    gpu: bool
    devices: int = 1
    free_bytes: int | None = None
    total_bytes: int | None = None
    peak_flops: float | None = None
    peak_source: str = ""

    def emptied(self) -> Machine:
        """Return it with all of its GPUs' memory free, as when a server has given it back."""
        return replace(self, free_bytes=self.total_bytes or self.free_bytes)


def this_machine(settings: TuningSettings) -> Machine:
    """Return the machine that this process runs on, as a training with these settings uses it.

    Where the settings ask for a GPU and there is none, nothing is known of it.
    """
    import torch

    if torch.cuda.is_available():
        return _gpus(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"), settings.devices)
    devices = settings.devices or 1
    if settings.require_cuda:
        return Machine("GPU (none here)", True, devices)
    return Machine(
        f"CPU, {torch.get_num_threads()} threads",
        False,
        devices,
        free_bytes=_available_memory(),
        peak_flops=_matrix_peak(),
        peak_source=f"measured here, float32 {_MATRIX} x {_MATRIX}",
    )


def _gpus(rows: Sequence[Sequence[str]], visible: str | None, devices: int) -> Machine:
    """Return the first `devices` (0: all) GPUs that a process may see.

    Args:
        rows: index, uuid, name, free and total MiB, as nvidia-smi says them.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.
    """
    if visible is not None:
        named = [each.strip() for each in visible.split(",") if each.strip()]
        rows = [row for name in named for row in rows if name == row[0] or row[1].startswith(name)]
    rows = rows[: devices or len(rows)]
    if not rows:  # a kind that nvidia-smi does not list, as a part of a GPU (MIG)
        return Machine("GPU", True, devices or 1)
    name = rows[0][2]
    parts = sorted((part for part in _DATA_SHEET if part in name), key=len)
    return Machine(
        name,
        True,
        devices or len(rows),
        free_bytes=min(int(row[3]) for row in rows) << 20,
        total_bytes=min(int(row[4]) for row in rows) << 20,
        peak_flops=_DATA_SHEET[parts[-1]] if parts else None,
        peak_source=f"data sheet of the {parts[-1]}, bfloat16" if parts else "",
    )


def _nvidia_smi() -> list[list[str]]:
    """Return the lines of nvidia-smi, which makes no context on a GPU as PyTorch does."""
    asked = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.split(", ") for line in said.stdout.splitlines()]


def _available_memory() -> int | None:
    """Return the main memory that a new process can have (Linux: MemAvailable)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            [line] = [line for line in file if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    return int(line.split()[1]) << 10


def _matrix_peak() -> float:
    """Return the operations a second of a float32 matrix product on this CPU, the best of some:
    what else runs on it makes the others slower.
    """
    import torch

    a, b = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * _MATRIX**3 / min(times)
