"""The folder sensor, the condition and the schedule, on a real instance."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.orchestration.automation import corpora_sensor, nightly
from ragtuned_pipeline.orchestration.folder_versions import (
    folder_version,
    last_report,
    note_read,
    report_event,
    report_folder,
)
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.locks import alone
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.settings import AutomationSettings

QUIET = 0.2  # seconds
SETTINGS = AutomationSettings(quiet_seconds=QUIET)
ABLATION = "ablation"
KEYS = [dg.AssetKey("documents")]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


class Looking:
    """The sensor over one home, tick by tick; events are stored as the daemon stores them."""

    def __init__(self, instance: dg.DagsterInstance, home: Path) -> None:
        self.instance, self.home, self.cursor = instance, home, None
        self.said = ""
        self.asked: list[str | None] = []

    def tick(self, wait: bool = True) -> list[str]:
        """Return the corpora that are reported as changed."""
        if wait:
            time.sleep(1.5 * QUIET)
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=defs,
            resources={"home": HomeResource(folder=str(self.home))},
        ) as context:
            result: Any = corpora_sensor(SETTINGS, KEYS)(context)
        self.cursor = result.cursor
        self.said = result.skip_reason.skip_message if result.skip_reason else ""
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions("corpora", list(request.partition_keys))
        self.asked = [request.run_key for request in result.run_requests or []]
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return [event.partition for event in result.asset_events]


@pytest.fixture
def looking(instance: dg.DagsterInstance, tmp_path: Path) -> Looking:
    return Looking(instance, tmp_path)


def version(looking: Looking) -> str:
    report = last_report(looking.instance, "n")
    assert report is not None
    return report.version


def test_new_changed_and_changed_back_folders_are_each_reported(looking: Looking) -> None:
    note = looking.home / "corpora" / "n" / "note.txt"
    write(note, "A")
    assert looking.tick() == ["n"]
    assert looking.instance.get_dynamic_partitions("corpora") == ["n"]
    versions = [version(looking)]
    assert looking.tick() == []
    for text in ("B", "A"):
        write(note, text)
        assert looking.tick() == ["n"]
        versions.append(version(looking))
    assert versions[0] == versions[2] != versions[1]


def test_added_renamed_and_deleted_files_and_settings_are_changes(looking: Looking) -> None:
    folder = looking.home / "corpora" / "n"
    write(folder / "a.txt", "A")
    assert looking.tick() == ["n"]
    write(folder / "deep" / "b.txt", "B")
    assert looking.tick() == ["n"]
    (folder / "a.txt").rename(folder / "c.txt")
    assert looking.tick() == ["n"]
    (folder / "deep" / "b.txt").unlink()
    assert looking.tick() == ["n"]
    write(looking.home / "corpora" / "n.json", '{"settings": {"synthesis": {"seed": 5}}}')
    assert looking.tick() == ["n"]
    write(looking.home / "settings.toml", "[graph]\nmax_cluster_size = 7\n")
    assert looking.tick() == ["n"]
    assert looking.tick() == []


def test_a_file_that_was_only_touched_or_hidden_is_no_change(looking: Looking) -> None:
    note = looking.home / "corpora" / "n" / "note.txt"
    write(note, "A")
    assert looking.tick() == ["n"]
    note.touch()
    write(note.parent / ".editor.swp", "x")
    assert looking.tick() == []
    assert looking.said == "no corpus has changed"


def test_a_file_is_read_again_only_where_its_status_changed(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragtuned_pipeline.orchestration import folder_versions

    read: list[str] = []
    hash_file = folder_versions._hash

    def noted(file: Path) -> str:
        read.append(file.name)
        return hash_file(file)

    monkeypatch.setattr(folder_versions, "_hash", noted)
    folder = looking.home / "corpora" / "n"
    for name in "abc":
        write(folder / f"{name}.txt", name)
    looking.tick()
    write(folder / "b.txt", "other")
    looking.tick()
    assert read == ["a.txt", "b.txt", "c.txt", "b.txt"]


def test_a_folder_that_is_still_being_copied_waits_and_is_then_seen(looking: Looking) -> None:
    write(looking.home / "corpora" / "n" / "note.txt", "A")
    assert looking.tick(wait=False) == []
    assert looking.said == "waiting until quiet: n"
    assert looking.tick() == ["n"]
    write(looking.home / "corpora" / "n" / "more.txt", "B")
    assert looking.tick(wait=False) == []
    assert looking.tick() == ["n"]


def test_a_change_in_the_future_is_seen_once_nothing_moves(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(looking.home / "corpora" / "n" / "note.txt", "A")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)  # the clock was set back
    assert looking.tick(wait=False) == []
    assert looking.tick(wait=False) == ["n"]


def test_a_corpus_that_cannot_be_looked_at_stops_no_other(looking: Looking) -> None:
    write(looking.home / "corpora" / "a,b" / "note.txt", "A")
    write(looking.home / "corpora" / "broken" / "note.txt", "A")
    write(looking.home / "corpora" / "broken.json", "{")
    write(looking.home / "corpora" / "fine" / "note.txt", "A")
    assert looking.tick() == ["fine"]


def test_what_a_run_has_read_is_not_reported_again(looking: Looking) -> None:
    write(looking.home / "corpora" / "n" / "note.txt", "A")
    looking.instance.add_dynamic_partitions("corpora", ["n"])
    report_folder(looking.instance, Home(looking.home), "n")  # as read_corpus does
    assert looking.tick() == []


def test_a_change_that_came_while_a_run_was_reading_is_run_for_once(
    looking: Looking, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, home = looking.home / "corpora" / "n" / "note.txt", Home(looking.home)
    write(note, "A")
    looking.tick()
    read = folder_version(home, "n")  # a run begins to read
    write(note, "B")
    looking.tick()
    note_read(home, "n", read)
    looking.tick()
    assert looking.asked == []  # the automation sensor has its looks first
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    run(looking.instance, "n", dg.DagsterRunStatus.STARTED)
    with alone(home, "n"):
        looking.tick(wait=False)
    assert looking.asked == []  # a run goes on
    [going] = looking.instance.get_runs()
    looking.instance.report_run_canceled(going)
    looking.tick(wait=False)
    [key] = looking.asked
    looking.tick(wait=False)
    assert looking.asked == [key]  # Dagster starts one run for a key
    note_read(home, "n", folder_version(home, "n"))
    looking.tick(wait=False)
    assert looking.asked == []


def test_a_folder_that_may_not_be_opened_stops_no_other(looking: Looking) -> None:
    write(looking.home / "corpora" / "shut" / "deep" / "note.txt", "A")
    write(looking.home / "corpora" / "latin" / "note.txt", "A")
    (looking.home / "corpora" / "latin.json").write_bytes(b'{"gold": "\xe9"}')
    write(looking.home / "corpora" / "fine" / "note.txt", "A")
    shut = looking.home / "corpora" / "shut" / "deep"
    shut.chmod(0)
    try:
        assert "fine" in looking.tick()
    finally:
        shut.chmod(0o755)


# ---- the condition ----


class Automation:
    """The condition's answers, look by look, and assets that are there with given versions."""

    def __init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None

    def look(self) -> set[str]:
        """Return the assets that a run is asked for."""
        result = dg.evaluate_automation_conditions(defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        keys = defs.resolve_asset_graph().get_all_asset_keys()
        return {k.to_user_string() for k in keys if result.get_num_requested(k)}

    def make(self, *names: str, version: str = "1") -> None:
        for name in names:
            event = dg.AssetMaterialization(
                name, partition="n", tags={"dagster/data_version": version}
            )
            self.instance.report_runless_asset_event(event)


def automated() -> set[str]:
    graph = defs.resolve_asset_graph()
    names = {k.to_user_string() for k in graph.get_all_asset_keys()} - {"corpus_folder"}
    return {name for name in names if graph.get(dg.AssetKey(name)).group_name != ABLATION}


def below(name: str) -> set[str]:
    """The automated assets downstream of one, itself left out."""
    graph = defs.resolve_asset_graph()
    found = dg.AssetSelection.assets(name).downstream().resolve(graph)
    return {key.to_user_string() for key in found} & automated() - {name}


@pytest.fixture
def automation() -> Automation:
    """A corpus that was there before the daemon, made once."""
    made = Automation()
    made.instance.add_dynamic_partitions("corpora", ["n"])
    made.instance.report_runless_asset_event(report_event("n", "first"))
    assert made.look() == automated()
    made.make(*automated())
    assert made.look() == set()
    return made


def test_another_version_of_the_folder_asks_for_everything_once(automation: Automation) -> None:
    automation.instance.report_runless_asset_event(report_event("n", "first"))
    assert automation.look() == set()
    automation.instance.report_runless_asset_event(report_event("n", "second"))
    assert automation.look() == automated()
    assert automation.look() == set()


def test_changed_data_asks_for_what_depends_on_it_and_equal_data_for_nothing(
    automation: Automation,
) -> None:
    automation.make("qa_pairs")
    assert automation.look() == set()
    automation.make("judgements", version="2")
    assert automation.look() == below("judgements") >= {"scorecard", "promoted_adapter"}
    assert "lora_adapter" not in below("judgements")


def test_the_conditions_can_be_switched_off_by_setting() -> None:
    assert (
        corpora_sensor(AutomationSettings(), KEYS).default_status == dg.DefaultSensorStatus.RUNNING
    )
    off = AutomationSettings(watch=False, nightly="")
    assert corpora_sensor(off, KEYS).default_status == dg.DefaultSensorStatus.STOPPED
    assert nightly(off, KEYS) == []


# ---- the schedule ----


def asked_for(instance: dg.DagsterInstance, home: Path) -> list[str]:
    [schedule] = nightly(SETTINGS, KEYS)
    with dg.build_schedule_context(
        instance=instance, resources={"home": HomeResource(folder=str(home))}
    ) as context:
        result: Any = schedule(context)
    return [] if isinstance(result, dg.SkipReason) else [r.partition_key for r in result]


def run(instance: dg.DagsterInstance, corpus: str, status: dg.DagsterRunStatus) -> None:
    instance.add_run(
        dg.DagsterRun(job_name="build_memory", status=status, tags={"dagster/partition": corpus})
    )


def test_the_schedule_asks_for_corpora_that_changed_or_failed(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for name in ("busy", "changed", "failed", "fine", "new"):
        write(tmp_path / "corpora" / name / "note.txt", name)
        instance.add_dynamic_partitions(corpora.name or "", [name])
    for name in ("changed", "failed", "fine", "busy"):
        note_read(Home(tmp_path), name, report_folder(instance, Home(tmp_path), name))
    run(instance, "changed", dg.DagsterRunStatus.SUCCESS)
    run(instance, "fine", dg.DagsterRunStatus.FAILURE)
    run(instance, "fine", dg.DagsterRunStatus.SUCCESS)
    run(instance, "failed", dg.DagsterRunStatus.FAILURE)
    run(instance, "busy", dg.DagsterRunStatus.FAILURE)
    run(instance, "busy", dg.DagsterRunStatus.STARTED)
    write(tmp_path / "corpora" / "changed" / "note.txt", "other")
    assert "changed" not in asked_for(instance, tmp_path)  # it is still changing
    time.sleep(1.5 * QUIET)
    assert asked_for(instance, tmp_path) == ["changed", "failed", "new"]
