"""graph: entities and relationships, their communities, and a report on each community."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.steps import (
    OWNER,
    code_version,
    failures_check,
    reference_check,
    run_step,
    settings_key,
    table_assets,
)
from ragtuned_pipeline.orchestration.teaching import (
    TeacherResource,
    account,
    embedder,
    teacher_key,
    token_counter,
)
from ragtuned_pipeline.tables import table


@table_assets(
    outputs={
        "entities": "People, organizations, places, events and things, with their aliases.",
        "relationships": "Directed statements between two entities, with the stating sentences.",
        "text_units": "The text units with the entities and relationships found in them.",
        "graph_failures": "Text units that the extraction could not process.",
        "graph_usage": "What the teacher was asked for the graph; empty without one.",
    },
    group="graph",
    rooms=["graph", "corpus/sentences.py"],
    inputs=["documents", "base_text_units"],
    deps=["teacher_plan"],  # what it will cost is there before anything is spent
    checks={
        "entities": ["no_dangling_ids"],
        "relationships": ["no_dangling_ids"],
        "text_units": ["no_dangling_ids", "failures_share"],
    },
    kinds={"python"},
)
def knowledge_graph(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    documents: pa.Table,
    base_text_units: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.graph.extraction_llm import extract_with_teacher
    from ragtuned_pipeline.graph.extraction_offline import extract

    settings = home.home.settings(context.partition_key)

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        with teacher.open(context, home.home, settings, "entities") as asked:
            if asked is None:
                graph = extract(documents, base_text_units, settings.graph)
            else:
                graph = extract_with_teacher(
                    documents,
                    base_text_units,
                    asked,
                    settings.graph,
                    token_counter(settings),
                    embedder(settings),
                )
            usage, shown = account(asked)
        tables = {
            "entities": graph.entities,
            "relationships": graph.relationships,
            "text_units": graph.text_units,
            "graph_failures": graph.failures,
            "graph_usage": usage,
        }
        return tables, shown

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        entities, relationships = tables["entities"], tables["relationships"]
        units, failed = tables["text_units"], tables["graph_failures"].num_rows
        limit = settings.checks.max_failed_share
        return [
            reference_check(
                "entities", [("text_unit_ids", entities["text_unit_ids"], units["id"])]
            ),
            reference_check(
                "relationships",
                [
                    ("source_id", relationships["source_id"], entities["id"]),
                    ("target_id", relationships["target_id"], entities["id"]),
                    ("text_unit_ids", relationships["text_unit_ids"], units["id"]),
                ],
            ),
            reference_check(
                "text_units",
                [
                    ("entity_ids", units["entity_ids"], entities["id"]),
                    ("relationship_ids", units["relationship_ids"], relationships["id"]),
                ],
            ),
            failures_check("text_units", failed, units.num_rows, limit, tables["graph_usage"]),
        ]

    yield from run_step(
        context,
        home.store,
        ["entities", "relationships", "text_units", "graph_failures", "graph_usage"],
        settings_key(settings.graph, teacher_key(settings)),
        {"documents": documents, "base_text_units": base_text_units},
        compute,
        checks,
    )


@table_assets(
    outputs={"communities": "Hierarchical Leiden clusters of the graph; level 0 holds the roots."},
    group="graph",
    rooms=["graph/communities.py"],
    inputs=["entities", "relationships"],
    checks={"communities": ["no_dangling_ids"]},
)
def clusters(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    entities: pa.Table,
    relationships: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.graph.communities import cluster

    settings = home.home.settings(context.partition_key)

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        found = tables["communities"]
        return [
            reference_check(
                "communities",
                [
                    ("entity_ids", found["entity_ids"], entities["id"]),
                    ("relationship_ids", found["relationship_ids"], relationships["id"]),
                ],
            )
        ]

    yield from run_step(
        context,
        home.store,
        ["communities"],
        settings_key(settings.graph),
        {"entities": entities, "relationships": relationships},
        lambda: ({"communities": cluster(entities, relationships, settings.graph)}, {}),
        checks,
    )


@table_assets(
    outputs={
        "community_reports": "A report on each community, children before their parents.",
        "reports_failures": "Communities without a report by the teacher; theirs is extractive.",
        "reports_usage": "What the teacher was asked for the reports; empty without one.",
    },
    group="graph",
    rooms=["graph"],
    inputs=["communities", "entities", "relationships", "text_units"],
    checks={"community_reports": ["failures_share"]},
)
def reports(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    teacher: TeacherResource,
    communities: pa.Table,
    entities: pa.Table,
    relationships: pa.Table,
    text_units: pa.Table,
) -> Iterator[Any]:
    from ragtuned_pipeline.graph.reports import extractive_reports
    from ragtuned_pipeline.graph.reports_llm import reports_with_teacher

    settings = home.home.settings(context.partition_key)
    graph = communities, entities, relationships, text_units

    def compute() -> tuple[dict[str, pa.Table], dict[str, Any]]:
        with teacher.open(context, home.home, settings, "community_reports") as asked:
            if asked is None:
                made, failed = extractive_reports(*graph, settings.graph), table("failures", [])
            else:
                made, failed = reports_with_teacher(
                    *graph, asked, settings.graph, token_counter(settings)
                )
            usage, shown = account(asked)
        tables = {"community_reports": made, "reports_failures": failed, "reports_usage": usage}
        return tables, shown

    def checks(tables: Any) -> list[dg.AssetCheckResult]:
        return [
            failures_check(
                "community_reports",
                tables["reports_failures"].num_rows,
                communities.num_rows,
                settings.checks.max_failed_share,
                tables["reports_usage"],
            )
        ]

    yield from run_step(
        context,
        home.store,
        ["community_reports", "reports_failures", "reports_usage"],
        settings_key(settings.graph, teacher_key(settings)),
        {
            "communities": communities,
            "entities": entities,
            "relationships": relationships,
            "text_units": text_units,
        },
        compute,
        checks,
    )


@dg.asset(
    group_name="graph",
    partitions_def=corpora,
    code_version=code_version("graph/network.py"),
    owners=[OWNER],
    kinds={"networkx", "matplotlib"},
)
def graph_picture(
    context: dg.AssetExecutionContext,
    home: HomeResource,
    entities: pa.Table,
    relationships: pa.Table,
    communities: pa.Table,
) -> dg.MaterializeResult[Any]:
    """The graph as GraphML, for Gephi or networkx, and as a picture."""
    from hashlib import blake2b

    from ragtuned_pipeline.graph.network import draw, write_graphml

    folder = home.home.report(context.partition_key)
    folder.mkdir(parents=True, exist_ok=True)
    write_graphml(entities, relationships, folder / "graph.graphml")
    picture = draw(entities, relationships, communities)
    write_text(folder / "graph.svg", picture)
    content = (folder / "graph.graphml").read_bytes() + picture.encode()
    return dg.MaterializeResult(
        data_version=dg.DataVersion(blake2b(content, digest_size=16).hexdigest()),
        metadata={
            "graphml": dg.MetadataValue.path(str(folder / "graph.graphml")),
            "svg": dg.MetadataValue.path(str(folder / "graph.svg")),
            "nodes": entities.num_rows,
            "edges": relationships.num_rows,
        },
    )
