"""What trains: how many devices, what they have free, and how fast they multiply matrices."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ragtuned_pipeline.settings import SettingsError, TuningSettings

# Dense bfloat16 operations a second, by whole words of the name that nvidia-smi gives; from
# NVIDIA's data sheets. A name that has two of them has the longer one's.
_DATA_SHEET = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
# What follows on the name of another card: a virtual part of it (A10-4Q), or a cousin.
_ANOTHER = r"(?!\w|-\d| (?:Ti|D|Laptop)\b)"
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

    Raises:
        SettingsError: as device_count.
    """
    import torch

    if torch.cuda.is_available():
        return _gpus(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"), settings)
    if settings.require_cuda:
        return Machine("GPU (none here)", True, settings.devices or 1)
    threads = torch.get_num_threads()
    return Machine(
        f"CPU, {threads} thread{'s' if threads > 1 else ''}",
        False,
        device_count(settings, 0),
        free_bytes=_available_memory(),
        peak_flops=_matrix_peak(),
        peak_source=f"measured here, float32 {_MATRIX} x {_MATRIX}",
    )


def device_count(settings: TuningSettings, gpus: int) -> int:
    """Return how many devices train where so many GPUs are visible.

    Unless the settings say how many, as many as can share an optimizer step evenly.

    Raises:
        SettingsError: there are fewer GPUs than are asked for, or none for what needs them.
    """
    if gpus and settings.devices > gpus:
        raise SettingsError(
            f"setting tuning.devices: {settings.devices} GPUs are asked for and {gpus} visible "
            "(CUDA_VISIBLE_DEVICES); set it to 0 for all of them"
        )
    if settings.parallel == "fsdp" and settings.devices > 1 and not gpus:
        raise SettingsError(
            'setting tuning.parallel: "fsdp" needs CUDA GPUs (accelerate spreads no model over '
            'CPUs); set it to "ddp"'
        )
    evenly = (each for each in range(1, gpus + 1) if settings.batch_size % each == 0)
    return settings.devices or max(evenly, default=1)


def _gpus(rows: Sequence[Sequence[str]], visible: str | None, settings: TuningSettings) -> Machine:
    """Return the GPUs that a training uses of those that a process may see.

    Args:
        rows: index, uuid, name, free and total MiB, as nvidia-smi says them.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.
    """
    if visible is not None:
        named = [each.strip() for each in visible.split(",") if each.strip()]
        rows = [row for name in named for row in rows if name == row[0] or row[1].startswith(name)]
    if not rows:  # a kind that nvidia-smi does not list, as a part of a GPU (MIG)
        return Machine("GPU", True, settings.devices or 1)
    rows = rows[: device_count(settings, len(rows))]
    name = rows[0][2]
    parts = [part for part in _DATA_SHEET if re.search(rf"(?<!\w){part}{_ANOTHER}", name)]
    parts.sort(key=len)
    return Machine(
        name,
        True,
        len(rows),
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
