"""Every table's Arrow schema and column order, and the few functions that make and store tables.

The first columns of documents, text_units, entities, relationships, communities and
community_reports are those of GraphRAG 3.x, in its order, so that either tool reads the other's
index; ours follow them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_LS = pa.list_(pa.string())
_LI = pa.list_(pa.int64())
_FINDINGS = pa.list_(pa.struct([("explanation", pa.string()), ("summary", pa.string())]))


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_TEXT_UNITS = _schema(
    id=_S,
    human_readable_id=_I,
    text=_S,
    n_tokens=_I,
    document_id=_S,
    entity_ids=_LS,
    relationship_ids=_LS,
    covariate_ids=_LS,
    start=_I,  # character offsets of `text` in the document's text
    end=_I,
)

_FAILURES = _schema(stage=_S, item_id=_S, reason=_S, attempts=_I, at=_S)

_ANSWERS = _schema(
    id=_S,
    query_id=_S,
    system=_S,
    answer=_S,
    prompt_tokens=_I,
    completion_tokens=_I,
    seconds=_F,
    context_ids=_LS,
    calls=_I,  # requests to a model: several where a system maps and reduces
    money=_F,  # by the prices set
)

SCHEMAS: dict[str, pa.Schema] = {
    "documents": _schema(
        id=_S,
        human_readable_id=_I,
        title=_S,
        text=_S,
        text_unit_ids=_LS,
        creation_date=_S,
        raw_data=_S,
        path=_S,  # relative to the corpus folder, parts joined by "/"; "#<n>" is a record in it
        format=_S,  # "text" | "markdown" | "chat" | "record"
    ),
    # Text units before the graph exists: their entity and relationship lists are empty.
    "base_text_units": _TEXT_UNITS,
    "text_units": _TEXT_UNITS,
    "entities": _schema(
        id=_S,
        human_readable_id=_I,
        title=_S,
        type=_S,
        description=_S,
        text_unit_ids=_LS,
        frequency=_I,
        degree=_I,
        aliases=_LS,
        type_votes=pa.map_(_S, _I),
    ),
    "relationships": _schema(
        id=_S,
        human_readable_id=_I,
        source=_S,
        target=_S,
        description=_S,
        weight=_F,
        combined_degree=_I,
        text_unit_ids=_LS,
        source_id=_S,
        target_id=_S,
        sentences=_LS,  # the stating sentences, word for word, in corpus order
        inverse=_S,  # the phrase read from target to source, null where none is known
    ),
    "communities": _schema(
        id=_S,
        human_readable_id=_I,
        community=_I,
        level=_I,
        parent=_I,
        children=_LI,
        title=_S,
        entity_ids=_LS,
        relationship_ids=_LS,
        text_unit_ids=_LS,
        period=_S,
        size=_I,
    ),
    "community_reports": _schema(
        id=_S,
        human_readable_id=_I,
        community=_I,
        level=_I,
        parent=_I,
        children=_LI,
        title=_S,
        summary=_S,
        full_content=_S,
        rank=_F,
        rating_explanation=_S,
        findings=_FINDINGS,
        full_content_json=_S,
        period=_S,
        size=_I,
    ),
    "qa_pairs": _schema(
        id=_S,
        kind=_S,
        question=_S,
        answer=_S,
        wording=pa.int32(),
        fact_id=_S,
        document_ids=_LS,
        text_unit_ids=_LS,
        entity_ids=_LS,
        relationship_ids=_LS,
        community_ids=_LS,
        split=_S,
        kept=_B,
        drop_reason=_S,
        generator=_S,
        prompt_tokens=_I,
        completion_tokens=_I,
        gold=_S,  # the shortest string that a right answer must contain
        form=_S,  # the name of the form of asking
        style=_S,  # "short" | "long"
    ),
    # One row a sentence of the corpus.
    "coverage": _schema(
        document_id=_S,
        text_unit_id=_S,
        sentence=_S,
        start=_I,
        end=_I,
        fact_ids=_LS,  # facts whose training answer holds the sentence or its statement
        covered=_B,
        reason=_S,  # why no pair holds it; null where covered
    ),
    "training_rows": _schema(
        id=_S,  # the qa_pair's id
        fact_id=_S,
        kind=_S,
        system=_S,  # system message; null where the base model has none
        prompt=_S,
        completion=_S,
        n_tokens=_I,  # of the whole row, chat template included
        epochs=_I,  # in how many epochs, from the first on, the row is seen
    ),
    # One row: how the training rows were chosen.
    "training_plan": _schema(
        tokens=_I,  # seen in all epochs together
        token_budget=_I,  # for all epochs, from the time budget and the assumed speed
        left_out=pa.map_(_S, _I),  # reason -> rows or facts that are not trained
    ),
    "queries": _schema(
        id=_S,
        scope=_S,
        question=_S,
        reference_answer=_S,
        persona=_S,
        task=_S,
        document_ids=_LS,
        question_set=_S,
        kind=_S,
        fact_id=_S,
        form=_S,
        long_answer=_S,  # the full answer behind the reference; null for gold questions
        evidence=_S,  # what the corpus says to it, word for word; null where none is known
        source_ids=_LS,  # text units, entities, relationships, reports that it was made from
        generator=_S,  # "gold", the teacher's identity, or the name of what made it
        seed=_I,  # of the draw; null for gold questions
    ),
    "answers": _ANSWERS,
    "judgements": _schema(
        id=_S,
        query_id=_S,
        system_a=_S,  # before system_b in the alphabet
        system_b=_S,
        dimension=_S,
        order=_S,  # "ab": system_a's answer was shown first; "ba": system_b's
        verdict=_S,  # "a": system_a is better, "b", "tie"; null where the judge gave none
        reason=_S,
        judge=_S,  # identity and version of its prompt
    ),
    # An LLM's reading of an answer beside the reference and the evidence.
    "grades": _schema(
        id=_S,
        query_id=_S,
        system=_S,
        verdict=_S,  # "correct" | "partly" | "incorrect" | "declined"; null where none was given
        reason=_S,
        judge=_S,
    ),
    # One row a pair of systems, dimension ("overall" too) and scope ("local", "global").
    "win_rates": _schema(
        scope=_S,
        dimension=_S,
        system_a=_S,
        system_b=_S,
        n=_I,  # queries that both orders were judged of
        wins_a=_I,  # in both orders
        wins_b=_I,
        ties=_I,  # of them, orders that disagreed among them
        disagreements=_I,
        unjudged=_I,  # queries for which the judge gave no verdict in one order at least
        win_rate=_F,  # of system_a: wins and half the ties, of n
        low=_F,  # 95 % interval
        high=_F,
    ),
    # General ability before and after tuning, one row an item.
    "probe": _schema(
        id=_S,
        suite=_S,
        item=_S,
        model=_S,  # "base" | "tuned"
        score=_F,
        measure=_S,  # what the score is, and whether higher is better
    ),
    # The scorecard's numbers, one a row.
    "scores": _schema(
        system=_S,
        question_set=_S,
        part=_S,  # "all", or "kind=...", "scope=..."
        measure=_S,
        n=_I,
        value=_F,
        low=_F,  # 95 % interval; null for costs
        high=_F,
    ),
    # One row a step: what the teacher was asked, or would be, whether or not a reply was stored.
    "teacher_usage": _schema(
        step=_S,
        calls=_I,  # items; retries are counted in the completion store
        failed=_I,  # of them
        prompt_tokens=_I,
        completion_tokens=_I,
    ),
    "failures": _FAILURES,
}


@dataclass(frozen=True)
class Failure:
    """One item that a stage could not process; a row of the failures table.

    `at` is the time of the input that failed (a file's modification time, ISO 8601 UTC) or the
    empty string, never the clock: the same input gives the same table.
    """

    stage: str
    item_id: str
    reason: str
    attempts: int = 1
    at: str = ""


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return `rows` as the table `name`.

    Raises:
        ValueError: a row has a key that the table's schema lacks, or lacks one that it has.
    """
    schema = SCHEMAS[name]
    names = set(schema.names)
    for row in rows:
        if row.keys() != names:
            missing, unknown = names - row.keys(), row.keys() - names
            raise ValueError(
                f"table {name}: a row lacks {sorted(missing)} and has the unknown {sorted(unknown)}"
            )
    return pa.Table.from_pylist(list(rows), schema=schema)


def failures_table(failures: Iterable[Failure]) -> pa.Table:
    """Return `failures` as a table, sorted so that the order of discovery does not show."""
    rows = sorted((asdict(f) for f in failures), key=lambda r: tuple(map(str, r.values())))
    return table("failures", rows)


def check_schema(name: str, data: pa.Table) -> None:
    """Raise ValueError, naming the first difference, unless `data` has the schema `name`."""
    expected = SCHEMAS[name]
    if data.schema.equals(expected):
        return
    if data.schema.names != expected.names:
        raise ValueError(f"table {name}: columns {data.schema.names}, expected {expected.names}")
    for field in expected:
        if data.schema.field(field.name).type != field.type:
            raise ValueError(
                f"table {name}: column {field.name} is {data.schema.field(field.name).type}, "
                f"expected {field.type}"
            )


def content_hash(data: pa.Table) -> str:
    """Return a hash of the table's schema and values: its data version.

    The hash is of the table as uncompressed Parquet, because Arrow's own buffers may differ for
    equal values (an all-valid column with and without its validity bitmap).
    """
    sink = pa.BufferOutputStream()
    plain = data.replace_schema_metadata().combine_chunks()
    pq.write_table(plain, sink, compression="none", store_schema=False)
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()
