"""The events of the corpus built, against what OpenLineage 2-0-2 asks of a RunEvent and its facets
(https://openlineage.io/spec/2-0-2/OpenLineage.json, https://openlineage.io/spec/facets)."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import dagster as dg
import pytest
from pydantic import AnyUrl, AwareDatetime, BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.openlineage import NothingRecorded, _steps, lineage_events
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.tables import SCHEMAS, content_hash


class Checked(BaseModel):
    """Nothing is in an event but what the standard names."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Facet(Checked):
    producer: AnyUrl = Field(alias="_producer")
    schema_url: AnyUrl = Field(alias="_schemaURL")


class Identity(Checked):
    namespace: str = Field(pattern=r"^ragtuned://[^/]+$")
    name: str = Field(pattern=r"^[^/]+/[^/]+$")


class ParentRun(Checked):
    runId: UUID


class Parent(Facet):
    run: ParentRun
    job: Identity


class RunFacets(Checked):
    parent: Parent


class Run(Checked):
    runId: UUID
    facets: RunFacets


class JobType(Facet):
    processingType: Literal["BATCH"]
    integration: str
    jobType: str


class JobFacets(Checked):
    jobType: JobType


class Job(Identity):
    facets: JobFacets


class Version(Facet):
    datasetVersion: str = Field(min_length=1)


class Documentation(Facet):
    description: str = Field(min_length=1)


class Column(Checked):
    name: str
    type: str


class Columns(Facet):
    fields: list[Column]


class DatasetFacets(Checked):
    version: Version | None = None
    documentation: Documentation
    columns: Columns | None = Field(None, alias="schema")


class Dataset(Identity):
    facets: DatasetFacets


class Statistics(Facet):
    rowCount: int = Field(ge=0)


class OutputFacets(Checked):
    outputStatistics: Statistics | None = None


class Output(Dataset):
    outputFacets: OutputFacets


class RunEvent(Checked):
    eventType: Literal["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]
    eventTime: AwareDatetime
    producer: AnyUrl
    schemaURL: Literal["https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"]
    run: Run
    job: Job
    inputs: list[Dataset]
    outputs: list[Output]


@pytest.fixture(scope="module")
def events(built: Home) -> list[dict[str, Any]]:
    return lineage_events(built, "harbour")


def asset(dataset: dict[str, Any]) -> str:
    corpus, name = dataset["name"].split("/")
    assert corpus == "harbour"
    return name


def version(dataset: dict[str, Any]) -> str | None:
    return dataset["facets"].get("version", {}).get("datasetVersion")


def test_every_event_is_as_the_standard_asks(events: list[dict[str, Any]]) -> None:
    assert len(events) > 50
    for event in events:
        RunEvent.model_validate_json(json.dumps(event))
        for facet in _facets(event):
            address, _, pointer = facet["_schemaURL"].partition("#/$defs/")
            assert address.endswith(f"/{pointer}.json")


def _facets(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [facet for each in value for facet in _facets(each)]
    if not isinstance(value, dict):
        return []
    own = [value] if "_schemaURL" in value else []
    return own + [facet for each in value.values() for facet in _facets(each)]


def test_every_step_starts_and_ends_once_in_that_order(events: list[dict[str, Any]]) -> None:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_run.setdefault(event["run"]["runId"], []).append(event)
    for start, end in by_run.values():
        assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
        assert start["job"] == end["job"]
        assert datetime.fromisoformat(start["eventTime"]) <= datetime.fromisoformat(
            end["eventTime"]
        )
        assert end["outputs"]
    times = [event["eventTime"] for event in events]
    assert times == sorted(times)


def test_versions_and_rows_are_those_of_the_tables(
    built: Home, events: list[dict[str, Any]]
) -> None:
    store, made = TableStore(built.tables), {}
    for event in events:
        for output in event["outputs"]:
            assert asset(output) not in made, "made by one step"
            made[asset(output)] = output
    tables = [name for name in made if store.exists(name, "harbour")]
    assert {"documents", "entities", "qa_pairs", "training_rows", "answers"} <= set(tables)
    for name in tables:
        data, told = store.read(name, "harbour"), made[name]
        assert version(told) == content_hash(data), name
        assert told["outputFacets"]["outputStatistics"]["rowCount"] == data.num_rows
    fields = made["training_rows"]["facets"]["schema"]["fields"]
    assert [field["name"] for field in fields] == SCHEMAS["training_rows"].names
    training = read_training(built, "harbour", "tuned")
    assert training is not None
    assert version(made["lora_adapter"]) == version(made["promoted_adapter"]) == training.adapter


def test_inputs_lead_from_the_adapter_to_the_folder_in_the_versions_that_were_made(
    events: list[dict[str, Any]],
) -> None:
    ends = [event for event in events if event["outputs"]]
    made = {asset(output): version(output) for event in ends for output in event["outputs"]}
    read = {
        asset(output): {asset(each): version(each) for each in event["inputs"]}
        for event in ends
        for output in event["outputs"]
    }
    for name, inputs in read.items():
        for source, seen in inputs.items():
            if source != "corpus_folder":
                assert seen == made[source], f"{name} read {source}"
    assert "answers_ablation_both" not in read["scorecard"], "what was never made was not read"
    behind, waiting = set(), ["promoted_adapter"]
    while waiting:
        name = waiting.pop()
        if name not in behind:
            behind.add(name)
            waiting += read.get(name, {})
    assert {"lora_adapter", "training_rows", "qa_pairs", "entities", "documents"} < behind
    assert "corpus_folder" in behind


def test_nothing_tells_where_the_home_lies_and_nothing_is_of_the_corpus(
    built: Home, events: list[dict[str, Any]]
) -> None:
    text = json.dumps(events)
    assert str(built.folder.parent) not in text
    assert f"ragtuned://{built.folder.name}" in text
    assert "Blue Marten" not in text


def test_a_corpus_without_a_run_has_no_events(built: Home) -> None:
    with pytest.raises(NothingRecorded, match="no run of corpus 'nobody'"):
        lineage_events(built, "nobody")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        made.add_dynamic_partitions("corpora", ["news", "other"])
        yield made


def run(instance: dg.DagsterInstance, corpus: str = "news", fails: bool = False) -> str:
    """Make documents, then entities, which may fail; return the run's id."""

    @dg.asset(partitions_def=corpora)
    def documents() -> None:
        return None

    @dg.asset(partitions_def=corpora, deps=[documents])
    def entities() -> None:
        if fails:
            raise ValueError("planted")

    return dg.materialize(
        [documents, entities], instance=instance, partition_key=corpus, raise_on_error=False
    ).run_id


def test_steps_of_the_last_run_that_failed_are_told_as_failed(
    instance: dg.DagsterInstance,
) -> None:
    first, second = run(instance), run(instance, fails=True)
    run(instance, "other", fails=True)
    wanted = [(second, "documents"), (first, "entities")]
    told = _steps(instance, "news", wanted)
    ends = {(each.run, each.name): each.ended[0] for each in told if each.ended}
    assert ends == {
        (second, "documents"): "COMPLETE",
        (first, "entities"): "COMPLETE",
        (second, "entities"): "FAIL",
    }
    run(instance)
    assert len(_steps(instance, "news", wanted)) == 2, "the last run is another now"


def test_a_step_that_was_killed_ends_with_its_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = run(instance)
    logs, end = instance.all_logs, dg.DagsterEventType.STEP_SUCCESS

    def without_ends(*arguments: Any, **named: Any) -> list[dg.EventLogEntry]:
        return [each for each in logs(*arguments, **named) if each.dagster_event_type != end]

    monkeypatch.setattr(instance, "all_logs", without_ends)
    ended = instance.get_run_record_by_id(killed)
    assert ended is not None
    steps = _steps(instance, "news", [])
    assert len(steps) == 2
    for step in steps:
        assert step.ended == ("ABORT", ended.end_time)


def test_export_writes_one_event_a_line(
    built: Home, tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    arguments = ["export", "harbour", "--format", "openlineage", "--home", str(built.folder)]
    printed = CliRunner().invoke(app, arguments)
    file = tmp_path / "events.jsonl"
    written = CliRunner().invoke(app, [*arguments, "--output", str(file)])
    assert (printed.exit_code, written.exit_code) == (0, 0), printed.output + written.output
    assert str(file) in written.stdout
    assert file.read_text(encoding="utf-8") == printed.stdout
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    assert lines == events
    assert Counter(line["eventType"] for line in lines)["START"] == len(lines) / 2
