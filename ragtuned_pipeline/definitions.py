"""The Dagster code location: composition only."""

import dagster as dg

from ragtuned_pipeline.orchestration.assets import (
    ablation,
    answers,
    corpus,
    evaluation,
    graph,
    judging,
    planning,
    promotion,
    questions,
    synthesis,
    tuning,
)
from ragtuned_pipeline.orchestration.automation import (
    automated_keys,
    automation_sensor,
    build_memory,
    corpora_sensor,
    full_evaluation,
    nightly,
    with_automation,
)
from ragtuned_pipeline.orchestration.resources import HomeResource, parquet_io_manager
from ragtuned_pipeline.orchestration.server_runs import keep_serving, serving_job
from ragtuned_pipeline.orchestration.teaching import TeacherResource
from ragtuned_pipeline.orchestration.trainer_pods import trainer_client
from ragtuned_pipeline.settings import home_folder, load_settings

_settings = load_settings(home_folder())
_assets = with_automation(
    dg.load_assets_from_modules(
        [
            corpus,
            planning,
            graph,
            synthesis,
            tuning,
            questions,
            answers,
            judging,
            ablation,
            evaluation,
            promotion,
        ]
    )
)
_keys = automated_keys(_assets)

defs = dg.Definitions(
    assets=[corpus.corpus_folder, *_assets],
    jobs=[build_memory, full_evaluation, serving_job()],
    sensors=[
        corpora_sensor(_settings.automation, _keys),
        automation_sensor(_settings.automation),
        keep_serving(_settings.serving),
    ],
    schedules=nightly(_settings.automation, _keys),
    resources={
        "home": HomeResource(),
        "teacher": TeacherResource(),
        "io_manager": parquet_io_manager,
        "pipes": trainer_client(),
    },
    executor=dg.in_process_executor,
)
