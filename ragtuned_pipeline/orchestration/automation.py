"""What starts by itself: a run for whatever a change reaches, and the nightly run.

The folder sensor reports what has changed; the condition `on_data_change` says which assets that
reaches, and the automation sensor starts one run of them. Each step of the run keeps its result
while nothing it depends on has changed (steps.run_step), so equal data stops the wave.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from ragtuned_pipeline.orchestration.dagster_records import AT_WORK
from ragtuned_pipeline.orchestration.folder_versions import (
    folder_status,
    folder_version,
    last_report,
    read_version,
    report_event,
)
from ragtuned_pipeline.orchestration.home import CorpusMissing
from ragtuned_pipeline.orchestration.partitions import CORPUS_TAG, corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.runs import end_dead_runs
from ragtuned_pipeline.settings import SettingsError, check_corpus_name

if TYPE_CHECKING:
    from ragtuned_pipeline.settings import AutomationSettings

_SECONDS_BETWEEN_LOOKS = 15
_UNFINISHED = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, *AT_WORK]

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

_AC = dg.AutomationCondition
_ASKED_FOR = dg.AssetSelection.groups("ablation")  # hours of tuning: by hand only

# An asset is made again where it is missing (unless a run is about to make it for the first time),
# where its code has changed, or where something that it depends on has other content or is being
# made again in the same run. A run that was to make both does not count: where it failed, it would
# fail again (the nightly run and the next change try it).
on_data_change = (
    (
        (_AC.missing().newly_true() & ~_AC.in_progress())
        | _AC.code_version_changed()
        | _AC.any_deps_match(
            (_AC.data_version_changed() & ~_AC.executed_with_root_target())
            | _AC.will_be_requested()
        ).ignore(_ASKED_FOR)
    )
    # Not Dagster's since_last_handled: it takes what is missing at its first look as handled, and a
    # folder that was there before the daemon would wait for ever.
    .since(_AC.newly_requested() | _AC.newly_updated())
    & ~_AC.any_deps_missing().ignore(_ASKED_FOR)
    & ~_AC.any_deps_in_progress().ignore(_ASKED_FOR)
    & ~_AC.in_progress()
).with_label("on_data_change")


def with_automation(assets: Iterable[Any]) -> list[Any]:
    """Return the assets with their condition: all but the ablation (`ragtuned evaluate --full`)."""

    def conditioned(spec: dg.AssetSpec) -> dg.AssetSpec:
        if spec.group_name == "ablation":
            return spec
        return spec.replace_attributes(automation_condition=on_data_change)

    return [each.map_asset_specs(conditioned) for each in assets]


def automated_keys(assets: Iterable[Any]) -> list[dg.AssetKey]:
    """Return the keys of the assets that have the condition, sorted."""
    specs = (spec for each in assets for spec in each.specs)
    return sorted(spec.key for spec in specs if spec.automation_condition is not None)


def automation_sensor(settings: AutomationSettings) -> dg.AutomationConditionSensorDefinition:
    """The sensor that starts the runs which `on_data_change` asks for."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=_status(settings.watch),
        minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
        description="Starts a run of what a change reaches; setting automation.watch.",
    )


def corpora_sensor(
    settings: AutomationSettings, keys: Sequence[dg.AssetKey]
) -> dg.SensorDefinition:
    """The sensor that reports new and changed folders below <home>/corpora.

    A change that came while a run was reading the folder is run for afterwards.

    Args:
        keys: what such a run makes.
    """

    @dg.sensor(
        name="corpora_sensor",
        job=build_memory,
        default_status=_status(settings.watch),
        minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
        description="Reports new and changed corpora, once they are quiet; automation.watch.",
    )
    def look(context: dg.SensorEvaluationContext, home: HomeResource) -> dg.SensorResult:
        """The cursor holds for each corpus the status that was reported, the one last seen, and the
        version that was reported."""
        end_dead_runs(home.home, context.instance)  # whoever waits for one waits for ever
        seen: dict[str, list[str]] = json.loads(context.cursor or "{}")
        known = set(context.instance.get_dynamic_partitions(corpora.name or ""))
        waiting: list[str] = []
        changed: dict[str, str] = {}
        missed: list[dg.RunRequest] = []
        for name in home.home.names():
            reported, last, version = seen.get(name, ["", "", ""])
            try:
                check_corpus_name(name)
                status = folder_status(home.home, name)
                if name in known and status.key == reported:
                    if version != read_version(home.home, name):
                        missed += _missed(context.instance, name, keys)
                    continue
                if not status.is_quiet(settings.quiet_seconds, last):
                    waiting.append(name)
                    seen[name] = [reported, status.key, version]
                    continue
                version = folder_version(home.home, name)
            except (CorpusMissing, SettingsError, OSError) as error:
                context.log.warning(f"corpus {name}: {error}")
                continue
            seen[name] = [status.key, status.key, version]
            report = last_report(context.instance, name)
            if name not in known or report is None or report.version != version:
                changed[name] = version
        added = sorted(changed.keys() - known)
        why = f"waiting until quiet: {', '.join(waiting)}" if waiting else "no corpus has changed"
        return dg.SensorResult(
            run_requests=missed,
            skip_reason=None if changed or missed else dg.SkipReason(why),
            cursor=json.dumps(seen, sort_keys=True),
            asset_events=[report_event(name, version) for name, version in changed.items()],
            dynamic_partitions_requests=[corpora.build_add_request(added)] if added else [],
        )

    return look


def _missed(
    instance: dg.DagsterInstance, corpus: str, keys: Sequence[dg.AssetKey]
) -> list[dg.RunRequest]:
    """Return the run for a reported version that was not read: it came while a run was reading.

    One run for one report: a folder that cannot be read is not tried for ever.
    """
    report = last_report(instance, corpus)
    if report is None:
        return []
    # The automation sensor has had its looks, and started what it would start.
    if abs(time.time() - report.at) < 4 * _SECONDS_BETWEEN_LOOKS or _goes_on(instance, corpus):
        return []
    return [
        dg.RunRequest(
            run_key=f"{corpus}:{report.id}", partition_key=corpus, asset_selection=list(keys)
        )
    ]


def nightly(
    settings: AutomationSettings, keys: Sequence[dg.AssetKey]
) -> list[dg.ScheduleDefinition]:
    """The schedule that brings changed corpora up to date; none where it is switched off.

    Args:
        keys: what its runs make. Named, because Dagster does not see in a run without a selection
            what it was to make, and would start again what failed in it.
    """
    if not settings.nightly:
        return []

    @dg.schedule(
        name="nightly",
        job=build_memory,
        cron_schedule=settings.nightly,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Runs the corpora that changed or whose last run failed; automation.nightly.",
    )
    def changed(
        context: dg.ScheduleEvaluationContext, home: HomeResource
    ) -> list[dg.RunRequest] | dg.SkipReason:
        stale = []
        for name in sorted(context.instance.get_dynamic_partitions(corpora.name or "")):
            try:
                quiet = folder_status(home.home, name).is_quiet(settings.quiet_seconds, "")
                version = folder_version(home.home, name)
            except (CorpusMissing, SettingsError, OSError) as error:
                context.log.warning(f"corpus {name}: {error}")
                continue
            if not quiet:
                context.log.warning(f"corpus {name} is still changing: it waits for the next night")
            elif not _goes_on(context.instance, name) and (
                version != read_version(home.home, name) or _failed(context.instance, name)
            ):
                stale.append(name)
        if not stale:
            return dg.SkipReason("every corpus is up to date")
        return [dg.RunRequest(partition_key=name, asset_selection=list(keys)) for name in stale]

    return [changed]


def _failed(instance: dg.DagsterInstance, corpus: str) -> bool:
    """Whether the last run of the corpus that nobody stopped failed, or there is none."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    runs = instance.get_runs(dg.RunsFilter(tags={CORPUS_TAG: corpus}, statuses=ended), limit=1)
    return not runs or runs[0].status == dg.DagsterRunStatus.FAILURE


def _goes_on(instance: dg.DagsterInstance, corpus: str) -> bool:
    """Whether a run of the corpus waits, starts or goes on."""
    filters = dg.RunsFilter(tags={CORPUS_TAG: corpus}, statuses=_UNFINISHED)
    return instance.get_runs_count(filters) > 0


def _status(on: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED
