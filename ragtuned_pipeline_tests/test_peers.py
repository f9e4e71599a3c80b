"""What other tools get wrong, where no one room's tests hold it (the rest: grep "peer")."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.runs import run_assets
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline_tests.chat_server import ChatServer
from ragtuned_pipeline_tests.conftest import HARBOUR
from ragtuned_pipeline_tests.scripted import teacher

pytestmark = pytest.mark.usefixtures("_dagster_environment")
GRAPH = ("entities", "relationships", "text_units", "communities", "community_reports")


def read(home: Home, name: str) -> pa.Table:
    return TableStore(home.tables).read(name, "c")


def build_graph(home: Home) -> None:
    for group in ("corpus", "graph"):
        run_assets(home, "c", group, lambda _event: None)


def ids(data: pa.Table) -> set[str]:
    """Every id that stands in the table, in lists too."""
    found: set[str] = set()
    for field in data.schema:
        column = data[field.name]
        if pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
            column = pc.list_flatten(column)
        if pa.types.is_string(column.type) and (field.name == "id" or "_id" in field.name):
            found |= set(column.to_pylist()) - {None}
    return found


def test_peers_defect_6_edits_and_deletions_reach_every_table(tmp_path: Path) -> None:
    """Theirs ignores an edited document of the same title, never clusters again, never deletes."""
    home, folder = Home(tmp_path / "home"), tmp_path / "documents"
    shutil.copytree(HARBOUR, folder)
    home.register("c", folder, None, {})
    build_graph(home)
    before = {name: read(home, name) for name in GRAPH}
    edited, deleted, *_ = sorted(file for file in folder.rglob("*") if file.is_file())
    title, text = edited.stem, edited.read_text(encoding="utf-8")
    edited.write_text(f"{text}\n\nOrlo Quist hired Benna Farr. Benna Farr left Orlo Quist.\n")
    build_graph(home)
    documents = read(home, "documents").to_pylist()
    assert any(title in row["path"] and "Orlo Quist" in row["text"] for row in documents)
    assert {"Orlo Quist", "Benna Farr"} <= set(read(home, "entities")["title"].to_pylist())
    assert not read(home, "communities").equals(before["communities"]), "clustered again"

    [gone] = [
        row["id"] for row in documents if row["path"] == deleted.relative_to(folder).as_posix()
    ]
    units = [
        row["id"] for row in read(home, "text_units").to_pylist() if row["document_id"] == gone
    ]
    deleted.unlink()
    build_graph(home)
    for name in ("documents", *GRAPH):
        assert not ids(read(home, name)) & {gone, *units}, name
    known = ids(read(home, "entities")) | ids(read(home, "relationships"))
    assert ids(read(home, "communities")) - known <= set(
        read(home, "communities")["id"].to_pylist()
    ), "no dangling ids"


def taught(home: Home, server: ChatServer) -> None:
    documents = home.folder / "articles"
    if not documents.exists():
        documents.mkdir(parents=True)
        for article in sorted((teacher.SAMPLES / "news" / "documents").iterdir())[:2]:
            shutil.copy(article, documents)
    asked = {"address": server.address, "model": "m", "max_attempts": 1}
    home.register("c", documents, None, {"profile": "api", "teacher": asked})
    build_graph(home)


def test_peers_defects_1_and_8_a_failed_item_is_tried_again_and_counts_once(tmp_path: Path) -> None:
    """Theirs leaves it missing for ever, or doubles the weights of the others on retry."""
    failing: list[dict] = []  # the messages that get no good reply

    def reply(request: dict) -> dict | str:
        return "no JSON" if request["messages"] == failing else teacher.news(request)

    with ChatServer(reply) as server:
        whole = Home(tmp_path / "whole")
        taught(whole, server)
        failing = server.bodies[0]["messages"]
        home = Home(tmp_path / "home")
        taught(home, server)
        assert {row["stage"] for row in read(home, "graph_failures").to_pylist()} == {"extraction"}
        assert read(home, "relationships").num_rows < read(whole, "relationships").num_rows
        failing = []
        requests = server.requests
        taught(home, server)
        asked_again = server.requests - requests
        taught(home, server)
        assert server.requests == requests + asked_again, "nothing is missing any more"
    assert read(home, "graph_failures").num_rows == 0
    for name in ("entities", "relationships", "text_units"):
        assert content_hash(read(home, name)) == content_hash(read(whole, name)), name


def test_peers_defect_8_what_a_model_writes_is_never_run(tmp_path: Path) -> None:
    """Theirs calls eval() on it."""
    mark = tmp_path / "run"
    code = f"{{'entities': __import__('pathlib').Path({str(mark)!r}).touch()}}"

    def reply(request: dict) -> dict | str:
        name = request["response_format"]["json_schema"]["name"]
        return code if name == "Extraction" else teacher.news(request)

    with ChatServer(reply) as server:
        home = Home(tmp_path / "home")
        taught(home, server)
    reasons = [row["reason"] for row in read(home, "graph_failures").to_pylist()]
    assert reasons
    assert all("JSON" in reason for reason in reasons)
    assert not mark.exists()
