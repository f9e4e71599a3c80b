"""planning: what the teacher will be asked, before it is asked."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import UserError, run_step, settings_key, table_assets
from ragtuned_pipeline.orchestration.teaching import teacher_key
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tables import table


@table_assets(
    outputs={"teacher_plan": "Calls and tokens that the teacher will take; empty without one."},
    group="corpus",
    rooms=["graph", "synthesis", "evaluation", "inference", "corpus/sentences.py"],
    inputs=["documents", "base_text_units"],
)
def plan(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    documents: pa.Table,
    base_text_units: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.orchestration.planning import plan_teaching

    settings = home.home.settings(context.partition_key)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        if settings.teacher.engine == "none":
            return {"teacher_plan": table("teacher_usage", [])}, {}
        try:
            planned = plan_teaching(documents, base_text_units, settings, None)
        except SettingsError as error:
            raise UserError(str(error)) from error
        rows = [
            {
                "step": step,
                "calls": usage.calls,
                "failed": 0,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
            }
            for step, usage in planned.items()
        ]
        return {"teacher_plan": table("teacher_usage", rows)}, {
            f"planned/{row['step']}": f"{row['calls']:,} calls, "
            f"{row['prompt_tokens']:,} + {row['completion_tokens']:,} tokens"
            for row in rows
        }

    yield from run_step(
        context,
        home.store,
        ["teacher_plan"],
        settings_key(
            settings.graph,
            settings.synthesis,
            settings.evaluation,
            settings.judge,
            teacher_key(settings),
        ),
        {"documents": documents, "base_text_units": base_text_units},
        compute,
    )
