"""The client that starts the trainer, and shows its numbers in the UI while it runs."""

import json
import time
from typing import Any

import dagster as dg

from ragtuned_pipeline.tuning.launch import SECONDS_TO_SAVE

# A cancelled training may save for so long; until it has ended the GPU is not given to others.
SECONDS_TO_END = SECONDS_TO_SAVE + 30
_OBSERVED_EVERY = 20.0  # seconds
_SHOWN = (
    "step",
    "steps",
    "loss",
    "accuracy",
    "learning_rate",
    "tokens_per_second",
    "mfu",
    "peak_memory_gib",
    "seconds_left",
)


class TrainerPipes(dg.PipesSubprocessClient):
    """PipesSubprocessClient whose process's progress lines become observations of the asset."""

    def run(self, *, context: Any, **asked: Any) -> Any:
        """Run a process as PipesSubprocessClient does."""
        client = dg.PipesSubprocessClient(
            message_reader=observed(dg.PipesTempFileMessageReader(), context),
            termination_timeout_seconds=SECONDS_TO_END,
        )
        return client.run(context=context, **asked)


class Observer:
    """Turns the trainer's lines into an AssetObservation now and then, with the latest numbers."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._numbers: dict[str, float] = {}
        self._last = time.monotonic()

    def take(self, line: dict[str, Any]) -> None:
        """Take a progress line, see tuning/watcher.py."""
        name = "held_out_" if line["event"] == "held_out" else ""
        for key in _SHOWN:
            if line.get(key) is not None:
                self._numbers[key if key in ("step", "steps") else name + key] = line[key]
        if "loss" not in self._numbers or time.monotonic() - self._last < _OBSERVED_EVERY:
            return
        self._last = time.monotonic()
        self._context.log_event(
            dg.AssetObservation(
                self._context.asset_key,
                partition=self._context.partition_key,
                description="training",
                metadata=dict(self._numbers),
            )
        )


def observed(reader: Any, context: Any) -> Any:
    """Return a reader of Pipes' messages that shows the trainer's numbers as they come."""
    observer, read = Observer(context), reader.read_messages

    def read_messages(handler: Any) -> Any:
        _watch(handler, observer)
        return read(handler)

    reader.read_messages = read_messages
    return reader


def _watch(handler: Any, observer: Observer) -> None:
    handle = handler.handle_message

    def look(message: Any) -> None:
        handle(message)
        if message["method"] == "log":
            text = message["params"]["message"]
            if text.startswith('{"training"'):
                observer.take(json.loads(text)["training"])

    handler.handle_message = look
