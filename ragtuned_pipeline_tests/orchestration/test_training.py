"""When an adapter is tuned again, from where, and what is remembered of it.

The trainer's own code runs, in this process; what a training costs is kept to a second.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ragtuned_pipeline.orchestration.assets.tuning import lora_adapter
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import UserError
from ragtuned_pipeline.orchestration.teaching import TeacherResource
from ragtuned_pipeline.orchestration.training import (
    Retuning,
    Training,
    facts_learned_before,
    read_training,
    train_adapter,
)
from ragtuned_pipeline.settings import RetuningSettings, TuningSettings
from ragtuned_pipeline.tables import SCHEMAS, table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline.tuning.trainer import TrainJob, run_job
from ragtuned_pipeline.tuning.warm_start import rows_file
from ragtuned_pipeline_tests.tuning.conftest import FACTS, FRAMES

CORPUS = "harrow"
TUNING = TuningSettings(rank=8, alpha=16, epochs=1, batch_size=16)
RUN = {
    "devices": 2,
    "parallel": "fsdp",
    "trackers": ("tensorboard",),
    "gradient_checkpointing": True,
    "checkpoint_steps": 50,
}
WARM = RetuningSettings(start="warm")
SCRATCH = RetuningSettings(start="scratch")


class Started(Exception):
    """A training would start now."""


class Invocation:
    def get_custom_messages(self) -> list[Any]:
        return []


class InThisProcess:
    """What stands for the client of Pipes: the trainer without its process."""

    def run(self, *, extras: dict[str, Any], **_: Any) -> Invocation:
        run_job(TrainJob.model_validate(extras["job"]), lambda _line: None)
        return Invocation()


class Trained:
    """Stands for a training that comes to the adapter of an earlier one."""

    def __init__(self, home: Home) -> None:
        training = read_training(home, CORPUS, "tuned")
        assert training
        self._result = training.result
        self._adapter = home.adapters / CORPUS / training.adapter

    def run(self, *, extras: dict[str, Any], **_: Any) -> Invocation:
        output = Path(extras["job"]["output"])
        shutil.copytree(self._adapter, output / "adapter")
        (output / "result.json").write_text(json.dumps(self._result))
        return Invocation()


class OnlyTold:
    """Raises Started with the job instead of training."""

    def run(self, *, extras: dict[str, Any], **_: Any) -> Invocation:
        raise Started(extras["job"])


def rows(facts: list[tuple[str, str, str, str]], epochs: int = 1) -> pa.Table:
    return table(
        "training_rows",
        [
            {
                "id": f"qa-{who}-{way}",
                "fact_id": f"fact-{who}",
                "kind": "local",
                "system": None,
                "prompt": frame.format(who=who, base=base, past=past),
                "completion": f"{what}.",
                "n_tokens": 20,
                "epochs": epochs,
            }
            for who, base, past, what in facts
            for way, frame in enumerate(FRAMES)
        ],
    )


def stated(told: pa.Table) -> pa.Table:
    pairs = told.select(["id", "prompt", "completion"])
    return pairs.rename_columns(["id", "question", "answer"])


def tuned(
    home: Home,
    told: pa.Table,
    settings: TuningSettings = TUNING,
    start: RetuningSettings = WARM,
    pipes: Any = None,
    held_out: pa.Table | None = None,
) -> tuple[Training, bool]:
    retuning = Retuning(start, stated(told))
    client = pipes or InThisProcess()
    with dg.build_asset_context(partition_key=CORPUS) as context:
        made_of = (told, held_out, settings, nullcontext(), retuning)
        return train_adapter(context, home, client, "tuned", *made_of)


def job_of(home: Home, told: pa.Table, **changes: Any) -> dict[str, Any]:
    """The training that would start."""
    with pytest.raises(Started) as started:
        tuned(home, told, pipes=OnlyTold(), **changes)
    job: dict[str, Any] = started.value.args[0]
    return job


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """An adapter that knows six facts, promoted. Tests only read it, or copy it."""
    home = Home(tmp_path_factory.mktemp("first"))
    training, kept = tuned(home, rows(FACTS[:6]))
    assert not kept
    assert training.start == "tuned from scratch: no adapter is promoted to go on from"
    adapter_store.promote(home.adapters, CORPUS, training.adapter)
    return home


@pytest.fixture
def home(first: Home, tmp_path: Path) -> Home:
    shutil.copytree(first.folder, tmp_path / "home", symlinks=True)
    return Home(tmp_path / "home")


def test_nothing_is_tuned_again_where_no_row_has_changed(home: Home) -> None:
    told = rows(FACTS[:6])
    shuffled = told.take(pa.array(np.random.default_rng(1).permutation(told.num_rows)))
    before = read_training(home, CORPUS, "tuned")
    assert before is not None
    cases: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "the same": (told, {}),
        "in another order": (shuffled, {}),
        "more epochs than there are": (rows(FACTS[:6], epochs=9), {}),
        "other questions to watch": (told, {"held_out": told}),
        "from scratch, as it was": (told, {"start": SCRATCH}),
        "on other devices, watched elsewhere": (told, {"settings": TUNING.model_copy(update=RUN)}),
        "more time that no row takes": (
            told,
            {"settings": TUNING.model_copy(update={"time_budget_minutes": 99.0})},
        ),
    }
    for case, (given, changes) in cases.items():
        training, kept = tuned(home, given, pipes=OnlyTold(), **changes)
        assert kept, case
        assert training.adapter == before.adapter
    # What the ablation compares with the settings of now is not left behind.
    remembered = read_training(home, CORPUS, "tuned")
    assert remembered is not None
    assert remembered.settings["time_budget_minutes"] == 99.0


def test_with_early_stopping_other_questions_to_watch_tune_again(home: Home) -> None:
    told = rows(FACTS[:6])
    watched = told.select(["system", "prompt", "completion"])
    early = {"settings": TUNING.model_copy(update={"early_stopping": 2})}
    _, kept = tuned(home, told, held_out=watched, pipes=Trained(home), **early)
    assert not kept
    backwards = watched.take(pa.array(range(watched.num_rows)[::-1]))
    _, kept = tuned(home, told, held_out=backwards, pipes=OnlyTold(), **early)
    assert kept
    job_of(home, told, held_out=watched.slice(1), **early)


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        (rows(FACTS[:5]), TUNING),
        (rows([*FACTS[:5], ("Dorrit Pell", "buy", "bought", "a mill")]), TUNING),
        (rows(FACTS[:6]), TUNING.model_copy(update={"learning_rate": 1e-3})),
        (rows(FACTS[:6]), TUNING.model_copy(update={"quantization": "nf4"})),
        (rows(FACTS[:6]), TUNING.model_copy(update={"early_stopping": 2})),
        (rows(FACTS[:6], epochs=2), TUNING.model_copy(update={"epochs": 2})),
    ],
)
def test_a_row_or_a_setting_that_weights_are_made_from_tunes_again(
    home: Home, told: pa.Table, settings: TuningSettings
) -> None:
    assert job_of(home, told, settings=settings)["start_from"] is None


def test_new_facts_go_on_from_the_promoted_adapter(home: Home) -> None:
    promoted = adapter_store.promoted(home.adapters, CORPUS)
    told = rows(FACTS[:7])
    training, kept = tuned(home, told)
    assert not kept
    assert training.started_from == promoted
    assert training.start == (
        f"tuned from the adapter {promoted} on 8 rows that are new or changed and on 33 of the 48 "
        "earlier ones"
    )
    assert training.result["rows"] == 41
    for what in ("rows", "tokens", "steps", "trainable_parameters"):
        assert training.plan[what] == training.result[what]
    assert training.adapter != promoted
    learned = pq.read_table(rows_file(home.adapters, CORPUS, training.adapter))
    assert Counter(learned["age"].to_pylist()) == {"new": 8, "old": 48}
    assert facts_learned_before(home, CORPUS) == {f"fact-{who}" for who, *_ in FACTS[:6]}
    # Once it answers itself, the same rows tune nothing again, and the facts keep their ages.
    adapter_store.promote(home.adapters, CORPUS, training.adapter)
    again, kept = tuned(home, told, pipes=OnlyTold())
    assert kept
    assert again == training
    assert facts_learned_before(home, CORPUS) == {f"fact-{who}" for who, *_ in FACTS[:6]}
    # Who asks for scratch gets it, and the next document goes on from what answers now.
    assert job_of(home, told, start=SCRATCH)["start_from"] is None
    job = job_of(home, rows(FACTS[:8]))
    assert Path(job["start_from"]).name == training.adapter
    assert pq.read_metadata(job["training_rows"]).num_rows == 41


def test_from_scratch_the_ages_of_facts_are_known_too(home: Home) -> None:
    assert facts_learned_before(home, CORPUS) is None
    training, _ = tuned(home, rows(FACTS[1:8]), start=SCRATCH)
    assert training.started_from == ""
    assert training.start == 'tuned from scratch: the setting retuning.start is "scratch"'
    assert facts_learned_before(home, CORPUS) == {f"fact-{who}" for who, *_ in FACTS[1:6]}


def forget_rows(home: Home) -> None:
    promoted = adapter_store.promoted(home.adapters, CORPUS)
    assert promoted is not None
    rows_file(home.adapters, CORPUS, promoted).unlink()


def forget_adapters(home: Home) -> None:
    shutil.rmtree(home.adapters / CORPUS)


def another_base(home: Home) -> None:
    file = (home.adapters / CORPUS / "current").resolve() / "base_model.json"
    file.write_text('{"base_model": "other", "identity": "other-weights"}')


def nothing(home: Home) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "told", "settings", "reason"),
    [
        (forget_adapters, rows(FACTS[:7]), TUNING, "no adapter is promoted"),
        (another_base, rows(FACTS[:7]), TUNING, "was trained on other (other-weights)"),
        (forget_rows, rows(FACTS[:7]), TUNING, "has learned is not known"),
        (nothing, rows(FACTS[1:7]), TUNING, "8 rows that the promoted adapter has learned"),
        (nothing, rows(FACTS), TuningSettings(), "has rank 8 and alpha 16"),
        (nothing, rows(FACTS + [(w[::-1], *r) for w, *r in FACTS]), TUNING, "of the tokens"),
    ],
)
def test_why_a_training_starts_from_scratch_is_told(
    home: Home,
    spoil: Callable[[Home], None],
    told: pa.Table,
    settings: TuningSettings,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoil(home)
    job = job_of(home, told, settings=settings)
    assert job["start_from"] is None
    assert pq.read_metadata(job["training_rows"]).num_rows == told.num_rows
    log = capfd.readouterr().err.splitlines()
    assert any("tuned from scratch: " in line and reason in line for line in log)


def test_an_adapter_that_is_never_promoted_starts_from_scratch(home: Home) -> None:
    told, client = rows(FACTS[:7]), OnlyTold()
    with (
        dg.build_asset_context(partition_key=CORPUS) as context,
        pytest.raises(Started) as started,
    ):
        train_adapter(context, home, client, "control", told, None, TUNING, nullcontext())
    assert started.value.args[0]["start_from"] is None


def pairs(told: pa.Table) -> pa.Table:
    """The table qa_pairs behind the rows."""
    usual = {
        "split": "train",
        "wording": 0,
        "kept": True,
        "drop_reason": None,
        "generator": "template:local@1",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "gold": "",
        "form": "",
        "style": "long",
    }
    links: dict[str, list[str]] = {
        name: [] for name in SCHEMAS["qa_pairs"].names if name.endswith("_ids")
    }
    return table(
        "qa_pairs",
        [
            {"id": row["id"], "fact_id": row["fact_id"], "kind": row["kind"], **links, **usual}
            | {"question": row["prompt"], "answer": row["completion"]}
            for row in told.to_pylist()
        ],
    )


def test_the_step_tunes_nothing_after_an_edit_that_the_time_budget_leaves_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "documents").mkdir()
    small = {"tuning": {"rank": 8, "alpha": 16, "epochs": 1}}
    Home(tmp_path).register(CORPUS, tmp_path / "documents", None, small)

    def step(told: pa.Table, known: pa.Table, pipes: Any) -> tuple[Any, Any]:
        with dg.build_asset_context(partition_key=CORPUS) as context:
            made: Any = lora_adapter(
                context,
                home=HomeResource(folder=str(tmp_path)),
                teacher=TeacherResource(),
                pipes=pipes,
                training_rows=told,
                qa_pairs=pairs(known),
            )
        return made.data_version, made.metadata["unchanged"]

    told = rows(FACTS[:2])
    version, unchanged = step(told, told, InThisProcess())
    assert not unchanged
    in_another_order = told.take(pa.array(range(told.num_rows)[::-1]))
    assert step(in_another_order, rows(FACTS), OnlyTold()) == (version, True)
    with pytest.raises(Started):
        step(rows(FACTS[:3]), rows(FACTS), OnlyTold())


def test_the_folder_of_a_training_is_its_own_by_its_start(home: Home) -> None:
    told = rows(FACTS[:7])
    warm, scratch = job_of(home, told), job_of(home, told, start=SCRATCH)
    assert warm["output"] != scratch["output"]
    assert warm["output"] == job_of(home, told)["output"]
    read = pq.read_table(warm["training_rows"])
    assert read.equals(read.sort_by([("prompt", "ascending")]))
    assert pc.max(read["epochs"]).as_py() == 1


def test_what_the_plan_refuses_does_not_start(home: Home) -> None:
    three = TUNING.model_copy(update={"devices": 3})
    with pytest.raises(UserError, match="16 rows cannot be shared evenly by 3 devices"):
        tuned(home, rows(FACTS[:2]), three, pipes=OnlyTold())
