"""A trainer's numbers as observations of its asset, by a process that reports through Pipes."""

import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ragtuned_pipeline.orchestration import trainer_pipes
from ragtuned_pipeline.orchestration.trainer_pipes import TrainerPipes

LINES = [
    {"event": "start", "step": 0, "steps": 4},
    {"event": "held_out", "step": 1, "steps": 4, "loss": 5.0, "accuracy": 0.1},
    {"event": "step", "step": 2, "steps": 4, "loss": 3.5, "accuracy": 0.25, "mfu": None},
    {"event": "held_out", "step": 2, "steps": 4, "loss": 4.5, "accuracy": 0.2},
]
TRAINER = f"""
import json
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.info("not a line of the trainer's")
    for line in {LINES!r}:
        pipes.log.info(json.dumps({{"training": line}}))
"""


def observed(tmp_path: Path) -> list[dict[str, Any]]:
    keys = dg.StaticPartitionsDefinition(["harrow"])

    @dg.asset(partitions_def=keys)
    def adapter(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient) -> Any:
        pipes.run(context=context, command=[sys.executable, "-c", TRAINER])
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        resources = {"pipes": TrainerPipes()}
        dg.materialize([adapter], partition_key="harrow", instance=instance, resources=resources)
        found = instance.fetch_observations(dg.AssetKey("adapter"), limit=9, ascending=True)
        events = [record.asset_observation for record in found.records]
        assert {event.partition for event in events if event} <= {"harrow"}
        return [
            {name: value.value for name, value in event.metadata.items()}
            for event in events
            if event
        ]


def test_the_latest_numbers_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_pipes, "_OBSERVED_EVERY", 0)
    first, second = observed(tmp_path)
    assert first == {
        "step": 2,
        "steps": 4,
        "loss": 3.5,
        "accuracy": 0.25,
        "held_out_loss": 5.0,
        "held_out_accuracy": 0.1,
    }
    assert second == first | {"held_out_loss": 4.5, "held_out_accuracy": 0.2}


def test_they_are_not_shown_more_often_than_every_20_seconds(tmp_path: Path) -> None:
    assert observed(tmp_path) == []
