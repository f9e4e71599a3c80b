"""tuning: the LoRA adapter, trained in its own process."""

from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline.inference.engine import system_message
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import OWNER, code_version
from ragtuned_pipeline.orchestration.teaching import TeacherResource
from ragtuned_pipeline.orchestration.training import (
    TRAINING_CODE,
    Retuning,
    train_adapter,
    training_result,
)


@dg.asset(
    group_name="tuning",
    partitions_def=corpora,
    code_version=code_version(*TRAINING_CODE),
    owners=[OWNER],
    kinds={"pytorch", "huggingface"},
    pool="accelerator",
)
def lora_adapter(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    pipes: dg.PipesSubprocessClient,
    training_rows: pa.Table,
    qa_pairs: pa.Table,
) -> dg.MaterializeResult[Any]:
    """A LoRA adapter of the base model, tuned on the training rows by TRL's SFTTrainer: from
    scratch, or from the promoted adapter with a replay of earlier rows (retuning.start)."""
    from ragtuned_pipeline.evaluation.questions.queries import trained_facts
    from ragtuned_pipeline.tuning.warm_start import statements

    settings = home.home.settings(context.partition_key)
    tuning = settings.tuning
    facts = trained_facts(training_rows)
    other_wordings = qa_pairs.filter(
        pc.and_(
            pc.and_(qa_pairs["kept"], pc.equal(qa_pairs["split"], "held_out_wording")),
            pc.is_in(qa_pairs["fact_id"], value_set=facts),
        )
    )
    made = train_adapter(
        context,
        home.home,
        pipes,
        "tuned",
        training_rows,
        as_rows(other_wordings, system_message(tuning.base_model)),
        tuning,
        teacher.alone(context, home.home),
        Retuning(settings.retuning, statements(qa_pairs)),
    )
    return training_result(context, home.home, *made)


def as_rows(pairs: pa.Table, told: str | None) -> pa.Table:
    """Pairs as the trainer reads rows, each after the system message `told`."""
    return pa.table(
        {
            "system": pa.array([told] * pairs.num_rows, pa.string()),
            "prompt": pairs["question"],
            "completion": pairs["answer"],
        }
    )
