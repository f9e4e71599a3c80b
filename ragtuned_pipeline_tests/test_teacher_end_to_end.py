"""The whole way with a teacher: a scripted one over real HTTP that fails one request in ten."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from ragtuned_pipeline.inference.completions import CompletionStore, Usage
from ragtuned_pipeline.orchestration import teaching
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.planning import plan_folder
from ragtuned_pipeline.orchestration.runs import RunFailed, StepEvent, run_assets
from ragtuned_pipeline.orchestration.status import corpus_status
from ragtuned_pipeline_tests.benchmarks.kill_and_resume import kill_and_resume
from ragtuned_pipeline_tests.chat_server import FAULTS, ChatServer
from ragtuned_pipeline_tests.scripted import teacher

KEY = "sk-never-to-be-seen-9fb2"
QUICK_FAULTS = tuple(kind for kind in FAULTS if kind not in {"slow", "endless"})
ARTICLES = 3


@dataclass(frozen=True)
class Taught:
    home: Home
    server: ChatServer
    events: list[StepEvent]


def register(home: Home, server: ChatServer | None, **more: dict) -> None:
    documents = home.folder / "articles"
    if not documents.exists():
        documents.mkdir(parents=True)
        for article in sorted((teacher.SAMPLES / "news" / "documents").iterdir())[:ARTICLES]:
            shutil.copy(article, documents)
    settings: dict = {
        "profile": "api",
        "teacher": {
            "address": server.address if server else "",
            "model": "scripted",
            "api_key_variable": "SCRIPTED_KEY",
            "price_prompt": 1.0,
            "price_completion": 4.0,
        },
        "tuning": {"time_budget_minutes": 0.1},
        "evaluation": {
            "questions_per_set": 10,
            "local_queries": 12,
            "global_queries": 10,
            "systems": "tuned,base,vanilla_rag",
            "control_facts": 4,
        },
        "judge": {"queries_per_scope": 10},
    }
    home.register("news", documents, None, settings | more)


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, _dagster_environment: None
) -> Iterator[Taught]:
    home, events = Home(tmp_path_factory.mktemp("taught")), []
    with (
        pytest.MonkeyPatch.context() as patch,
        ChatServer(teacher.news, faults=0.1, kinds=QUICK_FAULTS) as server,
    ):
        patch.setenv("SCRIPTED_KEY", KEY)
        patch.setattr(teaching, "_OBSERVED_EVERY", 0.0)
        register(home, server)
        run_assets(home, "news", None, events.append)
        yield Taught(home, server, events)


def read(taught: Taught, name: str) -> pa.Table:
    return TableStore(taught.home.tables).read(name, "news")


def test_it_ends_in_a_scorecard_and_a_report(taught: Taught) -> None:
    card = corpus_status(taught.home, "news")["scorecard"]
    assert card["systems"]["tuned"]["held_out_wording"]["n"] >= 5
    assert card["teacher"]["model"] == "scripted"
    page = (taught.home.report("news") / "index.html").read_text(encoding="utf-8")
    assert "What the teacher was asked" in page


def test_a_model_judges_and_grades(taught: Taught) -> None:
    """The scripted judge prefers what holds the reference: its verdicts agree with it."""
    card = corpus_status(taught.home, "news")["scorecard"]
    assert card["judge"]["engine"] == "teacher"
    assert card["judge"]["identity"].startswith("scripted, prompt ")
    assert card["judge"]["agreement"]["share"] == 1
    assert card["judge"]["order"]["disagreements"] == 0
    wins = {(row["system_a"], row["system_b"]) for row in card["win_rates"]}
    assert wins == {("base", "tuned"), ("tuned", "vanilla_rag")}, "judge.pairs is tuned"
    generated = card["systems"]["vanilla_rag"]["generated_local"]
    assert generated["graded"] == pytest.approx(generated["contains"], abs=0.1)
    assert generated["n"] - generated["ungraded"] <= 10, "judge.queries_per_scope"
    stages = read(taught, "judgements_failures")["stage"].to_pylist()
    assert card["judge"]["unjudged"] == 4 * stages.count("judging"), "four rows a comparison"


def test_every_request_is_counted_and_every_item_is_answered_or_a_failure(taught: Taught) -> None:
    with CompletionStore(taught.home.completions) as store:
        usage = sum(store.corpus_usage("news").values(), Usage())
        assert store.count() == usage.completed
    assert usage.calls == taught.server.requests
    assert usage.calls == usage.completed + usage.retries + usage.failed
    assert usage.retries > 0.05 * usage.calls, "the server did misbehave"
    asked = [
        row
        for name in (
            "graph_usage",
            "reports_usage",
            "synthesis_usage",
            "generated_queries_usage",
            "judgements_usage",
        )
        for row in read(taught, name).to_pylist()
    ]
    assert sum(row["calls"] for row in asked) == usage.completed + usage.hits + usage.failed
    assert sum(row["failed"] for row in asked) == usage.failed
    failures = [row["item_id"] for row in read(taught, "failures").to_pylist()]
    assert len(failures) == len(set(failures)) >= usage.failed


def test_the_plan_was_near_what_was_spent(taught: Taught) -> None:
    account = corpus_status(taught.home, "news")["scorecard"]["teacher"]
    assert account["calls_planned"] == pytest.approx(account["calls"], rel=0.35)
    assert account["money_planned"] == pytest.approx(account["money"], rel=0.35)


def test_a_plan_of_what_is_paid_costs_nothing_more(taught: Taught) -> None:
    """What a judge will be asked is not known before the systems have answered."""
    settings = taught.home.settings("news")
    planned = plan_folder(taught.home.folder / "articles", settings, taught.home.completions)
    known = [usage for step, usage in planned.steps.items() if step not in ("judging", "grading")]
    total = sum(known, Usage())
    assert total.hits > 0.9 * (total.hits + total.calls)


def test_progress_is_shown_while_it_works(taught: Taught) -> None:
    lines = [event.numbers for event in taught.events if event.kind == "teacher"]
    assert lines
    assert all(line and line["calls"] >= line["failed"] for line in lines)
    with dg.DagsterInstance.get() as instance:
        seen = instance.fetch_observations(dg.AssetKey("entities"), limit=1).records
    metadata = seen[0].asset_observation.metadata
    assert {"teacher/extraction", "run/calls", "run/money", "run/failed"} <= metadata.keys()


def test_the_key_is_nowhere(taught: Taught) -> None:
    assert taught.server.headers["authorization"] == f"Bearer {KEY}"
    for file in taught.home.folder.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def test_a_second_run_asks_nothing(taught: Taught) -> None:
    before = taught.server.requests
    run_assets(taught.home, "news", ["graph"], lambda _event: None)
    run_assets(taught.home, "news", ["synthesis"], lambda _event: None)
    run_assets(taught.home, "news", ["evaluation"], lambda _event: None)
    assert taught.server.requests == before


@pytest.mark.usefixtures("_dagster_environment")
def test_a_spent_budget_stops_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with ChatServer(teacher.news) as server:
        register(home, server, budget={"max_calls": 5})
        run_assets(home, "news", ["corpus"], lambda _event: None)
        with pytest.raises(RunFailed, match=r"budget\.max_calls"):
            run_assets(home, "news", ["graph"], lambda _event: None)
        assert server.requests == 5
        register(home, server, budget={"max_calls": 500})
        run_assets(home, "news", ["graph"], lambda _event: None)
        assert not server.statistics()["repeated"]


@pytest.mark.usefixtures("_dagster_environment")
def test_failures_above_the_share_fail_the_check(tmp_path: Path) -> None:
    """Every reply to an extraction is a refusal: the run goes on, and its check says so."""

    def refusing(request: dict) -> dict | str:
        if request["response_format"]["json_schema"]["name"] == "Extraction":
            return "I'm sorry, I can't help with that."
        return teacher.news(request)

    home = Home(tmp_path)
    with ChatServer(refusing) as server:
        register(home, server, checks={"max_failed_share": 0.5})
        run_assets(home, "news", ["corpus"], lambda _event: None)
        run_assets(home, "news", ["graph"], lambda _event: None)
    failed = TableStore(home.tables).read("graph_failures", "news").to_pylist()
    assert {row["stage"] for row in failed} == {"extraction"}
    assert all("refused" in row["reason"] for row in failed)
    with dg.DagsterInstance.get() as instance:
        records = instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey("text_units"), "failures_share"), limit=1
        )
    assert records[0].status.value == "FAILED"


SERVER = """
import os, sys
from ragtuned_pipeline_tests.chat_server import main

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(os.environ["STARTED"], "a") as started:
    started.write(f"{os.getpid()}\\n")
script = "ragtuned_pipeline_tests.scripted.teacher:news"
sys.argv[1:] = ["--reply", script, "--port", given["--port"]]
main()
"""


@pytest.mark.usefixtures("_dagster_environment")
def test_a_managed_server_is_shared_by_the_steps_of_a_run_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package `vllm` that serves the scripted teacher stands in for vLLM's own program."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER, encoding="utf-8")
    started = tmp_path / "started"
    monkeypatch.setenv("STARTED", str(started))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{Path.cwd()}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    home = Home(tmp_path / "home")
    register(home, None, teacher={"engine": "vllm"})
    for number, group in enumerate(("graph", "synthesis"), 1):
        run_assets(home, "news", ["corpus"], lambda _event: None)
        run_assets(home, "news", [group], lambda _event: None)
        servers = started.read_text().split()
        assert len(servers) == number, "one server for all steps of a run"
        assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
    assert TableStore(home.tables).read("graph_failures", "news").num_rows == 0


def test_a_killed_run_pays_nothing_twice(tmp_path: Path) -> None:
    """benchmarks/kill_and_resume.py does it fifty times."""
    outcome = kill_and_resume(tmp_path, kills=3, articles=2, seed=1)
    assert outcome.kills == 3
    assert outcome.stored_at_kills[-1] > 0
    assert outcome.repeated == 0
    assert outcome.different == []


def test_status_tells_what_was_spent(taught: Taught) -> None:
    entry = json.loads(json.dumps(corpus_status(taught.home, "news")))
    assert entry["teacher"]["extraction"]["calls"] >= 3
    assert entry["teacher"]["extraction"]["money"] > 0
