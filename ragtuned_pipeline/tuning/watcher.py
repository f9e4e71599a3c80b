"""What stands beside a training: it reports, keeps time, and says when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ragtuned_pipeline.tuning import early_stopping
from ragtuned_pipeline.tuning.ranks import Ranks
from ragtuned_pipeline.tuning.telemetry import Meter, peak_memory_gib

Progress = Callable[[dict[str, Any]], None]
Points = list[tuple[int, float]]  # (step, value)

_HELD_OUT = "eval_held_out"
_ACCURACY_DIGITS = 5


@dataclass(frozen=True)
class Curves:
    """What a trainer has logged, as (step, value)."""

    losses: Points
    accuracies: Points
    held_out_losses: Points
    held_out_accuracies: Points

    @classmethod
    def of(cls, history: list[dict[str, Any]]) -> Curves:
        """Read them from a trainer's log_history."""
        keys = ("loss", "accuracy", f"{_HELD_OUT}_loss", f"{_HELD_OUT}_accuracy")
        return cls(*(_curve(history, key) for key in keys))


def _curve(history: list[dict[str, Any]], key: str) -> Points:
    return [(int(line["step"]), round(float(line[key]), 5)) for line in history if key in line]


def watcher(meter: Meter, progress: Progress, ranks: Ranks, patience: int) -> Any:
    """Return a TrainerCallback; a factory, because its base class is imported when needed.

    Its progress lines: {"event": "start", "step", "steps"}, {"event": "step", ... "loss",
    "accuracy", "learning_rate", "tokens_per_second", "mfu", "peak_memory_gib", "seconds_left"} and
    {"event": "held_out", ... "loss", "accuracy"}.

    Args:
        patience: held-out losses without a fall after which training stops; 0 is never.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        """`when_best` is called with the step in all processes, where the held-out loss has fallen
        to its lowest and early stopping is on."""

        when_best: Callable[[int], None]

        def __init__(self) -> None:
            self.first_step = 0
            self.seconds = 0.0
            self._started = 0.0
            self._interrupted = False

        def interrupt(self) -> None:
            self._interrupted = True

        def tokens_per_second(self, state: Any) -> float:
            steps = state.global_step - self.first_step
            return meter.tokens_per_second(steps, state.max_steps, self.seconds)

        def measured(self, state: Any) -> dict[str, float]:
            """Return the speed so far and the memory, for the log."""
            speed = self.tokens_per_second(state)
            mfu = meter.mfu(speed)
            found = {"tokens_per_second": round(speed, 1)}
            found |= {"peak_memory_gib": round(peak_memory_gib(), 3)}
            return found if mfu is None else found | {"mfu": round(mfu, 4)}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first_step = state.global_step
            self._started = time.perf_counter()
            progress({"event": "start", "step": state.global_step, "steps": state.max_steps})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = time.perf_counter() - self._started
            if ranks.any(self._interrupted):  # all stop after the same step
                control.should_save = True
                control.should_training_stop = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not patience:
                return
            held_out = Curves.of(state.log_history).held_out_losses
            if early_stopping.best(held_out)[0] == state.global_step:
                self.when_best(state.global_step)
            if early_stopping.is_over(held_out, patience):
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            logs = more["logs"]
            line = {"step": state.global_step, "steps": state.max_steps}
            if "loss" in logs:
                left = state.max_steps - state.global_step
                done = state.global_step - self.first_step
                names = ("learning_rate", "tokens_per_second", "peak_memory_gib")
                progress(
                    {"event": "step", **line, "loss": logs["loss"]}
                    | {"accuracy": round(logs["accuracy"], _ACCURACY_DIGITS)}
                    | {name: logs[name] for name in names}
                    | {"mfu": logs.get("mfu")}
                    | {"seconds_left": round(self.seconds / max(done, 1) * left, 1)}
                )
            elif f"{_HELD_OUT}_loss" in logs:
                accuracy = round(logs[f"{_HELD_OUT}_accuracy"], _ACCURACY_DIGITS)
                loss = logs[f"{_HELD_OUT}_loss"]
                progress({"event": "held_out", **line, "loss": loss, "accuracy": accuracy})

    return Watcher()
