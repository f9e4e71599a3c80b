"""How fast this machine tunes a model of the paper's size, in one table.

    python -m ragtuned_pipeline_tests.benchmarks.gpu_training [--shape 7b|toy] [--steps N]
        [--ways all | NAME ...] [--output FILE]

Random weights of the shape of Qwen2.5-7B-Instruct (nothing is downloaded), rows with questions of
about 25 tokens and answers of 30 to 600, evenly spread, seeded. The same rows are learned by
`ragtuned_pipeline.tuning.sft` with the gpu profile's settings, by the same with single things
changed, by TRL's SFTTrainer as it is set when nobody sets anything, and by a plain PyTorch loop
over the same packed sequences. Among the others (`--ways all`) are QLoRA, and all visible GPUs by
DDP and by FSDP, whose weights are written to the temporary folder first. `--shape toy` is the same
on a CPU in under a minute; its figures mean nothing.

Tokens a second are the rows' own, without padding, in the median step after warm-up, of all GPUs
together. MFU is useful work (`tuning.training_plan.work_per_token`) over the GPU's bfloat16 matrix
peak, measured here. What is computed twice (gradient checkpointing) is not work.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER
from ragtuned_pipeline.settings import TuningSettings, load_settings
from ragtuned_pipeline.tuning import sft
from ragtuned_pipeline.tuning.base_models import ChatRow, TokenRow, encode_rows, load_tokenizer
from ragtuned_pipeline.tuning.epochs import Plan, training_set
from ragtuned_pipeline.tuning.launch import train_on_all
from ragtuned_pipeline.tuning.memory import Pass
from ragtuned_pipeline.tuning.packed_attention import use_packed_attention
from ragtuned_pipeline.tuning.quantization import load_quantized
from ragtuned_pipeline.tuning.telemetry import matrix_peak, peak_memory_gib
from ragtuned_pipeline.tuning.trainer import TrainJob
from ragtuned_pipeline.tuning.training_plan import RowLengths, base_shape, work_per_token
from ragtuned_pipeline_tests.tuning.qwen import qwen_sizes

SEED = 42
QUESTION_TOKENS, ANSWER_TOKENS = (15, 25), (30, 600)  # with the chat template about 25
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how long its sequences are."""

    config: Mapping[str, Any]
    max_tokens: int | None  # None is the gpu profile's
    answer_tokens: tuple[int, int]


SHAPES = {
    # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json
    "7b": Shape(
        {
            **qwen_sizes("7B"),
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 32768,
        },
        None,
        ANSWER_TOKENS,
    ),
    "toy": Shape(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 4096,
            "tie_word_embeddings": False,
        },
        256,
        (10, 60),
    ),
}


Way = Callable[["Bench", "StepLog"], None]


@dataclass
class StepLog:
    """When optimizer steps ended, and how many tokens of rows they saw."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    devices: int = 1
    peak_gib: float | None = None  # of the first process, where others do the work
    _seen: list[torch.Tensor] = field(default_factory=list)

    def batch(self, input_ids: torch.Tensor, padding: int) -> None:
        """Count a batch; the count stays on the GPU until the step ends."""
        self._seen.append((input_ids != padding).sum())

    def step(self) -> None:
        """An optimizer step ended."""
        self.tokens.append(int(torch.stack(self._seen).sum()) if self._seen else 0)
        self._seen.clear()
        if CUDA:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter())

    def tokens_per_second(self) -> float:
        """Return the median of the steps after warm-up: a quarter of them, one at least."""
        warm = max(1, len(self.seconds) // 4)
        taken = np.diff(self.seconds)[warm - 1 :]
        return float(np.median(np.array(self.tokens[warm:]) / taken))


@dataclass(frozen=True)
class Bench:
    """What all ways learn from."""

    shape: Shape
    folder: Path  # with the base model's config and tokenizer, without weights
    settings: TuningSettings
    rows: Sequence[ChatRow]
    steps: int

    @classmethod
    def of(cls, shape: Shape, folder: Path, steps: int) -> Bench:
        """Prepare `folder`, and rows for `steps` optimizer steps of the gpu profile."""
        base = folder / "base"
        shutil.copytree(
            EMBEDDED_FOLDER, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json")
        )
        _config(shape).save_pretrained(base)
        gpu = load_settings(folder, "gpu", environment={}).tuning
        settings = gpu.model_copy(
            update={
                "base_model": str(base),
                "epochs": 1,
                "max_tokens": shape.max_tokens or gpu.max_tokens,
                "require_cuda": CUDA,
                "checkpoint_steps": 10_000,
            }
        )
        tokens = steps * settings.batch_size * settings.max_tokens
        return cls(shape, base, settings, _rows(base, tokens, shape.answer_tokens), steps)

    def model(self, dtype: str) -> Any:
        """Return a new model with random weights, made where it will be used."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(SEED)
        with torch.device("cuda" if CUDA else "cpu"):
            return AutoModelForCausalLM.from_config(
                _config(self.shape),
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa" if CUDA else "eager",
            )

    def write_weights(self) -> None:
        """Save the random weights beside the config, for ways that read them."""
        if not list(self.folder.glob("*.safetensors")):
            self.model("bfloat16").save_pretrained(self.folder)

    def write_rows(self, file: Path) -> Path:
        """Write the rows as a run's training step does."""
        columns = [pa.array(list(column), pa.string()) for column in zip(*self.rows, strict=True)]
        columns.append(pa.array([1] * len(self.rows), pa.int64()))
        names = ["system", "prompt", "completion", "epochs"]
        pq.write_table(pa.table(columns, names=names), file)
        return file

    def encoded(self) -> list[TokenRow]:
        return encode_rows(load_tokenizer(str(self.folder)), self.rows)

    def lora(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )


def _config(shape: Shape) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        **shape.config,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        architectures=["Qwen2ForCausalLM"],
    )


def _rows(base: Path, tokens: int, answers: tuple[int, int]) -> list[ChatRow]:
    """Return rows of random words, of `tokens` tokens together.

    Every word is one token, so that a row is exactly as long as was drawn.
    """
    tokenizer = load_tokenizer(str(base))
    words = sorted(t for t in tokenizer.get_vocab() if t[:1] == "Ġ" and t[1:].isalpha())
    draw = np.random.default_rng(SEED)

    def text(low: int, high: int) -> str:
        drawn = draw.integers(len(words), size=draw.integers(low, high + 1))
        return "".join(words[i].replace("Ġ", " ") for i in drawn).strip()

    rows: list[ChatRow] = []
    template = len(encode_rows(tokenizer, [(None, "a", "a")])[0].input_ids)
    while tokens > 0:
        row = (None, text(*QUESTION_TOKENS), text(*answers))
        tokens -= len(row[1].split()) + len(row[2].split()) + template
        rows.append(row)
    return rows


def ours(
    settings: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    one_pass: Pass | None = None,
    attention: str = "packed",
    casts: bool = False,
    compiled: bool = False,
) -> Way:
    """Return a way that runs sft.train() as a user's run does, with single things changed.

    Without any, only the weights are random instead of read, and steps are timed.

    Args:
        settings, arguments: changes to TuningSettings and to SFTConfig.
        one_pass: instead of the largest that the memory holds.
        attention: with one_pass; or "sdpa" (a mask keeps packed rows apart), "flex_attention".
        casts: leave PEFT's cast of each input to the adapter's float32.
        compiled: torch.compile each layer, all batches padded to one length.
    """

    def learn(bench: Bench, log: StepLog) -> None:
        changed = bench.settings.model_copy(update=dict(settings or {}))
        trainer_class, make = sft.trainer_class, sft._arguments

        def given_pass(base: Any, *_: Any) -> Pass:
            assert one_pass is not None
            if attention == "packed" and CUDA:
                use_packed_attention(base)
            elif attention != "packed":
                base.set_attn_implementation(attention)
            return one_pass

        def with_arguments(*given: Any, **named: Any) -> Any:
            made = make(*given, **named)
            for name, value in (arguments or {}).items():
                setattr(made, name, value)
            if compiled:
                made.pad_to_multiple_of = made.per_device_train_batch_size * changed.max_tokens
            return made

        patches: dict[str, Any] = {
            "load_model": lambda _, dtype: bench.model(dtype),
            "load_quantized": lambda base: read_quantized(bench, base),
            "trainer_class": lambda base: timed(trainer_class(base), log, compiled),
            "_arguments": with_arguments,
        }
        if one_pass is not None:
            patches["_one_pass"] = given_pass
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(mock.patch.multiple(sft, **patches))
            if casts:
                kept = mock.patch("peft.helpers.disable_input_dtype_casting", _no_change)
                stack.enter_context(kept)
            stack.enter_context(_restored_qwen2())
            rows = bench.write_rows(folder / "rows.parquet")
            sft.train(rows, None, changed, folder / "run", lambda _: None)

    return learn


def read_quantized(bench: Bench, base: str) -> Any:
    bench.write_weights()
    return load_quantized(base)


def several(parallel: str) -> Way:
    """Return a way that runs the trainer on all GPUs, one process each; on a CPU in two."""

    def learn(bench: Bench, log: StepLog) -> None:
        bench.write_weights()
        log.devices = torch.cuda.device_count() or 2
        update = {"parallel": parallel, "devices": log.devices}
        tokens = steps = 0

        def progress(line: dict[str, Any]) -> None:
            nonlocal tokens, steps
            tokens, steps = line.get("tokens", tokens), line.get("steps", steps)
            if line["event"] == "step":  # a line a step, up to 50 steps
                log.seconds.append(time.perf_counter())
                log.tokens.append(tokens // steps)
                log.losses.append(line["loss"])
                log.peak_gib = line["peak_memory_gib"] if CUDA else None

        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            job = TrainJob(
                training_rows=bench.write_rows(folder / "rows.parquet"),
                held_out=None,
                settings=bench.settings.model_copy(update=update),
                output=folder / "run",
            )
            file = folder / "job.json"
            file.write_text(job.model_dump_json(), encoding="utf-8")
            train_on_all(file, log.devices, progress)

    return learn


def _no_change(model: Any, active: bool) -> Any:
    return nullcontext()


def _restored_qwen2() -> Any:
    """Take back afterwards what Liger replaces in the model's module, not in the model alone."""
    from transformers.models.qwen2 import modeling_qwen2

    names = ("apply_rotary_pos_emb", "Qwen2RMSNorm", "Qwen2MLP")
    return mock.patch.multiple(
        modeling_qwen2, **{name: getattr(modeling_qwen2, name) for name in names}
    )


def trl_defaults(dtype: str) -> Way:
    """Return SFTTrainer with nothing set: batches of 8, padded, gradient checkpointing.

    By its own default it loads weights in float32 and computes in bfloat16.
    """

    def learn(bench: Bench, log: StepLog) -> None:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        messages = [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": completion}],
            }
            for _, prompt, completion in bench.rows
        ]
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                output_dir=folder,
                max_steps=4 * bench.steps,
                use_cpu=not CUDA,
                report_to="none",
                disable_tqdm=True,
            )
            timed(SFTTrainer, log)(
                model=bench.model(dtype),
                args=arguments,
                train_dataset=Dataset.from_list(messages),
                processing_class=load_tokenizer(str(bench.folder)),
                peft_config=bench.lora(),
            ).train()

    return learn


def plain_loop(bench: Bench, log: StepLog) -> None:
    """What one writes by hand: the same packed sequences, a mask, the whole head, no trainer."""
    from peft import get_peft_model

    rows = bench.encoded()
    plan = Plan.of(rows, [1] * len(rows), bench.settings)
    sequences = training_set(rows, plan, bench.settings)
    device = torch.device("cuda" if CUDA else "cpu")
    model = get_peft_model(bench.model("bfloat16"), bench.lora()).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=bench.settings.learning_rate, fused=CUDA)
    size = bench.settings.batch_size
    for start in range(0, len(sequences), size):
        batch = [sequences[i] for i in range(start, min(start + size, len(sequences)))]
        answered = sum(label != -100 for one in batch for label in one["labels"])
        total = torch.zeros((), device=device)
        for one in batch:
            ids, labels = (torch.tensor(one[k], device=device) for k in ("input_ids", "labels"))
            positions = torch.cat([torch.arange(n) for n in one["seq_lengths"]]).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(input_ids=ids[None], position_ids=positions[None]).logits[0]
            loss = torch.nn.functional.cross_entropy(
                logits[:-1].float(), labels[1:], reduction="sum"
            )
            (loss / answered).backward()
            total += loss.detach() / answered
            log.batch(ids, -1)
        optimizer.step()
        optimizer.zero_grad()
        log.losses.append(float(total))
        log.step()


def timed(base: Any, log: StepLog, compiled: bool = False) -> Any:
    """Return the trainer's class with its steps written to `log`, and its layers compiled."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log.step()

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if "loss" in more["logs"]:
                log.losses.append(float(more["logs"]["loss"]))

    class Timed(base):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.add_callback(Timer())
            if compiled:
                torch._dynamo.reset()
                # Else the first layer, whose input needs no gradient, is compiled by itself.
                self.model.enable_input_require_grads()
                for layer in self.model.get_base_model().model.layers:
                    layer.compile()

        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            log.batch(inputs["input_ids"], 0)
            return super().training_step(model, inputs, *more, **named)

    return Timed


MAIN = {
    "ours": ours(),
    "TRL's defaults": trl_defaults("float32"),
    "TRL's defaults, bfloat16 weights": trl_defaults("bfloat16"),
    "plain loop": plain_loop,
}
_NO_LIGER = {"use_liger_kernel": False}  # used where the package liger-kernel is installed
_CHECKPOINTING = {"gradient_checkpointing": True}
_SELECTIVE = {"gradient_checkpointing_kwargs": {"selective": True}}


def _without_liger(rows: int, checkpointing: bool = False, **changed: Any) -> Way:
    arguments = _NO_LIGER | changed.pop("arguments", {})
    return ours(arguments=arguments, one_pass=Pass(rows, checkpointing), **changed)


WAYS = MAIN | {
    "QLoRA, 4 bits": ours({"quantization": "nf4"}),
    "all devices, DDP": several("ddp"),
    **({"all devices, FSDP": several("fsdp")} if CUDA else {}),
    "ours, without Liger": ours(arguments=_NO_LIGER),
    "ours, 4 at once": ours(one_pass=Pass(4, False)),
    "without Liger, 1 at once": _without_liger(1),
    "without Liger, 2 at once": _without_liger(2),
    "without Liger, 4 at once": _without_liger(4),
    "without Liger, 8 at once": _without_liger(8),
    "without Liger, gradient checkpointing": ours(_CHECKPOINTING, _NO_LIGER),
    "without Liger, selective checkpointing, 8 at once": _without_liger(
        8, checkpointing=True, arguments=_SELECTIVE
    ),
    "without Liger, PEFT's casts, 4 at once": _without_liger(4, casts=True),
    "without Liger, a mask, 1 at once": _without_liger(1, attention="sdpa"),
    "without Liger, FlexAttention, 2 at once": _without_liger(2, attention="flex_attention"),
    "without Liger, padded instead of packed": ours({"packing": False}, _NO_LIGER),
    "without Liger, layers compiled, 4 at once": _without_liger(4, compiled=True),
    "without Liger, layers compiled, 8 at once": _without_liger(8, compiled=True),
    "as it was: a mask, casts, checkpointing, 1 at once": ours(
        _CHECKPOINTING, _NO_LIGER, Pass(1, True), attention="sdpa", casts=True
    ),
}


def gflop_per_token(bench: Bench) -> float:
    """Return the useful operations a token of the rows asks for, in 10^9."""
    lengths = RowLengths.of_tokens(bench.encoded(), [1] * len(bench.rows))
    shape = base_shape(bench.settings.base_model)
    return work_per_token(lengths, shape, bench.settings.rank) / 1e9


@dataclass(frozen=True)
class Figures:
    name: str
    tokens_per_second: float
    mfu: float | None  # None on a CPU
    peak_gib: float | None  # allocated by PyTorch; None on a CPU
    step_tokens: list[int]
    step_seconds: list[float]  # the first step's is unknown and left out
    losses: list[float]
    seconds: float  # of all of it, making the model and warm-up included


def measure(name: str, bench: Bench, peak: float | None, work: float) -> Figures | None:
    """Return the way's figures, or None where the GPU's memory does not hold it."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    log = StepLog()
    started = time.perf_counter()
    try:
        WAYS[name](bench, log)
    except torch.OutOfMemoryError:
        return None
    speed = log.tokens_per_second()
    return Figures(
        name=name,
        tokens_per_second=round(speed, 1),
        mfu=round(speed * work / peak / log.devices, 4) if peak else None,
        peak_gib=log.peak_gib or _peak_gib(),
        step_tokens=log.tokens,
        step_seconds=[round(float(each), 3) for each in np.diff(log.seconds)],
        losses=[round(loss, 4) for loss in log.losses],
        seconds=round(time.perf_counter() - started, 1),
    )


def _peak_gib() -> float | None:
    return round(peak_memory_gib(), 1) if CUDA else None


def machine() -> dict[str, str]:
    """Return what computes, in its own words."""
    import peft
    import transformers
    import trl

    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"trl": trl.__version__, "peft": peft.__version__, "gpu": "none", "driver": "none"}
    if CUDA:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        found["gpu"], found["driver"] = said.splitlines()[0].split(", ")
    return found


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="7b" if CUDA else "toy")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of the gpu profile")
    parser.add_argument("--ways", nargs="*", default=list(MAIN), help="names, or all")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args(arguments)
    chosen = list(WAYS) if options.ways == ["all"] else options.ways
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.of(SHAPES[options.shape], Path(folder), options.steps)
        run(bench, chosen, options.output)


def run(bench: Bench, ways: Sequence[str], output: Path | None) -> None:
    """Measure the ways one after the other; print a line for each as soon as it is known."""
    peak, gflop = matrix_peak(), gflop_per_token(bench)
    found: dict[str, Any] = {
        "machine": machine(),
        "seed": SEED,
        "matrix_peak_tflops": round(peak / 1e12, 2) if peak else None,
        "gflop_per_token": round(gflop, 3),
        "rows": len(bench.rows),
        "ways": [],
    }
    print(json.dumps({name: value for name, value in found.items() if name != "ways"}))
    print("| way | tokens/s | MFU | peak memory, GiB |\n|---|---|---|---|", flush=True)
    for way in ways:
        figures = measure(way, bench, peak, 1e9 * gflop)
        if figures is None:
            found["ways"].append({"name": way, "out_of_memory": True})
            print(f"| {way} | out of memory | | |", flush=True)
        else:
            found["ways"].append(asdict(figures))
            memory = "" if figures.peak_gib is None else f"{figures.peak_gib:.1f}"
            mfu = "" if figures.mfu is None else f"{100 * figures.mfu:.1f} %"
            print(
                f"| {way} | {figures.tokens_per_second:,.0f} | {mfu} | {memory} |",
                flush=True,
            )
        if output:
            output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
