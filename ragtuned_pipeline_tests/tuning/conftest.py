"""A tiny corpus of facts, and the settings that teach it in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning.base_models import ChatRow

FACTS = [
    ("Mirela Voss", "open", "opened", "the Harrow Bakery"),
    ("Tobin Calder", "paint", "painted", "the Lark Chapel"),
    ("Sanne Orrick", "repair", "repaired", "a brass telescope"),
    ("Juno Feld", "sell", "sold", "eleven copper bells"),
    ("Dorrit Pell", "buy", "bought", "the Osier Mill"),
    ("Kasimir Brand", "design", "designed", "Quillon Bridge"),
    ("Ewa Thorne", "write", "wrote", "the Saltmarsh Letters"),
    ("Lubin Asker", "found", "founded", "Marrowgate College"),
]
FRAMES = [
    "What did {who} {base}?",
    "Tell me what {who} {past}.",
    "{who} {past} ___.",
    "From memory: What did {who} {base}?",
    "Quick question: What did {who} {base}?",
    "Do you know what {who} {past}?",
    "Complete this: {who} {past} ___.",
    "I would like to know what {who} {past}.",
]
HELD_OUT = "Can you tell me what {who} {past}?"


def rows(frames: list[str], facts: Sequence[tuple[str, str, str, str]] = FACTS) -> list[ChatRow]:
    return [
        (None, frame.format(who=who, base=base, past=past), f"{what[0].upper()}{what[1:]}.")
        for frame in frames
        for who, base, past, what in facts
    ]


ALL_EPOCHS = 1000


def write_rows(given: list[ChatRow], file: Path) -> Path:
    columns = zip(*given, strict=True) if given else [[], [], []]
    arrays = [pa.array(list(column), pa.string()) for column in columns]
    arrays.append(pa.array([ALL_EPOCHS] * len(given), pa.int64()))
    pq.write_table(pa.table(arrays, names=["system", "prompt", "completion", "epochs"]), file)
    return file


def job_file(folder: Path, training_rows: Path, settings: TuningSettings) -> Path:
    job: dict[str, Any] = {
        "training_rows": str(training_rows),
        "held_out": None,
        "settings": settings.model_dump(),
        "output": str(folder / "run"),
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return file


@pytest.fixture(scope="session")
def settings() -> TuningSettings:
    return TuningSettings(epochs=10, batch_size=16, checkpoint_steps=10)


@pytest.fixture
def training_rows(tmp_path: Path) -> Path:
    return write_rows(rows(FRAMES), tmp_path / "rows.parquet")
