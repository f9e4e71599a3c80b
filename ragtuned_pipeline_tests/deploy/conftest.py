"""A Postgres server, and an instance of Dagster's in a new database of it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline_tests.conftest import own_environment
from ragtuned_pipeline_tests.deploy.postgres import Server, programs, serving

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server whose database `ragtuned` has Dagster's tables, empty."""
    binaries = programs()
    if binaries is None:
        pytest.skip("no Postgres server on this machine (Debian: apt-get install postgresql)")
    with serving(binaries) as server, pytest.MonkeyPatch.context() as patch:
        own_environment(patch)
        reach(patch, server)
        patch.setenv("DAGSTER_HOME", str(DEPLOY))
        patch.setenv("RAGTUNED_DAGSTER", str(server.data.parent / "dagster"))
        server.execute("CREATE DATABASE ragtuned")
        with dg.DagsterInstance.get():
            pass
        yield server


def reach(patch: pytest.MonkeyPatch, server: Server) -> None:
    patch.setenv("DAGSTER_PG_HOST", "127.0.0.1")
    patch.setenv("DAGSTER_PG_PORT", str(server.port))
    patch.setenv("DAGSTER_PG_PASSWORD", server.password)


@pytest.fixture
def home(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose Dagster has its records in a database of its own, by deploy/dagster.yaml."""
    own_environment(monkeypatch)
    reach(monkeypatch, postgres)
    database = f"d{secrets.token_hex(4)}"
    postgres.execute(f"CREATE DATABASE {database} TEMPLATE ragtuned")
    configuration = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    configuration["storage"]["postgres"]["postgres_db"]["db_name"] = database
    instance = tmp_path / "instance"
    instance.mkdir()
    (instance / "dagster.yaml").write_text(yaml.safe_dump(configuration))
    monkeypatch.setenv("DAGSTER_HOME", str(instance))
    monkeypatch.setenv("RAGTUNED_DAGSTER", str(tmp_path / "home" / "dagster"))
    return Home(tmp_path / "home")
