"""What made a corpus's data, as OpenLineage events, so that whoever reads that standard can join it
with what lies before and after (https://openlineage.io, RunEvent 2-0-2).

For every asset the last step that made it in a run is told, so that the events lead without a gap
from the folder of documents to the adapter, also where the last run made a part of it only; steps
of the last run that did not end well are told too. A step is a run of its own, and Dagster's run is
its parent. Names are those of the corpus, of assets and of jobs. Nothing tells where the home lies
but the name of its folder, and no text of the corpus is in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid5

import dagster as dg

from ragtuned_pipeline import __version__
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.lineage import (
    Recorded,
    is_version,
    recorded,
    utc,
)
from ragtuned_pipeline.orchestration.partitions import CORPUS_TAG
from ragtuned_pipeline.orchestration.runs import open_instance

_PRODUCER = f"pkg:pypi/ragtuned-pipeline@{__version__}"
_SPEC = "https://openlineage.io/spec"
_EVENT = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
# A facet's name in an event: version and name of its definition.
_FACETS = {
    "parent": ("1-1-0", "ParentRunFacet"),
    "jobType": ("2-0-3", "JobTypeJobFacet"),
    "schema": ("1-1-1", "SchemaDatasetFacet"),
    "documentation": ("1-0-1", "DocumentationDatasetFacet"),
    "version": ("1-0-1", "DatasetVersionDatasetFacet"),
    "outputStatistics": ("1-0-2", "OutputStatisticsOutputDatasetFacet"),
}
_ENDS = {
    dg.DagsterEventType.STEP_SUCCESS: "COMPLETE",
    dg.DagsterEventType.STEP_FAILURE: "FAIL",
}
_RECORDS = 20  # of one asset, among which a version that a step has read is looked for


class NothingRecorded(ValueError):
    """Dagster's instance has no run of a corpus."""


@dataclass(frozen=True)
class _Step:
    """One step of one run, times in seconds since 1970.

    `ended` is the type of the event of its end and when it was; None while it goes on.
    """

    run: str
    job: str
    name: str
    began: float
    ended: tuple[str, float] | None


def lineage_events(home: Home, corpus: str) -> list[dict[str, Any]]:
    """Return START and COMPLETE (else FAIL, or ABORT where it was killed) of every step, in the
    order of time.

    Raises:
        NothingRecorded: no run of the corpus is recorded.
    """
    from ragtuned_pipeline.definitions import defs

    graph = defs.resolve_asset_graph()
    assets = sorted(key.to_user_string() for key in graph.get_all_asset_keys())
    outputs: dict[tuple[str, str], dict[str, Recorded]] = defaultdict(dict)
    with open_instance(home) as instance:
        records = {asset: recorded(instance, asset, corpus, _RECORDS) for asset in assets}
        for asset in assets:
            # What was reported from outside any run (a promotion by hand) is no step's.
            made = next((record for record in records[asset] if record.run), None)
            if made is not None:
                outputs[made.run, made.step][asset] = made
        steps = _steps(instance, corpus, outputs.keys())
    if not steps:
        raise NothingRecorded(
            f"Dagster has recorded no run of corpus {corpus!r}; run `ragtuned run` first"
        )
    told = _Told(f"ragtuned://{quote(home.folder.name)}", corpus, graph)
    events = []
    for step in steps:
        made_here = outputs.get((step.run, step.name), {})
        events.append(told.event("START", step.began, step))
        if step.ended is not None:
            read = _inputs(made_here.values(), records, graph)
            ended = told.event(*step.ended, step)
            ended["inputs"] = [told.dataset(*each) for each in sorted(read.items())]
            ended["outputs"] = [told.output(*each) for each in sorted(made_here.items())]
            events.append(ended)
    return sorted(events, key=lambda event: str(event["eventTime"]))


def _steps(
    instance: dg.DagsterInstance, corpus: str, wanted: Iterable[tuple[str, str]]
) -> list[_Step]:
    """Return the steps `wanted`, (run, name), and those of the last run that did not end well."""
    newest = instance.get_runs(dg.RunsFilter(tags={CORPUS_TAG: corpus}), limit=1)
    last = {run.run_id for run in newest}
    names = set(wanted)
    return [
        step
        for run in sorted({run for run, _ in names} | last)
        for step in _steps_of(instance, run)
        if (run, step.name) in names
        or (run in last and step.ended is not None and step.ended[0] != "COMPLETE")
    ]


def _steps_of(instance: dg.DagsterInstance, run: str) -> list[_Step]:
    record = instance.get_run_record_by_id(run)
    if record is None:
        return []
    began: dict[str, float] = {}
    ended: dict[str, tuple[str, float]] = {}
    for entry in instance.all_logs(run, of_type={dg.DagsterEventType.STEP_START, *_ENDS}):
        if entry.step_key is None or entry.dagster_event_type is None:
            continue
        if entry.dagster_event_type in _ENDS:
            ended[entry.step_key] = _ENDS[entry.dagster_event_type], entry.timestamp
        else:
            began[entry.step_key] = entry.timestamp
    killed = None if record.end_time is None else ("ABORT", record.end_time)
    job = record.dagster_run.job_name
    return [_Step(run, job, name, at, ended.get(name, killed)) for name, at in began.items()]


def _inputs(
    made: Iterable[Recorded], records: Mapping[str, Sequence[Recorded]], graph: Any
) -> dict[str, str | None]:
    """Return what a step has read: asset -> its data version, None where that is not known."""
    noted = {asset: version for record in made for asset, version in record.inputs.items()}
    return {
        asset: next(
            (each.version for each in records.get(asset, ()) if is_version(version, each.version)),
            None,
        )
        for asset, version in noted.items()
        # What had never been made was not read, but for what no step makes: the folder.
        if version is not None or not graph.get(dg.AssetKey(asset)).is_materializable
    }


@dataclass(frozen=True)
class _Told:
    """Events and what is in them, under the names of one corpus."""

    namespace: str
    corpus: str
    graph: Any

    def event(self, kind: str, at: float, step: _Step) -> dict[str, Any]:
        """An event of a step, without what it read and made."""
        parent = _facet("parent", run={"runId": step.run}, job=self._named(step.job))
        job_type = _facet("jobType", processingType="BATCH", integration="DAGSTER", jobType="STEP")
        return {
            "eventType": kind,
            "eventTime": utc(at),
            "producer": _PRODUCER,
            "schemaURL": _EVENT,
            "run": {"runId": str(uuid5(UUID(step.run), step.name)), "facets": parent},
            "job": self._named(step.name) | {"facets": job_type},
            "inputs": [],
            "outputs": [],
        }

    def dataset(self, asset: str, version: str | None) -> dict[str, Any]:
        """An asset's partition of the corpus, in one version."""
        facets = _facet("version", datasetVersion=version) if version else {}
        key = dg.AssetKey(asset)
        if self.graph.has(key) and self.graph.get(key).description:
            facets |= _facet("documentation", description=self.graph.get(key).description)
        return self._named(asset) | {"facets": facets}

    def output(self, asset: str, record: Recorded) -> dict[str, Any]:
        """An asset with its columns and rows, where it is a table."""
        made = self.dataset(asset, record.version)
        columns = record.metadata.get("dagster/column_schema")
        if isinstance(columns, dg.TableSchemaMetadataValue):
            fields = [{"name": each.name, "type": each.type} for each in columns.schema.columns]
            made["facets"] |= _facet("schema", fields=fields)
        rows = record.metadata.get("dagster/row_count")
        made["outputFacets"] = (
            {} if rows is None else _facet("outputStatistics", rowCount=rows.value)
        )
        return made

    def _named(self, name: str) -> dict[str, Any]:
        return {"namespace": self.namespace, "name": f"{self.corpus}/{name}"}


def _facet(name: str, /, **content: Any) -> dict[str, Any]:
    version, definition = _FACETS[name]
    schema = f"{_SPEC}/facets/{version}/{definition}.json#/$defs/{definition}"
    return {name: {"_producer": _PRODUCER, "_schemaURL": schema, **content}}
