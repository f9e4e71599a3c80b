"""`ragtuned serve` as a run of Dagster's: started by a sensor, stopped by terminating the run.

Whether a home is served is told by the lock of its server (serving_home.running_server), not by
Dagster's records: a server that was started by hand is respected, and one that is gone is started
again whatever the records say.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from ragtuned_pipeline.inference.supervisor import supervised
from ragtuned_pipeline.orchestration.dagster_records import SERVE, dead_server_runs, end_run
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.locks import alone_serving
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.serving_home import running_server
from ragtuned_pipeline.settings import ServingSettings, load_settings
from ragtuned_pipeline.tuning.adapter_store import promoted

ADDRESS_TAG = "ragtuned/address"
_LOOK_EVERY = 2.0  # seconds between two looks at what is served
_HEALTH_SECONDS = 5.0
_SENSOR_SECONDS = 30
# A server that failed sooner after its start would fail again: the next start waits, each time
# twice as long.
_QUICK_SECONDS = 120.0
_FIRST_WAIT = 60.0
_LONGEST_WAIT = 1800.0
_RUNS_SEEN = 10
_OWN_TAGS = {
    # The sensor starts it again; Dagster's retry of a killed run would be a second one.
    "dagster/max_retries": "0",
    "dagster/priority": "1",  # corpora may wait in the queue for hours
}

Command = Callable[[Home], Sequence[str]]


def serve_command(home: Home) -> list[str]:
    """Return the command line that serves a home."""
    return [sys.executable, "-m", "ragtuned_pipeline.cli", "serve", "--home", str(home.folder)]


def serving_job(command: Command = serve_command) -> dg.JobDefinition:
    """The job whose run is the server: its lines are the run's log, its address a tag of the run.

    It takes no pool and no partition, so that no run of a corpus waits for it but in the queue, of
    whose places it has one.

    Args:
        command: what is run; it ends at SIGTERM.
    """

    @dg.op(name="serve", description="Serves the promoted adapters until the run is terminated.")
    def serve(context: dg.OpExecutionContext, home: HomeResource) -> None:
        place = home.home
        with alone_serving(place), _started(command(place)) as server:
            _follow(context, place, server)

    @dg.job(
        name=SERVE,
        executor_def=dg.in_process_executor,
        tags=_OWN_TAGS,
        description="`ragtuned serve` of this home, until the run is terminated.",
    )
    def job() -> None:
        serve()

    return job


def keep_serving(settings: ServingSettings) -> dg.SensorDefinition:
    """The sensor that starts `serving_job` where the home has no server; serving.with_dagster."""
    on = dg.DefaultSensorStatus.RUNNING if settings.with_dagster else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name="keep_serving",
        job_name=SERVE,
        default_status=on,
        minimum_interval_seconds=_SENSOR_SECONDS,
        description="Keeps `ragtuned serve` running; switch it off before you terminate the run. "
        "Setting serving.with_dagster.",
    )
    def look(
        context: dg.SensorEvaluationContext, home: HomeResource
    ) -> dg.RunRequest | dg.SkipReason:
        reason = why_not_now(home.home, context.instance, time.time())
        return dg.RunRequest() if reason is None else dg.SkipReason(reason)

    return look


def why_not_now(home: Home, instance: dg.DagsterInstance, now: float) -> str | None:
    """Return why no server is to be started; None where one is.

    Args:
        now: Unix time.
    """
    server = running_server(home)
    if server is not None:
        return f"served at {server['address']} (process {server['pid']})"
    if not any(promoted(home.adapters, name) for name in home.names()):
        return "no corpus has a promoted adapter yet"
    for run in dead_server_runs(home, instance):
        end_run(instance, run)
    records = instance.get_run_records(dg.RunsFilter(job_name=SERVE), limit=_RUNS_SEEN)
    if going_on := [record.dagster_run for record in records if not record.dagster_run.is_finished]:
        return f"run {going_on[0].run_id} is starting the server, or ending it"
    failures = _quick_failures(records)
    if not failures:
        return None
    last = records[0]
    again_at = (last.end_time or 0.0) + min(_FIRST_WAIT * 2 ** (failures - 1), _LONGEST_WAIT)
    if now >= again_at:
        return None
    times = "" if failures == 1 else f", as did the {failures - 1} before it"
    return (
        f"run {last.dagster_run.run_id} failed soon after its start{times}: its log says why; "
        f"the next start is at {time.strftime('%H:%M:%S', time.localtime(again_at))}, "
        f"or at once by hand (job {SERVE})"
    )


def _quick_failures(records: Sequence[dg.RunRecord]) -> int:
    """Count the newest runs that failed soon after their start, up to the first that did not."""
    for count, record in enumerate(records):
        lived = (record.end_time or 0.0) - (record.start_time or record.end_time or 0.0)
        failed = record.dagster_run.status == dg.DagsterRunStatus.FAILURE
        if not failed or lived >= _QUICK_SECONDS:
            return count
    return len(records)


class _Server:
    """The server's process, and its lines as they come; None after the last."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)


@contextmanager
def _started(command: Sequence[str]) -> Iterator[_Server]:
    """Yield the server, which ends with the block, and with this process however that ends."""
    process = subprocess.Popen(
        supervised(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield _Server(process)
    finally:
        process.terminate()
        process.wait()


def _follow(context: dg.OpExecutionContext, home: Home, server: _Server) -> None:
    """Log what the server says and serves until it ends.

    Raises:
        dg.Failure: it ended by itself, and not well.
    """
    last, served, looked_at = "it said nothing", _Served(context, home), 0.0
    while True:
        try:
            line = server.lines.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            pass
        else:
            if line is None:
                break
            last = line
            context.log.info(line)
        if time.monotonic() - looked_at >= _LOOK_EVERY:
            served.look()
            looked_at = time.monotonic()
    status = server.process.wait()
    if status:
        raise dg.Failure(f"the server ended (exit status {status}): {last}", allow_retries=False)


class _Served:
    """Shows in Dagster where the home is served, and by which adapter each corpus: the first as a
    tag of the run, the second as observations of the corpus's promoted adapter."""

    def __init__(self, context: dg.OpExecutionContext, home: Home) -> None:
        self._context = context
        self._home = home
        self._address = ""
        self._told: dict[str, str] = {}

    def look(self) -> None:
        note = running_server(self._home)
        if note is None:
            return
        if note["address"] != self._address:
            self._address = note["address"]
            tags = {ADDRESS_TAG: self._address}
            self._context.instance.add_run_tags(self._context.run_id, tags)
        for corpus, adapter in sorted(_served(self._home, self._address).items()):
            if self._told.get(corpus) != adapter:
                self._told[corpus] = adapter
                self._context.log_event(
                    dg.AssetObservation(
                        "promoted_adapter",
                        description=f"adapter {adapter} answers at {self._address}",
                        partition=corpus,
                        metadata={"served_adapter": adapter, "served_at": self._address},
                    )
                )


def _served(home: Home, address: str) -> dict[str, str]:
    """Return the adapter that answers for each corpus, as the server tells; empty where it does
    not, as while it starts."""
    import httpx2

    key = os.environ.get(load_settings(home.folder).serving.api_key_variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        # A proxy of the environment's is not for this machine's own addresses.
        with httpx2.Client(trust_env=False, timeout=_HEALTH_SECONDS, headers=headers) as client:
            told: dict[str, Any] = client.get(f"{address.removesuffix('/v1')}/health").json()
    except (httpx2.HTTPError, json.JSONDecodeError):
        return {}
    served: dict[str, str] = told.get("served", {})
    return served
