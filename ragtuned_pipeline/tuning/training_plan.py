"""What a training will be before it starts: tokens, steps, memory, minutes, and whether the adapter
can hold what it is to learn. Only the base model's config is read, never its weights."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.inference.base_models import load_config
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.synthesis.facts import REPLAY
from ragtuned_pipeline.tuning.base_models import ChatRow, TokenRow, encode_rows
from ragtuned_pipeline.tuning.machine import Machine
from ragtuned_pipeline.tuning.memory import (
    MemoryNeed,
    ModelShape,
    Pass,
    largest_pass_in,
    memory_need,
    most_rows,
    pass_as_set,
    usable,
)
from ragtuned_pipeline.tuning.row_order import epoch_orders, in_order, packed_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Bits of knowledge that a number holds: "Physics of Language Models: Part 3.3" (arXiv 2404.05405),
# for whole models that saw every fact about 1,000 times, and half of it after 100 times. No such
# law is known for LoRA, so that this is an upper guess.
BITS_PER_PARAMETER = 2.0
# Useful operations a second, as a share of the peak that Machine names. On a GPU, of the data
# sheet's: 13,379 tokens/s of 28.9 GFLOP on an H200, and 10,074 with gradient checkpointing
# (docs/performance.md). On a CPU, of the measured float32 product: see docs/tuning.md.
_GPU_SHARE, _GPU_SHARE_CHECKPOINTING, _CPU_SHARE = 0.39, 0.29, 0.7
_SAVED_BYTES = 4  # PEFT trains and saves LoRA's numbers in float32 beside a bfloat16 base too
_STEP_TOKENS = 64  # settings of tuning.max_tokens that are proposed are multiples of it
_LEAST_TOKENS = 256  # that are proposed
_MOST_DEVICES = 16  # likewise
_ENCODED_AT_ONCE = 1024  # rows
_RANK_STEP = 8


@dataclass(frozen=True)
class RowLengths:
    """The sizes of rows in tokens, and in how many epochs each is seen; int64 of shape (n,)."""

    tokens: np.ndarray
    prompt_tokens: np.ndarray
    epochs: np.ndarray

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, rows: Sequence[ChatRow], epochs: Sequence[int]
    ) -> RowLengths:
        """Count `rows` as the trainer does.

        Raises:
            SettingsError: as encode_rows.
        """
        starts = range(0, len(rows), _ENCODED_AT_ONCE)
        parts = (encode_rows(tokenizer, rows[at : at + _ENCODED_AT_ONCE]) for at in starts)
        return cls.of_tokens(chain.from_iterable(parts), epochs)

    @classmethod
    def of_tokens(cls, rows: Iterable[TokenRow], epochs: Sequence[int]) -> RowLengths:
        sizes = [(len(row.input_ids), row.prompt_tokens) for row in rows]
        counted = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        return cls(counted[:, 0], counted[:, 1], np.asarray(epochs, dtype=np.int64))

    def learned(self, settings: TuningSettings) -> RowLengths:
        """Return those that tuning.max_tokens holds, each in tuning.epochs epochs at most."""
        kept = self.tokens <= settings.max_tokens
        epochs = np.minimum(self.epochs[kept], settings.epochs)
        return RowLengths(self.tokens[kept], self.prompt_tokens[kept], epochs)


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will be.

    Attributes:
        tokens: seen in all epochs, prompts included and padding not; `answer_tokens` of them are
            learned from.
        overlong: rows longer than tuning.max_tokens, left out.
        sequences: rows, or with packing sequences of rows, of all epochs.
        steps: of the optimizer; fewer with tuning.early_stopping.
        rows_at_once: rows or packed sequences in one pass on one device.
        adapter_bytes: on disk.
        memory: of one device, in the pass that is chosen; `least_bytes` is that of one row with
            gradient checkpointing, and `free_bytes` what the device has, None where that is not
            known.
        minutes_assumed: at tuning.assumed_tokens_per_second.
        minutes_estimated: from operations a token and the machine's peak, None where the peak is
            not known; `estimated_from` says how.
        capacity_bits: an upper guess of what the adapter can hold (BITS_PER_PARAMETER).
        bits_to_learn: the distinct answers, compressed: see `bits_in`.
        warnings: sentences about what is likely not meant.
        refusal: why it cannot be trained so and the nearest setting that can; "" where it can.
    """

    base_model: str
    rows: int
    overlong: int
    tokens: int
    answer_tokens: int
    sequences: int
    steps: int
    trainable_parameters: int
    adapter_bytes: int
    machine: str
    devices: int
    rows_at_once: int
    gradient_checkpointing: bool
    memory: MemoryNeed
    least_bytes: int
    free_bytes: int | None
    minutes_assumed: float
    minutes_estimated: float | None
    estimated_from: str
    capacity_bits: int
    bits_to_learn: int
    warnings: tuple[str, ...]
    refusal: str


def plan_training(
    rows: RowLengths,
    answers: Iterable[str],
    shape: ModelShape,
    settings: TuningSettings,
    machine: Machine,
) -> TrainingPlan:
    """Plan the training of `rows`; see TrainingPlan.

    Args:
        rows: in the order of the file that the trainer reads: packing depends on it.
        answers: what is to be learned; equal ones count once.
    """
    fitting = rows.learned(settings)
    overlong = len(rows.tokens) - len(fitting.tokens)
    sequences = _sequences(fitting, settings)
    held = int(settings.max_tokens if settings.packing else fitting.tokens.max(initial=0))
    one_pass = _pass(shape, settings, machine, held)
    memory = memory_need(shape, settings, one_pass, held, machine.devices)
    tokens = int((fitting.tokens * fitting.epochs).sum())
    answered = int(((fitting.tokens - fitting.prompt_tokens) * fitting.epochs).sum())
    work = tokens * work_per_token(fitting, shape, settings.rank) if tokens else 0.0
    parameters = settings.rank * shape.lora
    capacity, to_learn = int(BITS_PER_PARAMETER * parameters), bits_in(answers)
    longest = int(rows.tokens.max(initial=0))
    warnings = (
        lost_rows(overlong, len(rows.tokens), longest, settings),
        _rank_warning(shape, settings, to_learn),
    )
    return TrainingPlan(
        base_model=settings.base_model,
        rows=len(fitting.tokens),
        overlong=overlong,
        tokens=tokens,
        answer_tokens=answered,
        sequences=sequences,
        steps=optimizer_steps(sequences, settings.batch_size, one_pass.rows, machine.devices),
        trainable_parameters=parameters,
        adapter_bytes=_SAVED_BYTES * parameters,
        machine=machine.name,
        devices=machine.devices,
        rows_at_once=one_pass.rows,
        gradient_checkpointing=one_pass.checkpointing,
        memory=memory,
        least_bytes=_least(shape, settings, held, machine.devices).total,
        free_bytes=machine.free_bytes,
        minutes_assumed=tokens / settings.assumed_tokens_per_second / 60,
        minutes_estimated=_minutes(work, one_pass, machine),
        estimated_from=_estimated_from(one_pass, machine),
        capacity_bits=capacity,
        bits_to_learn=to_learn,
        warnings=tuple(filter(None, warnings)),
        refusal=_refusal(shape, settings, machine, held, rows),
    )


def _sequences(rows: RowLengths, settings: TuningSettings) -> int:
    """Return how many rows, or with packing sequences of rows, all epochs hold."""
    if not settings.packing:
        return int(rows.epochs.sum())
    orders = epoch_orders(rows.tokens, rows.epochs, settings)
    return sum(packed_sequences(rows.tokens[order], settings.max_tokens) for order in orders)


def plan_rows(
    training_rows: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    shape: ModelShape,
    settings: TuningSettings,
    machine: Machine,
) -> TrainingPlan:
    """Plan the training of a table training_rows, in the order in which a training reads it.

    Rows of replay are what the base model says already: there is nothing to learn in them.

    Raises:
        SettingsError: as encode_rows.
    """
    told = in_order(training_rows)
    columns = (told[name].to_pylist() for name in ("system", "prompt", "completion"))
    rows: list[ChatRow] = list(zip(*columns, strict=True))
    lengths = RowLengths.of(tokenizer, rows, told["epochs"].to_pylist())
    new = told.filter(pc.not_equal(told["kind"], REPLAY))
    return plan_training(lengths, new["completion"].to_pylist(), shape, settings, machine)


def base_shape(base_model: str) -> ModelShape:
    """Return the shape of a base model from its config alone, without its weights.

    Raises:
        SettingsError: there is no such model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(base_model))  # type: ignore[no-untyped-call]
    return ModelShape.of(model)


def optimizer_steps(sequences: int, batch_size: int, rows_at_once: int, devices: int) -> int:
    """Return the steps that the trainer makes of so many rows or packed sequences.

    Devices take turns at passes of `rows_at_once`; a step is as many passes of each device as
    make `batch_size` together, the last step of what is left.
    """
    passes = math.ceil(math.ceil(sequences / rows_at_once) / devices)
    return math.ceil(passes / max(1, batch_size // (rows_at_once * devices)))


def work_per_token(rows: RowLengths, shape: ModelShape, rank: int) -> float:
    """Return the useful operations a token of the rows takes (docs/performance.md).

    4 a number of the frozen linear layers (2 forward, 2 back through them), of the head at answered
    tokens only, 6 a number of LoRA's, and for attention 12 x width x mean context a layer.
    """
    seen = rows.epochs
    tokens = (rows.tokens * seen).sum()
    answered = ((rows.tokens - rows.prompt_tokens) * seen).sum() / tokens
    context = (rows.tokens * (rows.tokens + 1) / 2 * seen).sum() / tokens
    return float(
        4 * (shape.linear + answered * shape.head)
        + 6 * rank * shape.lora
        + 12 * shape.layers * shape.attended * context
    )


def bits_in(answers: Iterable[str]) -> int:
    """Return the size of the distinct answers as LZMA compresses them, in bits.

    A cheap estimate of the information in them. It knows nothing of the language, where the base
    model knows much: docs/tuning.md says how far it is off.
    """
    text = "\n".join(dict.fromkeys(answers)).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return 8 * len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters)) if text else 0


def devices_refusal(settings: TuningSettings, devices: int) -> str:
    """Return why a step cannot be shared among the devices, "" where it can."""
    if settings.batch_size % devices == 0:
        return ""
    nearest = devices * max(1, round(settings.batch_size / devices))
    return (
        f"setting tuning.batch_size: {settings.batch_size} rows cannot be shared evenly by "
        f"{devices} devices; the nearest number that can is {nearest}"
    )


def settings_refusal(shape: ModelShape, settings: TuningSettings, machine: Machine) -> str:
    """Return why no row could be trained so, "" where the rows decide."""
    return _refusal(shape, settings, machine, settings.max_tokens if settings.packing else 1)


def _refusal(
    shape: ModelShape,
    settings: TuningSettings,
    machine: Machine,
    tokens: int,
    rows: RowLengths | None = None,
) -> str:
    """Return why the devices cannot share a step, or why their memory does not hold the training,
    and the nearest setting for which it does; "" where it does, or where the memory is not known.

    Args:
        tokens: of the longest row, or of a packed sequence.
        rows: to tell how many a smaller tuning.max_tokens loses.
    """
    free, uneven = machine.free_bytes, devices_refusal(settings, machine.devices)
    if uneven or free is None:
        return uneven
    one_pass = _pass(shape, settings, machine, tokens)
    need = memory_need(shape, settings, one_pass, tokens, machine.devices)
    if need.fits(free):
        return ""
    kind = "GPU" if machine.gpu else "main"
    at_once = "one row" if one_pass.rows == 1 else f"{one_pass.rows} rows"
    with_or_without = "with" if one_pass.checkpointing else "without"
    return (
        f"setting tuning.base_model: tuning {settings.base_model} needs at least "
        f"{_gib(need.total)} GiB of {kind} memory, {at_once} at a time and {with_or_without} "
        f"gradient checkpointing, and {_gib(free)} are free; "
        + _nearest_that_fits(shape, settings, machine, tokens, rows)
    )


def _nearest_that_fits(
    shape: ModelShape,
    settings: TuningSettings,
    machine: Machine,
    tokens: int,
    rows: RowLengths | None,
) -> str:
    """Return a clause that names the setting to change: first what loses nothing."""
    free, devices = machine.free_bytes or 0, machine.devices
    nearest = "the nearest setting that fits is"
    if not machine.gpu and _least(shape, settings, tokens, devices).fits(free):
        return f"{nearest} {_of_a_cpu(shape, settings, machine, tokens)}"
    shorter = _longest_that_fits(shape, settings, machine, tokens)
    lost = int((rows.tokens > shorter).sum()) if rows is not None and shorter else None
    if lost == 0:
        return f"{nearest} tuning.max_tokens = {shorter}, which holds all rows"
    if machine.gpu and settings.quantization == "none" and settings.parallel == "ddp":
        in_four_bits = settings.model_copy(update={"quantization": "nf4"})
        need = _least(shape, in_four_bits, tokens, devices)
        if need.fits(free):
            return f"{nearest} tuning.quantization = nf4 ({_gib(need.total)} GiB)"
    if shorter:
        left_out = "rows that are longer" if lost is None else f"{lost:,} rows"
        return f"{nearest} tuning.max_tokens = {shorter}, which leaves out {left_out}"
    spread = settings.model_copy(update={"parallel": "fsdp", "quantization": "none"})
    for several in range(devices + 1, _MOST_DEVICES + 1) if machine.gpu else ():
        if settings.batch_size % several:
            continue
        if _least(shape, spread, tokens, several).fits(free):
            whole = "" if settings.quantization == "none" else " and tuning.quantization = none"
            return f"{nearest} tuning.parallel = fsdp on {several} such devices{whole}"
    return (
        f"choose a base model of at most about {_largest_model(shape, settings, machine)} numbers"
    )


def _of_a_cpu(shape: ModelShape, settings: TuningSettings, machine: Machine, tokens: int) -> str:
    """Return the setting with which a CPU, where the trainer does not choose the pass, holds it."""
    free, devices = machine.free_bytes or 0, machine.devices
    for rows in range(_pass(shape, settings, machine, tokens).rows, 0, -1):
        if memory_need(shape, settings, Pass(rows, True), tokens, devices).fits(free):
            break
    fewer = rows * devices < settings.batch_size and not settings.packing
    changes = [f"tuning.batch_size = {rows * devices}"] if fewer else []
    if not settings.gradient_checkpointing:
        changes.append("tuning.gradient_checkpointing = true")
    return " and ".join(changes)


def _longest_that_fits(
    shape: ModelShape, settings: TuningSettings, machine: Machine, tokens: int
) -> int | None:
    """Return the largest tuning.max_tokens below `tokens` that fits, None for none."""
    free = machine.free_bytes or 0
    for most in range(tokens // _STEP_TOKENS * _STEP_TOKENS, _LEAST_TOKENS - 1, -_STEP_TOKENS):
        if _need(shape, settings, machine, most).fits(free):
            return most
    return None


def _largest_model(shape: ModelShape, settings: TuningSettings, machine: Machine) -> str:
    """Return how large a model of like proportions may be, as people say it ("3.1 billion")."""
    free, one = machine.free_bytes or 0, replace(machine, devices=1)
    share = 1.0
    while share > 1e-4:
        smaller = replace(
            shape,
            parameters=int(share * shape.parameters),
            linear=int(share * shape.linear),
            lora=int(share ** (2 / 3) * shape.lora),
            layers=max(1, int(share ** (1 / 3) * shape.layers)),
        )
        if _need(smaller, settings, one, _LEAST_TOKENS).fits(free):
            numbers = smaller.parameters
            return (
                f"{numbers / 1e9:.1f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.0f} million"
            )
        share *= 0.95
    return "0"


def _least(shape: ModelShape, settings: TuningSettings, tokens: int, devices: int) -> MemoryNeed:
    """Return what the smallest pass takes: one row, nothing kept that can be computed again."""
    return memory_need(shape, settings, Pass(1, True), tokens, devices)


def _need(shape: ModelShape, settings: TuningSettings, machine: Machine, tokens: int) -> MemoryNeed:
    """Return what the pass takes that the trainer will choose."""
    one_pass = _pass(shape, settings, machine, tokens)
    return memory_need(shape, settings, one_pass, tokens, machine.devices)


def lost_rows(overlong: int, of: int, longest: int, settings: TuningSettings) -> str:
    """Return the sentence about rows that are too long, "" for none."""
    if not overlong:
        return ""
    return (
        f"setting tuning.max_tokens: {overlong:,} of {of:,} rows are longer than "
        f"{settings.max_tokens} and are left out; {longest} would hold them all"
    )


def _rank_warning(shape: ModelShape, settings: TuningSettings, to_learn: int) -> str:
    """Return that the adapter is too small, "" where it may suffice."""
    if to_learn <= BITS_PER_PARAMETER * settings.rank * shape.lora:
        return ""
    needed = math.ceil(to_learn / (BITS_PER_PARAMETER * shape.lora) / _RANK_STEP) * _RANK_STEP
    return (
        f"setting tuning.rank: an adapter of rank {settings.rank} holds at most about "
        f"{BITS_PER_PARAMETER * settings.rank * shape.lora / 1e6:.2f} million bits, and there are "
        f"about {to_learn / 1e6:.2f} to learn; rank {needed} could hold them"
    )


def _pass(shape: ModelShape, settings: TuningSettings, machine: Machine, tokens: int) -> Pass:
    """Return the pass that the trainer will choose; a GPU is taken to be new enough to pack."""
    share = max(1, settings.batch_size // machine.devices)
    if not machine.gpu or machine.free_bytes is None:
        return pass_as_set(settings, share)
    half = settings.dtype == "bfloat16" or settings.quantization == "nf4"
    most = most_rows(settings, share, half and shape.packable)
    fixed = memory_need(shape, settings, Pass(0, False), 0, machine.devices).total
    return largest_pass_in(shape, settings, usable(machine.free_bytes) - fixed, most, tokens)


def _minutes(work: float, one_pass: Pass, machine: Machine) -> float | None:
    if machine.peak_flops is None:
        return None
    return work / (_share(one_pass, machine) * machine.peak_flops * machine.devices) / 60


def _share(one_pass: Pass, machine: Machine) -> float:
    if not machine.gpu:
        return _CPU_SHARE
    return _GPU_SHARE_CHECKPOINTING if one_pass.checkpointing else _GPU_SHARE


def _estimated_from(one_pass: Pass, machine: Machine) -> str:
    if machine.peak_flops is None:
        return "the speed of this machine is not known"
    return (
        f"an assumed {100 * _share(one_pass, machine):.0f} % of {machine.peak_flops / 1e12:.3g} "
        f"TFLOP/s ({machine.peak_source})"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
