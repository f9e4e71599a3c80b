"""The server as a run, on a real instance, with a stand-in for `ragtuned serve`."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.orchestration import dagster_records, server_runs
from ragtuned_pipeline.orchestration.dagster_records import SERVE
from ragtuned_pipeline.orchestration.doctor import examine
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.runs import end_dead_runs
from ragtuned_pipeline.orchestration.server_runs import (
    ADDRESS_TAG,
    keep_serving,
    serving_job,
    why_not_now,
)
from ragtuned_pipeline.orchestration.serving_home import running_server
from ragtuned_pipeline.settings import ServingSettings

# Its lock, its note and its /health are those of `ragtuned serve`.
STAND_IN = """
    import json, os, signal, sys
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.orchestration.serving_home import _alone, _noted

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"served": {"news": "a1b2"}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    address = f"http://127.0.0.1:{server.server_port}/v1"
    home = Home.find(sys.argv[1])
    note = {"address": address, "pid": os.getpid(), "engine": "none", "base_model": "none"}
    with _alone(home), _noted(home, note):
        print("serving at", address, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server.serve_forever()
"""
WORKER = """
    import sys
    import dagster as dg
    from ragtuned_pipeline.orchestration import runs, server_runs
    from ragtuned_pipeline.orchestration.resources import HomeResource

    home, stand_in = runs.Home.find(sys.argv[1]), sys.argv[2]
    runs.prepare_environment(home)
    job = server_runs.serving_job(lambda home: [sys.executable, stand_in, str(home.folder)])
    defs = dg.Definitions(jobs=[job], resources={"home": HomeResource(folder=sys.argv[1])})
    with dg.DagsterInstance.get() as instance:
        defs.resolve_job_def("serve_memories").execute_in_process(
            instance=instance, raise_on_error=False
        )
"""


@pytest.fixture
def instance(home: Home) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as found:
        yield found


@pytest.fixture
def worker(home: Home, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does what the daemon's run worker does, with the server below it."""
    for name, code in (("stand_in", STAND_IN), ("worker", WORKER)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    started = subprocess.Popen(
        [sys.executable, tmp_path / "worker.py", home.folder, tmp_path / "stand_in.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    yield started
    started.kill()
    started.wait()


def wait_for(what: Callable[[], Any]) -> Any:
    """Return the first true value."""
    deadline = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def only_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    [run] = instance.get_runs()
    return run


def promote_something(home: Home) -> None:
    (home.corpora / "news").mkdir(parents=True)
    (home.adapters / "news" / "a1b2").mkdir(parents=True)
    (home.adapters / "news" / "current").symlink_to("a1b2")


def fail(instance: dg.DagsterInstance, home: Home) -> dg.ExecuteInProcessResult:
    """A run whose server ends at once, as where a setting is wrong."""
    code = "import sys; print('ragtuned: setting x: wrong', file=sys.stderr); sys.exit(3)"
    job = serving_job(lambda _home: [sys.executable, "-c", code])
    given = dg.Definitions(jobs=[job], resources={"home": HomeResource(folder=str(home.folder))})
    return given.resolve_job_def(SERVE).execute_in_process(instance=instance, raise_on_error=False)


def test_a_run_serves_until_it_is_told_to_stop(
    home: Home, instance: dg.DagsterInstance, worker: "subprocess.Popen[bytes]"
) -> None:
    promote_something(home)
    address = wait_for(lambda: instance.get_runs() and only_run(instance).tags.get(ADDRESS_TAG))
    server = running_server(home)
    assert server is not None
    assert server["address"] == address
    run = only_run(instance)
    seen = wait_for(
        lambda: instance.fetch_observations(dg.AssetKey("promoted_adapter"), limit=5).records
    )
    assert [record.partition_key for record in seen] == ["news"]
    metadata = seen[0].asset_observation.metadata
    assert (metadata["served_adapter"].value, metadata["served_at"].value) == ("a1b2", address)
    said = [entry.user_message for entry in instance.all_logs(run.run_id)]
    assert f"serving at {address}" in said
    shown = CliRunner().invoke(app, ["status", "--home", str(home.folder)]).output
    assert f"served at {address} since {server['started']}" in shown
    # Neither the sensor nor what looks for dead runs takes it for one.
    assert why_not_now(home, instance, time.time()) == (
        f"served at {address} (process {server['pid']})"
    )
    end_dead_runs(home, instance)
    assert only_run(instance).status == dg.DagsterRunStatus.STARTED
    os.kill(worker.pid, signal.SIGINT)  # as a run worker does when its run is terminated
    worker.wait(30)
    assert running_server(home) is None
    with pytest.raises(httpx2.ConnectError), httpx2.Client(trust_env=False) as client:
        client.get(address)
    assert only_run(instance).is_finished


def test_a_server_does_not_outlive_a_killed_worker(
    home: Home,
    instance: dg.DagsterInstance,
    worker: "subprocess.Popen[bytes]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promote_something(home)
    wait_for(lambda: running_server(home))
    run = only_run(instance)
    worker.kill()
    wait_for(lambda: running_server(home) is None)
    # It may be one that has not started its server yet; an old one is none.
    assert why_not_now(home, instance, time.time()) == (
        f"run {run.run_id} is starting the server, or ending it"
    )
    assert [each.what for each in examine(home, mend=False) if run.run_id in each.what] == []
    monkeypatch.setattr(dagster_records, "_SECONDS_TO_START", 0.0)
    [found] = [each for each in examine(home, mend=False) if run.run_id in each.what]
    assert "serves the home" in found.what
    why_not_now(home, instance, time.time())
    assert only_run(instance).status == dg.DagsterRunStatus.FAILURE


def test_a_server_that_fails_is_said_in_its_own_words_and_started_less_and_less(
    home: Home, instance: dg.DagsterInstance
) -> None:
    promote_something(home)
    assert why_not_now(home, instance, time.time()) is None
    result = fail(instance, home)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    described = failure.step_failure_data.user_failure_data.description
    assert described == "the server ended (exit status 3): ragtuned: setting x: wrong"
    for failures in (1, 2, 3):
        ended = instance.get_run_records(limit=1)[0].end_time or 0.0
        wait = server_runs._FIRST_WAIT * 2 ** (failures - 1)
        reason = why_not_now(home, instance, ended + wait - 1)
        assert reason is not None
        assert "failed soon after its start" in reason
        assert (f"as did the {failures - 1} before it" in reason) == (failures > 1)
        assert why_not_now(home, instance, ended + wait + 1) is None
        if failures < 3:
            fail(instance, home)


def test_nothing_is_started_where_nothing_is_promoted_or_a_run_is_on_its_way(
    home: Home, instance: dg.DagsterInstance
) -> None:
    assert why_not_now(home, instance, time.time()) == "no corpus has a promoted adapter yet"
    promote_something(home)
    run = instance.create_run_for_job(defs.resolve_job_def(SERVE))
    reason = why_not_now(home, instance, time.time())
    assert reason == f"run {run.run_id} is starting the server, or ending it"


def test_the_sensor_asks_for_a_run_that_is_not_tried_again_by_dagster(
    home: Home, instance: dg.DagsterInstance
) -> None:
    promote_something(home)
    sensor = keep_serving(ServingSettings(with_dagster=True))
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    off = keep_serving(ServingSettings())
    assert off.default_status == dg.DefaultSensorStatus.STOPPED
    with dg.build_sensor_context(
        instance=instance, resources={"home": HomeResource(folder=str(home.folder))}
    ) as context:
        asked: Any = sensor(context)
        assert isinstance(asked, dg.RunRequest)
        fail(instance, home)
        said: Any = sensor(context)
    assert "setting" not in said.skip_message  # the run's log has the reason
    assert "failed soon" in said.skip_message
    job = defs.resolve_job_def(SERVE)
    assert job.tags["dagster/max_retries"] == "0"
    assert job.partitions_def is None
    assert all(node.definition.pool is None for node in job.nodes)


def test_the_command_is_the_command_lines_own(home: Home) -> None:
    home.folder.mkdir(exist_ok=True)
    (home.folder / "settings.toml").write_text('[serving]\nhost = "203.0.113.7"\n')
    ran = subprocess.run(
        server_runs.serve_command(home),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert "serving.host" in ran.stderr
