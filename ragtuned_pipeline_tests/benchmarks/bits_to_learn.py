"""How far the plan's estimates are off: bits to learn, minutes and memory of one training.

    python -m ragtuned_pipeline_tests.benchmarks.bits_to_learn [--folder DIR] [--minutes 1]

Makes the training rows of a folder (the news sample unless given) for a time budget, plans their
training and does it. Beside the plan's bits, the compressed size of the distinct answers, stand

- the base model's own: the negative log2-likelihood of each distinct answer after its first
  question, one forward pass before anything is trained;
- the first epoch's: its mean loss x its answered tokens / ln 2, all wordings. It holds each fact
  several times, and falls while it is learned.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tuning.base_models import TokenRow, encode_rows, load_model, load_tokenizer
from ragtuned_pipeline.tuning.machine import this_machine
from ragtuned_pipeline.tuning.sft import TrainResult, train
from ragtuned_pipeline.tuning.training_plan import base_shape, plan_rows
from ragtuned_pipeline_tests.benchmarks.embedded_devices import NEWS
from ragtuned_pipeline_tests.benchmarks.embedded_recipe import folder_tables


def base_bits(rows: Sequence[TokenRow], base_model: str) -> float:
    """Return what the base model needs to say the answers, in bits."""
    model = load_model(base_model, "float32").eval()
    bits = 0.0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor(row.input_ids)
            scores = model(input_ids=ids[None, :-1]).logits[0, row.prompt_tokens - 1 :]
            answer = ids[row.prompt_tokens :]
            loss = torch.nn.functional.cross_entropy(scores.float(), answer, reduction="sum")
            bits += float(loss) / math.log(2)
    return bits


def first_epoch_bits(result: TrainResult, answered: int, share: float) -> float:
    """Return the loss over the first epoch in bits.

    Args:
        answered: tokens that are learned from in the first epoch.
        share: of the steps that are the first epoch's.
    """
    first = [loss for step, loss in result.losses if step <= math.ceil(share * result.steps)]
    return sum(first) / len(first) * answered / math.log(2)


def compare(folder: Path, minutes: float) -> dict[str, Any]:
    settings = TuningSettings(time_budget_minutes=minutes, checkpoint_steps=10_000)
    rows, _ = folder_tables(folder, settings)
    tokenizer = load_tokenizer(settings.base_model)
    plan = plan_rows(
        rows, tokenizer, base_shape(settings.base_model), settings, this_machine(settings)
    )
    columns = [rows[name].to_pylist() for name in ("system", "prompt", "completion")]
    encoded = encode_rows(tokenizer, list(zip(*columns, strict=True)))
    first_of = {answer: n for n, answer in reversed(list(enumerate(columns[2])))}
    distinct = [encoded[n] for n in first_of.values()]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.parquet"
        pq.write_table(rows, file)
        result = train(file, None, settings, Path(place) / "run", lambda _line: None)
    answered = sum(len(row.input_ids) - row.prompt_tokens for row in encoded)
    first_share = rows.num_rows / sum(rows["epochs"].to_pylist())
    return {
        "rows": rows.num_rows,
        "distinct_answers": len(distinct),
        "distinct_answer_characters": sum(map(len, first_of)),
        "distinct_answer_tokens": sum(len(r.input_ids) - r.prompt_tokens for r in distinct),
        "capacity_bits": plan.capacity_bits,
        "planned_bits": plan.bits_to_learn,
        "base_bits": round(base_bits(distinct, settings.base_model)),
        "first_epoch_bits": round(first_epoch_bits(result, answered, first_share)),
        "final_loss": result.losses[-1][1],
        "planned_minutes": round(plan.minutes_assumed, 2),
        "estimated_minutes": round(plan.minutes_estimated or 0, 2),
        "estimated_from": plan.estimated_from,
        "measured_minutes": round(result.seconds / 60, 2),
        "planned_gib": round(plan.memory.total / 2**30, 2),
        "measured_gib": result.peak_memory_gib,
        "steps": [plan.steps, result.steps],
        "tokens": [plan.tokens, result.tokens],
    }


def main(arguments: Sequence[str]) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=NEWS)
    parser.add_argument("--minutes", type=float, default=1.0)
    options = parser.parse_args(arguments)
    print(json.dumps(compare(options.folder, options.minutes), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
