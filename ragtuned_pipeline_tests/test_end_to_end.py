"""From a folder to a judged, promoted adapter, through the real Dagster job and a real training."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.orchestration.answering import prepared_system
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.runs import StepEvent, run_assets
from ragtuned_pipeline.orchestration.status import corpus_status
from ragtuned_pipeline.tables import SCHEMAS, check_schema
from ragtuned_pipeline_tests.conftest import build

CONTRACT = {
    "documents",
    "text_units",
    "entities",
    "relationships",
    "communities",
    "community_reports",
    "qa_pairs",
    "training_rows",
    "queries",
    "answers",
    "judgements",
    "failures",
}


def read(home: Home, name: str, corpus: str = "harbour") -> pa.Table:
    return TableStore(home.tables).read(name, corpus)


def scorecard(home: Home) -> dict:
    return json.loads((home.report("harbour") / "scorecard.json").read_text())


def test_every_table_of_the_contract_is_there_with_its_schema(built: Home) -> None:
    for name in CONTRACT:
        data = read(built, name)
        check_schema(name, data)
        assert data.num_rows or name == "failures", name


def test_what_was_learned_is_knowledge(built: Home) -> None:
    systems = scorecard(built)["systems"]
    tuned, base = systems["tuned"]["held_out_wording"], systems["base"]["held_out_wording"]
    assert tuned["n"] >= 20
    assert tuned["contains"] >= 0.7
    assert base["contains"] <= 0.1
    assert scorecard(built)["control_shuffled"]["contains"] <= 0.3


def test_the_scorecard_has_the_contract_s_shape(built: Home) -> None:
    card = scorecard(built)
    assert set(card) >= {
        "corpus",
        "seed",
        "versions",
        "systems",
        "skipped",
        "control_shuffled",
        "coverage",
        "win_rates",
    }
    assert set(card["systems"]) == {
        "tuned",
        "base",
        "tuned_rag",
        "vanilla_rag",
        "graphrag_local",
        "graphrag_global",
    }
    assert "long_context" in card["skipped"]
    sets = card["systems"]["tuned"]
    assert set(sets) == {
        "held_out_wording",
        "new_wording",
        "held_out_fact",
        "generated_local",
        "generated_global",
        "gold_local",
        "gold_global",
        "unanswerable",
    }
    for numbers in sets.values():
        assert set(numbers) >= {
            "n",
            "exact",
            "contains",
            "f1",
            "refused",
            "prompt_tokens",
            "seconds",
        }
    assert card["coverage"]["facts"] >= card["coverage"]["asked"] > 0


def test_a_training_row_leads_back_to_the_sentence(built: Home) -> None:
    rows = read(built, "training_rows")
    pairs = {pair["id"]: pair for pair in read(built, "qa_pairs").to_pylist()}
    units = {unit["id"]: unit for unit in read(built, "text_units").to_pylist()}
    documents = {document["id"]: document for document in read(built, "documents").to_pylist()}
    local = [pairs[i] for i in rows["id"].to_pylist() if pairs[i]["kind"] == "local"]
    assert local
    for pair in local:
        assert pair["text_unit_ids"]
        assert all(units[u]["document_id"] in pair["document_ids"] for u in pair["text_unit_ids"])
        assert all(d in documents for d in pair["document_ids"])
        assert any(pair["gold"] in units[u]["text"] for u in pair["text_unit_ids"]) or (
            pair["style"] == "long" or pair["gold"]
        )


def test_nothing_asked_in_evaluation_was_trained(built: Home) -> None:
    prompts = {p.casefold() for p in read(built, "training_rows")["prompt"].to_pylist()}
    queries = read(built, "queries")
    assert not prompts & {q.casefold() for q in queries["question"].to_pylist()}
    held_out = queries.filter(pc.equal(queries["question_set"], "held_out_fact"))["fact_id"]
    trained = set(read(built, "training_rows")["fact_id"].to_pylist())
    assert held_out
    assert not trained & set(held_out.to_pylist())


def test_the_promoted_adapter_answers(built: Home) -> None:
    assert corpus_status(built, "harbour")["promoted_adapter"]
    with prepared_system(built, "harbour", "tuned") as answerer:
        [answer] = answerer.answer(["Who bought the ferry Blue Marten?"])
    assert answer.text
    assert answer.completion_tokens > 0


def test_the_report_is_one_page_that_needs_nothing_else(built: Home) -> None:
    page = (built.report("harbour") / "index.html").read_text()
    assert "Blue Marten" in page
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def test_a_second_run_keeps_every_result(built: Home) -> None:
    before = {file: file.read_bytes() for file in (built.folder / "tables").rglob("*.parquet")}
    adapter = (built.adapters / "harbour" / "tuned.json").read_bytes()
    trained: list[StepEvent] = []
    run_assets(
        built, "harbour", None, lambda e: trained.append(e) if e.kind == "training" else None
    )
    assert not trained, "nothing changed, and yet something was trained"
    assert (built.adapters / "harbour" / "tuned.json").read_bytes() == adapter
    for file, content in before.items():
        assert file.read_bytes() == content, file


@pytest.fixture
def rebuilt(built: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    # Its records are its own: the built corpus has the same name.
    (tmp_path / "dagster").mkdir()
    monkeypatch.setenv("RAGTUNED_DAGSTER", str(tmp_path / "dagster"))
    shutil.copytree(built.folder / "harbour", home.folder / "harbour")
    build(home, folder=home.folder / "harbour")
    return home


def test_the_same_input_gives_the_same_bytes(built: Home, rebuilt: Home) -> None:
    """All that is not a number of seconds."""
    files = sorted((built.folder / "tables").rglob("*.parquet"))
    assert {f.parent.name for f in files} >= {n for n in SCHEMAS if n in CONTRACT}
    for file in files:
        name = file.parent.name
        if name.startswith("answers") and not name.endswith("_failures"):
            one, two = (read(h, name).drop_columns(["seconds"]) for h in (built, rebuilt))
            assert one.equals(two), name
        elif name == "scores":
            timed = pc.field("measure") == "seconds"
            one, two = (read(h, name).filter(~timed) for h in (built, rebuilt))
            assert one.equals(two)
        else:
            other = rebuilt.folder / "tables" / name / file.name
            assert file.read_bytes() == other.read_bytes(), name
    one, two = (
        json.loads((h.adapters / "harbour" / "tuned.json").read_text()) for h in (built, rebuilt)
    )
    assert one["adapter"] == two["adapter"]
