"""The progress that `ragtuned run` shows: one line a step, a bar while the model trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ragtuned_pipeline.orchestration.runs import StepEvent


@contextmanager
def show_progress(corpus: str, quiet: bool) -> Iterator[Callable[[StepEvent], None]]:
    """Yield the function that takes the run's events; on stderr, so that stdout stays data."""
    if quiet:
        yield lambda _event: None
        return
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    ) as progress:
        yield _Shown(progress, corpus).take


class _Shown:
    """The bar of the whole run, the bar of a training, and when each step began."""

    def __init__(self, progress: Progress, corpus: str) -> None:
        self._progress = progress
        self._run = progress.add_task(corpus, total=None, note="")
        self._training = progress.add_task("training", total=None, visible=False, note="")
        self._began: dict[str, float] = {}

    def take(self, event: StepEvent) -> None:
        if event.kind == "plan":
            self._progress.update(self._run, total=event.count)
        elif event.kind == "start":
            self._began[event.step] = time.monotonic()
            self._progress.update(self._run, note=event.step)
        elif event.kind == "done":
            seconds = time.monotonic() - self._began.get(event.step, time.monotonic())
            self._progress.console.print(f"  {event.step:<24} {seconds:7.1f} s", highlight=False)
            self._progress.advance(self._run)
            self._progress.update(self._training, visible=False)
        elif event.kind == "skipped":
            self._progress.console.print(f"  {event.step:<24} skipped", highlight=False)
            self._progress.advance(self._run)
        elif event.kind == "training":
            self._show_training(event)

    def _show_training(self, event: StepEvent) -> None:
        numbers = event.numbers or {}
        if "steps" not in numbers:
            return
        note = ""
        if numbers.get("event") == "step":
            note = (
                f"loss {numbers['loss']:.3f}, {numbers['tokens_per_second']:.0f} tokens/s, "
                f"{numbers['seconds_left']:.0f} s left"
            )
        self._progress.update(
            self._training,
            visible=True,
            total=numbers["steps"],
            completed=numbers.get("step", 0),
            **({"note": note} if note else {}),
        )
