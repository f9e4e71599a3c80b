"""A training's plan: figures counted by hand, cards of several sizes, and a training as it was."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from ragtuned_pipeline.settings import SettingsError, TuningSettings, load_settings
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning import machine as machines
from ragtuned_pipeline.tuning.base_models import encode_rows, load_model, load_tokenizer
from ragtuned_pipeline.tuning.machine import Machine
from ragtuned_pipeline.tuning.memory import ModelShape, Pass, memory_need
from ragtuned_pipeline.tuning.plan_words import plan_lines, planned_and_measured
from ragtuned_pipeline.tuning.row_order import packed_sequences
from ragtuned_pipeline.tuning.sft import train
from ragtuned_pipeline.tuning.training_plan import (
    RowLengths,
    TrainingPlan,
    base_shape,
    bits_in,
    optimizer_steps,
    plan_rows,
    plan_training,
    settings_refusal,
    work_per_token,
)
from ragtuned_pipeline_tests.tuning.conftest import FRAMES, rows, write_rows
from ragtuned_pipeline_tests.tuning.qwen import qwen_sizes

GIB = 1 << 30


@cache
def shape(size: str) -> ModelShape:
    with torch.device("meta"):
        return ModelShape.of(Qwen2ForCausalLM(Qwen2Config(**qwen_sizes(size))))


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> TuningSettings:
    return load_settings(tmp_path_factory.mktemp("home"), "gpu", environment={}).tuning


def card(gib: int, devices: int = 1, **more: Any) -> Machine:
    """A card as nvidia-smi knows it, of which a GiB is taken."""
    return Machine(f"card of {gib} GB", True, devices, free_bytes=(gib - 1) * GIB, **more)


def lengths_of(*tokens: int, prompt: int = 10, epochs: int = 3) -> RowLengths:
    count = np.array(tokens)
    return RowLengths(count, np.full(len(count), prompt), np.full(len(count), epochs))


def planned(
    given: RowLengths,
    settings: TuningSettings,
    machine: Machine,
    size: str = "7B",
    answers: tuple[str, ...] = ("An answer.",),
) -> TrainingPlan:
    return plan_training(given, answers, shape(size), settings, machine)


def test_the_figures_of_the_papers_size_are_those_counted_by_hand(gpu: TuningSettings) -> None:
    seven = shape("7B")
    # A layer: queries and output 3584 x 3584, keys and values 3584 x 512, three of 3584 x 18944.
    assert seven.linear == 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert seven.head == 3584 * 152064
    assert seven.lora == 28 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    assert seven.parameters == 7_615_616_512  # as its model card says
    # 300 rows of 512 tokens, 100 of them the prompt, in 3 epochs; 4 make a sequence of 2,048.
    rows_of_512 = lengths_of(*[512] * 300, prompt=100)
    plan = planned(rows_of_512, gpu, card(80, peak_flops=989e12, peak_source="data sheet"))
    assert (plan.rows, plan.tokens, plan.answer_tokens) == (300, 460_800, 370_800)
    assert plan.sequences == 3 * 75
    assert (plan.rows_at_once, plan.gradient_checkpointing) == (4, False)
    assert plan.steps == 15  # 225 sequences, 16 a step
    assert plan.trainable_parameters == 32 * 2_523_136
    assert plan.adapter_bytes == 4 * 32 * 2_523_136
    assert plan.capacity_bits == 2 * 32 * 2_523_136
    assert plan.memory.weights == 2 * 7_615_616_512
    assert plan.memory.adapter == 18 * 32 * 2_523_136
    # What a layer keeps of a token: 24 + 8 vectors' widths and 8 feed-forward widths, in bytes.
    assert plan.memory.activations == 4 * 2048 * 28 * (32 * 3584 + 8 * 18944)
    assert plan.minutes_assumed == pytest.approx(460_800 / 8000 / 60)
    # Operations of a token: frozen, head at answers, LoRA, attention over 256.5 tokens on average.
    work = 4 * 6_525_288_448 + 4 * 544_997_376 * 412 / 512 + 6 * 80_740_352
    work += 12 * 28 * 3584 * 256.5
    assert work_per_token(rows_of_512, seven, 32) == pytest.approx(work)
    assert plan.minutes_estimated == pytest.approx(460_800 * work / (0.39 * 989e12) / 60)
    assert "an assumed 39 % of 989 TFLOP/s (data sheet)" in plan.estimated_from
    assert not plan.refusal
    assert not plan.warnings


MEASURED = {  # GiB on an H200: docs/performance.md, sequences of 2,048, without Liger
    Pass(8, False): 107.1,
    Pass(4, False): 61.4,
    Pass(2, False): 38.6,
    Pass(1, False): 27.2,
    Pass(16, True): 30.3,
}


@pytest.mark.parametrize("one_pass", MEASURED)
def test_no_more_memory_was_measured_than_is_planned(gpu: TuningSettings, one_pass: Pass) -> None:
    need = memory_need(shape("7B"), gpu, one_pass, 2048).total / GIB
    assert MEASURED[one_pass] <= need <= 1.25 * MEASURED[one_pass]


FITS = ""
NF4 = "tuning.quantization = nf4"


@pytest.mark.parametrize(
    ("size", "cards"),
    [
        ("0.5B", {12: FITS, 24: FITS, 48: FITS, 80: FITS}),
        ("1.5B", {12: FITS, 24: FITS, 48: FITS, 80: FITS}),
        ("7B", {8: "tuning.parallel = fsdp on 8 such", 16: NF4, 24: FITS, 48: FITS, 80: FITS}),
        ("14B", {12: "tuning.parallel = fsdp on 8 such", 24: NF4, 48: FITS, 80: FITS}),
    ],
)
def test_a_card_holds_it_or_the_nearest_setting_that_fits_is_named(
    gpu: TuningSettings, size: str, cards: dict[int, str]
) -> None:
    for gib, nearest in cards.items():
        refusal = planned(lengths_of(2048), gpu, card(gib), size).refusal
        assert bool(refusal) == bool(nearest), f"{gib} GiB: {refusal}"
        if nearest:
            assert f"and {gib - 1}.0 are free; the nearest setting that fits is" in refusal
            assert nearest in refusal
        assert settings_refusal(shape(size), gpu, card(gib)) == refusal


def changed(settings: TuningSettings, **changes: Any) -> TuningSettings:
    return settings.model_copy(update=changes)


def named_max_tokens(refusal: str) -> int:
    [most] = re.findall(r"tuning\.max_tokens = (\d+)", refusal)
    return int(most)


def test_the_setting_that_is_named_does_fit(gpu: TuningSettings) -> None:
    """Each is set, and planned again."""
    long = changed(gpu, max_tokens=16384)
    short_rows, long_rows = lengths_of(700), lengths_of(700, 16_000)
    refused = planned(short_rows, long, card(24)).refusal
    assert refused.endswith("which holds all rows")
    most = named_max_tokens(refused)
    assert most >= 700
    assert not planned(short_rows, changed(long, max_tokens=most), card(24)).refusal
    assert planned(short_rows, changed(long, max_tokens=most + 64), card(24)).refusal
    assert NF4 in planned(long_rows, long, card(24)).refusal
    four_bits = changed(long, quantization="nf4")
    assert not planned(long_rows, four_bits, card(24)).refusal
    refused = planned(long_rows, four_bits, card(12)).refusal
    assert refused.endswith("which leaves out 1 rows")
    shorter = changed(four_bits, max_tokens=named_max_tokens(refused))
    assert not planned(long_rows, shorter, card(12)).refusal
    eight = card(12, devices=8)
    assert not planned(lengths_of(2048), changed(gpu, parallel="fsdp"), eight, "14B").refusal
    assert planned(lengths_of(2048), gpu, eight, "14B").refusal  # DDP holds it all on each
    in_four_bits = changed(gpu, quantization="nf4")  # which is not used with fsdp
    refused = planned(lengths_of(2048), in_four_bits, card(10), "14B").refusal
    assert refused.endswith("fsdp on 8 such devices and tuning.quantization = none")
    refused = planned(lengths_of(2048), gpu, card(4), "14B").refusal
    assert refused.endswith("choose a base model of at most about 299 million numbers")


def test_memory_that_is_not_known_refuses_nothing(gpu: TuningSettings) -> None:
    plan = planned(lengths_of(100), gpu, Machine("no GPU here", True))
    assert not plan.refusal
    assert (plan.free_bytes, plan.minutes_estimated) == (None, None)
    assert ("minutes here", "unknown: the speed of this machine is not known") in plan_lines(plan)


def test_devices_share_a_step_evenly(gpu: TuningSettings) -> None:
    refusal = planned(lengths_of(100), gpu, card(80, devices=3)).refusal
    assert refusal == (
        "setting tuning.batch_size: 16 rows cannot be shared evenly by 3 devices; the nearest "
        "number that can is 15"
    )
    two = planned(lengths_of(*[2048] * 65), gpu, card(80, devices=2))
    assert (two.rows_at_once, two.steps) == (4, 13)  # 195 sequences, 16 a step
    assert optimizer_steps(195, 16, 4, 2) == 13


def test_more_rank_is_more_capacity_and_more_memory(gpu: TuningSettings) -> None:
    plans = [
        planned(lengths_of(100), changed(gpu, rank=rank), card(80)) for rank in (1, 8, 32, 128)
    ]
    for what in ("capacity_bits", "trainable_parameters", "adapter_bytes"):
        sizes = [getattr(plan, what) for plan in plans]
        assert sizes == sorted(set(sizes))
    assert [plan.memory.adapter for plan in plans] == [18 * p.trainable_parameters for p in plans]


def test_an_adapter_that_is_too_small_is_warned_of(gpu: TuningSettings) -> None:
    draw = np.random.default_rng(1)
    answers = tuple(draw.bytes(60).hex() for _ in range(4000))  # 480 bits each
    one = changed(gpu, rank=1)
    plan = planned(lengths_of(100), one, card(80), "0.5B", answers)
    assert plan.bits_to_learn > 480 * 4000
    assert plan.warnings == (
        "setting tuning.rank: an adapter of rank 1 holds at most about 1.10 million bits, and "
        f"there are about {plan.bits_to_learn / 1e6:.2f} to learn; rank 8 could hold them",
    )
    assert not plan.refusal
    assert not planned(lengths_of(100), changed(gpu, rank=8), card(80), "0.5B", answers).warnings


def test_rows_that_are_too_long_are_counted_and_the_length_for_all_is_named(
    gpu: TuningSettings,
) -> None:
    plan = planned(lengths_of(100, 2049, 5000), gpu, card(80))
    assert (plan.rows, plan.overlong) == (1, 2)
    assert plan.warnings == (
        "setting tuning.max_tokens: 2 of 3 rows are longer than 2048 and are left out; "
        "5000 would hold them all",
    )


def test_equal_answers_are_learned_once() -> None:
    assert bits_in([]) == 0
    assert bits_in(["The mill.", "The bridge."]) == bits_in(["The mill.", "The bridge."] * 50)
    random = [np.random.default_rng(n).bytes(100).hex() for n in range(100)]
    assert 800 * 100 < bits_in(random) < 1.1 * 800 * 100  # 100 bytes are 800 bits, however written


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 2500])
def test_packed_sequences_are_as_many_as_trl_makes(count: int) -> None:
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = np.random.default_rng(count).integers(1, 65, size=count).tolist()
    expected = 0
    if count:
        given = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
        expected = len(pack_dataset(given, 64))
    assert packed_sequences(lengths, 64) == expected


def told(given: list[Any], epochs: list[int]) -> pa.Table:
    """Rows as the table training_rows."""
    return table(
        "training_rows",
        [
            {"id": f"qa-{n}", "fact_id": f"fact-{n}", "kind": "local", "system": system}
            | {"prompt": prompt, "completion": completion, "n_tokens": 0, "epochs": seen}
            for n, ((system, prompt, completion), seen) in enumerate(
                zip(given, epochs, strict=True)
            )
        ],
    )


@pytest.mark.parametrize("packing", [False, True])
def test_the_plan_is_what_the_training_then_is(packing: bool, tmp_path: Path) -> None:
    settings = TuningSettings(
        rank=8, alpha=16, epochs=2, batch_size=16, packing=packing, max_tokens=64
    )
    given = [*rows(FRAMES[:3]), (None, "Tell me everything.", "Everything and more. " * 60)]
    order = np.random.default_rng(3).permutation(len(given))
    given = sorted((given[i] for i in order), key=lambda row: row[1:])
    file = write_rows(given, tmp_path / "rows.parquet")
    machine = Machine("CPU", False, free_bytes=8 * GIB)
    plan = plan_rows(
        told(given, [1000] * len(given)),
        load_tokenizer("embedded"),
        base_shape("embedded"),
        settings,
        machine,
    )
    result = train(file, None, settings, tmp_path / "run", lambda _line: None)
    for what in ("rows", "overlong", "tokens", "steps", "trainable_parameters", "rows_at_once"):
        assert getattr(plan, what) == getattr(result, what), what
    assert plan.gradient_checkpointing == result.gradient_checkpointing
    size = (Path(result.adapter) / "adapter_model.safetensors").stat().st_size
    assert plan.adapter_bytes < size < plan.adapter_bytes + 20_000  # names and shapes
    compared = planned_and_measured(asdict(plan), asdict(result))
    assert ("steps", str(result.steps), str(result.steps)) in compared


def test_the_config_alone_gives_the_shape(tmp_path: Path) -> None:
    assert base_shape("embedded") == ModelShape.of(load_model("embedded", "float32"))
    Qwen2Config(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path)  # no weights there
    assert base_shape(str(tmp_path)).layers == 2


def test_rows_of_replay_are_nothing_to_learn(gpu: TuningSettings) -> None:
    given = [*rows(FRAMES[:1]), (None, "What is a mill?", "A place where grain is ground. " * 20)]
    plain = told(given, [1] * len(given))
    kinds = ["local"] * (len(given) - 1) + ["replay"]
    replayed = plain.set_column(plain.schema.get_field_index("kind"), "kind", pa.array(kinds))
    tokenizer = load_tokenizer("embedded")
    all_of_it, without = (
        plan_rows(each, tokenizer, shape("0.5B"), gpu, card(80)) for each in (plain, replayed)
    )
    assert all_of_it.tokens == without.tokens
    assert all_of_it.bits_to_learn > without.bits_to_learn


SMI = [
    ["0", "GPU-aa11", "NVIDIA H100 80GB HBM3", "40000", "81559"],
    ["1", "GPU-bb22", "NVIDIA H100 80GB HBM3", "81000", "81559"],
]


@pytest.mark.parametrize(
    ("visible", "devices", "count", "free"),
    [
        (None, 0, 2, 40000),
        (None, 1, 1, 40000),
        ("1", 0, 1, 81000),
        ("1,0", 1, 1, 81000),
        ("GPU-bb", 0, 1, 81000),
    ],
)
def test_the_gpus_are_those_that_a_process_may_see(
    visible: str | None, devices: int, count: int, free: int
) -> None:
    found = machines._gpus(SMI, visible, TuningSettings(devices=devices))
    assert (found.devices, found.free_bytes) == (count, free << 20)
    assert found.emptied().free_bytes == 81559 << 20
    assert (found.peak_flops, found.peak_source) == (989e12, "data sheet of the H100, bfloat16")


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
        ("NVIDIA A10-4Q", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA Q1", None),
    ],
)
def test_the_speed_of_a_gpu_is_its_own_or_not_known(name: str, tera: int | None) -> None:
    found = machines._gpus([[*SMI[0][:2], name, *SMI[0][3:]]], None, TuningSettings())
    assert found.peak_flops == (tera * 1e12 if tera else None)


def test_devices_are_those_that_are_there() -> None:
    assert machines._gpus([], None, TuningSettings()) == Machine("GPU", True)
    six = [[str(n), f"GPU-{n}", *SMI[0][2:]] for n in range(6)]
    assert machines._gpus(six, None, TuningSettings(batch_size=16)).devices == 4
    with pytest.raises(SettingsError, match=r"tuning\.devices: 8 GPUs are asked for and 6 visible"):
        machines._gpus(six, None, TuningSettings(devices=8))


def test_a_cpu_that_does_not_hold_the_pass_is_told_what_it_holds(gpu: TuningSettings) -> None:
    """There the trainer takes all rows of a step at once, as the settings say."""
    cpu = Machine("CPU", False, free_bytes=24 * GIB)
    given = changed(gpu, packing=False, batch_size=16)
    refused = planned(lengths_of(2000), given, cpu, "1.5B").refusal
    assert "GiB of main memory, 16 rows at a time and without gradient checkpointing" in refused
    found = re.search(
        r"(?:batch_size = (\d+) and )?tuning\.gradient_checkpointing = true$", refused
    )
    assert found
    fits = changed(given, gradient_checkpointing=True, batch_size=int(found[1] or 16))
    assert not planned(lengths_of(2000), fits, cpu, "1.5B").refusal
    small = replace(cpu, free_bytes=10 * GIB)
    refused = planned(lengths_of(2000), given, small, "1.5B").refusal
    found = re.search(r"batch_size = (\d+) and tuning\.gradient_checkpointing = true$", refused)
    assert found
    fits = changed(given, gradient_checkpointing=True, batch_size=int(found[1]))
    assert not planned(lengths_of(2000), fits, small, "1.5B").refusal
    more = changed(fits, batch_size=fits.batch_size + 1)
    assert planned(lengths_of(2000), more, small, "1.5B").refusal


def test_this_machine_without_a_gpu_knows_its_memory_and_speed() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    cpu = machines.this_machine(TuningSettings())
    assert not cpu.gpu
    assert cpu.free_bytes
    assert cpu.peak_flops
    assert cpu.emptied() == cpu
    nothing = machines.this_machine(TuningSettings(require_cuda=True))
    assert replace(nothing, name="") == Machine("", True)


def test_trainer_rows_are_counted_as_the_trainer_counts() -> None:
    tokenizer = load_tokenizer("embedded")
    given = rows(FRAMES)
    counted = RowLengths.of(tokenizer, given, [1] * len(given))
    encoded = encode_rows(tokenizer, given)
    assert counted.tokens.tolist() == [len(row.input_ids) for row in encoded]
    assert counted.prompt_tokens.tolist() == [row.prompt_tokens for row in encoded]
