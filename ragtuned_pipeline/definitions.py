"""The Dagster code location: composition only."""

import dagster as dg

from ragtuned_pipeline.orchestration.assets import (
    corpus,
    evaluation,
    graph,
    planning,
    promotion,
    synthesis,
    tuning,
)
from ragtuned_pipeline.orchestration.automation import build_memory, corpora_sensor, nightly
from ragtuned_pipeline.orchestration.resources import HomeResource, parquet_io_manager
from ragtuned_pipeline.orchestration.teaching import TeacherResource

defs = dg.Definitions(
    assets=[
        corpus.corpus_folder,
        *dg.load_assets_from_modules(
            [corpus, planning, graph, synthesis, tuning, evaluation, promotion]
        ),
    ],
    jobs=[build_memory],
    sensors=[corpora_sensor],
    schedules=[nightly],
    resources={
        "home": HomeResource(),
        "teacher": TeacherResource(),
        "io_manager": parquet_io_manager,
        "pipes": dg.PipesSubprocessClient(),
    },
    executor=dg.in_process_executor,
)
