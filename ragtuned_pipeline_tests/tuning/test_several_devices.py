"""A training of two processes on this CPU, by the real torchrun.

Kills of single processes take longer and are in benchmarks/several_devices.py.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.base_models import TokenRow
from ragtuned_pipeline.tuning.epochs import dataset, shared_evenly
from ragtuned_pipeline.tuning.launch import needs_launch, process_count
from ragtuned_pipeline.tuning.sft import train
from ragtuned_pipeline_tests.tuning.conftest import FRAMES, HELD_OUT, rows, write_rows
from ragtuned_pipeline_tests.tuning.processes import at_work, lines, start, wait_for_step

ONE = TuningSettings(rank=8, alpha=16, batch_size=6, epochs=2, checkpoint_steps=1000)
STEPS = -(-64 * 2 // 6)


class Stop(Exception):
    pass


def steps_of(checkpoint: Path) -> dict[int, dict[str, float]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: line for line in history if "loss" in line}


def test_two_processes_do_what_one_does_and_stop_together(tmp_path: Path) -> None:
    told = write_rows(rows(FRAMES), tmp_path / "rows.parquet")
    watched = write_rows(rows([HELD_OUT])[:5], tmp_path / "held_out.parquet")
    two = ONE.model_copy(update={"devices": 2})
    job = {"training_rows": str(told), "held_out": str(watched), "settings": two.model_dump()}
    (tmp_path / "job.json").write_text(json.dumps(job | {"output": str(tmp_path / "two")}))
    process = start(tmp_path / "job.json")

    def stop_early(line: dict[str, Any]) -> None:
        if line["event"] == "step" and line["step"] == 6:
            raise Stop

    often = ONE.model_copy(update={"checkpoint_steps": 5})
    with pytest.raises(Stop):  # meanwhile, in this process
        train(told, watched, often, tmp_path / "one", stop_early)
    alone = steps_of(tmp_path / "one" / "checkpoint-5")

    wait_for_step(process, 6)
    process.send_signal(signal.SIGTERM)
    last = lines(process)[-1]
    assert process.returncode == 143
    assert last["event"] == "stopped"
    assert not at_work(tmp_path)
    [checkpoint] = (tmp_path / "two").glob("checkpoint-*")
    assert last["reason"] == f"stopped at step {checkpoint.name.split('-')[1]} of {STEPS}"
    assert {file.name for file in checkpoint.glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    together = steps_of(checkpoint)
    # The same rows and the same mean over their answered tokens, and so the same gradients.
    for name in ("loss", "accuracy", "grad_norm"):
        assert together[1][name] == pytest.approx(alone[1][name], rel=2e-3), name
    for step in alone:  # the optimizer enlarges what rounding has changed
        assert together[step]["loss"] == pytest.approx(alone[step]["loss"], rel=2e-2)

    # Whoever has fewer devices the next day goes on.
    result = train(told, watched, ONE, tmp_path / "two", lambda _line: None)
    assert result.resumed_from_step == max(together)
    assert result.steps == STEPS
    assert [loss for step, loss in result.losses if step in together] == [
        round(line["loss"], 5) for line in together.values()
    ]


def test_rows_that_fill_up_a_pass_teach_nothing() -> None:
    given = dataset([TokenRow([number, 2, 3], 1) for number in range(5)])
    filled = shared_evenly(given, 4, token=9)
    assert len(filled) == 8
    assert filled["input_ids"][:5] == given["input_ids"]
    assert {label for labels in filled["labels"][5:] for label in labels} == {-100}
    assert shared_evenly(given, 5, token=9) is given


@pytest.mark.parametrize(
    ("gpus", "devices", "count"),
    [(0, 0, 1), (0, 2, 2), (4, 0, 4), (4, 2, 2), (1, 0, 1), (3, 0, 2), (7, 0, 4), (6, 1, 1)],
)
def test_a_process_for_each_device(
    monkeypatch: pytest.MonkeyPatch, gpus: int, devices: int, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = TuningSettings(devices=devices, batch_size=8)
    assert process_count(asked) == count
    assert needs_launch(count) is (count > 1 or gpus > 1)


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"tuning\.batch_size: 8 rows .* by 3 devices; .* is 9"):
        process_count(TuningSettings(devices=3, batch_size=8))
    with pytest.raises(SettingsError, match=r'tuning\.parallel: "fsdp" needs CUDA GPUs'):
        process_count(TuningSettings(devices=2, batch_size=8, parallel="fsdp"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"tuning\.devices: 4 GPUs are asked for and 2 visible"):
        process_count(TuningSettings(devices=4, batch_size=8))
