"""Running the Dagster job in this process, as the command line does."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._check import CheckError

import ragtuned_pipeline
from ragtuned_pipeline.orchestration.dagster_records import (
    dead_runs,
    dead_server_runs,
    end_run,
)
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.locks import COMMAND_LINE, RunFailed, alone
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.settings import SettingsError

if TYPE_CHECKING:
    from dagster import DagsterEvent, EventLogEntry

_INSTANCE_FILE = "dagster.yaml"


@dataclass(frozen=True)
class StepEvent:
    """What the command line shows while a run goes on.

    `kind` is "plan" (count = number of steps), "start", "done", "skipped", "training" (numbers =
    the trainer's progress line), "teacher" (numbers = what the step has asked so far) or "waiting"
    (numbers = {"why": a sentence}).
    """

    kind: str
    step: str = ""
    count: int = 0
    numbers: dict[str, Any] | None = None


def prepare_environment(home: Home) -> None:
    """Set what Dagster reads from the environment, where the user has not set it."""
    storage = home.folder / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    os.environ["RAGTUNED_HOME"] = str(home.folder)
    os.environ.setdefault("RAGTUNED_DAGSTER", str(storage))
    os.environ.setdefault("DAGSTER_HOME", str(_instance_folder()))


def _instance_folder() -> Path:
    """The folder of dagster.yaml: the user's own, else the root of the repository, or the package
    in a wheel."""
    if own := os.environ.get("DAGSTER_HOME"):
        return Path(own)
    package = Path(ragtuned_pipeline.__path__[0])
    return package if (package / _INSTANCE_FILE).is_file() else package.parent


def has_records(home: Home) -> bool:
    """Whether Dagster may have recorded something of this home: there are files of its, or
    dagster.yaml names a database server. Nothing is opened."""
    from dagster._core.instance.ref import InstanceRef

    if record_files(home)[0].is_file():
        return True
    with _told_in_words():
        storage = InstanceRef.from_dir(str(_instance_folder())).event_storage_data
    return storage is not None and "Sqlite" not in storage.class_name


def record_files(home: Home) -> list[Path]:
    """The SQLite files without which Dagster does not start; none is there with a database
    server, nor before the first run."""
    folder = Path(os.environ.get("RAGTUNED_DAGSTER") or home.folder / "dagster")
    history = folder / "history"
    return [
        history / "runs.db",
        history / "runs" / "index.db",
        folder / "schedules" / "schedules.db",
    ]


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """Yield Dagster's instance of a home.

    Raises:
        RunFailed: its records cannot be read or written, as on a full disk or without the database.
        SettingsError: its dagster.yaml is wrong.
    """
    prepare_environment(home)
    with records_written():
        with _told_in_words():
            instance = dg.DagsterInstance.get()
        with instance:
            yield instance


@contextmanager
def _told_in_words() -> Iterator[None]:
    """Say in one sentence what is wrong with dagster.yaml.

    Raises:
        SettingsError: in place of Dagster's error.
    """
    from dagster._core.errors import DagsterInvalidConfigError
    from sqlalchemy.exc import ArgumentError

    file = _instance_folder() / _INSTANCE_FILE
    try:
        yield
    except DagsterInvalidConfigError as error:
        said = error.errors[0].message.splitlines()
        reason = next((line for line in said if "PostProcessingError: " in line), said[0])
        raise SettingsError(f"{file}: {reason.rpartition('PostProcessingError: ')[2]}") from None
    except (ModuleNotFoundError, CheckError) as error:
        raise SettingsError(
            f"{file}: {error}; Postgres needs the extra `postgres` of this package, and the scheme "
            "postgresql+psycopg2"
        ) from None
    except ArgumentError as error:  # names no part of the address, which holds the password
        raise SettingsError(f"{file}: the address of the database: {error}") from None


def run_assets(
    home: Home,
    corpus: str,
    groups: Sequence[str] | None,
    on_event: Callable[[StepEvent], None],
) -> str:
    """Materialise the assets of `groups` for `corpus`; return the run's id.

    Args:
        groups: None for what the job build_memory makes: all but the ablation.

    Raises:
        RunFailed: a step failed, or another run of this corpus is going on.
    """
    with alone(home, corpus):
        return run_holding_lock(home, corpus, groups, on_event)


def run_holding_lock(
    home: Home,
    corpus: str,
    groups: Sequence[str] | None,
    on_event: Callable[[StepEvent], None],
) -> str:
    """As `run_assets`, for a caller that holds the corpus's lock."""
    from ragtuned_pipeline.definitions import defs

    with open_instance(home) as instance:
        instance.add_dynamic_partitions(corpora.name or "", [corpus])
        end_dead_runs(home, instance, corpus)
        run_id = str(uuid.uuid4())
        job = defs.resolve_job_def(
            "full_evaluation" if groups and "ablation" in groups else "build_memory"
        )
        instance.add_event_listener(run_id, lambda entry: _tell(entry, on_event))
        keys = _asset_keys(defs, job, groups)
        on_event(StepEvent("plan", count=_step_count(defs, keys)))
        result = job.execute_in_process(
            instance=instance,
            run_id=run_id,
            partition_key=corpus,
            asset_selection=keys,
            tags=COMMAND_LINE,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        if not result.success:
            raise RunFailed(_reason(result.all_events))
    return run_id


@contextmanager
def records_written() -> Iterator[None]:
    """Say in words that Dagster cannot write, as on a full disk; the steps say so themselves.

    Raises:
        RunFailed: in place of the database's error.
    """
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except OperationalError as error:
        raise RunFailed(_not_written(os.environ["RAGTUNED_DAGSTER"], error)) from None
    except _server_errors() as error:  # has tried it several times
        place = f"the database that {_instance_folder() / _INSTANCE_FILE} names"
        raise RunFailed(_not_written(place, error.__cause__ or error)) from None


def _server_errors() -> tuple[type[Exception], ...]:
    try:
        from dagster_postgres.utils import DagsterPostgresException
    except ImportError:  # the extra `postgres` is not installed
        return ()
    return (DagsterPostgresException,)


def _not_written(place: str, error: BaseException) -> str:
    said = " ".join(str(getattr(error, "orig", error)).split())
    return (
        f"Dagster cannot write its records in {place} ({said}); "
        "`ragtuned doctor` says what is wrong. What was finished is kept, and the same command "
        "goes on from there"
    )


def end_dead_runs(home: Home, instance: dg.DagsterInstance, held: str | None = None) -> None:
    """Mark runs whose process was killed as failed, and free their pool slots.

    A killed process cannot give its slot of the pool back, and whoever waits for it, or for its
    corpus, would wait for ever.

    Args:
        held: the corpus whose lock the caller holds.
    """
    for _, run in dead_runs(home, instance, held):
        end_run(instance, run)
    for run in dead_server_runs(home, instance):
        end_run(instance, run)


def _asset_keys(
    defs: dg.Definitions, job: dg.JobDefinition, groups: Sequence[str] | None
) -> list[dg.AssetKey]:
    graph = defs.resolve_asset_graph()
    keys = job.asset_layer.executable_asset_keys
    return sorted(key for key in keys if groups is None or graph.get(key).group_name in groups)


def _step_count(defs: dg.Definitions, keys: Sequence[dg.AssetKey]) -> int:
    """Assets that one function makes are one step."""
    graph = defs.resolve_asset_graph()
    return len({frozenset(graph.get(key).execution_set_entity_keys) for key in keys})


def _tell(entry: EventLogEntry, on_event: Callable[[StepEvent], None]) -> None:
    event = entry.dagster_event
    if event is None:
        for kind in ("training", "teacher", "waiting"):
            if entry.user_message.startswith(f'{{"{kind}"'):
                line = json.loads(entry.user_message)[kind]
                on_event(StepEvent(kind, entry.step_key or "", numbers=line))
    elif event.is_step_start:
        on_event(StepEvent("start", event.step_key or ""))
    elif event.is_step_success:
        on_event(StepEvent("done", event.step_key or ""))
    elif event.is_step_skipped:
        on_event(StepEvent("skipped", event.step_key or ""))


def _reason(events: Sequence[DagsterEvent]) -> str:
    """The first failed step's own sentence, else the innermost exception's last line."""
    for event in events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        if data.user_failure_data and data.user_failure_data.description:
            return str(data.user_failure_data.description)
        error = data.error
        while error is not None and error.cause is not None:
            error = error.cause
        text = error.message.strip() if error else "no reason was recorded"
        return f"step {event.step_key}: {text}"
    return "the run could not start; see the event log in the Dagster UI (make ui)"
