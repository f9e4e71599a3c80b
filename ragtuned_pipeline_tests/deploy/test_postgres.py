"""Dagster's records in a real Postgres: runs, sensor, doctor, and forgetting."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import dagster_postgres.utils
import pytest
import yaml
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.orchestration import dagster_records
from ragtuned_pipeline.orchestration.automation import corpora_sensor
from ragtuned_pipeline.orchestration.dagster_records import (
    RecordsInUse,
    ended_runs,
    forget_records,
)
from ragtuned_pipeline.orchestration.doctor import examine
from ragtuned_pipeline.orchestration.folder_versions import last_report, report_event
from ragtuned_pipeline.orchestration.forgetting import holdings
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.lineage import trained_by
from ragtuned_pipeline.orchestration.locks import COMMAND_LINE, RunFailed
from ragtuned_pipeline.orchestration.openlineage import lineage_events
from ragtuned_pipeline.orchestration.partitions import CORPUS_TAG
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.runs import (
    has_records,
    open_instance,
    prepare_environment,
    run_assets,
)
from ragtuned_pipeline.settings import AutomationSettings, SettingsError
from ragtuned_pipeline_tests.conftest import HARBOUR
from ragtuned_pipeline_tests.deploy.postgres import Server
from ragtuned_pipeline_tests.orchestration.test_forgetting import SECRET, record, spellings

STEPS = ("corpus",)


def quiet(_event: object) -> None:
    pass


def test_the_first_steps_of_the_job_and_what_reads_their_records(home: Home) -> None:
    home.register("harbour", HARBOUR, None, {})
    run = run_assets(home, "harbour", STEPS, quiet)
    with open_instance(home) as instance:
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        [done] = instance.get_runs(dg.RunsFilter(tags={CORPUS_TAG: "harbour"}))
        assert (done.run_id, done.status) == (run, dg.DagsterRunStatus.SUCCESS)
        made = instance.get_materialized_partitions(dg.AssetKey("documents"))
        assert made == {"harbour"}
        assert trained_by(instance, "harbour", "a" * 20) == ""
    jobs = {event["job"]["name"] for event in lineage_events(home, "harbour")}
    assert "harbour/documents" in jobs
    assert not list((home.folder / "dagster").rglob("*.db")), "nothing is in SQLite"
    told = CliRunner().invoke(app, ["status", "--home", str(home.folder)])
    assert told.exit_code == 0, told.output
    assert "harbour" in told.output


def test_the_sensor_s_events_and_several_writers_at_once(home: Home) -> None:
    """Each writer has an instance of its own."""
    names = [f"corpus{number}" for number in range(3)]
    for name in names:
        folder = home.corpora / name
        folder.mkdir(parents=True)
        (folder / "note.txt").write_text("A note.")

    def write(name: str) -> None:
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions("corpora", [name])
            for number in range(20):
                instance.report_runless_asset_event(report_event(name, str(number)))

    prepare_environment(home)
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(write, names))
    with open_instance(home) as instance:
        assert sorted(instance.get_dynamic_partitions("corpora")) == names
        for name in names:
            report = last_report(instance, name)
            assert report is not None
            assert report.version == "19"
        storage = instance.event_log_storage
        records = storage.fetch_materializations(dg.AssetKey("corpus_folder"), 1000).records
        assert len(records) == 20 * len(names)
        with dg.build_sensor_context(
            instance=instance,
            definitions=defs,
            resources={"home": HomeResource(folder=str(home.folder))},
        ) as context:
            look = corpora_sensor(AutomationSettings(quiet_seconds=0), [dg.AssetKey("documents")])
            result = look(context)
    assert isinstance(result, dg.SensorResult)
    assert [event.partition for event in result.asset_events] == names, "each has other content"


# --- forgetting -------------------------------------------------------------------------------


def holders(server: Server, text: str) -> list[str]:
    """Files of the server's tables that hold `text`; its log (pg_wal) apart."""
    server.execute("CHECKPOINT")
    wanted = spellings(text)
    return [
        str(file)
        for file in sorted((server.data / "base").rglob("*"))
        if file.is_file() and any(each in file.read_bytes() for each in wanted)
    ]


def test_nothing_of_a_forgotten_corpus_is_left_in_the_database(
    home: Home, postgres: Server
) -> None:
    for name in ("notes", "other"):
        home.register(name, HARBOUR, None, {})
    with open_instance(home) as instance:
        record(home)
        assert holdings(home, "notes")["runs"] == 1
        [other] = ended_runs(instance, "other")
        assert forget_records(instance, "notes") == 1
        assert (ended_runs(instance, "notes"), ended_runs(instance, "other")) == ([], [other])
        last = instance.get_latest_materialization_event(dg.AssetKey("documents"))
        assert last
        assert last.run_id == other, "the asset's last event is one that is left"
        storage = instance.event_log_storage
        tagged = (
            "SELECT count(*) FROM asset_event_tags t LEFT JOIN event_logs e ON e.id = t.event_id"
        )
        database = storage.postgres_url.rpartition("/")[2]  # type: ignore[attr-defined]
        assert postgres.execute(f"{tagged} WHERE e.id IS NULL", database) == [(0,)]
        assert holders(postgres, SECRET), (
            "the other corpus holds it: the search finds what is there"
        )
        forget_records(instance, "other")
    assert holders(postgres, SECRET) == []


def test_a_reader_that_does_not_let_go_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_records, "_BUSY_SECONDS", 0.2)
    with open_instance(home) as instance:
        with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
            connection.execution_options(isolation_level="READ COMMITTED")
            connection.exec_driver_sql("SELECT * FROM event_logs")
            with pytest.raises(RecordsInUse, match=r"table event_logs .* lock timeout\); stop the"):
                forget_records(instance, "notes")
            connection.rollback()
        assert forget_records(instance, "notes") == 0


# --- doctor and errors ------------------------------------------------------------------------


@dg.job
def nothing() -> None:
    """A run to be recorded: building the plan of the real job takes seconds."""


def test_doctor_looks_at_runs_and_pools_in_the_database(home: Home) -> None:
    home.register("harbour", HARBOUR, None, {})
    with open_instance(home) as instance:
        tags = {CORPUS_TAG: "harbour", **COMMAND_LINE}
        run = instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED)
        storage = instance.event_log_storage
        storage.initialize_concurrency_limit_to_default("accelerator")
        storage.claim_concurrency_slot("accelerator", run.run_id, "lora_adapter")
    [found] = examine(home, mend=True)
    assert (found.state, run.run_id in found.what) == ("mended", True)
    with open_instance(home) as instance:
        assert instance.get_run_by_id(run.run_id).is_failure  # type: ignore[union-attr]
        info = instance.event_log_storage.get_concurrency_info("accelerator")
        assert (info.active_slot_count, info.pending_steps) == (0, [])
    assert examine(home, mend=True) == []


def edit(instance: Path, **values: object) -> None:
    configuration = yaml.safe_load((instance / "dagster.yaml").read_text())
    configuration["storage"]["postgres"]["postgres_db"] |= values
    (instance / "dagster.yaml").write_text(yaml.safe_dump(configuration))


def test_a_database_that_does_not_answer_is_said_in_one_sentence(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, postgres: Server
) -> None:
    monkeypatch.setattr(dagster_postgres.utils, "calculate_delay", lambda **_: 0)
    edit(tmp_path / "instance", port=1)
    with pytest.raises(RunFailed, match=r"database that .*dagster.yaml names .*refused") as told:
        run_assets(home, "harbour", STEPS, quiet)
    assert postgres.password not in str(told.value)
    assert has_records(home)
    [found] = examine(home, mend=True)
    assert (found.what, found.state) == ("Dagster's runs could not be looked at", "left")


@pytest.mark.parametrize(
    ("values", "variable", "sentence"),
    [
        ({}, "DAGSTER_PG_PASSWORD", r'dagster.yaml: .*"DAGSTER_PG_PASSWORD" which is not set'),
        ({"scheme": "postgresql"}, "", r"No module named 'psycopg'; .*postgresql\+psycopg2"),
        ({"hostnames": "x"}, "", r'dagster.yaml: .*"hostnames"'),
    ],
)
def test_a_wrong_configuration_is_said_in_one_sentence(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    values: dict[str, object],
    variable: str,
    sentence: str,
) -> None:
    edit(tmp_path / "instance", **values)
    if variable:
        monkeypatch.delenv(variable)
    with pytest.raises(SettingsError, match=sentence) as told, open_instance(home):
        pass
    assert "\n" not in str(told.value)
