"""Real LoRA training of the embedded model on a few facts."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.adapter_store import adapter_shape
from ragtuned_pipeline.tuning.base_models import TokenRow
from ragtuned_pipeline.tuning.epochs import Plan
from ragtuned_pipeline.tuning.ranks import Ranks
from ragtuned_pipeline.tuning.sft import (
    TrainResult,
    _forget_other_runs,
    train,
)
from ragtuned_pipeline_tests.tuning.conftest import FACTS, FRAMES, HELD_OUT, rows, write_rows


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, settings: TuningSettings
) -> tuple[TrainResult, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("trained")
    too_long = (None, "Tell me everything.", "Everything and more. " * 400)
    given = write_rows([*rows(FRAMES), too_long], folder / "rows.parquet")
    held_out = write_rows(rows([HELD_OUT]), folder / "held_out.parquet")
    lines: list[dict[str, Any]] = []
    return train(given, held_out, settings, folder / "run", lines.append), lines


def test_the_loss_falls_and_the_facts_are_answered_in_a_wording_never_trained(
    trained: tuple[TrainResult, list[dict[str, Any]]],
) -> None:
    result, _ = trained
    assert result.losses[-1][1] < 0.3 * result.losses[0][1]
    assert result.held_out_losses[-1][1] < 0.5 * result.held_out_losses[0][1]
    asked = [chat(HELD_OUT.format(who=who, base=base, past=past)) for who, base, past, _ in FACTS]
    tuned = TransformersEngine("embedded", Path(result.adapter)).generate(asked, 24)
    base = TransformersEngine("embedded").generate(asked, 24)
    golds = [what.lower() for *_, what in FACTS]
    assert sum(g in r.text.lower() for g, r in zip(golds, tuned, strict=True)) >= len(FACTS) - 1
    assert sum(g in r.text.lower() for g, r in zip(golds, base, strict=True)) == 0


def test_what_was_done_is_told(trained: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    result, lines = trained
    assert (result.rows, result.overlong, result.held_out_rows) == (64, 1, 8)
    assert result.trainable_parameters > 0
    assert result.steps == 64 * 10 / 16
    assert lines[0] == {"event": "rows", "rows": 64, "overlong": 1, "tokens": result.tokens}
    steps = [line for line in lines if line["event"] == "step"]
    assert steps[-1]["step"] == steps[-1]["steps"] == result.steps
    assert steps[-1]["seconds_left"] == 0
    assert {"loss", "tokens_per_second", "learning_rate"} <= steps[0].keys()
    assert [(x["step"], round(x["loss"], 5)) for x in steps] == result.losses
    assert not list((Path(result.adapter).parent).glob("checkpoint-*"))


def test_the_same_rows_and_settings_give_the_same_weights(
    trained: tuple[TrainResult, list[dict[str, Any]]], settings: TuningSettings, tmp_path: Path
) -> None:
    short = settings.model_copy(update={"epochs": 1})
    given = write_rows(rows(FRAMES), tmp_path / "rows.parquet")
    first, second = (
        load_file(Path(train(given, None, short, tmp_path / name, print).adapter) / _WEIGHTS)
        for name in ("a", "b")
    )
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


_WEIGHTS = "adapter_model.safetensors"


def test_no_row_and_no_row_that_fits_are_refused(settings: TuningSettings, tmp_path: Path) -> None:
    empty = write_rows([], tmp_path / "empty.parquet")
    with pytest.raises(SettingsError, match=r"empty\.parquet holds 0 rows"):
        train(empty, None, settings, tmp_path / "run", print)
    long = write_rows([(None, "Why?", "Because. " * 400)], tmp_path / "long.parquet")
    with pytest.raises(SettingsError, match=r"holds 1 rows, 1 of them longer than.*max_tokens"):
        train(long, None, settings, tmp_path / "run", print)


def test_two_trainers_never_share_a_folder(
    settings: TuningSettings, training_rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another trainer works in"):
            train(training_rows, None, settings, tmp_path / "run", print)


def test_the_gpu_profile_is_refused_where_there_is_no_gpu(
    settings: TuningSettings, training_rows: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    gpu = settings.model_copy(update={"require_cuda": True})
    with pytest.raises(SettingsError, match=r"tuning\.require_cuda: this machine has no CUDA GPU"):
        train(training_rows, None, gpu, tmp_path / "run", print)


def test_packed_training_learns_too(settings: TuningSettings, tmp_path: Path) -> None:
    packed = settings.model_copy(update={"packing": True, "max_tokens": 128, "epochs": 4})
    given = write_rows(rows(FRAMES), tmp_path / "rows.parquet")
    result = train(given, None, packed, tmp_path / "run", lambda _line: None)
    assert result.losses[-1][1] < result.losses[0][1]
    assert result.rows == 64


@pytest.mark.parametrize("packing", [False, True])
def test_a_row_is_seen_in_its_epochs_and_once_in_each(
    settings: TuningSettings, packing: bool
) -> None:
    from ragtuned_pipeline.tuning.base_models import TokenRow
    from ragtuned_pipeline.tuning.epochs import Plan, training_set

    rows = [TokenRow([number, *range(2, 2 + number % 7)], 1) for number in range(100, 140)]
    seen = [1 if number % 4 == 0 else 3 for number in range(100, 140)]
    three = settings.model_copy(
        update={"epochs": 3, "batch_size": 8, "packing": packing, "max_tokens": 32}
    )
    plan = Plan.of(rows, seen, three)
    data = training_set(rows, plan, three)
    read = [token for ids in data["input_ids"] for token in ids if token >= 100]
    assert read[:40] != sorted(read[:40])
    assert sorted(read[:40]) == list(range(100, 140))
    later = [number for number in range(100, 140) if number % 4]
    assert sorted(read[40:70]) == sorted(read[70:]) == later
    assert plan.tokens == sum(map(len, data["input_ids"]))
    if packing:
        assert [sum(lengths) for lengths in data["seq_lengths"]] == list(
            map(len, data["input_ids"])
        )
        assert max(map(len, data["input_ids"])) <= 32


NEW_FACTS = [
    ("Orla Prewett", "plant", "planted", "forty walnut trees"),
    ("Hesper Lund", "restore", "restored", "the Gannet Lighthouse"),
]


@pytest.fixture
def new_rows(tmp_path: Path) -> Path:
    """All wordings of two new facts, and one wording each of the old ones."""
    given = [*rows(FRAMES, NEW_FACTS), *rows(FRAMES[:1])]
    return write_rows(given, tmp_path / "new_rows.parquet")


def test_going_on_from_an_adapter_learns_new_facts_and_keeps_the_old(
    trained: tuple[TrainResult, list[dict[str, Any]]],
    settings: TuningSettings,
    new_rows: Path,
    tmp_path: Path,
) -> None:
    start = Path(trained[0].adapter)
    before = load_file(start / _WEIGHTS)
    result = train(new_rows, None, settings, tmp_path / "run", lambda _line: None, start)
    assert adapter_shape(Path(result.adapter)) == (settings.rank, settings.alpha)
    after = load_file(Path(result.adapter) / _WEIGHTS)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    engine = TransformersEngine("embedded", Path(result.adapter))
    for facts in (FACTS, NEW_FACTS):
        asked = [chat(HELD_OUT.format(who=who, base=b, past=past)) for who, b, past, _ in facts]
        replies = engine.generate(asked, 24)
        golds = [what.lower() for *_, what in facts]
        right = sum(g in r.text.lower() for g, r in zip(golds, replies, strict=True))
        assert right >= len(facts) - 1, [reply.text for reply in replies]


class _Stop(Exception):
    pass


def test_a_training_that_went_on_is_resumed_to_the_same_weights_and_from_no_other_start(
    trained: tuple[TrainResult, list[dict[str, Any]]],
    settings: TuningSettings,
    new_rows: Path,
    tmp_path: Path,
) -> None:
    start = Path(trained[0].adapter)
    short = settings.model_copy(update={"epochs": 4, "checkpoint_steps": 3})

    def stop_after_a_checkpoint(line: dict[str, Any]) -> None:
        if line["event"] == "step" and line["step"] == 4:
            raise _Stop

    def interrupted(name: str) -> Path:
        with pytest.raises(_Stop):
            train(new_rows, None, short, tmp_path / name, stop_after_a_checkpoint, start)
        assert (tmp_path / name / "checkpoint-3").is_dir()
        return tmp_path / name

    whole = train(new_rows, None, short, tmp_path / "whole", lambda _line: None, start)
    resumed = train(new_rows, None, short, interrupted("a"), lambda _line: None, start)
    assert (whole.resumed_from_step, resumed.resumed_from_step) == (0, 3)
    a, b = (load_file(Path(each.adapter) / _WEIGHTS) for each in (whole, resumed))
    assert all((a[name] == b[name]).all() for name in a)
    # The checkpoint of another start, here of none, is not gone on from.
    again = train(new_rows, None, short, interrupted("b"), lambda _line: None)
    assert again.resumed_from_step == 0


def test_an_adapter_of_another_rank_is_not_gone_on_from(
    trained: tuple[TrainResult, list[dict[str, Any]]],
    settings: TuningSettings,
    new_rows: Path,
    tmp_path: Path,
) -> None:
    other = settings.model_copy(update={"rank": 8, "alpha": 16})
    with pytest.raises(SettingsError, match=r"has rank 64 and alpha 128, .*are 8 and 16"):
        train(new_rows, None, other, tmp_path / "run", print, Path(trained[0].adapter))


SPREAD = {"parallel": "fsdp"}


@pytest.mark.parametrize(
    ("before", "processes", "after", "then", "stays"),
    [
        ({}, 1, {}, 1, True),
        ({}, 1, {"checkpoint_steps": 50, "require_cuda": True}, 1, True),
        ({}, 1, {"gradient_checkpointing": True, "min_wordings": 3}, 1, True),
        ({}, 2, {"devices": 1}, 1, True),
        ({}, 1, SPREAD, 1, True),
        (SPREAD, 2, SPREAD, 4, True),
        (SPREAD, 2, SPREAD, 1, False),
        (SPREAD, 2, {}, 2, False),
        ({}, 2, SPREAD, 2, False),
        ({}, 1, {"learning_rate": 1e-3}, 1, False),
    ],
)
def test_a_checkpoint_stays_where_the_training_can_go_on_from_it(
    before: dict[str, Any],
    processes: int,
    after: dict[str, Any],
    then: int,
    stays: bool,
    tmp_path: Path,
) -> None:
    def forget(changed: dict[str, Any], processes: int) -> None:
        asked = TuningSettings().model_copy(update=changed)
        rows = [TokenRow([1, 2], 1)]
        plan = Plan.of(rows, [1], asked)
        _forget_other_runs(tmp_path, rows, plan, asked, None, Ranks(processes=processes))

    forget(before, processes)
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    forget(after, then)
    assert checkpoint.is_dir() is stays
