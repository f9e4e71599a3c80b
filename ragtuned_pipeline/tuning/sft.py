"""LoRA by TRL's SFTTrainer, and nothing about processes: see trainer.py for those.

LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer but the head, as "LoRA Without Regret"
(Thinking Machines 2025) advises; rank, rate and epochs are settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from ragtuned_pipeline.settings import SettingsError, TuningSettings
from ragtuned_pipeline.tuning.base_models import (
    ChatRow,
    TokenRow,
    encode_rows,
    identity,
    load_model,
    load_tokenizer,
    refuse_missing_gpu,
)
from ragtuned_pipeline.tuning.memory import Pass, largest_pass
from ragtuned_pipeline.tuning.packed_attention import can_pack_attention, use_packed_attention
from ragtuned_pipeline.tuning.row_order import epoch_orders

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel
    from trl.trainer.sft_config import SFTConfig

Progress = Callable[[dict[str, Any]], None]

# Of the learning rate, where training goes on from an adapter: with half of it, half as many
# earlier facts are forgotten, and as many new ones are learned (docs/performance.md).
WARM_RATE = 0.5

_WEIGHTS = "adapter_model.safetensors"
_LOG_LINES = 50  # progress lines in one training
_EVALUATIONS = 5  # held-out losses in one training
_HELD_OUT_ROWS = 256  # at most, so that they take seconds


class TrainingInterrupted(RuntimeError):
    """Training was asked to stop (SIGTERM); a checkpoint was saved and it can be resumed."""


@dataclass(frozen=True)
class TrainResult:
    """What one training did.

    `tokens` counts every token of every row seen in all epochs, prompts included and padding not;
    `seconds` is the time of the training loop in this process, `tokens_per_second` their quotient
    for the part of the loop that this process ran (a resumed one ran less).
    """

    adapter: str  # folder with adapter_model.safetensors and adapter_config.json
    rows: int
    overlong: int  # rows longer than max_tokens, left out
    held_out_rows: int
    rows_at_once: int  # in one forward and backward pass; with packing, packed sequences
    gradient_checkpointing: bool
    steps: int
    resumed_from_step: int
    trainable_parameters: int
    tokens: int
    seconds: float
    tokens_per_second: float
    losses: list[tuple[int, float]]  # (step, mean loss since the line before)
    held_out_losses: list[tuple[int, float]]


def adapter_shape(adapter: Path) -> tuple[int, int]:
    """Return the rank and alpha of the adapter in a folder."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return config["r"], config["lora_alpha"]


def train(
    training_rows: Path,
    held_out: Path | None,
    settings: TuningSettings,
    output: Path,
    progress: Progress,
    start_from: Path | None = None,
) -> TrainResult:
    """Train an adapter in `output`/adapter, resuming the run that was interrupted there, if any.

    Args:
        training_rows: Parquet with the columns system, prompt, completion and epochs (in how many
            of the epochs, from the first on, the row is seen).
        held_out: system, prompt and completion of other wordings of trained facts; their loss is
            reported.
        settings: base model, LoRA and optimizer settings.
        output: the run's own folder: checkpoints, the adapter and result.json.
        progress: called with {"event": "start" | "step" | "held_out", ...}.
        start_from: folder of a PEFT adapter of the same base model that training goes on from, at
            WARM_RATE of the learning rate; None for a new one.

    Raises:
        SettingsError: no usable GPU or base model, no row fits, or `start_from` has another rank
            or alpha than the settings.
        RuntimeError: another trainer works in `output`, or no weight moved.
        TrainingInterrupted: SIGTERM came; call again to go on.
    """
    refuse_missing_gpu(settings)
    with _alone_in(output):
        return _train(training_rows, held_out, settings, output, progress, start_from)


def _train(
    training_rows: Path,
    held_out: Path | None,
    settings: TuningSettings,
    output: Path,
    progress: Progress,
    start_from: Path | None,
) -> TrainResult:
    from peft.helpers import disable_input_dtype_casting
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    tokenizer = load_tokenizer(settings.base_model)
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
    plan = _Plan.of(rows, seen, settings)
    start = _Start.read(start_from, settings) if start_from else None
    _forget_other_runs(output, given, plan, settings, start)
    checkpoint: str | None = get_last_checkpoint(str(output))  # type: ignore[no-untyped-call]
    progress({"event": "rows", "rows": len(rows), "overlong": overlong, "tokens": plan.tokens})
    base = load_model(settings.base_model, settings.dtype)
    one_pass = _one_pass(base, settings)
    rate = settings.learning_rate * (WARM_RATE if start else 1.0)
    arguments = _arguments(settings, output, bool(watched), one_pass, rate)
    set_seed(settings.seed)  # before the adapter is made: its first weights are drawn
    watcher = _watcher(plan.tokens, progress)
    trainer = _trainer_class()(
        model=start.model(base) if start else base,
        args=arguments,
        train_dataset=_training_set(rows, plan, settings),
        eval_dataset={"held_out": _dataset(watched)} if watched else None,
        processing_class=tokenizer,
        peft_config=None if start else _new_adapter(settings),
        callbacks=[watcher],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for progress lines
    model: Any = trainer.model
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise RuntimeError("the adapter has no trainable parameter: the model has no linear layer")
    # Under autocast PEFT's cast of every input to the adapter's float32 is taken back at once.
    with (
        _sigterm_calls(watcher.interrupt),
        disable_input_dtype_casting(model, active=bool(arguments.bf16)),
    ):
        trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if state.global_step < state.max_steps:
        raise TrainingInterrupted(f"stopped at step {state.global_step} of {state.max_steps}")
    adapter = output / "adapter"
    model.save_pretrained(str(adapter))
    if not (start.has_moved(adapter) if start else _has_learned(model)):
        raise RuntimeError("training moved no weight of the adapter")
    result = TrainResult(
        adapter=str(adapter),
        rows=len(rows),
        overlong=overlong,
        held_out_rows=len(watched),
        rows_at_once=one_pass.rows,
        gradient_checkpointing=one_pass.checkpointing,
        steps=state.max_steps,
        resumed_from_step=watcher.first_step,
        trainable_parameters=trainable,
        tokens=plan.tokens,
        seconds=round(watcher.seconds, 2),
        tokens_per_second=round(watcher.tokens_per_second(state), 1),
        losses=_curve(state.log_history, "loss"),
        held_out_losses=_curve(state.log_history, "eval_held_out_loss"),
    )
    written = output / "result.json.tmp"  # whoever finds result.json finds a whole training
    written.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    written.replace(output / "result.json")
    for used in output.glob("checkpoint-*"):
        shutil.rmtree(used)
    return result


def _new_adapter(settings: TuningSettings) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _has_learned(model: Any) -> bool:
    """PEFT starts every B at zero, so that a zero B is one that nothing was learned in."""
    return any(bool(p.any()) for name, p in model.named_parameters() if ".lora_B." in name)


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


@dataclass(frozen=True)
class _Plan:
    """The rows of each epoch in the order in which they are seen, and how many tokens all are.

    It is fixed beforehand and read front to back: a resumed run goes on at exactly the next row.
    """

    epochs: list[list[int]]  # row numbers
    tokens: int

    @classmethod
    def of(cls, rows: Sequence[TokenRow], seen: Sequence[int], settings: TuningSettings) -> _Plan:
        """Plan for `rows`, of which row i is seen in the first seen[i] epochs."""
        lengths = np.array([len(row.input_ids) for row in rows])
        epochs = epoch_orders(lengths, seen, settings)
        return cls(epochs, int((lengths * np.array(seen)).sum()))


def _training_set(rows: Sequence[TokenRow], plan: _Plan, settings: TuningSettings) -> Dataset:
    """Return what the trainer reads front to back: rows, or with packing sequences of rows.

    Each epoch is packed by itself, so that no sequence holds a row twice.
    """
    from datasets import concatenate_datasets
    from trl.data_utils import pack_dataset

    every = _dataset(rows)
    if not settings.packing:
        return every.select([row for epoch in plan.epochs for row in epoch])
    packed = [
        # Best fit leaves the fullest sequences first; the order is drawn anew.
        pack_dataset(every.select(epoch), settings.max_tokens).shuffle(seed=settings.seed + turn)
        for turn, epoch in enumerate(plan.epochs)
        if epoch
    ]
    return concatenate_datasets(packed)


def _dataset(rows: Sequence[TokenRow]) -> Dataset:
    """The tokens with labels: -100 (no loss) on the prompt, the answer and its stop token after."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [
                [-100] * row.prompt_tokens + row.input_ids[row.prompt_tokens :] for row in rows
            ],
        }
    )


def _one_pass(base: PreTrainedModel, settings: TuningSettings) -> Pass:
    """Return what one pass holds; give `base` the attention that packed sequences need."""
    import torch

    if not settings.packing:
        return Pass(settings.batch_size, settings.gradient_checkpointing)
    if not torch.cuda.is_available():
        return Pass(1, settings.gradient_checkpointing)
    # Else packed rows are kept apart by a mask, which grows with the square of what it covers.
    packed = can_pack_attention(base)
    if packed:
        use_packed_attention(base)
    free_bytes, _ = torch.cuda.mem_get_info()
    return largest_pass(base, settings, free_bytes, most=settings.batch_size if packed else 1)


def _arguments(
    settings: TuningSettings, output: Path, evaluate: bool, one_pass: Pass, learning_rate: float
) -> SFTConfig:
    import torch
    from trl.trainer.sft_config import SFTConfig

    cuda = torch.cuda.is_available()
    half = settings.dtype == "bfloat16"
    return SFTConfig(
        output_dir=str(output),
        seed=settings.seed,
        per_device_train_batch_size=one_pass.rows,
        gradient_accumulation_steps=settings.batch_size // one_pass.rows,
        per_device_eval_batch_size=settings.batch_size,
        num_train_epochs=1,  # the training set holds all epochs in their order, see _Plan
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
        logging_strategy="steps",
        logging_steps=1 / _LOG_LINES,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=1 / _EVALUATIONS,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,  # the last may be torn by a kill in the middle of a save
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to="none",
    )


def _bf16_is_fast() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware.

    Autocast then computes in bfloat16 over float32 weights; elsewhere it would be emulated.
    """
    import torch

    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def _trainer_class() -> Any:
    """Return SFTTrainer; on a CPU, with its loss computed at the answers' positions only.

    TRL's fused head does that with Triton alone: elsewhere it scores every position of the prompt
    too and drops the result, half of the time with a model as small as the embedded one.
    """
    import torch
    from trl.trainer.sft_trainer import SFTTrainer

    if torch.cuda.is_available():
        return SFTTrainer

    class AnswerTrainer(SFTTrainer):
        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            causal = model.get_base_model()
            answered = inputs["labels"][:, 1:] != -100
            # Padding follows the text and attention looks back only, so no mask is needed.
            position_ids = inputs.get("position_ids")
            with self.accelerator.autocast():
                hidden = causal.base_model(
                    input_ids=inputs["input_ids"], position_ids=position_ids, use_cache=False
                ).last_hidden_state
                logits = causal.get_output_embeddings()(hidden[:, :-1][answered])
            loss = torch.nn.functional.cross_entropy(
                logits.float(), inputs["labels"][:, 1:][answered], reduction="sum"
            )
            return loss / (answered.sum() if num_items_in_batch is None else num_items_in_batch)

    return AnswerTrainer


def _watcher(tokens: int, progress: Progress) -> Any:
    """Return a TrainerCallback that reports, keeps time and stops on request.

    A factory, because its base class may only be imported once training starts.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def __init__(self) -> None:
            self.first_step = 0
            self.seconds = 0.0
            self._started = 0.0
            self._interrupted = False

        def interrupt(self) -> None:
            self._interrupted = True

        def tokens_per_second(self, state: Any) -> float:
            seen = tokens * (state.global_step - self.first_step) / state.max_steps
            return float(seen / max(self.seconds, 1e-9))

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first_step = state.global_step
            self._started = time.perf_counter()
            progress({"event": "start", "step": state.global_step, "steps": state.max_steps})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = time.perf_counter() - self._started
            if self._interrupted:
                control.should_save = True
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            logs = more["logs"]
            if "loss" not in logs and "eval_held_out_loss" not in logs:
                return
            done = state.global_step - self.first_step
            line = {"step": state.global_step, "steps": state.max_steps}
            if "loss" in logs:
                left = state.max_steps - state.global_step
                progress(
                    {"event": "step", **line}
                    | {"loss": logs["loss"], "learning_rate": logs["learning_rate"]}
                    | {"tokens_per_second": round(self.tokens_per_second(state), 1)}
                    | {"seconds_left": round(self.seconds / max(done, 1) * left, 1)}
                )
            else:
                progress({"event": "held_out", **line, "loss": logs["eval_held_out_loss"]})

    return Watcher()


def _curve(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), round(float(line[key]), 5)) for line in history if key in line]


def _forget_other_runs(
    output: Path,
    rows: Sequence[TokenRow],
    plan: _Plan,
    settings: TuningSettings,
    start: _Start | None,
) -> None:
    """Remove what a run with other rows, settings or another start left here, and checkpoints a
    kill has torn."""
    digest = hashlib.blake2b(settings.model_dump_json().encode(), digest_size=16)
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
