"""The webserver and the daemon of deploy/compose.yaml as processes, on a real Postgres.

    python -m ragtuned_pipeline_tests.deploy.processes [MINUTES]

For machines without a container engine: the same commands, dagster.yaml and workspace.yaml, and the
containers' environment with other addresses. A folder is put into the home; the sensor sees it, the
daemon runs it (a short training), a second run of it is asked for through GraphQL and has to wait.
Prints what is seen, and exits with 1 where a run failed or was not over in MINUTES (30).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ragtuned_pipeline_tests.conftest import HARBOUR
from ragtuned_pipeline_tests.deploy.conftest import DEPLOY
from ragtuned_pipeline_tests.deploy.postgres import Server, free_port, programs, serving

_LOOK_EVERY = 3.0  # seconds
_OVER = {"SUCCESS", "FAILURE", "CANCELED"}
_RUNS = "{runsOrError(limit: 50) {... on Runs {results {runId status tags {key value}}}}}"
_LAUNCH = """mutation($asked: ExecutionParams!) {
  launchRun(executionParams: $asked) {__typename ... on PythonError {message}}}"""
_HEALTH = "{instance {daemonHealth {allDaemonStatuses {daemonType healthy}}}}"


class Webserver:
    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._address}/server_info", timeout=5).close()
        except OSError:
            return False
        return True

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._address}/graphql", body, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["data"]

    def runs(self) -> dict[str, str]:
        """Status by run id, the newest first."""
        found = self.ask(_RUNS)["runsOrError"]["results"]
        return {run["runId"]: run["status"] for run in found}


@contextmanager
def started(folder: Path, server: Server, port: int) -> Iterator[dict[str, str]]:
    """Start both; yield their environment."""
    instance, home = folder / "opt-dagster", folder / "data"
    instance.mkdir()
    (home / "dagster").mkdir(parents=True)
    for file in (DEPLOY / "dagster.yaml", DEPLOY.parent / "workspace.yaml"):
        shutil.copy(file, instance)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DAGSTER", "RAGTUNED"))}
    environment = inherited | {
        "RAGTUNED_HOME": str(home),
        "RAGTUNED_DAGSTER": str(home / "dagster"),
        "RAGTUNED_TUNING__TIME_BUDGET_MINUTES": "0.2",
        "DAGSTER_HOME": str(instance),
        "DAGSTER_PG_HOST": "127.0.0.1",
        "DAGSTER_PG_PORT": str(server.port),
        "DAGSTER_PG_PASSWORD": server.password,
    }
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    replaced = {"0.0.0.0": "127.0.0.1", "3000": str(port)}
    running = []
    try:
        for name in ("webserver", "daemon"):
            command = [replaced.get(part, part) for part in services[name]["command"]]
            with (folder / f"{name}.log").open("w") as log:
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=instance,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        yield environment
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)
            with suppress(ProcessLookupError):  # a run that goes on ends with its container
                os.killpg(process.pid, signal.SIGKILL)


def try_out(minutes: float) -> bool:
    binaries = programs()
    assert binaries, "no Postgres server on this machine"
    begin = time.monotonic()

    def say(text: object) -> None:
        print(f"{time.monotonic() - begin:7.1f} s  {text}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="ragtuned-compose-"))
    port, seen, asked = free_port(), dict[str, str](), False
    with serving(binaries) as server:
        server.execute("CREATE DATABASE ragtuned")
        with started(folder, server, port) as environment:
            webserver = Webserver(port)
            while not webserver.answers():
                time.sleep(0.5)
            say(f"the webserver answers; home, logs and instance are in {folder}")
            shutil.copytree(HARBOUR, folder / "data" / "corpora" / "harbour")
            while time.monotonic() - begin < 60 * minutes:
                runs = webserver.runs()
                for run, status in runs.items():
                    if seen.get(run) != status:
                        say(f"run {run[:8]} is {status}")
                seen = runs
                if not asked and "STARTED" in runs.values():
                    asked = True
                    say(f"a second run is asked for: {webserver.ask(_LAUNCH, asked=_second())}")
                if len(runs) > 1 and set(runs.values()) <= _OVER:
                    break
                time.sleep(_LOOK_EVERY)
            say(webserver.ask(_HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"])
            for command in ("dagster-daemon liveness-check", "ragtuned status", "ragtuned doctor"):
                ran = subprocess.run(
                    command.split(), cwd=folder / "opt-dagster", env=environment, text=True
                )
                say(f"{command}: exit status {ran.returncode}")
    say("both have ended")
    return len(seen) > 1 and set(seen.values()) == {"SUCCESS"}


def _second() -> dict[str, Any]:
    return {
        "selector": {
            "repositoryLocationName": "ragtuned_pipeline",
            "repositoryName": "__repository__",
            "jobName": "build_memory",
        },
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "harbour"}]},
    }


if __name__ == "__main__":
    sys.exit(0 if try_out(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0) else 1)
