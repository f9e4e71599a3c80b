"""LoRA by TRL's SFTTrainer; how its processes start is for trainer.py and launch.py.

LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head, as "LoRA Without Regret"
(Thinking Machines 2025) advises; rank, rate and epochs are settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning import early_stopping
from ragtuned_pipeline.tuning.adapter_store import adapter_shape
from ragtuned_pipeline.tuning.answer_trainer import trainer_class
from ragtuned_pipeline.tuning.base_models import (
    ChatRow,
    TokenRow,
    encode_rows,
    identity,
    load_model,
    load_tokenizer,
    refuse_missing_gpu,
    refuse_unending,
)
from ragtuned_pipeline.tuning.epochs import Plan, dataset, first_tokens, shared_evenly, training_set
from ragtuned_pipeline.tuning.memory import (
    ModelShape,
    Pass,
    largest_pass,
    most_rows,
    pass_as_set,
)
from ragtuned_pipeline.tuning.packed_attention import can_pack_attention, use_packed_attention
from ragtuned_pipeline.tuning.quantization import check_quantization, load_quantized
from ragtuned_pipeline.tuning.ranks import Ranks
from ragtuned_pipeline.tuning.telemetry import (
    Meter,
    check_trackers,
    direct_trackers,
    matrix_peak,
    peak_memory_gib,
)
from ragtuned_pipeline.tuning.training_plan import RowLengths, work_per_token
from ragtuned_pipeline.tuning.watcher import Curves, Progress, watcher

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel
    from trl.trainer.sft_config import SFTConfig

# Of the learning rate, where training goes on from an adapter: with half of it, half as many
# earlier facts are forgotten, and as many new ones are learned (docs/performance.md).
WARM_RATE = 0.5

_WEIGHTS = "adapter_model.safetensors"
_LOG_LINES = 50  # progress lines in one training
_EVALUATIONS = 5  # held-out losses in one training
_HELD_OUT_ROWS = 256  # at most, so that they take seconds
# Settings that choose the rows, or change how a training runs and not what it comes to beyond
# rounding.
NOT_LEARNED_FROM = frozenset(
    {
        "time_budget_minutes",
        "assumed_tokens_per_second",
        "min_wordings",
        "passage_epochs",
        "require_cuda",
        "checkpoint_steps",
        "gradient_checkpointing",
        "devices",
        "parallel",
        "trackers",
    }
)


class TrainingInterrupted(RuntimeError):
    """Training was asked to stop (SIGTERM); a checkpoint was saved and it can be resumed."""


@dataclass(frozen=True)
class TrainResult:
    """What one training did.

    `tokens` counts every token of the rows of all steps that were trained, each time that a row
    was seen, prompts included and padding not;
    `seconds` is the time of the training loop in this process, `tokens_per_second` their quotient
    for the part of the loop that this process ran (a resumed one ran less; 0 where it ran none).
    Curves are pairs of
    step and value; accuracy is the share of answered tokens that the model finds the most likely.
    """

    adapter: str  # folder with adapter_model.safetensors and adapter_config.json
    rows: int
    overlong: int  # rows longer than max_tokens, left out
    held_out_rows: int
    processes: int
    rows_at_once: int  # in one forward and backward pass of a process; or packed sequences
    gradient_checkpointing: bool
    steps: int  # of the whole plan
    resumed_from_step: int
    stopped_at_step: int | None  # by early stopping; None where all steps were trained
    kept_step: int  # whose weights the adapter has
    trainable_parameters: int
    tokens: int
    seconds: float
    tokens_per_second: float
    mfu: float | None  # useful operations over the devices' peak; None where either is unknown
    peak_memory_gib: float  # of the first process: of its GPU's memory, or of RAM
    losses: list[tuple[int, float]]  # (step, mean loss since the line before)
    accuracies: list[tuple[int, float]]  # likewise
    held_out_losses: list[tuple[int, float]]
    held_out_accuracies: list[tuple[int, float]]
    best_held_out_loss: float | None


def refuse_settings(settings: TuningSettings) -> None:
    """Raise SettingsError where this machine or installation cannot train as the settings ask."""
    refuse_missing_gpu(settings)
    check_quantization(settings)
    check_trackers(settings)


def train(
    training_rows: Path,
    held_out: Path | None,
    settings: TuningSettings,
    output: Path,
    progress: Progress,
    start_from: Path | None = None,
    logs: Path | None = None,
) -> TrainResult:
    """Train an adapter in `output`/adapter, resuming the run that was interrupted there, if any.

    As one of several processes (see launch.py) where torchrun has started this one: all call this
    alike, and the first alone reports and writes.

    Args:
        training_rows: Parquet with the columns system, prompt, completion and epochs (in how many
            of the epochs, from the first on, the row is seen).
        held_out: system, prompt and completion of other wordings of trained facts; their loss is
            reported, and early stopping reads it.
        settings: base model, LoRA and optimizer settings.
        output: the run's own folder: checkpoints, the adapter and result.json.
        progress: called with {"event": "start" | "step" | "held_out", ...}.
        start_from: folder of a PEFT adapter of the same base model that training goes on from, at
            WARM_RATE of the learning rate; None for a new one.
        logs: where the trackers of the settings write; by default `output`/logs.

    Raises:
        SettingsError: no usable GPU or base model, a package is missing, no row fits, or
            `start_from` has another rank or alpha than the settings.
        RuntimeError: another trainer works in `output`, or no weight moved.
        TrainingInterrupted: SIGTERM came; call again to go on.
    """
    refuse_settings(settings)
    ranks = Ranks.join()
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(_alone_in(output))
        ranks.wait()
        direct_trackers(settings, logs or output / "logs")
        say = progress if ranks.first else _say_nothing
        return _train(training_rows, held_out, settings, output, say, start_from, ranks)


def _say_nothing(_line: dict[str, Any]) -> None:
    pass


def _train(
    training_rows: Path,
    held_out: Path | None,
    settings: TuningSettings,
    output: Path,
    progress: Progress,
    start_from: Path | None,
    ranks: Ranks,
) -> TrainResult:
    from peft.helpers import disable_input_dtype_casting
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    tokenizer = load_tokenizer(settings.base_model)
    refuse_unending(settings.base_model, tokenizer)
    given = encode_rows(tokenizer, _read(training_rows))
    fits = [len(row.input_ids) <= settings.max_tokens for row in given]
    rows = list(compress(given, fits))
    overlong = len(given) - len(rows)
    if not rows:
        raise SettingsError(
            f"no training row to learn from: {training_rows} holds {len(given)} rows, "
            f"{overlong} of them longer than the setting tuning.max_tokens ({settings.max_tokens})"
        )
    watched = _sample(encode_rows(tokenizer, _read(held_out)) if held_out else [], settings)
    seen = list(compress(_epochs_of(training_rows, settings), fits))
    plan = Plan.of(rows, seen, settings)
    start = _Start.read(start_from, settings) if start_from else None
    if ranks.first:
        _forget_other_runs(output, given, plan, settings, start, ranks)
    ranks.wait()
    checkpoint: str | None = get_last_checkpoint(str(output))  # type: ignore[no-untyped-call]
    progress({"event": "rows", "rows": len(rows), "overlong": overlong, "tokens": plan.tokens})
    base = _load_base(settings)
    one_pass = _one_pass(base, settings, ranks, max(len(row.input_ids) for row in rows))
    rate = settings.learning_rate * (WARM_RATE if start else 1.0)
    arguments = _arguments(settings, output, bool(watched), one_pass, rate, ranks)
    meter = _meter(base, rows, seen, plan.tokens, settings, ranks)
    set_seed(settings.seed)  # before the adapter is made: its first weights are drawn
    patience = settings.early_stopping if watched else 0
    watching = watcher(meter, progress, ranks, patience)
    padding = tokenizer.pad_token_id
    learned = training_set(rows, plan, settings)
    trainer = trainer_class(base)(
        model=start.model(base) if start else base,
        args=arguments,
        train_dataset=_shared(learned, one_pass.rows, ranks, padding),
        eval_dataset=_held_out_set(watched, arguments, ranks, padding) if watched else None,
        processing_class=tokenizer,
        peft_config=None if start else _new_adapter(settings),
        callbacks=[watching],
    )
    trainer.measured = watching.measured
    trainer.remove_callback(PrinterCallback)  # stdout is for progress lines
    model: Any = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    for weight in trained:  # on a base in 4 bits TRL makes them bfloat16, which loses small steps
        weight.data = weight.data.float()
    trainable = sum(p.numel() for p in trained)
    if trainable == 0:
        raise RuntimeError("the adapter has no trainable parameter: the model has no linear layer")

    def save(folder: Path) -> None:
        """All processes call it: spread weights are put together first."""
        state = trainer.accelerator.get_state_dict(trainer.model) if _is_spread(trainer) else None
        if ranks.first:
            written = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(written, ignore_errors=True)
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            unwrapped.save_pretrained(str(written), state_dict=state)
            shutil.rmtree(folder, ignore_errors=True)
            written.rename(folder)

    watching.when_best = lambda step: save(_best_folder(output, step))
    # Under autocast PEFT's cast of every input to the adapter's float32 is taken back at once.
    with (
        _sigterm_calls(watching.interrupt),
        disable_input_dtype_casting(model, active=bool(arguments.bf16)),
    ):
        state = _stopped_early(checkpoint, patience)
        if state is None:
            trainer.train(resume_from_checkpoint=checkpoint)
            state = trainer.state
        else:
            watching.first_step = state.global_step
    curves = Curves.of(state.log_history)
    over = early_stopping.is_over(curves.held_out_losses, patience)
    early = over and state.global_step < state.max_steps
    if state.global_step < state.max_steps and not over:
        raise TrainingInterrupted(f"stopped at step {state.global_step} of {state.max_steps}")
    best = early_stopping.best(curves.held_out_losses) if curves.held_out_losses else None
    kept = best[0] if best and patience else state.global_step
    speed = watching.tokens_per_second(state)
    adapter = output / "adapter"
    if kept == state.global_step:
        save(adapter)
    elif ranks.first:
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.copytree(_best_folder(output, kept), adapter)
    result = TrainResult(
        adapter=str(adapter),
        rows=len(rows),
        overlong=overlong,
        held_out_rows=len(watched),
        processes=ranks.processes,
        rows_at_once=one_pass.rows,
        gradient_checkpointing=one_pass.checkpointing,
        steps=state.max_steps,
        resumed_from_step=watching.first_step,
        stopped_at_step=state.global_step if early else None,
        kept_step=kept,
        trainable_parameters=trainable,
        tokens=first_tokens(learned, state.global_step * settings.batch_size),
        seconds=round(watching.seconds, 2),
        tokens_per_second=round(speed, 1),
        mfu=meter.mfu(speed) if speed else None,
        peak_memory_gib=round(peak_memory_gib(), 3),
        losses=curves.losses,
        accuracies=curves.accuracies,
        held_out_losses=curves.held_out_losses,
        held_out_accuracies=curves.held_out_accuracies,
        best_held_out_loss=best[1] if best else None,
    )
    if ranks.first:
        if not (start.has_moved(adapter) if start else _has_learned(adapter)):
            raise RuntimeError("training moved no weight of the adapter")
        _finish(output, result)
    ranks.wait()
    return result


def _finish(output: Path, result: TrainResult) -> None:
    """Write result.json, and delete what a resumed training would have needed."""
    written = output / "result.json.tmp"  # whoever finds result.json finds a whole training
    written.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    written.replace(output / "result.json")
    for used in (*output.glob("checkpoint-*"), *output.glob("best-*")):
        shutil.rmtree(used)


def _stopped_early(checkpoint: str | None, patience: int) -> Any:
    """Return the trainer's state where early stopping ended the training before a kill."""
    from transformers import TrainerState

    if checkpoint is None or not patience:
        return None
    state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
    over = early_stopping.is_over(Curves.of(state.log_history).held_out_losses, patience)
    return state if over else None


def _best_folder(output: Path, step: int) -> Path:
    """Where the weights of a lowest held-out loss so far are kept.

    Each has a folder of its own: a training that is resumed from before the last one still finds
    the one before it.
    """
    return output / f"best-{step}"


def _is_spread(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled)


def _load_base(settings: TuningSettings) -> PreTrainedModel:
    if settings.quantization == "nf4":
        return load_quantized(settings.base_model)
    return load_model(settings.base_model, settings.dtype)


def _new_adapter(settings: TuningSettings) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _has_learned(adapter: Path) -> bool:
    """PEFT starts every B at zero, so that a zero B is one that nothing was learned in."""
    from safetensors.torch import load_file

    weights = load_file(adapter / _WEIGHTS)
    return any(bool(weight.any()) for name, weight in weights.items() if ".lora_B." in name)


@dataclass(frozen=True)
class _Start:
    """The adapter that a training goes on from; `digest` is of its weights."""

    folder: Path
    digest: str

    @classmethod
    def read(cls, folder: Path, settings: TuningSettings) -> _Start:
        has, asked = adapter_shape(folder), (settings.rank, settings.alpha)
        if has != asked:
            raise SettingsError(
                f"the adapter {folder} has rank {has[0]} and alpha {has[1]}, and the settings "
                f"tuning.rank and tuning.alpha are {asked[0]} and {asked[1]}; set them back, or "
                'start from scratch (retuning.start = "scratch")'
            )
        with (folder / _WEIGHTS).open("rb") as handle:
            return cls(folder, hashlib.file_digest(handle, "blake2b").hexdigest())

    def model(self, base: PreTrainedModel) -> PeftModel:
        """Return `base` with the adapter on it, trainable."""
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(str(self.folder))
        # The name that the store gave it is no place, and would be looked up on the hub.
        config.base_model_name_or_path = base.name_or_path
        return PeftModel.from_pretrained(base, str(self.folder), is_trainable=True, config=config)

    def has_moved(self, adapter: Path) -> bool:
        from safetensors.torch import load_file

        before, after = load_file(self.folder / _WEIGHTS), load_file(adapter / _WEIGHTS)
        return any(not before[name].equal(after[name]) for name in before)


def _read(file: Path) -> list[ChatRow]:
    columns = pq.read_table(file, columns=["system", "prompt", "completion"]).to_pydict()
    return list(zip(columns["system"], columns["prompt"], columns["completion"], strict=True))


def _epochs_of(file: Path, settings: TuningSettings) -> list[int]:
    """Return for each row in how many epochs, counted from the first, it is seen."""
    column = pq.read_table(file, columns=["epochs"])["epochs"].to_pylist()
    return [min(given, settings.epochs) for given in column]


def _sample(rows: Sequence[TokenRow], settings: TuningSettings) -> list[TokenRow]:
    """At most _HELD_OUT_ROWS of the rows that fit, evenly spread."""
    fitting = [row for row in rows if len(row.input_ids) <= settings.max_tokens]
    step = max(1, -(-len(fitting) // _HELD_OUT_ROWS))
    return fitting[::step]


def _meter(
    base: PreTrainedModel,
    rows: Sequence[TokenRow],
    seen: Sequence[int],
    tokens: int,
    settings: TuningSettings,
    ranks: Ranks,
) -> Meter:
    lengths = RowLengths.of_tokens(rows, seen)
    peak = matrix_peak()
    work = work_per_token(lengths, ModelShape.of(base), settings.rank)
    return Meter(tokens, work, peak * ranks.processes if peak else None)


def _held_out_set(
    rows: Sequence[TokenRow], arguments: SFTConfig, ranks: Ranks, token: int
) -> dict[str, Dataset]:
    """Named as the trainer's log names their loss."""
    at_once = arguments.per_device_eval_batch_size
    return {"held_out": _shared(dataset(rows), at_once, ranks, token)}


def _shared(given: Dataset, at_once: int, ranks: Ranks, token: int) -> Dataset:
    """Fill up the last passes of several processes; one alone takes what there is.

    Args:
        at_once: rows in a pass of one process.
    """
    if ranks.processes == 1:
        return given
    return shared_evenly(given, ranks.processes * at_once, token)


def _one_pass(base: PreTrainedModel, settings: TuningSettings, ranks: Ranks, longest: int) -> Pass:
    """Return what one pass holds; give `base` the attention that packed sequences need.

    Args:
        longest: tokens of the longest row.
    """
    import torch

    share = settings.batch_size // ranks.processes
    if not torch.cuda.is_available():
        return pass_as_set(settings, share)
    free_bytes = ranks.least(torch.cuda.mem_get_info()[0])  # the same pass in all processes
    packs = settings.packing and can_pack_attention(base)
    if packs:
        use_packed_attention(base)
    most = most_rows(settings, share, packs)
    tokens = settings.max_tokens if settings.packing else longest
    return largest_pass(base, settings, free_bytes, most, tokens, ranks.processes)


def _arguments(
    settings: TuningSettings,
    output: Path,
    evaluate: bool,
    one_pass: Pass,
    learning_rate: float,
    ranks: Ranks,
) -> SFTConfig:
    import torch
    from trl.trainer.sft_config import SFTConfig

    cuda = torch.cuda.is_available()
    half = settings.dtype == "bfloat16"
    return SFTConfig(
        output_dir=str(output),
        seed=settings.seed,
        per_device_train_batch_size=one_pass.rows,
        gradient_accumulation_steps=settings.batch_size // ranks.processes // one_pass.rows,
        per_device_eval_batch_size=settings.batch_size,
        num_train_epochs=1,  # the training set holds all epochs in their order, see Plan
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_length=settings.max_tokens,
        packing=settings.packing,  # here: that sequences are read as packed ones
        eval_packing=False,
        use_cpu=not cuda,
        bf16=half if cuda else _bf16_is_fast(),
        # One kernel each for a norm, the rotation and the gate (docs/performance.md).
        use_liger_kernel=cuda and half and find_spec("liger_kernel") is not None,
        gradient_checkpointing=one_pass.checkpointing,
        ddp_find_unused_parameters=False,
        **_spread(settings, ranks),
        logging_strategy="steps",
        logging_steps=1 / _LOG_LINES,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=1 / _EVALUATIONS,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,  # the last may be torn by a kill in the middle of a save
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to=list(settings.trackers) or "none",
    )


def _spreads(settings: TuningSettings, ranks: Ranks) -> bool:
    return settings.parallel == "fsdp" and ranks.processes > 1


def _spread(settings: TuningSettings, ranks: Ranks) -> dict[str, Any]:
    """FSDP2: each process holds a part of every layer, and puts it together to compute it."""
    if not _spreads(settings, ranks):
        return {}
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # by the model's own layer class
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": config}


def _bf16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware.

    Autocast then computes in bfloat16 over float32 weights; elsewhere it would be emulated.
    """
    import torch

    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def _forget_other_runs(
    output: Path,
    rows: Sequence[TokenRow],
    plan: Plan,
    settings: TuningSettings,
    start: _Start | None,
    ranks: Ranks,
) -> None:
    """Remove what a run with other rows, settings or another start left here, and checkpoints a
    kill has torn."""
    told = settings.model_dump_json(exclude=set(NOT_LEARNED_FROM))
    digest = hashlib.blake2b(told.encode(), digest_size=16)
    # A spread model's checkpoint can be read by none that is not, and the other way round.
    digest.update(b"spread" if _spreads(settings, ranks) else b"whole")
    digest.update(identity(settings.base_model).encode())
    digest.update((start.digest if start else "").encode())
    for epoch in plan.epochs:
        digest.update(np.array([len(epoch), *epoch], dtype=np.int64).tobytes())
    for row in rows:
        digest.update(np.array([row.prompt_tokens, *row.input_ids], dtype=np.int32).tobytes())
    note = output / "run"
    same = note.is_file() and note.read_text() == digest.hexdigest()
    for checkpoint in sorted(output.glob("checkpoint-*")):
        if not same or not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    for kept in output.glob("best-*"):
        if not same:
            shutil.rmtree(kept)
    note.write_text(digest.hexdigest())


def _is_whole(checkpoint: Path) -> bool:
    try:  # the trainer writes its state last
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets it go with the process, however that ends."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another trainer works in {output}; wait for it, or stop it first"
            ) from None
        yield


@contextmanager
def _sigterm_calls(stop: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
