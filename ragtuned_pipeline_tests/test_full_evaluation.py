"""`ragtuned evaluate N --full` on the mini corpus: judged systems, and an ablation of three."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.evaluation.ablation import VARIANTS
from ragtuned_pipeline.orchestration.assets.ablation import read_ablation
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.runs import StepEvent, run_assets
from ragtuned_pipeline_tests.conftest import HARBOUR_GOLD, SMALL

FULL = ["ablation", "evaluation"]
ABLATION = {"ablation": {"variants": "local,global,both", "time_budget_minutes": 0.05}}


def evaluate(home: Home, groups: list[str]) -> list[StepEvent]:
    events: list[StepEvent] = []
    run_assets(home, "harbour", groups, events.append)
    return events


def trained(events: list[StepEvent]) -> set[str]:
    return {event.step for event in events if event.kind == "training"}


def scorecard(home: Home) -> dict[str, Any]:
    return json.loads((home.report("harbour") / "scorecard.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def home(built: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    place = tmp_path_factory.mktemp("full")
    copy = Home(place / "home")
    shutil.copytree(built.folder, copy.folder, symlinks=True)
    link = copy.corpora / "harbour"
    link.unlink()
    copy.register("harbour", copy.folder / "harbour", HARBOUR_GOLD, SMALL | ABLATION)
    # Its records are its own: the built corpus has the same name.
    (place / "dagster").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGTUNED_DAGSTER", str(place / "dagster"))
        yield copy


@pytest.fixture(scope="module")
def evaluated(home: Home) -> tuple[Home, list[StepEvent]]:
    return home, evaluate(home, FULL)


def test_three_adapters_are_tuned_and_nothing_else(
    evaluated: tuple[Home, list[StepEvent]], built: Home
) -> None:
    home, events = evaluated
    assert trained(events) == {f"ablation_adapter_{name}" for name in ("local", "global", "both")}
    for name in ("qa_pairs", "queries", "answers_tuned", "answers_graphrag_local"):
        file = f"tables/{name}/harbour.parquet"
        assert (home.folder / file).read_bytes() == (built.folder / file).read_bytes(), name


def test_the_variants_had_equal_budgets_and_are_scored_and_judged(
    evaluated: tuple[Home, list[StepEvent]],
) -> None:
    home, _ = evaluated
    ablation = scorecard(home)["ablation"]
    assert set(ablation["variants"]) == {"local", "global", "both"}
    budget = 0.05 * 60 * 5000
    for name, variant in ablation["variants"].items():
        assert 0.5 * budget < variant["tokens"] <= budget, name
        assert variant["scores"]["local"]["n"] > 0
    pairs = {(row["system_a"], row["system_b"]) for row in ablation["win_rates"]}
    assert pairs == {("both", "global"), ("both", "local"), ("global", "local")}
    assert {row["scope"] for row in ablation["win_rates"]} == {"local", "global"}


def test_the_rows_of_a_variant_are_of_its_part(evaluated: tuple[Home, list[StepEvent]]) -> None:
    store = TableStore(evaluated[0].tables)
    kinds = {
        name: set(store.read(f"ablation_rows_{name}", "harbour")["kind"].to_pylist())
        for name in VARIANTS
    }
    assert kinds["local"] <= {"local", "unanswerable"}
    assert kinds["global"] <= {
        "global_entity",
        "global_relationship",
        "global_community",
        "unanswerable",
    }
    assert kinds["rank_8"] == set(), "not among ablation.variants"


def test_every_two_systems_are_judged_in_both_orders(
    evaluated: tuple[Home, list[StepEvent]],
) -> None:
    store = TableStore(evaluated[0].tables)
    judgements, card = store.read("judgements", "harbour"), scorecard(evaluated[0])
    systems = len(card["systems"])
    pairs = systems * (systems - 1) // 2
    generated = store.read("queries", "harbour").filter(
        pc.field("question_set").isin(["generated_local", "generated_global"])
    )
    judged = set(judgements["query_id"].to_pylist())
    assert set(generated["id"].to_pylist()) <= judged
    assert judgements.num_rows == len(judged) * pairs * 4 * 2
    counted = pc.value_counts(judgements["order"]).to_pylist()
    assert len({entry["counts"] for entry in counted}) == 1
    assert len(card["win_rates"]) == pairs * 5 * 2
    judge = card["judge"]
    assert judge["engine"] == "rules"
    assert judge["order"]["disagreements"] == 0, "rules do not know the order"
    assert judge["unjudged"] == 0


def test_what_tuning_forgot_is_in_the_scorecard(evaluated: tuple[Home, list[StepEvent]]) -> None:
    ability = scorecard(evaluated[0])["general_ability"]
    assert ability["known_forms"]["change"] > 0, "an overfitted adapter has forgotten something"
    assert ability["minimal_pairs"]["n"] > 100


def test_the_pages_show_it_and_lead_to_one_another(
    evaluated: tuple[Home, list[StepEvent]],
) -> None:
    home, _ = evaluated
    page = (home.report("harbour") / "index.html").read_text(encoding="utf-8")
    for anchor in ("wins", "judge", "ablation", "ability"):
        assert f'id="{anchor}"' in page, anchor
    across = (home.folder / "reports" / "index.html").read_text(encoding="utf-8")
    assert 'href="harbour/index.html"' in across


def test_a_second_time_trains_nothing(evaluated: tuple[Home, list[StepEvent]]) -> None:
    assert not trained(evaluate(evaluated[0], FULL))


def test_an_ablation_that_was_asked_other_questions_or_judged_by_another_is_left_out(
    evaluated: tuple[Home, list[StepEvent]],
) -> None:
    home = HomeResource(folder=str(evaluated[0].folder))
    queries, judgements = (home.store.read(n, "harbour") for n in ("queries", "judgements"))
    kept = read_ablation(home, "harbour", queries, judgements)
    assert kept["variants"].keys() == {"local", "global", "both"}
    assert read_ablation(home, "harbour", queries.slice(1), judgements) == {}
    assert read_ablation(home, "harbour", queries, judgements.slice(0, 0)) == {}, "another judge"


def test_an_ablation_that_was_tuned_with_other_settings_is_left_out(
    evaluated: tuple[Home, list[StepEvent]],
) -> None:
    place = evaluated[0]
    home = HomeResource(folder=str(place.folder))
    queries, judgements = (home.store.read(n, "harbour") for n in ("queries", "judgements"))
    tuning = SMALL["tuning"] | {"learning_rate": 1e-3}
    place.register("harbour", place.folder / "harbour", None, SMALL | ABLATION | {"tuning": tuning})
    assert read_ablation(home, "harbour", queries, judgements) == {}
    place.register("harbour", place.folder / "harbour", None, SMALL | ABLATION)
    assert read_ablation(home, "harbour", queries, judgements) != {}
