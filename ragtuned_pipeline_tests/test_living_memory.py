"""A memory that is edited ends, after each edit, as one that is built from what it then is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_llm import extract_with_teacher
from ragtuned_pipeline.graph.reports_llm import reports_with_teacher
from ragtuned_pipeline.inference.backend import RawReply, Request
from ragtuned_pipeline.inference.completions import CompletionStore, Scope
from ragtuned_pipeline.inference.plan import by_characters
from ragtuned_pipeline.inference.teacher import LlmTeacher
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.planning import read_and_cut
from ragtuned_pipeline.orchestration.runs import run_assets
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.synthesis.synthesise_llm import synthesise_with_teacher
from ragtuned_pipeline.tables import content_hash
from ragtuned_pipeline_tests.conftest import SMALL
from ragtuned_pipeline_tests.scripted import teacher as scripted

SETTINGS = Settings.model_validate(
    {
        "teacher": {"engine": "openai", "model": "scripted"},
        "corpus": {"chunk_tokens": 120, "overlap_tokens": 20},
        "graph": {"max_cluster_size": 4},
        "synthesis": {"rows_per_document": 24},
    }
)
NEWS = scripted.SAMPLES / "news" / "documents"


def paragraphs() -> list[str]:
    """The first three paragraphs of eight articles of the news sample."""
    found = []
    for file in sorted(NEWS.iterdir())[:8]:
        parts = file.read_text(encoding="utf-8").split("\n\n")
        found += [part for part in parts if len(part) > 80][:3]
    return found


PARAGRAPHS = paragraphs()
EDIT = st.tuples(
    st.sampled_from(["add", "edit", "edit", "rename", "delete"]),
    st.integers(0, 99),
    st.lists(st.integers(0, len(PARAGRAPHS) - 1), min_size=1, max_size=2),
)


class Folder:
    """A folder of small documents; `do` is one edit, which leaves at least one of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = 0
        path.mkdir()
        for place in range(3):
            self._write(self._new_name(), [2 * place, 2 * place + 1])

    def do(self, what: str, which: int, paragraphs: list[int]) -> None:
        files = sorted(self.path.iterdir())
        file = files[which % len(files)]
        if what == "add" or (what == "delete" and len(files) == 1):
            self._write(self._new_name(), paragraphs)
        elif what == "edit":
            self._write(file.name, paragraphs)
        elif what == "rename":
            file.rename(self.path / self._new_name())
        else:
            file.unlink()

    def _new_name(self) -> str:
        self._names += 1
        return f"note-{self._names}.md"

    def _write(self, name: str, paragraphs: list[int]) -> None:
        text = "\n\n".join(PARAGRAPHS[number] for number in paragraphs)
        (self.path / name).write_text(f"# {name}\n\n{text}\n", encoding="utf-8")


class ScriptedBackend:
    """The scripted teacher of the news sample, and how often it was asked."""

    identity = "scripted"

    def __init__(self) -> None:
        self.requests = 0

    async def reply(self, request: Request) -> RawReply:
        self.requests += 1
        made = scripted.news(
            {
                "response_format": {"json_schema": {"name": request.name}},
                "messages": [dict(message) for message in request.messages],
            }
        )
        return RawReply(json.dumps(made), "stop", None, 10, 10)

    async def close(self) -> None:
        pass


def built(folder: Path, store: Path) -> tuple[Mapping[str, str], int]:
    """Return the content of all tables up to the pairs, and how many requests they took."""
    backend = ScriptedBackend()
    documents, units, _ = read_and_cut(folder, SETTINGS)
    with (
        CompletionStore(store) as completions,
        LlmTeacher(
            backend, SETTINGS.teacher, completions, SETTINGS.budget, Scope("run", "news")
        ) as asked,
    ):
        graph = extract_with_teacher(documents, units, asked, SETTINGS.graph, by_characters)
        communities = cluster(graph.entities, graph.relationships, SETTINGS.graph)
        of_graph = communities, graph.entities, graph.relationships, graph.text_units
        reports, failed = reports_with_teacher(*of_graph, asked, SETTINGS.graph, by_characters)
        made = synthesise_with_teacher(
            documents,
            graph.text_units,
            graph.entities,
            graph.relationships,
            communities,
            reports,
            asked,
            None,
            SETTINGS.synthesis,
            None,
        )
    tables: dict[str, pa.Table] = {
        "documents": documents,
        "entities": graph.entities,
        "relationships": graph.relationships,
        "text_units": graph.text_units,
        "communities": communities,
        "reports": reports,
        "reports failed": failed,
        "pairs": made.qa_pairs,
        "new wordings": made.queries_new_wording,
        "failures": made.failures,
    }
    return {name: content_hash(data) for name, data in tables.items()}, backend.requests


@settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(EDIT, min_size=50, max_size=50))
def test_after_each_of_fifty_edits_the_tables_are_those_of_a_rebuild(
    tmp_path_factory: pytest.TempPathFactory, edits: list[Any]
) -> None:
    place = tmp_path_factory.mktemp("edits")
    folder = Folder(place / "folder")
    built(folder.path, place / "kept.sqlite")
    for number, edit in enumerate(edits):
        folder.do(*edit)
        edited, spent = built(folder.path, place / "kept.sqlite")
        rebuilt, whole = built(folder.path, place / f"{number}.sqlite")
        assert edited == rebuilt, f"edit {number}: {edit}"
        assert spent <= whole
    # What was asked once is never asked again, whatever came and went in between.
    again, spent = built(folder.path, place / "kept.sqlite")
    assert (again, spent) == (edited, 0)


def test_after_each_edit_through_dagster_the_tables_are_those_of_a_rebuild(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "folder")
    home = Home(tmp_path / "kept")
    edits: list[Any] = [("edit", 1, [9]), ("add", 0, [14, 3]), ("rename", 2, []), ("delete", 0, [])]
    run(home, folder.path)
    for number, edit in enumerate(edits):
        folder.do(*edit)
        fresh = Home(tmp_path / f"fresh-{number}")
        run(home, folder.path)
        run(fresh, folder.path)
        assert written(home) == written(fresh), f"edit {number}: {edit}"
        shutil.rmtree(fresh.folder)


def run(home: Home, folder: Path) -> None:
    home.register("news", folder, None, SMALL)
    run_assets(home, "news", ("corpus", "graph", "synthesis"), lambda _event: None)


def written(home: Home) -> dict[str, str]:
    store = TableStore(home.tables)
    tables = sorted(path.name for path in Path(home.tables).iterdir())
    return {name: content_hash(store.read(name, "news")) for name in tables}
