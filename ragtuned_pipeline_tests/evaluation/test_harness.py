"""lm-evaluation-harness: what it is asked, and what is read of its results."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ragtuned_pipeline.evaluation.probe import ability_summary, built_in, harness, probe
from ragtuned_pipeline.settings import ProbeSettings, SettingsError

DATE = "2026-11-27T15-44-07.266617"


def sample(doc: int, filter_name: str = "none", **metrics: Any) -> dict[str, Any]:
    return {"doc_id": doc, "filter": filter_name, "metrics": list(metrics)} | metrics


# The parts that are read of what lm_eval 0.4.13 wrote about three small tasks.
RECORDED: dict[str, tuple[dict[str, bool], list[dict[str, Any]]]] = {
    "own_colours": (
        {"acc": True, "acc_norm": True},
        [sample(0, acc=0.0, acc_norm=1.0), sample(1, acc=1.0, acc_norm=1.0)],
    ),
    "own_replies": (
        {"bleu": True, "exact_match": True},
        [
            sample(0, "strict", bleu=["White", "mord. Goufliarin"], exact_match=0.0),
            sample(0, "loose", bleu=["White", "mord. Goufliarin"], exact_match=1.0),
            sample(1, "strict", bleu=["Green", "Green"], exact_match=1.0),
            sample(1, "loose", bleu=["Green", "Green"], exact_match=1.0),
        ],
    ),
    "own_texts": (
        {"word_perplexity": False, "bits_per_byte": False},
        [sample(0, word_perplexity=[-82.5, 4], bits_per_byte=[-82.5, 20])],
    ),
}


def record(folder: Path, **tasks: tuple[dict[str, bool], list[dict[str, Any]]]) -> None:
    folder.mkdir(exist_ok=True)
    written = {
        "configs": {task: {} for task in tasks},
        "higher_is_better": {task: better for task, (better, _) in tasks.items()},
    }
    (folder / f"results_{DATE}.json").write_text(json.dumps(written))
    for task, (_, samples) in tasks.items():
        lines = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / f"samples_{task}_{DATE}.jsonl").write_text(lines)


def test_one_score_an_item_is_read(tmp_path: Path) -> None:
    record(tmp_path, **RECORDED)
    rows = harness.read_results(tmp_path, "tuned")
    assert [(row["suite"], row["item"], row["score"], row["measure"]) for row in rows] == [
        ("own_colours", "0", 0.0, "acc, higher is better"),
        ("own_colours", "1", 1.0, "acc, higher is better"),
        ("own_replies", "0", 0.0, "exact_match, higher is better"),
        ("own_replies", "1", 1.0, "exact_match, higher is better"),
        ("own_texts", "0", 20.625, "word_perplexity as loss in nats, higher is worse"),
    ]
    assert {row["model"] for row in rows} == {"tuned"}


@pytest.mark.parametrize(
    "samples", [[sample(0, bleu=["White", "Green"])], [sample(0, bleu=float("nan"))], []]
)
def test_a_task_without_a_score_an_item_is_refused(
    tmp_path: Path, samples: list[dict[str, Any]]
) -> None:
    record(tmp_path, own=({"bleu": True}, samples))
    with pytest.raises(SettingsError, match=r"harness_tasks: own scores no single items.*bleu"):
        harness.read_results(tmp_path, "base")


def test_where_it_is_missing_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"harness_tasks: .*pip install .*lm_eval\[hf\]"):
        probe("embedded", None, ProbeSettings(harness_tasks=("piqa",)))


STAND_IN = """
import json, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
assert sys.argv[1:3] == ["run", "--config"]
asked = json.loads(pathlib.Path(sys.argv[3]).read_text())
if "unknown" in asked["tasks"]:
    sys.exit("Traceback ...\\nValueError: Tasks not found: unknown")
(here / "asked.json").write_text(json.dumps(asked))
shutil.copytree(here / "recorded", pathlib.Path(asked["output_path"]).parent, dirs_exist_ok=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package lm_eval that writes down how it was called and gives recorded results."""
    package = tmp_path / "lm_eval"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    record(package / "recorded", **RECORDED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return package


def test_it_is_asked_about_the_base_and_about_the_base_with_the_adapter(
    stand_in: Path, tmp_path: Path
) -> None:
    settings = ProbeSettings(harness_tasks=("own_colours", "tasks/own.yaml"), harness_limit=7)
    rows = harness.score("embedded", None, "base", settings)
    asked = json.loads((stand_in / "asked.json").read_text())
    assert len(rows) == 5
    assert (asked["tasks"], asked["limit"]) == (["own_colours", "tasks/own.yaml"], 7)
    assert asked["log_samples"] is True
    assert Path(asked["model_args"].pop("pretrained")).is_dir()
    assert asked["model_args"].keys() == {"dtype"}
    folder = tmp_path / "an adapter, with = in its name"
    harness.score("embedded", folder, "tuned", settings)
    asked = json.loads((stand_in / "asked.json").read_text())
    assert asked["model_args"]["peft"] == str(folder)


def test_what_it_complains_of_is_told(stand_in: Path) -> None:
    settings = ProbeSettings(harness_tasks=("unknown",))
    with pytest.raises(SettingsError, match=r"status 1 on unknown: ValueError: Tasks not found"):
        harness.score("embedded", None, "base", settings)


TASK = """
task: own_colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: replies
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="the package lm_eval is not installed (lm_eval[hf])"
)
def test_a_task_file_of_ones_own_really_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    from ragtuned_pipeline.tables import table
    from ragtuned_pipeline_tests.evaluation.test_probe import adapter

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "colours.jsonl"
    asked = [item for item in built_in.items("choice") if "text" not in item]
    data.write_text(
        "".join(
            json.dumps({"question": q["question"], "replies": [q["answer"], *q["others"]]}) + "\n"
            for q in asked
        )
    )
    task = tmp_path / "colours.yaml"
    task.write_text(TASK.format(data=data))
    settings = ProbeSettings(harness_tasks=(str(task),), harness_limit=20)
    base = harness.score("embedded", None, "base", settings)
    assert len(base) == 20
    assert {row["score"] for row in base} == {0.0, 1.0}
    folder = adapter(tmp_path / "a folder, with = in its name", noise=0.3)
    tuned = harness.score("embedded", folder, "tuned", settings)
    rows = pa.concat_tables([table("probe", base), table("probe", tuned)])
    found = ability_summary(rows, 1)["own_colours"]
    assert (found["n"], found["measure"]) == (20, "acc, higher is better")
    assert [row["score"] for row in base] != [row["score"] for row in tuned]
    with pytest.raises(SettingsError, match="no_such_task"):
        harness.score("embedded", None, "base", ProbeSettings(harness_tasks=("no_such_task",)))


def test_the_process_is_this_environments(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        harness.score("embedded", None, "base", ProbeSettings(harness_tasks=("piqa",)))
    assert calls[0][:3] == [sys.executable, "-m", "lm_eval"]
