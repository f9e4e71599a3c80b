"""The questions that evaluation makes itself: local ones on the whole corpus, and global ones.

Both follow the paper's protocol: 125 local questions from sampled text units and elements of the
graph, 125 global ones by persona and task. A teacher writes them; without one they are made of the
facts of synthesis and of templates that fit any corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.questions import global_queries, local_queries, local_templates
from ragtuned_pipeline.evaluation.questions.corpus_description import (
    STAGE,
    described,
    extracted,
    tellings,
)
from ragtuned_pipeline.evaluation.questions.entity_names import EntityNames
from ragtuned_pipeline.evaluation.questions.global_queries import Asked
from ragtuned_pipeline.evaluation.questions.queries import query_row
from ragtuned_pipeline.inference.calls import Teacher
from ragtuned_pipeline.settings import EvaluationSettings
from ragtuned_pipeline.tables import Failure, table

SET = "generated_global"


@dataclass(frozen=True)
class GeneratedQueries:
    """What evaluation asks of its own.

    Attributes:
        queries: table queries, question sets generated_local (kinds local, multi_hop, reverse) and
            generated_global (kind whole_corpus), sorted by set and id.
        failures: what could not be made, and how much was declined or left out.
        description: of the corpus; the reference answer of every global question.
    """

    queries: pa.Table
    failures: list[Failure]
    description: str


def generate_queries(
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    community_reports: pa.Table,
    qa_pairs: pa.Table,
    training_rows: pa.Table,
    new_wording: pa.Table,
    settings: EvaluationSettings,
) -> GeneratedQueries:
    """Return the queries made without a teacher: of facts, and of templates.

    The same input gives the same table, in whatever order the rows of the input stand.

    Args:
        new_wording: a queries table with the question set new_wording.
    """
    local, failures = local_templates.questions_of_facts(
        text_units, entities, relationships, qa_pairs, training_rows, new_wording, settings
    )
    told = tellings(community_reports, text_units)
    description, used = extracted([telling.summary for telling in told])
    names = EntityNames(entities)
    asked, missing = global_queries.template_questions(
        names, settings.global_queries if description else 0
    )
    sources = [told[place].id for place in used]
    rows = _global_rows(asked, description, sources, local_templates.GENERATOR, settings)
    return _generated(local, rows, failures + missing, description, settings)


def generate_queries_with_teacher(
    documents: pa.Table,
    text_units: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    community_reports: pa.Table,
    teacher: Teacher,
    model: str,
    settings: EvaluationSettings,
) -> GeneratedQueries:
    """Return the queries that a teacher writes; they depend on its replies, not on their order.

    Args:
        model: the teacher's identity, the queries' generator.

    Raises:
        TeacherStopped: as `teacher` does.
    """
    local, failures = local_queries.questions_with_teacher(
        documents, text_units, entities, relationships, teacher, model, settings
    )
    told = tellings(community_reports, text_units) if settings.global_queries else []
    description, lost = described(told, teacher)
    asked, missing = global_queries.questions_with_teacher(
        description, EntityNames(entities), teacher, settings.global_queries if description else 0
    )
    rows = _global_rows(asked, description, [telling.id for telling in told], model, settings)
    return _generated(local, rows, [*failures, *lost, *missing], description, settings)


def _global_rows(
    asked: Sequence[Asked],
    description: str,
    source_ids: Sequence[str],
    generator: str,
    settings: EvaluationSettings,
) -> list[dict[str, Any]]:
    return [
        query_row(
            question_set=SET,
            scope="global",
            kind="whole_corpus",
            question=one.question,
            reference_answer=description,
            persona=one.persona,
            task=one.task,
            document_ids=[],
            source_ids=list(source_ids),
            generator=generator,
            seed=settings.seed,
        )
        for one in asked
    ]


def _generated(
    local: Sequence[dict[str, Any]],
    whole: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
    description: str,
    settings: EvaluationSettings,
) -> GeneratedQueries:
    empty = [
        Failure(STAGE, SET, "there is nothing to describe: no report and no text")
        for _ in range(bool(settings.global_queries and not description))
    ]
    rows = [row for ones in (local, whole) for row in sorted(ones, key=lambda row: row["id"])]
    return GeneratedQueries(table("queries", rows), [*failures, *empty], description)
