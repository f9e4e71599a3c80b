"""Tasks of lm-evaluation-harness that the user names, run where its package is installed.

It runs as a process of its own, so that its memory and its many imports end with it. A task is a
name that it knows, or the path of a task file (.yaml), whose Python functions, if it names any,
are then run; data sets that it loads from a hub need one. Prompts are the task's own, without a
chat template, as published results mostly are.

Written for and tried with lm_eval 0.4.13.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ragtuned_pipeline.evaluation.probe.rows import probe_rows
from ragtuned_pipeline.inference.base_models import resolve
from ragtuned_pipeline.settings import ProbeSettings, SettingsError

_BATCH = 16
_SHOWN = 400  # characters of what it last said


def check_installed() -> None:
    """Raise SettingsError where the package lm_eval is missing."""
    if find_spec("lm_eval") is None:
        raise SettingsError(
            "setting probe.harness_tasks: lm-evaluation-harness is not installed; install it into "
            'the environment of this program (pip install "lm_eval[hf]"), or leave the setting '
            "empty"
        )


def score(
    base_model: str, adapter: Path | None, model: str, settings: ProbeSettings
) -> list[dict[str, Any]]:
    """Run the tasks and return their rows, one an item; see probe().

    Raises:
        SettingsError: a task is unknown, fails, or gives no score an item.
    """
    import torch

    cuda = torch.cuda.is_available()
    loaded = {"pretrained": resolve(base_model), "dtype": "bfloat16" if cuda else "float32"}
    if adapter is not None:
        loaded["peft"] = str(adapter.absolute())
    with tempfile.TemporaryDirectory(prefix="ragtuned-harness-") as folder:
        # On its command line a comma or an equals sign in a path would end it.
        config = Path(folder) / "config.json"
        asked = {
            "model": "hf",
            "model_args": loaded,
            "tasks": list(settings.harness_tasks),
            "limit": settings.harness_limit,
            "batch_size": _BATCH,
            "device": "cuda:0" if cuda else "cpu",
            "log_samples": True,
            "output_path": str(Path(folder) / "results.json"),
        }
        config.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "lm_eval", "run", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            last = " ".join(done.stderr.strip().splitlines()[-1:])[-_SHOWN:]
            raise SettingsError(
                "setting probe.harness_tasks: lm-evaluation-harness ended with status "
                f"{done.returncode} on {', '.join(settings.harness_tasks)}: {last}"
            )
        return read_results(Path(folder), model)


def read_results(folder: Path, model: str) -> list[dict[str, Any]]:
    """Return the rows of the results that lm_eval wrote under `folder`: suite = task.

    Of a task's metrics the first that scores single items is taken, of its filters the first. Log
    likelihoods with a count of words or bytes (perplexities) become the loss, in nats, of one of
    those; the mean over items then weighs items alike, not words.

    Raises:
        SettingsError: a task has no metric that scores single items, so that nothing can be
            paired (BLEU of a whole corpus, for example), or no item at all.
    """
    (results,) = folder.glob("results_*.json")
    written = json.loads(results.read_text(encoding="utf-8"))
    date = results.stem.removeprefix("results_")
    rows: list[dict[str, Any]] = []
    for task in sorted(written["configs"]):
        lines = (results.parent / f"samples_{task}_{date}.jsonl").read_text(encoding="utf-8")
        samples = [json.loads(line) for line in lines.split("\n") if line]
        rows += _task_rows(task, model, samples, written["higher_is_better"][task])
    return rows


def _task_rows(
    task: str, model: str, samples: list[dict[str, Any]], higher_is_better: dict[str, bool]
) -> list[dict[str, Any]]:
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    for metric in first[0]["metrics"] if first else ():
        values = [_item_score(sample[metric]) for sample in first]
        scored = [
            (str(sample["doc_id"]), value)
            for sample, value in zip(first, values, strict=True)
            if value is not None
        ]
        if len(scored) == len(first):
            loss = isinstance(first[0][metric], list)
            name = f"{metric} as loss in nats" if loss else metric
            better = higher_is_better[metric] and not loss
            measure = f"{name}, higher is {'better' if better else 'worse'}"
            return probe_rows(task, model, measure, scored)
    raise SettingsError(
        f"setting probe.harness_tasks: {task} scores no single items "
        f"(its metrics: {', '.join(higher_is_better)}), so that the models cannot be compared "
        "item by item; name another task"
    )


def _item_score(value: Any) -> float | None:
    """A number, or minus the log likelihood a unit of a [log likelihood, units] pair."""
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(value)
    match value:
        case [float(likelihood), int(units)] if units > 0:
            return -likelihood / units
    return None
