"""What the command line shows: progress of a run, a table of scores, the state of a corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ragtuned_pipeline.evaluation.questions.queries import QUESTION_SETS
from ragtuned_pipeline.evaluation.scorecard import MEASURE_OF_SET
from ragtuned_pipeline.orchestration.promotion_history import COMMAND_LINE
from ragtuned_pipeline.orchestration.runs import StepEvent
from ragtuned_pipeline.tuning.plan_words import plan_lines

if TYPE_CHECKING:
    from ragtuned_pipeline.inference.completions import Usage
    from ragtuned_pipeline.orchestration.planning import FolderPlan
    from ragtuned_pipeline.settings import Settings
    from ragtuned_pipeline.tuning.training_plan import TrainingPlan

_DECISIONS_SHOWN = 5


@contextmanager
def show_progress(
    corpus: str, quiet: bool, unnamed: Collection[str] = ()
) -> Iterator[Callable[[StepEvent], None]]:
    """Yield the function that takes the run's events; on stderr, so that stdout stays data.

    Args:
        unnamed: steps that have nothing to do and get no line of their own.
    """
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
        yield _Shown(progress, corpus, unnamed).take


class _Shown:
    """The bar of the whole run, the bar of a training, and when each step began."""

    def __init__(self, progress: Progress, corpus: str, unnamed: Collection[str]) -> None:
        self._progress = progress
        self._unnamed = unnamed
        self._run = progress.add_task(corpus, total=None, note="")
        self._training = progress.add_task("training", total=None, visible=False, note="")
        self._began: dict[str, float] = {}
        self._note = ""

    def take(self, event: StepEvent) -> None:
        if event.kind == "plan":
            self._progress.update(self._run, total=event.count)
        elif event.kind == "start":
            self._began[event.step] = time.monotonic()
            self._progress.update(self._run, note=event.step)
        elif event.kind == "done":
            seconds = time.monotonic() - self._began.get(event.step, time.monotonic())
            if event.step not in self._unnamed:
                line = f"  {event.step:<24} {seconds:7.1f} s"
                self._progress.console.print(line, highlight=False)
            self._progress.advance(self._run)
            self._progress.update(self._training, visible=False)
        elif event.kind == "skipped":
            self._progress.console.print(f"  {event.step:<24} skipped", highlight=False)
            self._progress.advance(self._run)
        elif event.kind == "training":
            self._show_training(event)
        elif event.kind == "teacher":
            self._progress.update(self._run, note=_teacher_note(event.numbers or {}))
        elif event.kind == "waiting":
            self._progress.update(self._run, note=(event.numbers or {})["why"])

    def _show_training(self, event: StepEvent) -> None:
        numbers = event.numbers or {}
        if "steps" not in numbers:
            return
        if numbers["event"] == "step":
            self._note = (
                f"loss {numbers['loss']:.3f}, {numbers['tokens_per_second']:.0f} tokens/s, "
                f"{numbers['seconds_left']:.0f} s left"
            )
        self._progress.update(
            self._training,
            visible=True,
            total=numbers["steps"],
            completed=numbers["step"],
            note=self._note,
        )


def _teacher_note(numbers: Mapping[str, Any]) -> str:
    note = f"{numbers['step']}: {numbers['calls']:,} calls"
    if numbers["stored"]:
        note += f" ({numbers['stored']:,} from the store)"
    if numbers["failed"]:
        note += f", {numbers['failed']:,} failed"
    note += f"; this run {numbers['tokens']:,} tokens"
    return note + (f", {numbers['money']:,.2f}" if numbers["money"] else "")


def plan_table(steps: Mapping[str, Usage], settings: Settings) -> Table:
    """A plan as a terminal table: a row a step, then their sum."""
    from ragtuned_pipeline.inference.completions import Usage
    from ragtuned_pipeline.inference.plan import seconds

    shown = _plain_table("what the teacher would be asked")
    shown.add_column("step", no_wrap=True)
    for name in ("calls", "paid\nalready", "prompt\ntokens", "reply\ntokens", "money", "minutes"):
        shown.add_column(name, justify="right", no_wrap=True)
    times = {step: seconds(usage, settings.teacher) / 60 for step, usage in steps.items()}
    rows = [(step, usage, times[step]) for step, usage in steps.items()]
    total = ("all", sum(steps.values(), Usage()), sum(times.values()))
    for step, usage, minutes in [*rows, total]:
        if step == "all":
            shown.add_section()
        shown.add_row(
            step.replace("_", " "),
            f"{usage.calls:,}",
            f"{usage.hits:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.completion_tokens:,}",
            f"{usage.money:,.2f}",
            f"{minutes:,.1f}",
        )
    return shown


def show_plan(planned: FolderPlan, settings: Settings) -> None:
    """Print the plan for a folder, and whether it is within the budget."""
    console = Console()
    console.print(
        f"{planned.documents:,} documents, {planned.text_units:,} text units, "
        f"{planned.unreadable:,} unreadable",
        highlight=False,
    )
    if planned.steps:
        _show_teaching(planned, settings, console)
    else:
        console.print(
            "No teacher is asked (teacher.engine is none): nothing is spent.", highlight=False
        )
    if planned.training is not None:
        console.print(training_table(planned.training, planned.rows_from))
        for warning in planned.training.warnings:
            console.print(f"warning: {warning}", highlight=False)


def _show_teaching(planned: FolderPlan, settings: Settings, console: Console) -> None:
    from ragtuned_pipeline.inference.completions import Usage

    console.print(plan_table(planned.steps, settings))
    total, limits = sum(planned.steps.values(), Usage()), settings.budget
    tokens = total.prompt_tokens + total.completion_tokens
    for name, limit, value in (
        ("max_calls", limits.max_calls, total.calls),
        ("max_tokens", limits.max_tokens, tokens),
        ("max_money", limits.max_money, total.money),
    ):
        if limit is not None and value > limit:
            console.print(
                f"over the limit budget.{name} = {limit:,}: the run would stop there and go on "
                "with a higher one",
                highlight=False,
            )


def training_table(plan: TrainingPlan, rows_from: str) -> Table:
    """A training's plan as a terminal table of two columns."""
    shown = _plain_table(f"what tuning would be (rows of {rows_from})")
    shown.show_header = False
    shown.add_column("what", no_wrap=True)
    shown.add_column("how much")
    for what, how_much in plan_lines(plan):
        shown.add_row(what, how_much)
    return shown


def score_table(scorecard: Mapping[str, Any]) -> Table:
    """The scorecard as a terminal table: a row a question set, a column a system, then cost."""
    from ragtuned_pipeline.evaluation.reporting.findings import ordered

    systems = {name: scorecard["systems"][name] for name in ordered(scorecard["systems"])}
    control = scorecard.get("control_shuffled") or {}
    shown = _plain_table(
        f"{scorecard['corpus']}: share of answers with the right words "
        "(global questions: F1; unanswerable: declined)"
    )
    shown.add_column("question set", no_wrap=True)
    shown.add_column("n", justify="right")
    names = [*systems, *(["shuffled_control"] if control.get("n") else [])]
    for name in names:
        shown.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for name in _question_sets(scorecard):
        scores = [sets.get(name) or {} for sets in systems.values()]
        asked = max(score.get("n", 0) for score in scores)
        cells = [_score(name, score) for score in scores]
        if control.get("n") and name == "held_out_wording":
            cells.append(f"{control['contains']:.2f}")
        shown.add_row(name.replace("_", " "), str(asked), *cells)
    shown.add_section()
    for key, label, form in (
        ("prompt_tokens", "prompt tokens", ",.0f"),
        ("seconds", "seconds", ".2f"),
    ):
        shown.add_row(label, "", *(_mean(sets.values(), key, form) for sets in systems.values()))
    return shown


def win_table(scorecard: Mapping[str, Any]) -> Table | None:
    """How often the judge preferred the tuned model's answers to each other system's."""
    from ragtuned_pipeline.evaluation.reporting.findings import ordered
    from ragtuned_pipeline.evaluation.reporting.wins import OVERALL, SCOPES, seen_from

    wins = {
        (win.other, win.scope): win
        for win in seen_from(scorecard["win_rates"], "tuned")
        if win.dimension == OVERALL and win.rate is not None
    }
    if not wins:
        return None
    shown = _plain_table(
        f"{scorecard['corpus']}: win rate of the tuned model, ties half "
        f"(judge: {scorecard['judge']['identity']})"
    )
    shown.add_column("against", no_wrap=True)
    for scope in SCOPES:
        shown.add_column(f"{scope} questions", justify="right", no_wrap=True)
    for other in ordered({other for other, _ in wins}):
        cells = [wins.get((other, scope)) for scope in SCOPES]
        shown.add_row(
            other.replace("_", " "),
            *(f"{w.rate:.2f} ({w.low:.2f}-{w.high:.2f})" if w else "-" for w in cells),
        )
    return shown


def _plain_table(title: str) -> Table:
    """A table narrow enough for a terminal of 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _question_sets(scorecard: Mapping[str, Any]) -> list[str]:
    present = {name for scores in scorecard["systems"].values() for name in scores}
    return [name for name in QUESTION_SETS if name in present]


def _score(question_set: str, score: Mapping[str, Any]) -> str:
    return f"{score[MEASURE_OF_SET[question_set]]:.2f}" if score.get("n") else "-"


def _mean(scores: Iterable[Mapping[str, Any]], key: str, form: str) -> str:
    """The mean over all questions of all sets."""
    asked = [score for score in scores if score.get("n")]
    n = sum(score["n"] for score in asked)
    return format(sum(score[key] * score["n"] for score in asked) / n, form) if n else "-"


def show_results(entry: Mapping[str, Any]) -> None:
    """Print the table of scores and where the report is."""
    console = Console()
    if entry["scorecard"]:
        console.print(score_table(entry["scorecard"]))
        wins = win_table(entry["scorecard"])
        if wins is not None:
            console.print("", wins, sep="\n")
        for system, reason in entry["scorecard"]["skipped"].items():
            console.print(f"{system}: skipped. {reason}", highlight=False)
    for sentence in filter(None, [entry["set_aside"], entry["forgetting"]]):
        console.print(sentence, highlight=False)
    console.print(f"report: {entry['report']}", soft_wrap=True, highlight=False)


def show_status(entry: Mapping[str, Any]) -> None:
    """Print what one corpus holds."""
    shown = Table(title=entry["corpus"], show_header=False, title_justify="left")
    shown.add_row("folder", entry["folder"])
    for name, count in entry["rows"].items():
        shown.add_row(name.replace("_", " "), "not made yet" if count is None else f"{count:,}")
    for step, usage in entry["teacher"].items():
        shown.add_row(
            f"teacher, {step.replace('_', ' ')}",
            f"{usage['calls']:,} requests ({usage['retries']:,} repeated, "
            f"{usage['failed']:,} given up), {usage['hits']:,} from the store, "
            f"{usage['prompt_tokens'] + usage['completion_tokens']:,} tokens, "
            f"{usage['money']:,.2f}",
        )
    shown.add_row("promoted adapter", entry["promoted_adapter"] or "none")
    if entry["promotion_refused"]:
        shown.add_row("not promoted", entry["promotion_refused"])
    if entry["set_aside"]:
        shown.add_row("set aside", entry["set_aside"])
    if entry["forgetting"]:
        shown.add_row("not forgotten yet", entry["forgetting"])
    for decision in entry["history"][-_DECISIONS_SHOWN:]:
        shown.add_row(decision["when"], _decision(decision))
    shown.add_row("report", entry["report"] or "none")
    Console().print(shown)


def server_line(server: Mapping[str, Any] | None) -> str:
    """Say where a home is served; `server` as of serving_home.running_server."""
    if server is None:
        return "not served: ragtuned serve"
    return (
        f"served at {server['address']} since {server['started']} "
        f"({server['engine']}, {server['base_model']}; process {server['pid']})"
    )


def _decision(decision: Mapping[str, Any]) -> str:
    """One entry of the history of promotions in a line."""
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in decision["numbers"].items()
    )
    to = " to" if decision["what"] == "rolled back" else ""
    by = "" if decision["run"] == COMMAND_LINE else f", run {decision['run']}"
    reasons = "".join(f"; {reason}" for reason in decision["reasons"])
    return f"{decision['what']}{to} {decision['adapter']}{by} ({numbers or 'not judged'}){reasons}"
