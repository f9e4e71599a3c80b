"""Homes with one defect each: it is found, mended where that is safe, and gone the second time."""

import errno
import io
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
import torch
from dagster._core.events import DagsterEvent
from safetensors.torch import save_file

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.orchestration import dagster_records, doctor, orphans
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.doctor import Finding, examine
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.locks import COMMAND_LINE, alone
from ragtuned_pipeline.orchestration.runs import prepare_environment
from ragtuned_pipeline.tables import table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.conftest import own_environment

OLD, NEW = "88317d29f988a1636ead", "798a6c89a10b669b994c"  # of zeros and of ones
DEAD = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
DEAD_PROCESS = int(DEAD.stdout)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A sound home with the corpus `notes`: two adapters, of which the newer answers."""
    own_environment(monkeypatch)
    made = Home(tmp_path / "home")
    folder = tmp_path / "notes"
    write_text(folder / "a.md", "The ferry is blue.")
    made.register("notes", folder, None, {})
    TableStore(made.tables).write("documents", "notes", table("documents", []))
    with open_items(made.items("notes"), "graph") as items:
        items.put({b"k": "v"})
    for adapter, weights in ((OLD, torch.zeros(4, 4)), (NEW, torch.ones(4, 4))):
        place = made.adapters / "notes" / adapter
        write_text(place / "base_model.json", "{}")
        write_text(place / "adapter_config.json", "{}")
        save_file({"w": weights}, place / "adapter_model.safetensors")
        decide(made, "promoted", adapter)
    return made


def decide(home: Home, what: past.What, adapter: str) -> None:
    with past.locked(home, "notes") as entries:
        left, last = answers(home), entries[-1].trained if entries else None
        trained = adapter if what == "promoted" else last
        entry = past.Entry(what, adapter, left, trained, past.now(), "run", "", {})
        past.append(home, "notes", entries, entry)


def answers(home: Home) -> str | None:
    return adapter_store.promoted(home.adapters, "notes")


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


# --- what is mended ---------------------------------------------------------------------------


def _torn_table(home: Home) -> Path:
    file = Path(home.tables) / "documents" / "notes.parquet"
    tear(file)
    return file


def _old_table(home: Home) -> Path:
    TableStore(home.tables).write("queries", "notes", pa.table({"id": ["q"]}))
    return Path(home.tables) / "queries" / "notes.parquet"


def _temporary(place: str) -> Callable[[Home], Path]:
    def plant(home: Home) -> Path:
        file = home.folder / place.replace("PID", str(DEAD_PROCESS))
        write_text(file, "half")
        return file

    return plant


def _torn_adapter(home: Home) -> Path:
    folder = home.adapters / "notes" / OLD
    write_text(home.adapters / "notes" / f"{OLD}.rows.parquet", "")
    tear(folder / "adapter_model.safetensors")
    return folder


def _adapter_without_base(home: Home) -> Path:
    folder = home.adapters / "notes" / OLD
    (folder / "base_model.json").unlink()
    return folder


def _weights_with_header(header: bytes) -> Callable[[Home], Path]:
    def plant(home: Home) -> Path:
        folder = home.adapters / "notes" / OLD
        length = len(header).to_bytes(8, "little")
        (folder / "adapter_model.safetensors").write_bytes(length + header)
        return folder

    return plant


def _other_weights(home: Home) -> Path:
    folder = home.adapters / "notes" / OLD
    save_file({"w": torch.full((4, 4), 2.0)}, folder / "adapter_model.safetensors")
    return folder


def _empty(place: str) -> Callable[[Home], Path]:
    def plant(home: Home) -> Path:
        write_text(home.folder / place, "")
        return home.folder / place

    return plant


def _torn_items(home: Home) -> Path:
    home.items("notes").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    return home.items("notes")


MENDABLE: dict[str, tuple[Callable[[Home], Path], str]] = {
    "torn table": (_torn_table, "cannot be read"),
    "table of another version": (_old_table, "is of another version"),
    "half table": (_temporary("tables/answers/.notes.parquet.PID.tmp"), "never finished"),
    "half report": (_temporary("reports/notes/.index.html.PID.tmp"), "never finished"),
    "half page": (_temporary("reports/.index.html.PID.tmp"), "never finished"),
    "half settings": (_temporary("corpora/.notes.json.PID.tmp"), "never finished"),
    "half adapter": (_temporary("adapters/notes/.abc.PID.tmp/weights"), "never finished"),
    "torn adapter": (_torn_adapter, "its weights are cut off"),
    "adapter without its base": (_adapter_without_base, "base_model.json is missing"),
    "no header": (_weights_with_header(b"[]"), "its weights have no header"),
    "odd header": (_weights_with_header(b"[1]"), "its weights have no header"),
    "no offsets": (_weights_with_header(b'{"w": {"shape": [4]}}'), "its weights have no header"),
    "other weights": (_other_weights, "its content is another"),
    "empty numbers": (_empty("adapters/notes/numbers.json"), "is damaged"),
    "empty tuned": (_empty("adapters/notes/tuned.json"), "is damaged"),
    "empty control": (_empty("adapters/notes/control.json"), "is damaged"),
    "empty files": (_empty("corpora/.notes.files.json"), "is damaged"),
    "torn items": (_torn_items, "is damaged"),
}


@pytest.mark.parametrize("defect", MENDABLE)
def test_what_can_be_mended_is(home: Home, defect: str) -> None:
    assert examine(home, mend=True) == []
    plant, words = MENDABLE[defect]
    place = plant(home)
    [found] = examine(home, mend=False)
    assert found.state == "mendable"
    assert place.exists(), "nothing is changed unless asked for"
    [mended] = examine(home, mend=True)
    assert mended == Finding(found.what, found.remedy, "mended")
    assert words in mended.what
    assert not place.exists()
    assert examine(home, mend=True) == []
    assert answers(home) == NEW


def test_what_a_living_process_writes_is_left_alone(home: Home) -> None:
    write_text(Path(home.tables) / "answers" / f".notes.parquet.{os.getpid()}.tmp", "half")
    torn = _torn_table(home)
    with alone(home, "notes"):
        assert examine(home, mend=True) == []
    [mended] = examine(home, mend=True)
    assert str(torn) in mended.what


def test_the_adapter_before_answers_again(home: Home) -> None:
    tear(home.adapters / "notes" / NEW / "adapter_model.safetensors")
    first, second = examine(home, mend=True)
    assert f"adapter {NEW}, which answers for 'notes', is not whole" in first.what
    assert f"adapter {OLD} answers again" in first.remedy
    assert "deleted" in second.remedy
    assert answers(home) == OLD
    assert past.history(home, "notes")[-1].reasons == (
        f"ragtuned doctor: adapter {NEW} was not whole",
    )
    assert past.set_aside(past.history(home, "notes")) == set(), "it is promoted when tuned again"
    assert examine(home, mend=True) == []


def test_what_a_person_rolled_back_from_does_not_answer_again(home: Home) -> None:
    decide(home, "rolled back", OLD)
    tear(home.adapters / "notes" / OLD / "adapter_model.safetensors")
    [found] = examine(home, mend=True)
    assert found.state == "left"
    assert f"`ragtuned promote notes {NEW}`" in found.remedy
    assert answers(home) == OLD
    decide(home, "promoted by hand", NEW)
    [mended] = examine(home, mend=True)
    assert mended.state == "mended"
    assert examine(home, mend=True) == []
    assert answers(home) == NEW


def test_without_an_adapter_before_none_answers(home: Home) -> None:
    shutil.rmtree(home.adapters / "notes" / OLD)
    shutil.rmtree(home.adapters / "notes" / NEW)
    [mended] = examine(home, mend=True)
    assert "none answers until the next run" in mended.remedy
    assert not (home.adapters / "notes" / "current").is_symlink()
    assert examine(home, mend=True) == []


# --- what is left to a person -----------------------------------------------------------------


def _gone_folder(home: Home) -> None:
    shutil.rmtree(home.documents("notes"))


def _gone_corpus(home: Home) -> None:
    TableStore(home.tables).write("documents", "past", table("documents", []))
    write_text(home.training("past", "fingerprint") / "run", "")


def _odd_folder(home: Home) -> None:
    write_text(home.corpora / "My Notes" / "a.md", "The ferry is blue.")


def _odd_name(home: Home) -> None:
    (home.corpora / "my notes").symlink_to(home.documents("notes"))


def _future(home: Home) -> None:
    later = time.time() + 9_000
    os.utime(Path(home.tables) / "documents" / "notes.parquet", (later, later))


def _torn_completions(home: Home) -> None:
    home.completions.write_bytes(b"no SQLite file at all" * 100)


def _torn_dagster(home: Home) -> None:
    write_text(home.folder / "dagster" / "history" / "runs.db", "no SQLite file")


def _torn_history(home: Home) -> None:
    write_text(home.adapters / "notes" / "history.json", '[{"what": "prom')


def _unknown_setting(home: Home) -> None:
    write_text(home.corpora / "notes.json", '{"settings": {"tuning": {"epoch": 1}}}')


def _no_gpu(home: Home) -> None:
    write_text(home.corpora / "notes.json", '{"settings": {"tuning": {"require_cuda": true}}}')


def _unfinished(home: Home) -> None:
    note = {"document": "a.md", "paths": ["a.md"], "files": ["a.md"], "questions": [], "gold": []}
    write_text(home.corpora / ".notes.forgetting.json", json.dumps(note))


LEFT: dict[str, tuple[Callable[[Home], None], str, str]] = {
    "gone folder": (_gone_folder, "its folder", "answers as before"),
    "gone corpus": (_gone_corpus, "corpus 'past' is not in", "delete what is named past"),
    "odd folder": (_odd_folder, "My Notes has a name that no corpus may have", "rename it"),
    "odd name": (_odd_name, "has a name that no corpus may have", "rename it"),
    "future": (_future, "1 files have times in the future", "set the clock right"),
    "completions": (_torn_completions, "completions.sqlite is damaged", ".recover"),
    "dagster": (_torn_dagster, "runs.db is damaged", "tables and adapters are not"),
    "history": (_torn_history, "not a history of promotions", "nothing is promoted"),
    "setting": (_unknown_setting, "cannot be run: setting tuning.epoch", "see to that"),
    "empty record": (lambda home: write_text(home.corpora / "notes.json", ""), "notes.json", "see"),
    "empty note": (
        lambda home: write_text(home.corpora / ".notes.forgetting.json", ""),
        ".notes.forgetting.json, the note of what is being forgotten, is damaged",
        "nothing else",
    ),
    "forgetting": (_unfinished, "forgetting a document", "run `ragtuned forget notes`"),
}
if not torch.cuda.is_available():
    LEFT["gpu"] = (_no_gpu, "this machine has no CUDA GPU", "see to that")


@pytest.mark.parametrize("defect", LEFT)
def test_what_only_a_person_can_mend_is_named(home: Home, defect: str) -> None:
    plant, what, remedy = LEFT[defect]
    plant(home)
    [found] = examine(home, mend=True)
    assert found.state == "left"
    assert what in found.what
    assert remedy in found.remedy
    assert examine(home, mend=False) == [found]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("place", ["documents/notes.parquet", f"{NEW}/adapter_model.safetensors"])
def test_what_cannot_be_read_now_is_no_damage(
    home: Home, place: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = io.open

    def fails(file: object, *arguments: object, **named: object) -> object:
        if str(file).endswith(place):
            raise OSError(code, os.strerror(code), str(file))
        return really(file, *arguments, **named)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", fails)
        patch.setattr("builtins.open", fails)
        [found] = examine(home, mend=True)
    assert found.state == "left"
    assert os.strerror(code) in found.what
    assert "nothing of it was changed" in found.remedy
    assert answers(home) == NEW
    assert examine(home, mend=True) == [], "nothing is gone"


def test_a_store_that_cannot_be_opened_is_no_damage(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = sqlite3.connect

    def fails(file: Path, **named: float) -> sqlite3.Connection:
        if file == home.items("notes"):
            raise sqlite3.OperationalError("unable to open database file")
        return really(file, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", fails)
    [found] = examine(home, mend=True)
    assert found.state == "left"
    assert home.items("notes").is_file()


def test_a_full_disk_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LEAST_FREE", 1 << 62)
    [found] = examine(home, mend=True)
    assert "MB left" in found.what


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write")
def test_a_read_only_home_is_told_and_nothing_else() -> None:
    [found] = examine(Home(Path("/proc")), mend=True)
    assert found.what.startswith("/proc cannot be written")


def test_no_home_has_no_defect(tmp_path: Path) -> None:
    assert examine(Home(tmp_path / "nowhere"), mend=True) == []
    assert not (tmp_path / "nowhere").exists()


# --- runs and processes -----------------------------------------------------------------------


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    prepare_environment(home)
    with dg.DagsterInstance.get() as made:
        yield made


def start(
    instance: dg.DagsterInstance,
    tags: dict[str, str],
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED,
) -> str:
    """A run that is marked as going on and holds the place in the pool."""
    run = str(uuid.uuid4())
    instance.add_run(
        dg.DagsterRun(
            "build_memory",
            run,
            status=status,
            tags={"dagster/partition": "notes", **tags},
        )
    )
    storage = instance.event_log_storage
    storage.set_concurrency_slots("accelerator", 1)
    assert storage.claim_concurrency_slot("accelerator", run, "lora_adapter").is_claimed
    return run


def holders(instance: dg.DagsterInstance) -> set[str]:
    info = instance.event_log_storage.get_concurrency_info("accelerator")
    return info.active_run_ids | {step.run_id for step in info.pending_steps}


@pytest.mark.parametrize("tags", [COMMAND_LINE, {}], ids=["command line", "daemon"])
def test_a_run_without_a_process_is_ended(
    home: Home,
    instance: dg.DagsterInstance,
    tags: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start(instance, tags)
    if not tags:
        assert examine(home, mend=True) == [], "it may only just have begun"
        monkeypatch.setattr(dagster_records, "_SECONDS_TO_START", -60.0)
    with alone(home, "notes"):
        assert examine(home, mend=True) == [], "its process lives"
    [mended] = examine(home, mend=True)
    assert f"run {run} of corpus 'notes'" in mended.what
    ended = instance.get_run_by_id(run)
    assert ended
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert holders(instance) == set()
    assert examine(home, mend=True) == []


def test_a_run_whose_container_is_being_fetched_has_the_time_that_dagster_gives_it(
    home: Home, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_records, "_SECONDS_TO_START", -60.0)
    run = start(instance, {}, dg.DagsterRunStatus.STARTING)
    assert examine(home, mend=True) == []
    allowed = property(lambda _: 0)  # run_monitoring.start_timeout_seconds of dagster.yaml
    monkeypatch.setattr(dg.DagsterInstance, "run_monitoring_start_timeout_seconds", allowed)
    [mended] = examine(home, mend=True)
    assert run in mended.what


def test_a_run_that_has_begun_a_step_had_the_lock(home: Home, instance: dg.DagsterInstance) -> None:
    """So that without it its process is gone, however young the run."""
    run = instance.get_run_by_id(start(instance, {}))
    assert run
    assert examine(home, mend=True) == [], "it may wait for the lock"
    event = DagsterEvent(dg.DagsterEventType.STEP_START.value, "build_memory", step_key="documents")
    instance.report_dagster_event(event, run.run_id)
    with alone(home, "notes"):
        assert examine(home, mend=True) == [], "its process lives"
    [mended] = examine(home, mend=True)
    assert f"run {run.run_id} of corpus 'notes'" in mended.what


def test_the_place_of_a_run_that_is_over_is_freed(home: Home, instance: dg.DagsterInstance) -> None:
    run = start(instance, COMMAND_LINE)
    instance.delete_run(run)
    storage = instance.event_log_storage
    assert storage.claim_concurrency_slot("accelerator", run, "lora_adapter").is_claimed
    [mended] = examine(home, mend=True)
    assert mended.what == f"run {run} is over and still has a place in the pool 'accelerator'"
    assert holders(instance) == set()
    assert examine(home, mend=True) == []


TRAINER = """
    import fcntl, signal, sys, time
    stubborn = sys.argv[2] == "stubborn"
    handle = open(sys.argv[1], "w")
    fcntl.flock(handle, fcntl.LOCK_EX)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: sys.exit(0))
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not orphans._LOCKS.is_file(), reason="locks have no owner to be told here")
@pytest.mark.parametrize("kind", ["mild", "stubborn"])
def test_a_trainer_without_a_run_is_stopped(
    home: Home, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SECONDS_TO_SAVE", 0.5)
    lock = home.training("notes", "fingerprint") / "lock"
    write_text(lock, "")
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    command = [sys.executable, str(script), str(lock), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout
        trainer.stdout.readline()
        with alone(home, "notes"):
            assert examine(home, mend=True) == [], "its run lives"
        [found] = examine(home, mend=False)
        assert trainer.poll() is None
        [mended] = examine(home, mend=True)
        assert mended == Finding(found.what, "stopped, after a checkpoint", "mended")
        assert f"(process {trainer.pid})" in mended.what
        assert trainer.wait(timeout=10) == (0 if kind == "mild" else -9)
    assert examine(home, mend=True) == []


# --- the command ------------------------------------------------------------------------------


def test_the_command_says_what_it_found(home: Home) -> None:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAGTUNED_", "DAGSTER_"))}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ragtuned_pipeline.cli", "doctor", *arguments]
        return subprocess.run(
            [*command, "--home", str(home.folder)], env=own, capture_output=True, text=True
        )

    _torn_table(home)
    done = call("--dry-run", "--json")
    assert done.returncode == 1, done.stderr
    [row] = json.loads(done.stdout)["findings"]
    assert row["state"] == "mendable"
    done = call()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mended: ")
    assert done.stdout.rstrip().endswith("deleted; the next run makes it anew")


@pytest.mark.parametrize(
    ("most_bytes", "sentence"),
    [(0, "File too large; `ragtuned doctor` says"), (20_000, "Dagster cannot write its records")],
)
def test_a_run_that_cannot_write_says_so_in_one_sentence(
    home: Home, most_bytes: int, sentence: str
) -> None:
    """A limit on the size of files fails as a full disk does, and needs no disk of its own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAGTUNED_", "DAGSTER_"))}
    documents = str(home.documents("notes"))
    done = subprocess.run(
        [sys.executable, "-m", "ragtuned_pipeline.cli", "run", documents, "--name", "notes"],
        env={**own, "RAGTUNED_HOME": str(home.folder)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes,) * 2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ragtuned: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert all(each.state == "mended" for each in examine(home, mend=True)), "nothing is lost"
    assert answers(home) == NEW


def test_a_built_home_is_sound(built: Home) -> None:
    assert examine(built, mend=False) == []
