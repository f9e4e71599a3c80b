"""What GraphRAG 3.x reads: these columns, in this order, of these types."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.export import GRAPHRAG_TABLES, graphrag_tables, write_graphrag
from ragtuned_pipeline.graph.extraction_offline import extract
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.settings import GraphSettings
from ragtuned_pipeline.tables import SCHEMAS
from ragtuned_pipeline_tests.graph.corpora import GOLDEN, corpus

COLUMNS = {
    "documents": "id:s human_readable_id:i title:s text:s text_unit_ids:ls creation_date:s "
    "raw_data:s",
    "text_units": "id:s human_readable_id:i text:s n_tokens:i document_id:s entity_ids:ls "
    "relationship_ids:ls covariate_ids:ls",
    "entities": "id:s human_readable_id:i title:s type:s description:s text_unit_ids:ls "
    "frequency:i degree:i",
    "relationships": "id:s human_readable_id:i source:s target:s description:s weight:f "
    "combined_degree:i text_unit_ids:ls",
    "communities": "id:s human_readable_id:i community:i level:i parent:i children:li title:s "
    "entity_ids:ls relationship_ids:ls text_unit_ids:ls period:s size:i",
    "community_reports": "id:s human_readable_id:i community:i level:i parent:i children:li "
    "title:s summary:s full_content:s rank:f rating_explanation:s findings:findings "
    "full_content_json:s period:s size:i",
}
TYPES = {
    "s": pa.string(),
    "i": pa.int64(),
    "f": pa.float64(),
    "ls": pa.list_(pa.string()),
    "li": pa.list_(pa.int64()),
    "findings": pa.list_(pa.struct([("explanation", pa.string()), ("summary", pa.string())])),
}


def columns(name: str) -> list[tuple[str, pa.DataType]]:
    pairs = (each.split(":") for each in COLUMNS[name].split())
    return [(column, TYPES[kind]) for column, kind in pairs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = GraphSettings()
    documents, units = corpus(GOLDEN)
    found = extract(documents, units, settings)
    communities = cluster(found.entities, found.relationships, settings)
    nodes = found.entities, found.relationships
    tables = {
        "documents": documents,
        "text_units": found.text_units,
        "entities": found.entities,
        "relationships": found.relationships,
        "communities": communities,
        "community_reports": extractive_reports(communities, *nodes, found.text_units, settings),
    }
    place = tmp_path_factory.mktemp("graphrag")
    write_graphrag(tables, place)
    return place


def test_the_folder_holds_graphrags_tables(folder: Path) -> None:
    assert set(GRAPHRAG_TABLES) == COLUMNS.keys()
    assert {file.name for file in folder.iterdir()} == {f"{name}.parquet" for name in COLUMNS}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_order_and_types_are_graphrags(folder: Path, name: str) -> None:
    data = pq.read_table(folder / f"{name}.parquet")
    assert data.num_rows
    assert [(field.name, field.type) for field in data.schema] == columns(name)


@pytest.mark.parametrize("name", COLUMNS)
def test_an_empty_table_has_its_columns_too(name: str) -> None:
    empty = {each: SCHEMAS[each].empty_table() for each in COLUMNS}
    schema = graphrag_tables(empty)[name].schema
    assert [(field.name, field.type) for field in schema] == columns(name)


def test_everything_that_is_named_is_there_and_titles_are_names(folder: Path) -> None:
    """GraphRAG joins its tables by these."""
    read = {name: pq.read_table(folder / f"{name}.parquet") for name in COLUMNS}
    ids = {name: set(data["id"].to_pylist()) for name, data in read.items()}
    for name, data in read.items():
        assert len(ids[name]) == data.num_rows, name
        for column, other in (
            ("text_unit_ids", "text_units"),
            ("entity_ids", "entities"),
            ("relationship_ids", "relationships"),
        ):
            if column in data.column_names:
                named = {each for row in data[column].to_pylist() for each in row or ()}
                assert named <= ids[other], (name, column)
    titles = read["entities"]["title"].to_pylist()
    assert len(set(titles)) == len(titles)
    for end in ("source", "target"):
        assert set(read["relationships"][end].to_pylist()) <= set(titles)
    reported = set(read["community_reports"]["community"].to_pylist())
    assert reported <= set(read["communities"]["community"].to_pylist())
