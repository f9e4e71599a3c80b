"""What starts by itself: the job, the folder sensor, the nightly schedule.

Each step keeps its result while nothing it depends on has changed (steps.run_step), so a run of
the whole job redoes only what a change reaches.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import dagster as dg

from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.settings import SettingsError, check_corpus_name

QUIET_SECONDS = 10.0  # a folder that changed more recently may still be being copied

# One process: starting one for each step costs five times the steps' own time, and training has
# its own process anyway.
build_memory = dg.define_asset_job(
    "build_memory",
    selection=dg.AssetSelection.all()
    - dg.AssetSelection.assets("corpus_folder")
    - dg.AssetSelection.groups("ablation"),
    executor_def=dg.in_process_executor,
    description="From a corpus's folder to its judged adapter; unchanged steps keep their result.",
)

full_evaluation = dg.define_asset_job(
    "full_evaluation",
    selection=dg.AssetSelection.groups("evaluation", "ablation"),
    executor_def=dg.in_process_executor,
    description="Asks and judges every system again, the adapters of the ablation among them.",
)


def folder_state(folder: Path) -> tuple[str, float]:
    """Return a hash of every file's name, size and modification time, and the latest such time."""
    digest, latest = hashlib.blake2b(digest_size=16), folder.stat().st_mtime
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts):
            stat = file.stat()
            latest = max(latest, stat.st_mtime)
            line = f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest(), latest


@dg.sensor(
    job=build_memory,
    minimum_interval_seconds=30,
    description="Starts a run for a new folder below <home>/corpora and for one that changed.",
)
def corpora_sensor(
    context: dg.SensorEvaluationContext, home: HomeResource
) -> dg.SensorResult | dg.SkipReason:
    """The cursor holds, for each corpus, the state last seen and how often it has changed."""
    seen: dict[str, list[str | int]] = json.loads(context.cursor or "{}")
    known = set(context.instance.get_dynamic_partitions(corpora.name or ""))
    requests, added, waiting = [], [], []
    for name in home.home.names():
        try:
            check_corpus_name(name)
        except SettingsError as error:
            context.log.warning(str(error))
            continue
        state, latest = folder_state(home.home.corpora / name)
        before, generation = seen.get(name, ["", 0])
        if state == before:
            continue
        if time.time() - latest < QUIET_SECONDS:
            waiting.append(name)
            continue
        if name not in known:
            added.append(name)
        # The generation makes A -> B -> A three different runs.
        number = int(generation) + 1
        seen[name] = [state, number]
        requests.append(dg.RunRequest(run_key=f"{name}:{number}:{state}", partition_key=name))
    if not requests:
        waits = f"waiting until quiet: {', '.join(waiting)}" if waiting else "no folder has changed"
        return dg.SkipReason(waits)
    return dg.SensorResult(
        run_requests=requests,
        cursor=json.dumps(seen, sort_keys=True),
        dynamic_partitions_requests=[corpora.build_add_request(added)] if added else [],
    )


@dg.schedule(
    job=build_memory,
    cron_schedule="0 3 * * *",
    description="Every night, brings each corpus up to date; an unchanged one costs seconds.",
)
def nightly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    keys = context.instance.get_dynamic_partitions(corpora.name or "")
    return [dg.RunRequest(partition_key=key) for key in sorted(keys)]
