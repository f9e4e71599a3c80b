"""The compose files against their schema, among themselves, and against what they configure."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.ref import InstanceRef
from dagster_docker import DockerRunLauncher
from docker.models.containers import _create_container_args

from ragtuned_pipeline.orchestration.trainer_pipes import SECONDS_TO_END
from ragtuned_pipeline.settings import Settings, load_settings
from ragtuned_pipeline.tuning.launch import SECONDS_TO_SAVE
from ragtuned_pipeline_tests.deploy.conftest import DEPLOY

ROOT = DEPLOY.parent
NAMES = ("compose.yaml", "compose.gpu.yaml", "compose.run-containers.yaml")
FILES: dict[str, Any] = {name: yaml.safe_load((DEPLOY / name).read_text()) for name in NAMES}
BASE = FILES["compose.yaml"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def dagster(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def services() -> list[tuple[str, str, Any]]:
    return [
        (file, name, service)
        for file, made in FILES.items()
        for name, service in made["services"].items()
    ]


def test_the_files_are_compose_files(tmp_path: Path) -> None:
    def checked(*files: Path) -> int:
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
        command += ["vendor.compose-spec", *map(str, files)]
        return subprocess.run(command, capture_output=True).returncode

    assert checked(*(DEPLOY / name for name in NAMES)) == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("healthcheck:", "healthchecks:"))
    assert checked(wrong) == 1, "the check can fail"


@pytest.mark.parametrize("name", list(BASE["services"]))
def test_what_a_service_uses_is_declared(name: str) -> None:
    service = BASE["services"][name]
    for volume in service["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("."):
            assert (DEPLOY / source).is_file()
        else:
            assert source in BASE["volumes"], volume
        assert target.startswith("/")
    assert set(service["networks"]) <= set(BASE["networks"])
    assert set(service.get("depends_on", {})) <= set(BASE["services"])
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"


def test_ports_are_published_on_loopback_alone_and_records_not_at_all() -> None:
    ports = [port for _, _, service in services() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in BASE["services"]["postgres"]
    assert BASE["services"]["postgres"]["networks"] == ["records"]
    assert BASE["networks"]["records"]["internal"] is True


def test_every_variable_is_in_the_example_and_no_secret_has_a_default() -> None:
    example = (DEPLOY / "example.env").read_text()
    said = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    for name in NAMES:
        for variable, kind, _ in VARIABLE.findall((DEPLOY / name).read_text()):
            assert variable in said, (name, variable)
            if variable in ("DAGSTER_PG_PASSWORD", "RAGTUNED_API_KEY", "RAGTUNED_DOCUMENTS"):
                assert kind == "?", (name, variable)
                assert said[variable] == "", "an example value would be used"
    assert set(said["COMPOSE_FILE"].split(":")) == {"compose.yaml"}
    for files in re.findall(r"COMPOSE_FILE=(\S+)", example):
        assert set(files.split(":")) <= set(NAMES)


def test_what_is_set_is_read_by_something() -> None:
    """Settings are settings; the rest is named by dagster.yaml, the image or the code."""
    of_dagster = "".join(file.read_text() for file in DEPLOY.glob("dagster*.yaml"))
    known = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "RAGTUNED_PROFILE"}
    known |= {Settings().serving.api_key_variable, Settings().teacher.api_key_variable}
    for file, name, service in services():
        for variable, value in service.get("environment", {}).items():
            if "__" in variable:
                section, setting = variable.removeprefix("RAGTUNED_").lower().split("__")
                load_settings(Path("/none"), environment={variable: value})
                assert setting in type(getattr(Settings(), section)).model_fields
            else:
                assert variable in known or variable in of_dagster, (file, name, variable)
    for variable in re.findall(r"env: (\w+)", of_dagster):
        set_here = any(variable in each.get("environment", {}) for _, _, each in services())
        assert set_here or f"{variable}=" in DOCKERFILE, variable


def test_the_image_is_what_the_services_expect() -> None:
    """Folders, ports, extras."""
    for service in ("webserver", "daemon", "server"):
        targets = {each.split(":")[1] for each in BASE["services"][service]["volumes"]}
        assert "/data" in targets
    assert "RAGTUNED_HOME=/data" in DOCKERFILE
    assert "DAGSTER_HOME=/opt/dagster" in DOCKERFILE
    mounted = "./dagster.yaml:/opt/dagster/dagster.yaml:ro"
    for service in ("webserver", "daemon"):
        assert mounted in BASE["services"][service]["volumes"]
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed
    ports = [port for _, _, each in services() for port in each.get("ports", [])]
    assert {port.rpartition(":")[2] for port in ports} == set(exposed[1].split())
    extras = re.search(r'^ARG EXTRAS="(.*)"$', DOCKERFILE, re.MULTILINE)
    assert extras
    project = (ROOT / "pyproject.toml").read_text()
    for extra in extras[1].split(","):
        assert re.search(rf'^{extra} = \["dagster-', project, re.MULTILINE), extra


# --- dagster.yaml -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dagster.yaml", "dagster.run-containers.yaml"])
def test_the_instance_is_that_of_one_machine_but_for_storage_and_launcher(name: str) -> None:
    made, usual = dagster(name), yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert "postgres" in made.pop("storage")
    del usual["storage"]
    made.pop("run_launcher", None)
    assert made == usual
    assert dagster(name)["storage"] == dagster("dagster.yaml")["storage"]


def test_a_run_s_container_is_like_the_daemon_s(tmp_path: Path) -> None:
    made = dagster("dagster.run-containers.yaml")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(made))
    launcher = InstanceRef.from_dir(str(tmp_path)).run_launcher_data
    assert launcher is not None
    assert launcher.class_name == "DockerRunLauncher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGTUNED_IMAGE", "ragtuned:cuda")
        schema = resolve_to_config_type(DockerRunLauncher.config_type())
        read = process_config(schema, made["run_launcher"]["config"])  # type: ignore[arg-type]
    assert read.success, read.errors
    config: Any = read.value
    assert config["image"] == "ragtuned:cuda"
    daemon = BASE["services"]["daemon"]
    networks = {BASE["networks"][each]["name"] for each in daemon["networks"]}
    assert set(config["networks"]) == networks
    volumes = {
        f"{BASE['volumes'][source]['name']}:{rest}"
        for source, _, rest in (each.partition(":") for each in daemon["volumes"])
        if not source.startswith(".")
    }
    assert set(config["container_kwargs"]["volumes"]) == volumes
    assert set(config["env_vars"]) == {"RAGTUNED_IMAGE", *daemon["environment"]}
    # What the Docker client makes of it.
    asked = _create_container_args({**config["container_kwargs"], "version": "1.50"})
    [gpus] = asked["host_config"]["DeviceRequests"]
    [reserved] = FILES["compose.gpu.yaml"]["services"]["daemon"]["deploy"]["resources"][
        "reservations"
    ]["devices"]
    assert (gpus["Driver"], gpus["Count"], gpus["Capabilities"]) == ("nvidia", -1, [["gpu"]])
    assert (reserved["driver"], reserved["count"], reserved["capabilities"]) == (
        "nvidia",
        "all",
        ["gpu"],
    )


# --- the image's own health check -------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/server_info", "/health") else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("command", "port_there", "healthy"),
    [
        ("/sbin/docker-init -- dagster-webserver --port 3000", 3000, True),
        ("/opt/bin/python /opt/bin/ragtuned serve", 8008, True),
        ("/opt/bin/python /opt/bin/dagster-webserver --port 3000", 1, False),
        ("/sbin/docker-init -- ragtuned serve", 1, False),
        ("/sbin/docker-init -- dagster-daemon run", 1, True),
    ],
)
def test_the_health_check_asks_what_the_container_runs(
    command: str, port_there: int, healthy: bool, port: int, tmp_path: Path
) -> None:
    """The image's own, with another file for /proc/1/cmdline and another port."""
    joined = DOCKERFILE.replace("\\\n", "")
    written = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", joined, re.MULTILINE)
    assert written
    [shell, option, script] = json.loads(written[1])
    (tmp_path / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    script = script.replace("/proc/1/cmdline", str(tmp_path / "cmdline"))
    script = script.replace(str(port_there), str(port)) if port_there > 1 else script
    script = script.replace("3000/", "9/").replace("8008/", "9/")
    ran = subprocess.run([shell, option, script], capture_output=True, text=True)
    assert (ran.returncode == 0) == healthy, ran.stderr


def test_a_training_has_the_time_to_save_when_the_daemon_is_stopped() -> None:
    grace = BASE["services"]["daemon"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > SECONDS_TO_END > SECONDS_TO_SAVE
