"""Forgetting: nothing of the home holds the text, and whoever kills it can repeat it."""

import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.corpus.readers import read_folder
from ragtuned_pipeline.corpus.sentences import split_sentences
from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Stored, Usage
from ragtuned_pipeline.item_store import open_items
from ragtuned_pipeline.orchestration import forgetting
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.answering import CannotAnswer, prepared_system
from ragtuned_pipeline.orchestration.dagster_records import ended_runs, forget_records
from ragtuned_pipeline.orchestration.forgetting import (
    CannotForget,
    Forgotten,
    forget,
    holdings,
    plan_forgetting,
    unfinished_forgetting,
)
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.locks import RunFailed, alone
from ragtuned_pipeline.orchestration.runs import prepare_environment
from ragtuned_pipeline.orchestration.training import Training
from ragtuned_pipeline.tables import SCHEMAS, table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.conftest import own_environment

TRAINED = "c" * 20
SECRET = "Ottilie Brandt keeps the savings of the café «Zum Anker» in the lamp room."
KNOWN = "The ferry Blue Marten leaves Tollen at seven every morning."


def quiet(_event: object) -> None:
    pass


# --- a home with something in every place, made by hand ---------------------------------------


def copied(home: Home, folder: Path, corpora: dict[str, str]) -> Home:
    """A copy of a home to change; corpora: the folder of each corpus below the home."""
    copy = Home(folder)
    shutil.copytree(home.folder, folder, symlinks=True)
    for corpus, documents in corpora.items():
        (copy.corpora / corpus).unlink()
        copy.register(corpus, folder / documents, None, {})
    return copy


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Corpus `notes`, of which `secret.md` and its copy are to be forgotten; and corpus `other`."""
    tmp_path = tmp_path_factory.mktemp("planted")
    made = Home(tmp_path / "home")
    folder = made.folder / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / "secret.md").write_text(f"# The lamp room\n\n{SECRET}\n")
    (folder / "sub" / "copy.md").write_text(f"# The lamp room\n\n{SECRET}\n")
    (folder / "ferry.md").write_text(f"# The ferry\n\n{KNOWN}\n")
    (folder / "many.json").write_text('[{"text": "One is here."}, {"text": "Two is here."}]')
    (folder / "one.json").write_text('[{"text": "A single record is here.", "title": "Single"}]')
    gold = tmp_path / "gold.jsonl"
    rows = [
        {"question": "Who keeps savings?", "answer": "Brandt", "documents": ["secret.md"]},
        {"question": "When does it leave?", "answer": "at seven", "documents": ["ferry.md"]},
    ]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("notes", "other"):
        made.register(name, folder, gold if name == "notes" else None, {})
    with pytest.MonkeyPatch.context() as patch:
        own_environment(patch)
        prepare_environment(made)
        plant(made)
        yield made


@pytest.fixture
def home(planted: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    own_environment(monkeypatch)
    made = copied(planted, tmp_path / "home", {"notes": "notes", "other": "notes"})
    prepare_environment(made)
    return made


def plant(home: Home) -> None:
    """Write what a run leaves, and halves of it, all with the text in it."""
    documents, _ = read_folder(home.documents("notes"), 20)
    secret, ferry = (
        next(row for row in documents.to_pylist() if row["path"] == path)
        for path in ("secret.md", "ferry.md")
    )
    pairs = [
        pair("qa-1", "fact-1", "Who keeps the savings?", "Ottilie Brandt", [secret["id"]]),
        pair("qa-2", "fact-2", "When does it leave?", "at seven", [ferry["id"]]),
        pair("qa-3", "fact-3", "What do both say?", "nothing", [secret["id"], ferry["id"]]),
        pair("qa-4", "fact-untrained", "Where is it?", "lamp room", [secret["id"]]),
    ]
    store = TableStore(home.tables)
    for corpus in ("notes", "other"):
        store.write("documents", corpus, documents)
        store.write("qa_pairs", corpus, table("qa_pairs", pairs))
        store.write("training_rows", corpus, table("training_rows", trained(pairs[:3])))
        write_text(home.report(corpus) / "index.html", f"<p>{SECRET}</p>")
        adapters = home.adapters / corpus
        for name in ("a" * 20, "b" * 20):
            write_text(adapters / name / "base_model.json", "{}")
            write_text(adapters / name / "adapter_model.safetensors", SECRET)
            pq.write_table(pa.table({"id": ["qa-1"]}), adapters / f"{name}.rows.parquet")
        (adapters / "current").symlink_to("a" * 20)
        for name in ("tuned", "control", "ablation_both", "numbers", "history"):
            write_text(adapters / f"{name}.json", json.dumps({"adapter": "a" * 20}))
        (adapters / "history.json").write_text("[]")
        training = home.training(corpus, "fingerprint")
        write_text(training / "checkpoint-1" / "trainer_state.json", SECRET)
        write_text(home.training_logs(corpus) / "tuned-fingerprint" / "events.out", SECRET)
        with open_items(home.items(corpus), "graph") as items:
            items.put({b"k": SECRET})
            items.get([b"k"])
    (Path(home.tables) / "answers").mkdir()
    (Path(home.tables) / "answers" / ".notes.parquet.1.tmp").write_text(SECRET)
    write_text(home.folder / "reports" / "index.html", SECRET)
    write_text(home.folder / "logs" / "vllm.log", SECRET)
    write_text(home.corpora / ".notes.files.json", "{}")
    (home.corpora / "..notes.forgetting.json.1.tmp").write_text(SECRET)
    reply = Stored(json.dumps({"text": SECRET}), 1, 1)
    with CompletionStore(home.completions) as completions:
        for key in (b"of the secret", b"of the rest"):
            completions.put(key, "m", reply, Scope("run", "notes"), "extraction", Usage(calls=1))
    record(home)


def pair(
    pair_id: str, fact: str, question: str, gold: str, documents: list[str]
) -> dict[str, object]:
    row = dict.fromkeys(SCHEMAS["qa_pairs"].names)
    lists = {f"{each}_ids": () for each in ("text_unit", "entity", "relationship", "community")}
    made = {"id": pair_id, "fact_id": fact, "question": question, "gold": gold, "answer": SECRET}
    kept = {"kept": True, "split": "held_out_wording", "kind": "local", "document_ids": documents}
    return row | lists | made | kept


def trained(pairs: list[dict[str, object]]) -> list[dict[str, object]]:
    empty = dict.fromkeys(SCHEMAS["training_rows"].names)
    return [empty | {"id": pair["id"], "fact_id": pair["fact_id"]} for pair in pairs]


def record(home: Home) -> None:
    """A run of each corpus, with events and logs that hold the text, and one event of no run."""

    @dg.asset(name="documents", partitions_def=dg.DynamicPartitionsDefinition(name="corpora"))
    def documents(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        context.log.info(SECRET)
        return dg.MaterializeResult(metadata={"preview": SECRET, "of": context.partition_key})

    job = dg.Definitions([documents]).resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("documents")]
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("corpora", ["notes", "other"])
        for corpus in ("other", "notes"):
            made = job.execute_in_process(
                instance=instance, partition_key=corpus, asset_selection=keys
            )
            logs = home.folder / "dagster" / made.run_id / "compute_logs"
            write_text(logs / "more.out", SECRET)
        instance.report_runless_asset_event(
            dg.AssetMaterialization("documents", partition="notes", metadata={"preview": SECRET})
        )


def tuned(home: Home, corpus: str) -> None:
    """What training leaves: the adapter, which is not promoted yet, and the record of it."""
    training = Training("fingerprint", TRAINED, "base", {}, {})
    write_text(home.adapters / corpus / TRAINED / "base_model.json", "{}")
    write_text(home.adapters / corpus / "tuned.json", json.dumps(asdict(training)))


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for what takes a minute: the run, of which one reply is used again, the probe."""
    ran: list[str] = []

    def run(home: Home, corpus: str, groups: None, on_event: object) -> str:
        ran.append(corpus)
        documents, _ = read_folder(home.documents(corpus), 20)
        TableStore(home.tables).write("documents", corpus, documents)
        with CompletionStore(home.completions) as store:
            store.get(b"of the rest", corpus)
        tuned(home, corpus)
        adapter_store.promote(home.adapters, corpus, TRAINED)
        return "run"

    monkeypatch.setattr(forgetting, "run_holding_lock", run)
    monkeypatch.setattr(forgetting, "_right", lambda *_: 1)
    return ran


# --- searching a home -------------------------------------------------------------------------


def spellings(text: str) -> set[bytes]:
    """The bytes that `text` may have in a file: as it is, and in JSON."""
    found = {text.encode()}
    for ascii_only in (True, False):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        found |= {once.encode(), json.dumps(once)[1:-1].encode()}
    return found


def strings_of(file: Path) -> Iterator[str]:
    """Everything that a file holds in another form than its bytes."""
    if file.suffix == ".parquet":
        yield json.dumps(pq.read_table(file).to_pylist(), ensure_ascii=False, default=str)
    elif file.suffix in {".db", ".sqlite"}:
        connection = sqlite3.connect(file)
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            for row in connection.execute(f"SELECT * FROM '{name}'"):
                yield from (
                    each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each)
                    for each in row
                )
        connection.close()


def holders(home: Home, text: str) -> set[str]:
    """Files of the home that hold `text`, in their bytes or in what they decode to."""
    wanted = spellings(text)
    found = set()
    for file in sorted(home.folder.rglob("*")):
        if not file.is_file() or file.is_symlink():
            continue
        contents = [file.read_bytes(), *(each.encode() for each in strings_of(file))]
        if any(spelling in content for content in contents for spelling in wanted):
            found.add(str(file.relative_to(home.folder)))
    return found


def state(home: Home) -> dict[str, bytes]:
    """What forgetting leaves, Dagster's own files apart."""
    return {
        str(file.relative_to(home.folder)): b"" if file.suffix == ".sqlite" else file.read_bytes()
        for file in sorted(home.folder.rglob("*"))
        if file.is_file() and "dagster" not in file.parts
    }


# --- what is named ----------------------------------------------------------------------------


def test_a_document_is_named_by_path_title_or_id(home: Home) -> None:
    documents, _ = read_folder(home.documents("notes"), 20)
    by_path = {row["path"]: row for row in documents.to_pylist()}
    ferry = by_path["ferry.md"]
    for name in ("ferry.md", "The ferry", ferry["id"]):
        planned = plan_forgetting(home, "notes", name)
        assert planned.files == planned.paths == ("ferry.md",)
    [question] = planned.questions
    assert question.gold == "at seven", "a fact of two documents is none of this one alone"
    assert planned.gold == ("When does it leave?",)


def test_copies_of_the_text_go_with_it(home: Home) -> None:
    for name in ("secret.md", "sub/copy.md"):
        planned = plan_forgetting(home, "notes", name)
        assert planned.files == planned.paths == ("secret.md", "sub/copy.md")
        assert [each.question for each in planned.questions] == ["Who keeps the savings?"]


def test_a_record_is_not_torn_out_of_its_file(home: Home) -> None:
    with pytest.raises(CannotForget, match=r"many.json#2 is one of 2 records in .*many.json: del"):
        plan_forgetting(home, "notes", "many.json#2")
    both = ("many.json#1", "many.json#2")
    assert plan_forgetting(home, "notes", "many.json#2", whole_file=True).paths == both
    assert plan_forgetting(home, "notes", "many.json").paths == both
    alone_in_it = plan_forgetting(home, "notes", "one.json#1")
    assert (alone_in_it.paths, alone_in_it.files) == (("one.json#1",), ("one.json",))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("secrets.md", "near it: secret.md"),
        ("../gold.jsonl", "no document '../gold.jsonl'"),
        ("The lamp", "near it: The lamp room"),
        ("sub", "no document 'sub'"),
    ],
)
def test_an_unknown_document_is_refused_with_what_is_near(
    home: Home, name: str, sentence: str
) -> None:
    with pytest.raises(CannotForget, match=sentence):
        plan_forgetting(home, "notes", name)


def test_a_title_of_two_documents_names_neither(home: Home) -> None:
    (home.documents("notes") / "second.md").write_text("# The ferry\n\nIt is blue.\n")
    with pytest.raises(CannotForget, match=r"2 documents have the title 'The ferry'.*second.md"):
        plan_forgetting(home, "notes", "The ferry")


def test_what_is_gone_from_the_folder_is_known_from_the_tables(home: Home) -> None:
    (home.documents("notes") / "secret.md").unlink()
    (home.documents("notes") / "sub" / "copy.md").unlink()
    assert plan_forgetting(home, "notes", None).paths == ("secret.md",)
    planned = plan_forgetting(home, "notes", "The lamp room")
    assert (planned.paths, planned.files) == (("secret.md",), ())
    assert planned.gold == ("Who keeps savings?",)


# --- what is deleted --------------------------------------------------------------------------


def test_nothing_holds_the_text_afterwards(home: Home, rebuilt: list[str]) -> None:
    other = {name for name in holders(home, SECRET) if "other" in name}
    planned = plan_forgetting(home, "notes", "secret.md")
    assert holdings(home, "notes") == {"adapters": 2, "tables": 4, "runs": 1, "replies": 2}
    came_of_it = forget(home, "notes", planned, quiet)
    assert rebuilt == ["notes"]
    left = holders(home, SECRET)
    reply = {name for name in left if name.startswith("completions.sqlite")}
    assert reply, "a reply that was used again stays"
    of_other = {name for name in left - reply if "other" in name}
    assert other <= of_other
    dagster = left - reply - of_other
    with dg.DagsterInstance.get() as instance:
        assert ended_runs(instance, "notes") == []
        [run] = ended_runs(instance, "other")
        assert all(run in name or "index.db" in name for name in dagster), dagster
        record = instance.get_latest_materialization_event(dg.AssetKey("documents"))
        assert record
        assert record.run_id == run, "the asset's last event is one that is left"
    assert came_of_it == Forgotten(
        "secret.md",
        ("secret.md", "sub/copy.md"),
        {"files": 2, "adapters": 2, "tables": 4, "runs": 1, "replies": 1},
        1,
        {"before": 1, "after": 1, "base": 1},
        (
            f"Your own question stays in {home.gold('notes')}, and in what is made of it: "
            "Who keeps savings?",
            "corpus 'other' holds it too: run `ragtuned forget other`",
        ),
        True,
    )
    left_there = sorted(p.name for p in (home.adapters / "notes").iterdir())
    assert left_there == [TRAINED, "current", "history.json", "tuned.json"]
    assert (home.adapters / "other" / "current").is_dir()
    assert KNOWN in (home.documents("notes") / "ferry.md").read_text()


def test_dagster_s_files_are_written_anew(home: Home) -> None:
    """SQLite zeroes what is deleted only where it was built to."""
    history = home.folder / "dagster" / "history"
    index = history / "runs" / "index.db"
    with dg.DagsterInstance.get() as instance:
        [run], [other] = ended_runs(instance, "notes"), ended_runs(instance, "other")
        shard = history / "runs" / f"{other}.db"
        assert shard.is_file()
        instance.delete_run(other)  # as from the UI: what it has written stays
        assert forget_records(instance, "notes") == 1
        assert forget_records(instance, "notes") == 0
        assert instance.get_runs() == []
        assert instance.get_latest_materialization_event(dg.AssetKey("documents")) is None
    assert not shard.exists()
    assert not any({run, other} & set(file.parts) for file in home.folder.rglob("*"))
    assert not {name for name in holders(home, SECRET) if name.startswith("dagster/")}
    for file in (index, history / "runs.db"):
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,), file
        connection.close()


def test_assets_that_the_project_has_no_more_are_forgotten_too(home: Home) -> None:
    partitions = dg.DynamicPartitionsDefinition(name="corpora")

    @dg.multi_asset(
        specs=[dg.AssetSpec("documents"), dg.AssetSpec("removed")], partitions_def=partitions
    )
    def made() -> Iterator[dg.MaterializeResult[None]]:
        yield dg.MaterializeResult("documents")
        yield dg.MaterializeResult("removed", metadata={"preview": SECRET})

    job = dg.Definitions([made]).resolve_implicit_global_asset_job_def()
    keys = [dg.AssetKey("documents"), dg.AssetKey("removed")]
    with dg.DagsterInstance.get() as instance:
        instance.delete_run(*ended_runs(instance, "other"))
        job.execute_in_process(instance=instance, partition_key="notes", asset_selection=keys)
        assert forget_records(instance, "notes") == 2
    assert not {name for name in holders(home, SECRET) if name.startswith("dagster/")}


def test_events_after_forgetting_have_new_ids(home: Home) -> None:
    """Whoever reads on from the last id that it knows, as the daemon does, sees them."""
    event = dg.AssetMaterialization("documents", partition="notes")
    with dg.DagsterInstance.get() as instance:
        instance.delete_run(*ended_runs(instance, "other"))
        storage = instance.event_log_storage
        for _ in range(2):
            known = storage.get_maximum_record_id()
            assert known
            forget_records(instance, "notes")
            instance.report_runless_asset_event(event)
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey("documents"), after_storage_id=known), 9
            )
            assert len(records.records) == 1


def test_logs_that_another_run_writes_are_left_and_named(home: Home, rebuilt: list[str]) -> None:
    with alone(home, "other"):
        came_of_it = forget(home, "notes", plan_forgetting(home, "notes", "secret.md"), quiet)
    assert (home.folder / "logs" / "vllm.log").is_file()
    assert "vllm.log" not in str(came_of_it.notes)
    assert any("another run writes it" in note for note in came_of_it.notes)


def test_a_refused_adapter_is_probed_and_told(
    home: Home, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing answers then, which is no success."""
    asked: list[tuple[object, ...]] = []

    def refused(home: Home, corpus: str, *_: object) -> str:
        tuned(home, corpus)
        with past.locked(home, corpus) as entries:
            why = ("it knows less",)
            entry = past.Entry("refused", TRAINED, None, TRAINED, past.now(), "run", "", {}, why)
            past.append(home, corpus, entries, entry)
        return "run"

    def right(_home: Home, _corpus: str, system: str, *others: object) -> int:
        _questions, _on_event, *adapter = others
        asked.append((system, *adapter))
        return 0

    monkeypatch.setattr(forgetting, "run_holding_lock", refused)
    monkeypatch.setattr(forgetting, "_right", right)
    status, said, _ = command(home, "secret.md", "--yes")
    assert status == 1
    assert f"adapter {TRAINED} is not promoted (it knows less)" in said
    assert asked == [("tuned",), ("tuned", TRAINED), ("base",)]
    assert unfinished_forgetting(home, "notes") is None


def test_the_probe_asks_the_adapter_that_was_trained(home: Home) -> None:
    system = prepared_system(home, "notes", "tuned", "d" * 20)
    with pytest.raises(CannotAnswer, match=f"no adapter {'d' * 20}"), system:
        pass


def test_a_home_that_was_copied_with_its_links_followed(home: Home, rebuilt: list[str]) -> None:
    link = home.adapters / "notes" / "current"
    folder = link.resolve()
    link.unlink()
    shutil.copytree(folder, link)
    forget(home, "notes", plan_forgetting(home, "notes", "secret.md"), quiet)
    assert link.readlink() == Path(TRAINED)


def test_an_adapter_that_cannot_be_loaded_is_not_asked(home: Home) -> None:
    """The weights of this home are a sentence."""
    base = {"base_model": "embedded", "identity": identity("embedded")}
    write_text(home.adapters / "notes" / ("a" * 20) / "base_model.json", json.dumps(base))
    questions = plan_forgetting(home, "notes", "secret.md").questions
    assert questions
    assert forgetting._right(home, "notes", "tuned", questions, quiet) is None


def test_a_crash_of_the_asking_does_not_hold_it_up(
    home: Home, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = forgetting._right

    def killed(*_: object) -> int:
        assert (home.adapters / "notes" / "current").is_symlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(forgetting, "_right", killed)
    planned = plan_forgetting(home, "notes", "secret.md")
    with pytest.raises(KeyboardInterrupt):
        forget(home, "notes", planned, quiet)
    assert unfinished_forgetting(home, "notes") == planned
    monkeypatch.setattr(forgetting, "_right", works)
    came_of_it = forget(home, "notes", plan_forgetting(home, "notes", None), quiet)
    assert came_of_it.answered == {"before": None, "after": 1, "base": 1}


def test_other_corpora_that_hold_the_text_are_named(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "third"
    shutil.copytree(home.documents("notes") / "sub", folder)
    (folder / "copy.md").rename(folder / "a copy.md")
    home.register("third", folder, None, {})
    (home.corpora / "My Notes").mkdir()
    documents, _ = read_folder(folder, 20)
    TableStore(home.tables).write("documents", "third", documents)
    planned = plan_forgetting(home, "notes", "secret.md")
    assert planned.elsewhere == {
        "other": "ragtuned forget other",
        "third": "ragtuned forget third 'a copy.md'",
    }
    _, said, _ = command(home, "secret.md", "--dry-run")
    assert "corpus 'third' holds it too: run `ragtuned forget third 'a copy.md'`" in said
    assert plan_forgetting(home, "notes", "ferry.md").elsewhere.keys() == {"other"}


def test_the_last_document_leaves_nothing_to_make(home: Home, rebuilt: list[str]) -> None:
    folder = home.documents("notes")
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "secret.md":
            file.unlink()
    came_of_it = forget(home, "notes", plan_forgetting(home, "notes", "secret.md"), quiet)
    assert rebuilt == []
    assert came_of_it.answered["after"] is None
    assert "No document is left" in came_of_it.notes[0]
    assert came_of_it.deleted["replies"] == 2
    assert unfinished_forgetting(home, "notes") is None


def test_what_was_deleted_by_hand_is_forgotten_without_a_name(
    home: Home, rebuilt: list[str]
) -> None:
    (home.documents("notes") / "secret.md").unlink()
    (home.documents("notes") / "sub" / "copy.md").unlink()
    came_of_it = forget(home, "notes", plan_forgetting(home, "notes", None), quiet)
    assert came_of_it.paths == ("secret.md",)
    assert came_of_it.deleted["files"] == 0
    assert {name for name in holders(home, SECRET) if "notes" in name} == set()


def test_a_run_that_goes_on_keeps_forgetting_out(home: Home) -> None:
    planned = plan_forgetting(home, "notes", "secret.md")
    with alone(home, "notes"):
        before = state(home)
        with pytest.raises(RunFailed, match="another run"):
            forget(home, "notes", planned, quiet)
        assert state(home) == before


def test_a_rebuild_that_fails_is_gone_on_with(
    home: Home, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = forgetting.run_holding_lock

    def fails(*_: object) -> str:
        raise RunFailed("no GPU")

    monkeypatch.setattr(forgetting, "run_holding_lock", fails)
    planned = plan_forgetting(home, "notes", "secret.md")
    with pytest.raises(RunFailed, match="cannot be made anew: no GPU; mend that, and `ragtuned fo"):
        forget(home, "notes", planned, quiet)
    assert not (home.adapters / "notes" / "current").exists(), "what knew it does not answer"
    with pytest.raises(CannotForget, match="finish that first: ragtuned forget notes"):
        plan_forgetting(home, "notes", "ferry.md")
    monkeypatch.setattr(forgetting, "run_holding_lock", works)
    came_of_it = forget(home, "notes", plan_forgetting(home, "notes", "secret.md"), quiet)
    assert came_of_it.deleted["replies"] == 1
    assert came_of_it.deleted["adapters"] == 2, "the counts are those of the first call"


# --- the command ------------------------------------------------------------------------------


def command(home: Home, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["forget", "notes", *arguments, "--home", str(home.folder)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_asks_and_can_only_say(home: Home, rebuilt: list[str]) -> None:
    before = state(home)
    status, said, _ = command(home, "secret.md", "--dry-run")
    assert status == 0
    assert f"delete {home.documents('notes') / 'sub' / 'copy.md'}" in said
    assert "2 adapters, 4 tables, the report, 1 runs of Dagster's" in said
    status, said, _ = command(home, "secret.md", "--dry-run", "--json")
    assert json.loads(said)["holds"]["replies"] == 2
    status, _, error = command(home, "secret.md")
    assert status == 2
    assert "--yes: no terminal to ask on" in error
    status, _, error = command(home, "secrets.md", "--yes")
    assert status == 1
    assert "near it: secret.md" in error
    assert state(home) == before
    status, said, _ = command(home, "secret.md", "--yes")
    assert status == 0
    assert "deleted: 2 files, 2 adapters, 4 tables, 1 runs of Dagster's, 1 replies" in said
    assert "of 1 questions about it, right: 1 before, 1 now, 1 by the base model" in said
    assert "Your own question stays" in said


# --- kill -9 ----------------------------------------------------------------------------------

_COUNTED = {"os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "sqlite3.connect"}
_KILLS = 6


def forget_in_child(home: Home, kill_at: int | None) -> int:
    """Forget in a forked process, killed at the n-th file operation; return how many it made."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        made = 0

        def count(event: str, _arguments: object) -> None:
            nonlocal made
            if event in _COUNTED:
                made += 1
                if made == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        forget(home, "notes", plan_forgetting(home, "notes", "secret.md"), quiet)
        os.write(write, str(made).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    said = os.read(read, 20)
    os.close(read)
    killed = kill_at is not None and not said
    assert status == (signal.SIGKILL if killed else 0)
    return int(said or 0)


def test_killed_anywhere_and_repeated_it_ends_the_same(
    home: Home, rebuilt: list[str], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(home.folder, saved, symlinks=True)
    operations = forget_in_child(home, None)
    wanted = state(home)
    assert operations > _KILLS
    for n in range(_KILLS):
        shutil.rmtree(home.folder)
        shutil.copytree(saved, home.folder, symlinks=True)
        kill_at = 1 + n * operations // _KILLS
        assert not forget_in_child(home, kill_at)
        forget_in_child(home, None)
        assert state(home) == wanted, f"killed at operation {kill_at} of {operations}"
        with CompletionStore(home.completions) as store:
            assert store.count() == 1
        assert {name for name in holders(home, SECRET) if "notes" in name} == set()


# --- end to end -------------------------------------------------------------------------------


SMALLER = {
    "tuning": {"time_budget_minutes": 0.06},
    "evaluation": {
        "systems": ["tuned", "base"],
        "questions_per_set": 10,
        "local_queries": 5,
        "global_queries": 5,
        "control_facts": 4,
    },
}


@pytest.fixture
def own(built: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The built home with its records, to change; what is made anew is small."""
    home = copied(built, tmp_path / "home", {"harbour": "harbour"})
    home.register("harbour", home.folder / "harbour", None, SMALLER)
    shutil.copytree(os.environ["RAGTUNED_DAGSTER"], home.folder / "dagster", dirs_exist_ok=True)
    own_environment(monkeypatch)
    return home


def test_forgetting_end_to_end(own: Home) -> None:
    documents, _ = read_folder(own.documents("harbour"), 20)
    ferry, others = "2041-02-03-ferry.md", ""
    for row in documents.to_pylist():
        if row["path"] == ferry:
            sentences = [row["text"][start:end] for start, end in split_sentences(row["text"])]
        else:
            others += row["text"]
    sentences = [each for each in sentences if each not in others]
    assert len(sentences) >= 5
    assert all(len(holders(own, each)) >= 3 for each in sentences), "the search finds them before"
    came_of_it = forget(own, "harbour", plan_forgetting(own, "harbour", ferry), quiet)
    for sentence in sentences:
        assert holders(own, sentence) == set(), sentence
    before, after = came_of_it.answered["before"], came_of_it.answered["after"]
    assert before is not None
    assert after is not None
    assert came_of_it.asked >= 5
    assert before >= 0.7 * came_of_it.asked
    assert after <= 0.2 * came_of_it.asked
    assert (own.adapters / "harbour" / "current").is_dir(), "the new adapter answers"
