"""What a corpus would cost before anything is spent: the steps run with a teacher of stand-ins."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragtuned_pipeline.orchestration.teaching import (
    judging_settings,
    teacher_model,
    token_counter,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from ragtuned_pipeline.graph.descriptions import CountTokens
    from ragtuned_pipeline.inference.calls import Teacher
    from ragtuned_pipeline.inference.completions import CompletionStore, Usage
    from ragtuned_pipeline.settings import Settings
    from ragtuned_pipeline.tables import Failure
    from ragtuned_pipeline.tuning.training_plan import TrainingPlan


def plan_teaching(
    documents: pa.Table,
    base_text_units: pa.Table,
    settings: Settings,
    store: CompletionStore | None,
) -> dict[str, Usage]:
    """Return what the teacher would be asked, by step in the order of the pipeline.

    The graph is taken from the offline extractor, so that the later steps are planned on about as
    many entities, relationships and communities as the teacher will find.

    Args:
        store: replies in it cost nothing; None to plan as if there were none.

    Raises:
        SettingsError: the teacher's model is not named or cannot be found.
    """
    from ragtuned_pipeline.evaluation.questions.query_stand_ins import query_stand_ins
    from ragtuned_pipeline.graph.extraction_offline import extract
    from ragtuned_pipeline.graph.report_stand_ins import report_stand_ins
    from ragtuned_pipeline.graph.stand_ins import extraction_stand_ins
    from ragtuned_pipeline.inference.plan import Planner
    from ragtuned_pipeline.synthesis.stand_ins import synthesis_stand_ins

    count = token_counter(settings)
    offline = extract(documents, base_text_units, settings.graph)
    stand_ins = {
        **extraction_stand_ins(offline),
        **report_stand_ins(),
        **synthesis_stand_ins(),
        **query_stand_ins(),
    }
    planner = Planner(teacher_model(settings), settings.teacher, stand_ins, count, store)
    queries = ask_everything(documents, base_text_units, planner, settings, count)
    return planner.usage | _plan_judging(queries, settings, store)


def _plan_judging(
    queries: pa.Table, settings: Settings, store: CompletionStore | None
) -> dict[str, Usage]:
    """Return what a judge would be asked about answers to `queries`, where a model judges.

    Your own questions and unanswerable ones are not among them: they cost as much each.
    """
    from ragtuned_pipeline.evaluation.judging.grading import grade_with_teacher, queries_to_grade
    from ragtuned_pipeline.evaluation.judging.judge import judge_with_teacher, pairs_to_judge
    from ragtuned_pipeline.evaluation.judging.judge_stand_ins import (
        answer_stand_ins,
        judge_stand_ins,
    )
    from ragtuned_pipeline.evaluation.systems import SYSTEMS
    from ragtuned_pipeline.inference.plan import Planner

    if settings.judge.engine != "teacher":
        return {}
    judging = judging_settings(settings)
    seed, model = settings.evaluation.seed, teacher_model(judging)
    planner = Planner(model, judging.teacher, judge_stand_ins(), token_counter(judging), store)
    systems = settings.evaluation.systems or tuple(SYSTEMS)
    answers = answer_stand_ins(queries, systems, settings.evaluation)
    judge_with_teacher(pairs_to_judge(queries, answers, settings.judge, seed), planner, model)
    graded = queries_to_grade(queries, settings.judge, seed)
    given = answer_stand_ins(graded, systems, settings.evaluation)
    grade_with_teacher(graded, given, planner, model)
    return planner.usage


def ask_everything(
    documents: pa.Table,
    base_text_units: pa.Table,
    teacher: Teacher,
    settings: Settings,
    count: CountTokens,
) -> pa.Table:
    """Ask all that the steps ask, from extraction to the queries of evaluation; return these."""
    from ragtuned_pipeline.evaluation.questions.generated_queries import (
        generate_queries_with_teacher,
    )
    from ragtuned_pipeline.graph.communities import cluster
    from ragtuned_pipeline.graph.extraction_llm import extract_with_teacher
    from ragtuned_pipeline.graph.reports_llm import reports_with_teacher
    from ragtuned_pipeline.inference.engine import system_message
    from ragtuned_pipeline.synthesis.synthesise_llm import synthesise_with_teacher

    graph = extract_with_teacher(documents, base_text_units, teacher, settings.graph, count)
    communities = cluster(graph.entities, graph.relationships, settings.graph)
    tables = communities, graph.entities, graph.relationships, graph.text_units
    reports, _ = reports_with_teacher(*tables, teacher, settings.graph, count)
    synthesise_with_teacher(
        documents,
        graph.text_units,
        graph.entities,
        graph.relationships,
        communities,
        reports,
        teacher,
        None,
        settings.synthesis,
        system_message(settings.tuning.base_model),
    )
    return generate_queries_with_teacher(
        documents,
        graph.text_units,
        graph.entities,
        graph.relationships,
        reports,
        teacher,
        teacher_model(settings),
        settings.evaluation,
    ).queries


@dataclass(frozen=True)
class FolderPlan:
    """A plan for a folder: how large it is, what the teacher would be asked, by step, and what
    tuning would be.

    Attributes:
        rows_from: what made the rows that `training` plans, for people.
        training: None where nothing can be trained; `refusal` then says why.
        refusal: why the training would not start, "" where it would.
    """

    documents: int
    text_units: int
    unreadable: int
    steps: dict[str, Usage]
    rows_from: str
    training: TrainingPlan | None
    refusal: str


def plan_folder(folder: Path, settings: Settings, completions: Path) -> FolderPlan:
    """Read `folder` and plan it; nothing is written and nothing is asked.

    Args:
        completions: the completion store, which need not exist.

    Raises:
        CorpusError: there is nothing to read.
        SettingsError: as `plan_teaching`.
    """
    from ragtuned_pipeline.inference.completions import CompletionStore

    if settings.teacher.engine != "none":
        teacher_model(settings)  # refused before a large folder is read
    documents, units, failures = read_and_cut(folder, settings)
    steps: dict[str, Usage] = {}
    if settings.teacher.engine != "none":
        paid = CompletionStore(completions) if completions.is_file() else nullcontext()
        with paid as store:
            steps = plan_teaching(documents, units, settings, store)
    rows_from = "offline synthesis"
    if settings.teacher.engine != "none":
        rows_from += ", as the teacher's are not known yet"
    training, refusal = plan_tuning(documents, units, settings)
    return FolderPlan(
        documents.num_rows, units.num_rows, len(failures), steps, rows_from, training, refusal
    )


def plan_tuning(
    documents: pa.Table, base_text_units: pa.Table, settings: Settings
) -> tuple[TrainingPlan | None, str]:
    """Return the plan of tuning on the rows that the offline steps make, and why it would not start
    ("" where it would).

    Raises:
        SettingsError: there is no such base model, its answers would not end, or there are fewer
            devices than the settings ask for.
    """
    from ragtuned_pipeline.graph.communities import cluster
    from ragtuned_pipeline.graph.extraction_offline import extract
    from ragtuned_pipeline.graph.reports import extractive_reports
    from ragtuned_pipeline.synthesis.rows import TOO_LONG, NothingToTrain, select_training_rows
    from ragtuned_pipeline.synthesis.synthesise import synthesise
    from ragtuned_pipeline.tuning.base_models import load_tokenizer, refuse_unending, row_counter
    from ragtuned_pipeline.tuning.machine import this_machine
    from ragtuned_pipeline.tuning.training_plan import base_shape, lost_rows, plan_rows

    tuning = settings.tuning
    graph = extract(documents, base_text_units, settings.graph)
    communities = cluster(graph.entities, graph.relationships, settings.graph)
    elements = graph.entities, graph.relationships
    reports = extractive_reports(communities, *elements, graph.text_units, settings.graph)
    made = synthesise(
        documents, graph.text_units, *elements, communities, reports, settings.synthesis
    )
    tokenizer = load_tokenizer(tuning.base_model)
    refuse_unending(tuning.base_model, tokenizer)
    try:
        # Rows of replay come from the base model, which is not asked here.
        chosen = select_training_rows(made.qa_pairs, row_counter(tokenizer), tuning)
    except NothingToTrain as error:
        return None, str(error)
    machine = this_machine(tuning).emptied()  # a server gives the GPU back before a training
    plan = plan_rows(
        chosen.training_rows, tokenizer, base_shape(tuning.base_model), tuning, machine
    )
    lost = chosen.left_out.get(TOO_LONG, 0)
    warning = lost_rows(lost, lost + chosen.training_rows.num_rows, chosen.longest, tuning)
    if warning:
        plan = replace(plan, overlong=lost, warnings=(warning, *plan.warnings))
    return plan, plan.refusal


def read_and_cut(folder: Path, settings: Settings) -> tuple[pa.Table, pa.Table, Sequence[Failure]]:
    """Return the tables documents and base_text_units of a folder, and what could not be read.

    Raises:
        CorpusError: there is nothing to read.
        SettingsError: there is no such base model.
    """
    from ragtuned_pipeline.corpus.chunking import chunk_documents
    from ragtuned_pipeline.corpus.readers import read_folder
    from ragtuned_pipeline.inference.base_models import load_fast_tokenizer

    read, failures = read_folder(folder, settings.corpus.max_file_megabytes)
    tokenizer = load_fast_tokenizer(settings.tuning.base_model)
    documents, units = chunk_documents(
        read, tokenizer, settings.corpus.chunk_tokens, settings.corpus.overlap_tokens
    )
    return documents, units, failures
