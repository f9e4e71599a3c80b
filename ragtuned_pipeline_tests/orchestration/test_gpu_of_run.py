"""The GPU as a run uses it, with real processes; a stand-in takes vLLM's place."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from rich.progress import Progress

from ragtuned_pipeline.inference import gpu_turn
from ragtuned_pipeline.inference.backend import Request
from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.vllm_engine import VllmEngine
from ragtuned_pipeline.orchestration import teaching
from ragtuned_pipeline.orchestration.answering import (
    CannotAnswer,
    Given,
    answer_table,
    answering_engine,
    answering_key,
    prepared_system,
)
from ragtuned_pipeline.orchestration.display import _Shown
from ragtuned_pipeline.orchestration.gpu_of_run import GpuOfRun
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore, write_parquet
from ragtuned_pipeline.orchestration.runs import _tell
from ragtuned_pipeline.orchestration.teaching import TeacherResource
from ragtuned_pipeline.settings import Settings, load_settings
from ragtuned_pipeline.tables import SCHEMAS, table
from ragtuned_pipeline_tests.deadline import with_deadline
from ragtuned_pipeline_tests.vllm_stand_in import alive, started

# Another process of the home.
WAITS = """
import sys
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

home = Path(sys.argv[1])
say = lambda reason: print(reason, flush=True)
with GpuTurn(home, "a training", present=True) as turn:
    turn.wait(say)
    say("in use by two" if (home / "in use").exists() else "has it")
    sys.stdin.readline()
"""
TAKES = """
import sys
from pathlib import Path
from ragtuned_pipeline.inference.gpu_turn import GpuTurn

print(GpuTurn(Path(sys.argv[1]), "a server", present=True).try_take())
"""


class Noting(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


class Waiting:
    """A step of another run, in a process of its own."""

    def __init__(self, home: Path) -> None:
        self._process = with_deadline(
            subprocess.Popen(
                [sys.executable, "-c", WAITS, str(home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate("\n")


def can_take(home: Path) -> bool:
    """Whether a server in another process would get the GPU."""
    command = [sys.executable, "-c", TAKES, str(home)]
    return subprocess.run(command, capture_output=True, check=True).stdout == b"True\n"


def settings(**evaluation: str) -> Settings:
    return load_settings(Path("nowhere"), overrides={"evaluation": evaluation}, environment={})


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[GpuOfRun]:
    gpu = GpuOfRun(tmp_path, "a run", present=True, idle_seconds=0.0)
    yield gpu
    gpu.end()


def ask(gpu: GpuOfRun, max_rank: int = 0) -> None:
    with gpu.server("embedded", max_rank, settings(), pytest.fail) as managed:
        VllmEngine(managed, None, settings().teacher).generate([chat("Hello")], 8)


def test_steps_share_a_server_until_one_needs_the_gpu(
    gpu: GpuOfRun, stand_in: Path, tmp_path: Path
) -> None:
    ask(gpu, max_rank=8)
    ask(gpu, max_rank=8)
    ask(gpu)
    assert len(started(stand_in)) == 2  # a server and its child
    ask(gpu, max_rank=16)  # the first takes no such adapter
    assert len(alive(started(stand_in))) == 2
    with gpu.alone(pytest.fail):
        assert not alive(started(stand_in))


def test_between_steps_the_gpu_is_kept_from_a_server_and_given_to_a_run(
    gpu: GpuOfRun, stand_in: Path, tmp_path: Path
) -> None:
    ask(gpu)
    assert not can_take(tmp_path)
    other = Waiting(tmp_path)
    assert "a run" in other.says()
    assert other.says() == "has it"
    assert not alive(started(stand_in))
    told: list[str] = []

    def end(reason: str) -> None:
        told.append(reason)
        other.end()

    with gpu.alone(end):
        assert "a training" in told[0]
    gpu.end()
    assert can_take(tmp_path)


def test_a_step_has_the_gpu_to_its_end(gpu: GpuOfRun, tmp_path: Path) -> None:
    with gpu.alone(pytest.fail):
        (tmp_path / "in use").touch()
        other = Waiting(tmp_path)
        assert "a run" in other.says()
        time.sleep(1.0)  # time to give it away
        (tmp_path / "in use").unlink()
    assert other.says() == "has it"
    other.end()


def test_a_step_that_fails_while_it_waits_is_next_no_more(tmp_path: Path) -> None:
    holder = Waiting(tmp_path)
    assert holder.says() == "has it"
    gpu = GpuOfRun(tmp_path, "a run", present=True)

    def fail(reason: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), gpu.alone(fail):
        pytest.fail("it has no turn")
    holder.end()
    assert can_take(tmp_path)
    gpu.end()


def test_what_a_step_waits_for_is_shown_beside_the_bar() -> None:
    said: list[str] = []
    with dg.build_asset_context() as context:
        context.log.addHandler(Noting(said))
        teaching._waits(context)("the GPU is in use by process 7, a training")
    progress = Progress()
    shown = _Shown(progress, "notes", ())
    line = said[0].removeprefix("system - ")
    entry = dg.EventLogEntry(None, logging.INFO, line, "run", 0.0, step_key="answers_base")
    _tell(entry, shown.take)
    assert progress.tasks[0].fields["note"] == "the GPU is in use by process 7, a training"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "notes").mkdir()
    home = Home(tmp_path / "home")
    home.register("notes", tmp_path / "notes", None, {})
    return home


def queries(*questions: str) -> pa.Table:
    fields = dict.fromkeys(SCHEMAS["queries"].names)
    rows = [{**fields, "id": f"query-{each}", "question": each} for each in questions]
    return table("queries", rows)


def answered(home: Home, asked: Settings, *questions: str) -> Given:
    """What a run of its own gives."""
    teacher = TeacherResource()
    with dg.build_asset_context(partition_key="notes") as context:
        try:
            return answer_table(
                home,
                "notes",
                "base",
                queries(*questions),
                {"documents": table("documents", [])},
                asked,
                None,
                "answers_base",
                partial(teacher.answering, context, home, asked),
            )
        finally:
            with dg.build_init_resource_context() as end:
                teacher.teardown_after_execution(end)


def test_the_teacher_and_what_answers_share_a_server_where_they_are_one_model(
    home: Home, stand_in: Path
) -> None:
    shutil.copytree(EMBEDDED_FOLDER, home.folder / "model")
    config = home.folder / "model" / "generation_config.json"
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    teachers = [
        load_settings(
            home.folder,
            overrides={
                "evaluation": {"engine": "vllm"},
                "teacher": {"engine": "vllm", "model": model},
            },
            environment={},
        )
        for model in ("", str(home.folder / "model"))
    ]
    counts = []
    teacher = TeacherResource()
    with dg.build_asset_context(partition_key="notes") as context:
        for asked in teachers:
            with teacher._backend(context, home, asked) as backend:
                asyncio.run(backend.reply(Request(chat("Hello"), "", None, 8, 0.0, 1)))
            with teacher.answering(context, home, asked, None, 4) as engine:
                engine.generate([chat("Hello")], 8)
            counts.append((len(started(stand_in)), len(alive(started(stand_in)))))
        with dg.build_init_resource_context() as end:
            teacher.teardown_after_execution(end)
    assert counts == [(2, 2), (6, 2)]
    assert not alive(started(stand_in))


def test_another_engine_answers_anew_and_remembered_answers_start_nothing(
    home: Home, stand_in: Path
) -> None:
    ours, theirs = settings(), settings(engine="vllm")
    assert answered(home, ours, "Why?").replies_anew == 1
    assert not stand_in.exists()
    given = answered(home, theirs, "Why?", "How?")
    assert given.replies_anew == 2
    assert "--served-model-name" in given.answers["answer"][0].as_py()
    assert len(started(stand_in)) == 2
    assert not alive(started(stand_in))
    again = answered(home, theirs, "Why?", "How?")
    assert (again.replies, again.replies_anew) == (2, 0)
    assert again.answers.equals(given.answers)
    assert len(started(stand_in)) == 2
    with_others = load_settings(
        home.folder,
        overrides={"evaluation": {"engine": "vllm"}, "vllm": {"arguments": "--dtype,float32"}},
        environment={},
    )
    assert len({str(answering_key(each)) for each in (ours, theirs, with_others)}) == 3
    assert answering_engine(theirs) == "vllm-stand-in 1.0"
    assert answering_engine(ours).startswith("transformers ")


def test_a_question_on_the_command_line_does_not_take_the_gpu_from_anybody(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(table("documents", []), TableStore(home.tables).path("documents", "notes"))
    monkeypatch.setattr(gpu_turn, "gpu_present", lambda: True)
    holder = Waiting(home.folder)
    assert holder.says() == "has it"
    with (
        pytest.raises(CannotAnswer, match=r"in use by process \d+, a training; ask when"),
        prepared_system(home, "notes", "base"),
    ):
        pytest.fail("it has no GPU")

    def end(_reason: str) -> None:
        holder.end()

    with prepared_system(home, "notes", "base", on_wait=end) as answerer:
        assert len(answerer.answer(["Why?"])) == 1
    with prepared_system(home, "notes", "base"):
        assert not can_take(home.folder)
    assert can_take(home.folder)
