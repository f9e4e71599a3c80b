"""The folder sensor and the schedule, on a real instance."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.orchestration.automation import QUIET_SECONDS, corpora_sensor, nightly
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


def write(file: Path, text: str, age: float = 2 * QUIET_SECONDS) -> None:
    """Write a file that looks `age` seconds old, its folder too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    then = time.time() - age
    for place in (file, file.parent):
        os.utime(place, (then, then))


def tick(
    instance: dg.DagsterInstance, home: Path, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        definitions=defs,
        resources={"home": HomeResource(folder=str(home))},
    )
    result = corpora_sensor(context)
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or []:
            instance.add_dynamic_partitions("corpora", list(request.partition_keys))
    return result


def requests(result: dg.SensorResult | dg.SkipReason) -> list[str]:
    return (
        [] if isinstance(result, dg.SkipReason) else [r.partition_key for r in result.run_requests]
    )


def test_new_changed_and_changed_back_folders_each_start_a_run(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    note = tmp_path / "corpora" / "n" / "note.txt"
    write(note, "A")
    first = tick(instance, tmp_path, None)
    assert requests(first) == ["n"]
    assert instance.get_dynamic_partitions("corpora") == ["n"]
    assert requests(tick(instance, tmp_path, first.cursor)) == []

    write(note, "BB", age=3 * QUIET_SECONDS)
    second = tick(instance, tmp_path, first.cursor)
    write(note, "A")
    third = tick(instance, tmp_path, second.cursor)
    assert requests(second) == requests(third) == ["n"]
    keys = [result.run_requests[0].run_key for result in (first, second, third)]
    assert len(set(keys)) == 3


def test_a_folder_that_is_still_being_copied_waits(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    write(tmp_path / "corpora" / "n" / "note.txt", "A", age=0)
    result = tick(instance, tmp_path, None)
    assert isinstance(result, dg.SkipReason)
    assert "waiting until quiet: n" in (result.skip_message or "")


def test_a_folder_with_an_impossible_name_is_left_alone(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    write(tmp_path / "corpora" / "a,b" / "note.txt", "A")
    write(tmp_path / "corpora" / "fine" / "note.txt", "A")
    assert requests(tick(instance, tmp_path, None)) == ["fine"]


def test_the_schedule_asks_for_every_corpus(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(corpora.name or "", ["b", "a"])
    context = dg.build_schedule_context(instance=instance)
    assert [request.partition_key for request in nightly(context)] == ["a", "b"]
