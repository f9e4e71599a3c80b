"""One sentence more in one of a thousand documents: what is done again, and how long it takes.

    python -m ragtuned_pipeline_tests.benchmarks.one_edit [DOCUMENTS]

First the calls that a teacher would be asked, with stand-ins for its replies: how many of each step
have another prompt after the edit, which is what would be asked and paid for, beside how many items
the edit touches. Then the offline steps through Dagster, up to the training rows: the seconds of
each step before and after, and the rows of each table that are new or gone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ragtuned_pipeline.evaluation.questions.query_stand_ins import query_stand_ins
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.report_stand_ins import report_stand_ins
from ragtuned_pipeline.graph.stand_ins import extraction_stand_ins
from ragtuned_pipeline.inference.calls import Call, Outcome, T
from ragtuned_pipeline.inference.plan import Planner, by_characters
from ragtuned_pipeline.inference.teacher import call_key
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.planning import ask_everything, read_and_cut
from ragtuned_pipeline.orchestration.runs import StepEvent, run_assets
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.synthesis.stand_ins import synthesis_stand_ins
from ragtuned_pipeline_tests.benchmarks.county import statement, write_county

SETTINGS = Settings.model_validate({"teacher": {"engine": "openai", "model": "stand-in"}})
_TABLES = (
    "documents",
    "text_units",
    "entities",
    "relationships",
    "communities",
    "community_reports",
    "qa_pairs",
    "training_rows",
)


class Recorder(Planner):
    """A planner that keeps the key of every call, by step."""

    def __init__(self, graph: Any) -> None:
        stand_ins = {
            **extraction_stand_ins(graph),
            **report_stand_ins(),
            **synthesis_stand_ins(),
            **query_stand_ins(),
        }
        super().__init__("stand-in", SETTINGS.teacher, stand_ins, by_characters, None)
        self.keys: dict[str, set[bytes]] = {}

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        def noted() -> Iterator[Call[T]]:
            for call in calls:
                key = call_key("stand-in", call, SETTINGS.teacher)
                self.keys.setdefault(call.step, set()).add(key)
                yield call

        yield from super().complete(noted())


def asked(folder: Path) -> tuple[dict[str, set[bytes]], dict[str, pa.Table]]:
    """Return the calls by step, and the tables that show what an edit touches."""
    documents, units, _ = read_and_cut(folder, SETTINGS)
    graph = extract(documents, units, SETTINGS.graph)
    recorder = Recorder(graph)
    ask_everything(documents, units, recorder, SETTINGS, by_characters)
    communities = cluster(graph.entities, graph.relationships, SETTINGS.graph)
    return recorder.keys, {
        "text_units": units,
        "entities": graph.entities,
        "relationships": graph.relationships,
        "communities": communities,
    }


def touched(before: dict[str, pa.Table], after: dict[str, pa.Table]) -> dict[str, int]:
    """Return how many units, entities, relationships and communities an edit touches.

    A community is touched where its members, or the words of an entity or relationship in it, are
    others, and so are those above it.
    """
    said = {
        "text_units": ("text",),
        "entities": ("title", "type", "description"),
        "relationships": ("source", "target", "description"),
    }
    changed: dict[str, set[str]] = {}
    for name, columns in said.items():
        rows = [
            {row["id"]: tuple(row[c] for c in columns) for row in tables[name].to_pylist()}
            for tables in (before, after)
        ]
        changed[name] = {key for key, row in rows[1].items() if rows[0].get(key) != row}
    known = set(before["communities"]["id"].to_pylist())
    every = changed["entities"] | changed["relationships"]
    rows = after["communities"].to_pylist()
    hit = {
        row["community"]
        for row in rows
        if row["id"] not in known or every & {*row["entity_ids"], *row["relationship_ids"]}
    }
    parent = {row["community"]: row["parent"] for row in rows}
    for community in list(hit):
        while (community := parent[community]) != -1:
            hit.add(community)
    return {name: len(keys) for name, keys in changed.items()} | {"communities": len(hit)}


def run(home: Home) -> dict[str, float]:
    """Run the steps up to the training rows; return the seconds of each."""
    began: dict[str, float] = {}
    taken: dict[str, float] = {}

    def note(event: StepEvent) -> None:
        if event.kind == "start":
            began[event.step] = time.perf_counter()
        elif event.kind == "done":
            taken[event.step] = time.perf_counter() - began[event.step]

    started = time.perf_counter()
    run_assets(home, "county", ("corpus", "graph", "synthesis"), note)
    return taken | {"all, with Dagster": time.perf_counter() - started}


def main(documents: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, home = Path(place, "county"), Home(Path(place, "home"))
        folder.mkdir()
        write_county(folder, documents)
        calls, tables = asked(folder)
        home.register("county", folder, None, {})
        first = run(home)
        store = TableStore(home.tables)
        before = {name: store.read(name, "county") for name in _TABLES}

        edited = folder / f"{documents // 2:05}.md"
        with edited.open("a", encoding="utf-8") as file:
            file.write(f"\n{statement(9)}\n")
        again, new_tables = asked(folder)
        second = run(home)
        unchanged = run(home)
        after = {name: store.read(name, "county") for name in _TABLES}

    print(f"touched by the edit: {touched(tables, new_tables)}\n")
    print(f"{'a teacher would be asked':28}{'calls':>9}{'anew':>7}")
    every = new = 0
    for step, keys in sorted(again.items()):
        anew = len(keys - calls.get(step, set()))
        every, new = every + len(keys), new + anew
        print(f"{step:28}{len(keys):9,}{anew:7,}")
    print(f"{'together':28}{every:9,}{new:7,}  ({new / every:.2%})\n")
    print(f"{'offline, seconds':28}{'first':>9}{'edited':>9}{'unchanged':>11}")
    for step in first:
        print(f"{step:28}{first[step]:9.1f}{second[step]:9.1f}{unchanged[step]:11.1f}")
    print(f"\n{'rows':28}{'all':>9}{'new':>9}{'gone':>9}")
    for name in _TABLES:
        old, now = (set(each[name]["id"].to_pylist()) for each in (before, after))
        print(f"{name:28}{len(now):9,}{len(now - old):9,}{len(old - now):9,}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
