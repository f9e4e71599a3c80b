"""The command line as a user meets it, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Stored, Usage
from ragtuned_pipeline_tests.conftest import HARBOUR


def ragtuned(home: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    # What the shell has set would send a run to the user's own instance.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAGTUNED_", "DAGSTER_"))}
    return subprocess.run(
        [sys.executable, "-m", "ragtuned_pipeline.cli", *arguments],
        env={**own, "RAGTUNED_HOME": str(home), "COLUMNS": "100"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["ask", "nobody", "Who?"], 1, "no corpus 'nobody'"),
        (["run", "no-such-folder"], 2, "no-such-folder: no such folder"),
        (["run", ".", "--name", "a/b"], 2, "corpus name 'a/b'"),
        (["run", ".", "--name", "n", "--set", "tuning"], 2, "SECTION.NAME=VALUE"),
        (["run", ".", "--name", "n", "--set", "tuning.epochs=none"], 2, "setting tuning.epochs"),
        (["run", ".", "--name", "n", "--profile", "huge"], 2, "profile 'huge': choose one of"),
        (["run", ".", "--name", "n", "--gold", "none.csv"], 2, "none.csv: no such file"),
        (["run", ".", "--name", "n", "--profile", "api"], 2, "setting teacher.model"),
        (
            ["run", ".", "--name", "n", "--set", "judge.engine=teacher"],
            2,
            "setting judge.engine = teacher: there is no teacher",
        ),
        (
            ["run", ".", "--name", "n", "--set", "ablation.variants=locl"],
            2,
            "setting ablation.variants: 'locl'",
        ),
        (
            ["run", ".", "--name", "n", "--set", "evaluation.systems=tuned,bse"],
            2,
            "setting evaluation.systems: 'bse'",
        ),
        (
            ["run", ".", "--name", "n", "--set", "evaluation.vanilla_rag_overlap_characters=999"],
            2,
            "setting evaluation.vanilla_rag_overlap_characters",
        ),
        (["plan", ".", "--profile", "api"], 2, "setting teacher.model"),
        (["plan", "no-such-folder"], 1, "no-such-folder"),
        (["status", "nobody"], 1, "no corpus 'nobody'"),
        (["unknown-verb"], 2, "unknown-verb"),
    ],
)
def test_errors_are_one_sentence_and_a_status(
    tmp_path: Path, arguments: list[str], status: int, sentence: str
) -> None:
    done = ragtuned(tmp_path, *arguments)
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpora" / "n").exists(), "a refused run leaves nothing behind"


def test_a_folder_without_a_readable_document_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "empty.txt").write_text("")
    done = ragtuned(tmp_path / "home", "run", str(folder), "--name", "n")
    assert done.returncode == 1
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "home" / "dagster" / "history").is_dir(), "the run is recorded in its home"


def test_status_is_readable_by_programs(tmp_path: Path) -> None:
    done = ragtuned(tmp_path, "status", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "home": str(tmp_path),
        "corpora": [],
        "misnamed": [],
        "server": None,
    }


def test_a_plan_counts_what_would_be_asked_and_writes_nothing(tmp_path: Path) -> None:
    teacher = ["--profile", "api", "--set", "teacher.model=m", "--set", "teacher.price_prompt=2"]
    home = tmp_path / "home"
    planned = json.loads(ragtuned(home, "plan", str(HARBOUR), *teacher, "--json").stdout)
    steps = planned["steps"]
    assert steps["extraction"]["calls"] == planned["text_units"]
    assert all(step["money"] > 0 and step["hits"] == 0 for step in steps.values())
    tuning = planned["training"]
    assert planned["rows_from"] == "offline synthesis, as the teacher's are not known yet"
    assert tuning["memory"].keys() == {"weights", "adapter", "activations", "reserve"}
    assert tuning["tokens"] / 5000 / 60 == pytest.approx(tuning["minutes_assumed"])
    assert planned["refusal"] == ""
    assert not home.exists()


def test_without_a_teacher_a_plan_says_so_and_what_tuning_would_be_or_why_not(
    tmp_path: Path,
) -> None:
    done = ragtuned(tmp_path, "plan", str(HARBOUR), "--set", "tuning.devices=3")
    assert "nothing is spent" in done.stdout
    assert "what tuning would be (rows of offline synthesis)" in done.stdout
    for what in ("sequences, steps", "memory of a device", "minutes here", "bits"):
        assert what in done.stdout
    assert done.returncode == 1
    assert done.stderr.startswith("ragtuned: setting tuning.batch_size: 8 rows cannot be shared")


def test_pruning_says_what_went(tmp_path: Path) -> None:
    assert "No stored replies" in ragtuned(tmp_path, "prune").stdout
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        store.put(b"key", "m", Stored("{}", 1, 1), Scope("run", "n"), "step", Usage(calls=1))
    assert "0 stored replies deleted, 1 kept" in ragtuned(tmp_path, "prune").stdout
    assert "1 stored replies deleted, 0 kept" in ragtuned(tmp_path, "prune", "--days", "0").stdout


def test_help_names_every_verb(tmp_path: Path) -> None:
    printed = ragtuned(tmp_path, "--help").stdout
    for verb in ("run", "plan", "prune", "evaluate", "ask", "chat", "status"):
        assert verb in printed
