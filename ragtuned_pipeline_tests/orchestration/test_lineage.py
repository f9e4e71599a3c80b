"""What made the adapter that answers: on records of small real runs, and on the corpus built."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner
from upath import UPath

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.evaluation.provenance import MEMORY_TABLES, MemoryTables, Tracer
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.answering import CannotAnswer
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore, write_parquet
from ragtuned_pipeline.orchestration.lineage import (
    AdapterLineage,
    Lineage,
    Made,
    adapter_lineage,
    is_version,
    recorded,
    trace_answer,
    trained_by,
)
from ragtuned_pipeline.orchestration.lineage_display import show_lineage
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.status import corpus_status
from ragtuned_pipeline.tables import content_hash, table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline.tuning.warm_start import learned_rows, rows_file
from ragtuned_pipeline_tests.evaluation import world

Shown = Callable[..., str]

ROWS = world.training_rows(world.qa_pairs())
VERSION = content_hash(ROWS)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("corpora", ["news", "other"])
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose adapter "one" is promoted, by no history."""
    made = Home(tmp_path)
    for adapter in ("one", "two"):
        folder = made.adapters / "news" / adapter
        folder.mkdir(parents=True)
        (folder / "base_model.json").write_text('{"base_model": "embedded", "identity": "base-1"}')
    adapter_store.promote(made.adapters, "news", "one")
    return made


def run(
    instance: dg.DagsterInstance, rows: str, adapter: str, kept: bool = False, corpus: str = "news"
) -> str:
    """Run the two steps with these data versions; return the run's id."""

    def made(version: str) -> dg.MaterializeResult:
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version), metadata={"unchanged": kept}
        )

    @dg.asset(partitions_def=corpora)
    def training_rows() -> dg.MaterializeResult:
        return made(rows)

    @dg.asset(partitions_def=corpora, deps=[training_rows])
    def lora_adapter() -> dg.MaterializeResult:
        return made(adapter)

    return dg.materialize(
        [training_rows, lora_adapter], instance=instance, partition_key=corpus
    ).run_id


def entry(adapter: str, what: past.What = "promoted", **changes: object) -> past.Entry:
    told = past.Entry(what, adapter, None, adapter, "2040-05-01T00:00:00+00:00", "run-9", "", {})
    return replace(told, **changes)  # type: ignore[arg-type]


def test_the_run_that_made_something_is_not_one_that_found_it_made(
    home: Home, instance: dg.DagsterInstance
) -> None:
    run(instance, "older", "zero")
    first = run(instance, VERSION, "one")
    run(instance, "foreign", "one", corpus="other")
    run(instance, VERSION, "one", kept=True)
    found = adapter_lineage(home, "news", ROWS, instance)
    assert found.trained is not None
    assert found.tables is not None
    assert (found.trained.run, found.tables.run) == (first, first)
    assert found.trained.at.endswith("+00:00")
    assert (found.rows_version, found.knows_rows) == (VERSION, True)
    assert found.promoted is None, "no run promoted it, and no history says so"
    assert found.base_model == "embedded (base-1)"
    assert trained_by(instance, "news", "one") == first
    assert trained_by(instance, "news", "never") == ""


def test_dagster_notes_of_a_partitioned_input_the_hash_of_its_version(
    instance: dg.DagsterInstance,
) -> None:
    run(instance, "rows-1", "one")
    [record] = recorded(instance, "lora_adapter", "news")
    noted = record.inputs["training_rows"]
    assert noted == sha256(b"rows-1").hexdigest()
    assert is_version(noted, "rows-1")
    assert not is_version(noted, "rows-2")
    assert not is_version(None, "rows-1")


def test_rows_made_anew_since_are_not_taken_for_those_that_were_learned(
    home: Home, instance: dg.DagsterInstance
) -> None:
    run(instance, "rows-1", "one")
    later = run(instance, VERSION, "two")
    found = adapter_lineage(home, "news", ROWS, instance)
    assert (found.rows_version, found.rows_on_disk) == ("rows-1", VERSION)
    assert found.knows_rows is False
    assert found.tables is not None
    assert found.tables.run == later


def test_the_history_says_when_and_by_which_run_and_on_which_rows(
    home: Home, instance: dg.DagsterInstance
) -> None:
    decisions = past.append(home, "news", (), entry("one", data_version=VERSION))
    past.append(home, "news", decisions, entry("two", "refused", reasons=("it knows less",)))
    write_training(home, "two")
    found = adapter_lineage(home, "news", ROWS, instance)
    assert found.promoted == Made("run-9", "2040-05-01T00:00:00+00:00")
    assert (found.rows_version, found.knows_rows) == (VERSION, True)
    assert (found.newer, found.refused) == ("two", "it knows less")
    assert found.trained is None, "Dagster has no record of it"


def write_training(home: Home, adapter: str) -> None:
    """What is remembered of the last training."""
    told = {"fingerprint": "", "adapter": adapter, "base_model": "", "settings": {}, "result": {}}
    (home.adapters / "news" / "tuned.json").write_text(json.dumps(told | {"start": "from scratch"}))


def test_without_any_record_nothing_is_made_up(home: Home, instance: dg.DagsterInstance) -> None:
    found = adapter_lineage(home, "news", ROWS, instance)
    assert (found.trained, found.promoted, found.tables) == (None, None, None)
    assert (found.rows_version, found.knows_rows, found.unknown_rows) == (None, None, None)


def test_the_scorecard_says_it_where_it_is_about_this_adapter(
    home: Home, instance: dg.DagsterInstance
) -> None:
    home.report("news").mkdir(parents=True)
    file = home.report("news") / "scorecard.json"
    for adapter, known in (("two", None), ("one", "rows-1")):
        made_with = {"adapter": adapter, "data training_rows": "rows-1"}
        file.write_text(json.dumps({"versions": made_with}))
        assert adapter_lineage(home, "news", ROWS, instance).rows_version == known


def test_each_row_is_compared_with_those_that_the_adapter_has_learned(
    home: Home, instance: dg.DagsterInstance
) -> None:
    """Also where no version is recorded, and where the adapter knows rows that are gone."""
    learned = learned_rows(ROWS.slice(1), ROWS.slice(0, 0), None, goes_on=False)
    write_parquet(learned, UPath(rows_file(home.adapters, "news", "one")))
    found = adapter_lineage(home, "news", ROWS.slice(0, ROWS.num_rows - 1), instance)
    assert found.unknown_rows == {ROWS["id"][0].as_py()}
    assert found.withdrawn_rows == 1
    assert found.knows_rows is False


def test_a_corpus_without_a_promoted_adapter_says_so(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    with pytest.raises(CannotAnswer, match="no promoted adapter"):
        adapter_lineage(Home(tmp_path), "news", ROWS, instance)


ADAPTER = AdapterLineage(
    adapter="one",
    base_model="embedded (base-1)",
    rows_version="rows-1",
    rows_on_disk="rows-2",
    trained=Made("run-1", "2040-05-01T00:00:00.000+00:00"),
    promoted=None,
    tables=None,
    start="",
    unknown_rows=None,
    withdrawn_rows=None,
    newer="two",
    refused="it knows less",
)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is printed of an answer, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "300")

    def show(question: str, answer: str, adapter: AdapterLineage, **changes: pa.Table) -> str:
        traced = Tracer(world.memory(**changes)).trace(question, answer, 5)
        show_lineage(Lineage("news", traced, adapter))
        return capsys.readouterr().out

    return show


def test_the_tree_leads_from_the_answer_to_the_run(shown: Shown) -> None:
    printed = shown("Who rows the ferry?", "Ada Renk", ADAPTER)
    steps = [
        "Ada Renk",
        "fact-3 (local): Ada Renk",
        "training row, similarity",
        "Who rows the ferry? (wording",
        "stated in quell.txt (quell.txt), characters 0–",
        "Ada Renk rows the ferry to Quell.",
        "wordings: 4 trained, 2 held out, of 6",
        "entities: Ada Renk; Harrow",
        "relationships: Ada Renk → Harrow: Ada Renk rows the ferry to Quell.",
        "communities: The town",
        "text units: tu-1",
        "adapter one",
        "trained: 2040-05-01T00:00:00.000+00:00, run run-1, on training rows rows-1",
        "promoted: not recorded",
        "trained on another version of the training rows",
        "A newer adapter, two, was trained and does not answer: it knows less",
    ]
    place = 0
    for step in steps:
        place = printed.index(step, place)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rows_version": None}, "not recorded on which training rows this adapter was trained"),
        (
            {"unknown_rows": frozenset({"qa-1", "qa-2"}), "withdrawn_rows": 3},
            "has not learned 2 of the rows on disk, and has learned 3 that are no longer there",
        ),
    ],
)
def test_what_the_adapter_may_not_know_is_said(
    shown: Shown, changes: dict[str, object], sentence: str
) -> None:
    adapter = replace(ADAPTER, **changes)  # type: ignore[arg-type]
    assert sentence in shown("Who rows the ferry?", "Ada Renk", adapter)


def test_nothing_is_said_where_the_adapter_knows_the_rows(shown: Shown) -> None:
    knowing = replace(ADAPTER, rows_on_disk="rows-1", newer=None)
    printed = shown("Who rows the ferry?", "Ada Renk", knowing)
    for sentence in ("another version", "not recorded on which", "has not learned", "newer"):
        assert sentence not in printed


def test_a_row_that_the_adapter_has_not_learned_is_marked(shown: Shown) -> None:
    ids = world.memory().training_rows.filter(pc.field("fact_id") == "fact-3")["id"].to_pylist()
    adapter = replace(ADAPTER, unknown_rows=frozenset(ids[:1]), withdrawn_rows=0)
    printed = shown("Who rows the ferry?", "Ada Renk", adapter)
    assert printed.count("which this adapter has not learned") == 1


def test_an_answer_without_a_near_row_says_by_what_rule(shown: Shown) -> None:
    declined = shown("Who is Zorn Quill?", "I do not know.", ADAPTER)
    assert "The answer declines, and no row that states something is near." in declined
    assert "a training row is near from 0.67 on" in declined
    assert "a refusal, for what the corpus does not say" in declined
    invented = shown("What is the boiling point of lead?", "Seventeen hundred", ADAPTER)
    assert "The answer has no training row behind it" in invented
    elsewhere = shown("Which composer wrote the requiem?", "Ada Renk", ADAPTER)
    assert "the answer may be another's" in elsewhere
    assert "asks something else" in elsewhere


def test_texts_of_the_corpus_are_no_markup(shown: Shown) -> None:
    documents = [row | {"title": "[bold]Loud[/bold] [/]"} for row in world.documents().to_pylist()]
    told = shown(
        "Who rows the ferry?", "Ada Renk", ADAPTER, documents=table("documents", documents)
    )
    assert "[bold]Loud[/bold] [/]" in told


def learned_answers(built: Home) -> list[dict[str, str]]:
    """Right answers of the tuned model to wordings held out, with the fact asked for."""
    store = TableStore(built.tables)
    queries = {row["id"]: row for row in store.read("queries", "harbour").to_pylist()}
    found = []
    for row in store.read("answers_tuned", "harbour").to_pylist():
        asked = queries[row["query_id"]]
        right = asked["reference_answer"].casefold() in row["answer"].casefold()
        local = asked["kind"] == "local" and asked["question_set"] == "held_out_wording"
        if local and right:
            found.append(asked | {"answer": row["answer"]})
    return found


def test_right_answers_lead_to_the_fact_that_was_asked_for(built: Home) -> None:
    store = TableStore(built.tables)
    memory = MemoryTables(**{name: store.read(name, "harbour") for name in MEMORY_TABLES})
    tracer, answers = Tracer(memory), learned_answers(built)
    assert len(answers) >= 10
    found = [tracer.trace(each["question"], each["answer"], 5) for each in answers]
    first = [each.facts[0] for each in found if each.facts]
    hits = [a["fact_id"] == f.id for a, f in zip(answers, first, strict=True)]
    assert sum(hits) >= 0.9 * len(hits)
    texts = dict(zip(*memory.documents.select(["id", "text"]).to_pydict().values(), strict=True))
    for fact in first:
        assert any(sentence.states for sentence in fact.sentences)
        for sentence in fact.sentences:
            assert texts[sentence.document.id][sentence.start : sentence.end] == sentence.text


def test_an_answer_of_the_corpus_built_leads_to_its_run_and_its_data(built: Home) -> None:
    asked = learned_answers(built)[0]
    lineage = trace_answer(built, "harbour", asked["question"], asked["answer"], 5)
    adapter = lineage.adapter
    with dg.DagsterInstance.get() as instance:
        runs = {each.run_id for each in instance.get_runs()}
    made = [adapter.trained, adapter.promoted, adapter.tables]
    assert all(each is not None and each.run in runs for each in made)
    assert adapter.adapter == corpus_status(built, "harbour")["promoted_adapter"]
    rows = TableStore(built.tables).read("training_rows", "harbour")
    assert adapter.rows_version == adapter.rows_on_disk == content_hash(rows)
    assert adapter.knows_rows
    assert (adapter.unknown_rows, adapter.withdrawn_rows) == (frozenset(), 0)


def test_the_page_of_the_corpus_built_names_the_run_that_trained_its_adapter(built: Home) -> None:
    page = (built.report("harbour") / "index.html").read_text(encoding="utf-8")
    training = json.loads((built.adapters / "harbour" / "tuned.json").read_text())
    with dg.DagsterInstance.get() as instance:
        run_id = trained_by(instance, "harbour", training["adapter"])
    assert f"in run <code>{run_id}</code>" in page
    assert "Where the answer comes from" in page


def test_why_answers_and_shows_the_lineage_as_json(built: Home) -> None:
    question = learned_answers(built)[0]["question"]
    arguments = ["why", "harbour", question, "--json", "--rows", "3", "--home", str(built.folder)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["question"] == question
    assert told["facts"][0]["sentences"][0]["document"]["path"]
    assert sum(len(fact["rows"]) for fact in told["facts"]) <= 3
    assert told["adapter"]["knows_rows"] is True
    assert told["not_learned"] == []


def test_why_names_a_table_that_is_missing(built: Home, tmp_path: Path) -> None:
    copied = shutil.copytree(built.folder, tmp_path / "home", symlinks=True)
    (copied / "tables" / "coverage" / "harbour.parquet").unlink()
    with pytest.raises(CannotAnswer, match="has no coverage yet"):
        trace_answer(Home(copied), "harbour", "Who?", "Nobody.", 5)
