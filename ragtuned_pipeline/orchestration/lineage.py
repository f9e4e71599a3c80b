"""Where an answer comes from, in one home: its provenance in the tables of the corpus, and what
made the adapter that gave it: which data, which runs, when.

Dagster's instance is asked what it has recorded. Where it has nothing (it was pruned, or lies
elsewhere), that is said, and the rest still holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ragtuned_pipeline.evaluation.provenance import (
    MEMORY_TABLES,
    NEAR,
    RULE,
    MemoryTables,
    NearRow,
    Provenance,
    Tracer,
)
from ragtuned_pipeline.orchestration import promotion_history as past
from ragtuned_pipeline.orchestration.answering import CannotAnswer
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.partitions import VERSION_TAG
from ragtuned_pipeline.orchestration.runs import open_instance
from ragtuned_pipeline.orchestration.training import read_training
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline.tuning.warm_start import row_contents, rows_file

_INPUT_VERSION = "dagster/input_data_version/"
_NEVER_MADE = "INITIAL"  # Dagster's version of an input that has no materialisation
_RECORDS = 200  # of one asset and corpus, the newest; who re-tunes nightly goes back half a year


@dataclass(frozen=True)
class Made:
    """The run that made something.

    `run` is the id of Dagster's run, or promotion_history.COMMAND_LINE; `at` UTC, ISO 8601.
    """

    run: str
    at: str


@dataclass(frozen=True)
class Recorded:
    """One materialisation of an asset for one corpus.

    Attributes:
        run: empty where it was reported from outside any run.
        at: seconds since 1970.
        version: its data version.
        kept: the step found its result made already.
        inputs: asset name -> what Dagster noted of its version, see `is_version`; None where the
            input had never been made.
    """

    run: str
    step: str
    job: str
    at: float
    version: str
    kept: bool
    inputs: Mapping[str, str | None]
    metadata: Mapping[str, dg.MetadataValue[Any]]


@dataclass(frozen=True)
class AdapterLineage:
    """What made the adapter that answers.

    Attributes:
        base_model: name and identity of the base model.
        rows_version: content hash of the table training_rows that it was trained on; None where it
            is not recorded.
        rows_on_disk: content hash of the table as it is now.
        trained, promoted: None where they are not recorded.
        tables: the run that made the table training_rows as it is now.
        start: what it was tuned from, in a sentence; empty where that is not recorded.
        unknown_rows: ids of the rows on disk that it has not learned, withdrawn_rows how many it
            has learned that are not on disk any more; None where its rows are not recorded.
        newer: the last trained adapter, where it is another one.
        refused: why that one does not answer, where the gate refused it.
    """

    adapter: str
    base_model: str
    rows_version: str | None
    rows_on_disk: str
    trained: Made | None
    promoted: Made | None
    tables: Made | None
    start: str
    unknown_rows: frozenset[str] | None
    withdrawn_rows: int | None
    newer: str | None
    refused: str | None

    @property
    def knows_rows(self) -> bool | None:
        """Whether the adapter has learned all rows of the table of now; None: not recorded."""
        if self.unknown_rows is not None:
            return not self.unknown_rows
        return None if self.rows_version is None else self.rows_version == self.rows_on_disk


@dataclass(frozen=True)
class Lineage:
    """An answer, what lies behind it, and what made the adapter that gave it."""

    corpus: str
    provenance: Provenance
    adapter: AdapterLineage

    def is_unknown(self, row: NearRow) -> bool:
        """Whether the adapter is known not to have learned a row."""
        return row.id in (self.adapter.unknown_rows or ())


def trace_answer(home: Home, corpus: str, question: str, answer: str, rows: int) -> Lineage:
    """Return the lineage of an answer of the promoted adapter, from the `rows` nearest rows.

    Raises:
        CannotAnswer: a table is missing, or no adapter is promoted.
        PromotionError: the history of promotions is damaged.
    """
    store = TableStore(home.tables)
    for name in MEMORY_TABLES:
        if not store.exists(name, corpus):
            raise CannotAnswer(
                f"corpus {corpus!r} has no {name.replace('_', ' ')} yet; run `ragtuned run` first"
            )
    tables = MemoryTables(**{name: store.read(name, corpus) for name in MEMORY_TABLES})
    with open_instance(home) as instance:
        adapter = adapter_lineage(home, corpus, tables.training_rows, instance)
    return Lineage(corpus, Tracer(tables).trace(question, answer, rows), adapter)


def as_json(lineage: Lineage) -> dict[str, Any]:
    """Return the lineage as one JSON object, with the rule for "near" and what follows from it."""
    provenance, adapter = lineage.provenance, lineage.adapter
    return {
        "corpus": lineage.corpus,
        "question": provenance.question,
        "answer": provenance.answer,
        "declined": provenance.declined,
        "rule": RULE,
        "near_from": round(NEAR, 4),
        "nothing_near": provenance.nothing_near,
        "answers_another": provenance.answers_another,
        "nearest": asdict(provenance.nearest) if provenance.nearest else None,
        "facts": [asdict(fact) for fact in provenance.facts],
        "not_learned": sorted(
            row.id for fact in provenance.facts for row in fact.rows if lineage.is_unknown(row)
        ),
        "adapter": asdict(adapter)
        | {
            "knows_rows": adapter.knows_rows,
            "unknown_rows": None if adapter.unknown_rows is None else len(adapter.unknown_rows),
        },
    }


def adapter_lineage(
    home: Home, corpus: str, training_rows: pa.Table, instance: dg.DagsterInstance
) -> AdapterLineage:
    """Return what made the promoted adapter.

    Args:
        training_rows: the table as it is now.

    Raises:
        CannotAnswer: no adapter is promoted.
        PromotionError: the history of promotions is damaged.
    """
    adapter = adapter_store.promoted(home.adapters, corpus)
    if adapter is None:
        raise CannotAnswer(f"corpus {corpus} has no promoted adapter; run `ragtuned run` first")
    decisions = past.history(home, corpus)
    rows = recorded(instance, "training_rows", corpus)
    trainings = recorded(instance, "lora_adapter", corpus)
    training = read_training(home, corpus, "tuned")
    last = training.adapter if training else None
    on_disk = content_hash(training_rows)
    unknown, withdrawn = _beside_learned(home, corpus, adapter, training_rows)
    base = json.loads((home.adapters / corpus / adapter / "base_model.json").read_text("utf-8"))
    return AdapterLineage(
        adapter=adapter,
        base_model=f"{base['base_model']} ({base['identity']})",
        rows_version=_as_judged(home, corpus, adapter, decisions)
        or _as_recorded(adapter, trainings, [on_disk, *(each.version for each in rows)]),
        rows_on_disk=on_disk,
        trained=made_in(trainings, adapter),
        promoted=_promoted(adapter, decisions)
        or made_in(recorded(instance, "promoted_adapter", corpus), adapter),
        tables=made_in(rows, on_disk),
        start=training.start if training and last == adapter else "",
        unknown_rows=unknown,
        withdrawn_rows=withdrawn,
        newer=last if last != adapter else None,
        refused=past.refusal(decisions, last, adapter),
    )


def _beside_learned(
    home: Home, corpus: str, adapter: str, training_rows: pa.Table
) -> tuple[frozenset[str] | None, int | None]:
    """The ids of the rows that an adapter has not learned, and how many it has learned beside
    those that there are."""
    file = rows_file(home.adapters, corpus, adapter)
    if not file.is_file():
        return None, None
    learned = set(pq.ParquetFile(file).read(["content"])["content"].to_pylist())
    contents = row_contents(training_rows)
    ids = training_rows["id"].to_pylist()
    unknown = [each for each, content in zip(ids, contents, strict=True) if content not in learned]
    return frozenset(unknown), len(learned - set(contents))


def trained_by(instance: dg.DagsterInstance, corpus: str, adapter: str) -> str:
    """Return the id of the run that trained an adapter; empty where none is recorded."""
    made = made_in(recorded(instance, "lora_adapter", corpus), adapter)
    return made.run if made else ""


def _promoted(adapter: str, decisions: Sequence[past.Entry]) -> Made | None:
    last = next((entry for entry in reversed(decisions) if entry.moved), None)
    return Made(last.run, last.when) if last and last.adapter == adapter else None


def _as_judged(
    home: Home, corpus: str, adapter: str, decisions: Sequence[past.Entry]
) -> str | None:
    """The version of an adapter's training rows by the history, else by its scorecard."""
    for entry in reversed(decisions):
        if entry.adapter == adapter and entry.data_version:
            return entry.data_version
    scorecard = scorecard_of(home, corpus, adapter)
    return scorecard["versions"]["data training_rows"] if scorecard else None


def scorecard_of(home: Home, corpus: str, adapter: str) -> Mapping[str, Any]:
    """Return the corpus's scorecard where it is that of `adapter`; else nothing."""
    file = home.report(corpus) / "scorecard.json"
    if not file.is_file():
        return {}
    scorecard: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return scorecard if scorecard["versions"].get("adapter") == adapter else {}


def _as_recorded(adapter: str, trainings: Sequence[Recorded], known: Sequence[str]) -> str | None:
    """The version of an adapter's training rows by what Dagster noted when it was trained.

    Args:
        known: the versions that it may have been.
    """
    for training in trainings:
        if training.version == adapter:
            noted = training.inputs.get("training_rows")
            return next((each for each in known if is_version(noted, each)), None)
    return None


def recorded(
    instance: dg.DagsterInstance, asset: str, corpus: str, limit: int = _RECORDS
) -> list[Recorded]:
    """Return the materialisations of an asset for one corpus, the newest first."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[corpus])
    found = []
    for record in instance.fetch_materializations(wanted, limit=limit).records:
        entry, event = record.event_log_entry, record.asset_materialization
        if event is None:
            continue
        tags = event.tags or {}
        found.append(
            Recorded(
                run=entry.run_id,
                step=entry.step_key or "",
                job=entry.job_name or "",
                at=entry.timestamp,
                version=tags.get(VERSION_TAG, ""),
                kept=_is_true(event.metadata.get("unchanged")),
                inputs={
                    name.removeprefix(_INPUT_VERSION): None if noted == _NEVER_MADE else noted
                    for name, noted in tags.items()
                    if name.startswith(_INPUT_VERSION)
                },
                metadata=event.metadata,
            )
        )
    return found


def is_version(noted: str | None, version: str) -> bool:
    """Whether what Dagster noted of an input is the data version `version`.

    Of an input with partitions it notes the SHA-256 of the versions of those that were read (here
    one), of any other the version itself.
    """
    return noted in {version, sha256(version.encode()).hexdigest()}


def made_in(records: Sequence[Recorded], version: str) -> Made | None:
    """Return the last run that made `version`, not one that found it made; None where none is
    recorded.

    Args:
        records: newest first.
    """
    alike = [record for record in records if record.version == version and record.run]
    made = next((record for record in alike if not record.kept), alike[-1] if alike else None)
    return Made(made.run, utc(made.at)) if made else None


def utc(seconds: float) -> str:
    """Return a moment as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _is_true(value: dg.MetadataValue[Any] | None) -> bool:
    return value is not None and value.value is True
