"""Community reports by a teacher, bottom-up, nothing lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from ragtuned_pipeline import tables
from ragtuned_pipeline.graph.communities import cluster
from ragtuned_pipeline.graph.report_contexts import ReportContexts
from ragtuned_pipeline.graph.report_stand_ins import report_stand_ins
from ragtuned_pipeline.graph.reports import extractive_reports
from ragtuned_pipeline.graph.reports_llm import CommunityReport, reports_with_teacher
from ragtuned_pipeline.inference.calls import Call, Outcome, T, Teacher
from ragtuned_pipeline.settings import GraphSettings, Settings
from ragtuned_pipeline_tests.graph.test_communities_and_reports import (
    graph_tables,
    towns,
    units_of,
)
from ragtuned_pipeline_tests.graph.test_report_contexts import rows_in, words
from ragtuned_pipeline_tests.in_memory_teacher import InMemoryTeacher
from ragtuned_pipeline_tests.scripted.reports import reply

GRAPH = Settings().graph.model_copy(update={"max_cluster_size": 4})

Script = Callable[[Call[Any]], dict[str, Any] | str | None]


def scripted(call: Call[Any]) -> dict[str, Any]:
    return reply(call.schema.__name__, [dict(message) for message in call.messages])


def altered(change: Callable[[dict[str, Any]], object]) -> Script:
    def script(call: Call[Any]) -> dict[str, Any]:
        made = scripted(call)
        change(made)
        return made

    return script


def written(
    teacher: Teacher, settings: GraphSettings = GRAPH
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return communities, reports and failures of the towns."""
    entities, relationships = towns()
    communities = cluster(entities, relationships, settings)
    reports, failures = reports_with_teacher(
        communities, entities, relationships, units_of(relationships), teacher, settings, words
    )
    tables.check_schema("community_reports", reports)
    tables.check_schema("failures", failures)
    return communities, reports, failures


def extractive(settings: GraphSettings = GRAPH) -> list[dict[str, Any]]:
    entities, relationships = towns()
    communities = cluster(entities, relationships, settings)
    rows: list[dict[str, Any]] = extractive_reports(
        communities, entities, relationships, units_of(relationships), settings
    ).to_pylist()
    return rows


def context_of(call: Call[Any]) -> str:
    return call.messages[-1]["content"]


def test_every_community_gets_its_report_from_one_call() -> None:
    teacher = InMemoryTeacher(scripted)
    communities, reports, failures = written(teacher)
    assert failures.num_rows == 0
    assert reports["community"].to_pylist() == communities["community"].to_pylist()
    assert sorted(call.item_id for call in teacher.calls) == sorted(communities["id"].to_pylist())
    assert {call.step for call in teacher.calls} == {"report"}
    made = {call.item_id: scripted(call) for call in teacher.calls}
    for community, report in zip(communities.to_pylist(), reports.to_pylist(), strict=True):
        reply = made[community["id"]]
        assert (report["title"], report["summary"]) == (reply["title"], reply["summary"])
        assert report["rank"] == reply["rating"]
        assert report["full_content"].startswith(f"# {reply['title']}\n\n{reply['summary']}\n\n## ")
        for name in ("level", "parent", "children", "size", "period", "community"):
            assert report[name] == community[name]


def test_findings_refer_to_entities_and_relationships_by_content_id() -> None:
    entities, relationships = towns()
    teacher = InMemoryTeacher(scripted)
    communities, reports, _ = written(teacher)
    contexts = ReportContexts(
        communities, entities, relationships, GRAPH.max_report_context_tokens, words
    )
    given = {
        communities["id"][each.community].as_py(): each
        for level in range(max(communities["level"].to_pylist()) + 1)
        for each in contexts.at_level(level, {})
    }
    made = {call.item_id: scripted(call) for call in teacher.calls}
    for identity, report in zip(communities["id"].to_pylist(), reports.to_pylist(), strict=True):
        found = json.loads(report["full_content_json"])["findings"]
        asked = made[identity]["findings"]
        assert len(found) == len(report["findings"]) == len(asked) > 0
        context = given[identity]
        for finding, named, shown in zip(found, asked, report["findings"], strict=True):
            assert finding["entity_ids"] == [context.entities[n - 1] for n in named["entities"]]
            assert finding["relationship_ids"] == [
                context.relationships[n - 1] for n in named["relationships"]
            ]
            assert finding["entity_ids"]
            assert shown == {key: finding[key] for key in ("summary", "explanation")}


def test_an_id_named_twice_is_kept_once() -> None:
    def change(made: dict[str, Any]) -> None:
        made["findings"][0]["entities"] *= 2

    plain, doubled = (written(InMemoryTeacher(s))[1] for s in (scripted, altered(change)))
    assert doubled.equals(plain)


def test_peers_defect_3_childrens_reports_feed_their_parents() -> None:
    few = GRAPH.model_copy(update={"max_report_context_tokens": 260})
    teacher = InMemoryTeacher(scripted)
    communities, reports, failures = written(teacher, few)
    assert failures.num_rows == 0
    calls = {call.item_id: context_of(call) for call in teacher.calls}
    level = dict(zip(communities["id"].to_pylist(), communities["level"].to_pylist(), strict=True))
    asked = [level[call.item_id] for call in teacher.calls]
    assert asked == sorted(asked, reverse=True)
    report_of = {row["community"]: row for row in reports.to_pylist()}
    fed = 0
    for row in communities.to_pylist():
        told = calls[row["id"]].count("\n## ")
        below = [f"## {report_of[child]['title']}\n" for child in row["children"]]
        assert sum(title in calls[row["id"]] for title in below) == told
        fed += told
    assert fed > 0
    # What a parent says of a child's finding is checked against what the child referred to.
    parents = [call for call in teacher.calls if "\n## " in context_of(call)]
    assert any(
        set(finding["relationships"]) - set(rows_in(context_of(call), "Relationships"))
        for call in parents
        for finding in scripted(call)["findings"]
    )


def test_unknown_ids_are_told_to_the_model_and_counted() -> None:
    def change(made: dict[str, Any]) -> None:
        made["findings"][0]["entities"] += [9000, 8000]
        made["findings"][-1]["relationships"].append(7000)

    communities, reports, failures = written(InMemoryTeacher(altered(change)))
    assert failures.num_rows == communities.num_rows
    reasons = failures["reason"].to_pylist()
    assert all("entities 8000, 9000; relationships 7000" in reason for reason in reasons)
    assert reports.to_pylist() == extractive()


def test_an_id_beyond_those_given_is_unknown_and_so_is_none() -> None:
    def script(call: Call[Any]) -> dict[str, Any]:
        made = scripted(call)
        given = rows_in(context_of(call), "Entities")
        made["findings"][0]["entities"] = [0, len(given) + 1]
        return made

    communities, _, failures = written(InMemoryTeacher(script))
    assert failures.num_rows == communities.num_rows
    assert all("entities 0, " in reason for reason in failures["reason"].to_pylist())


def test_a_report_without_findings_fails() -> None:
    communities, _, failures = written(
        InMemoryTeacher(altered(lambda made: made.update(findings=[])))
    )
    assert failures.num_rows == communities.num_rows
    assert "no findings" in failures["reason"][0].as_py()


@pytest.mark.parametrize(
    "change",
    [
        {"rating": 11},
        {"title": " \n "},
        {"summary": "[Data: Entities (1, 2)]"},
        {"confidence": 1},
    ],
)
def test_a_reply_outside_the_schema_fails(change: dict[str, Any]) -> None:
    communities, reports, failures = written(
        InMemoryTeacher(altered(lambda made: made.update(change)))
    )
    assert failures.num_rows == communities.num_rows
    assert reports.to_pylist() == extractive()


def test_a_failed_report_is_extractive_and_counted_and_its_parents_go_on() -> None:
    entities, relationships = towns()
    few = GRAPH.model_copy(update={"max_report_context_tokens": 260})
    communities = cluster(entities, relationships, few).to_pylist()
    leaves = {row["id"] for row in communities if row["parent"] != -1 and not row["children"]}
    teacher = InMemoryTeacher(lambda call: None if call.item_id in leaves else scripted(call))
    _, reports, failures = written(teacher, few)
    assert set(failures["item_id"].to_pylist()) == leaves
    assert set(failures["stage"].to_pylist()) == {"report"}
    assert all("the server sent no reply" in reason for reason in failures["reason"].to_pylist())
    expected = {row["community"]: row for row in extractive(few)}
    for row, report in zip(communities, reports.to_pylist(), strict=True):
        assert (report == expected[row["community"]]) == (row["id"] in leaves)
    told = [call for call in teacher.calls if "\n## " in context_of(call)]
    assert told
    titles = {expected[row["community"]]["title"] for row in communities if row["id"] in leaves}
    assert all(any(title in context_of(call) for title in titles) for call in told)


def test_findings_keep_to_their_number_and_to_the_models_order() -> None:
    few = GRAPH.model_copy(update={"report_findings": 2})
    plain = written(InMemoryTeacher(scripted))[1].to_pylist()
    teacher = InMemoryTeacher(
        lambda call: reply(
            "CommunityReport", [{"content": "at most 8"}, {"content": context_of(call)}]
        )
    )
    short = written(teacher, few)[1].to_pylist()
    assert max(len(row["findings"]) for row in plain) > 2
    assert [row["findings"] for row in short] == [row["findings"][:2] for row in plain]
    assert all("at most 2" in call.messages[0]["content"] for call in teacher.calls)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("He left [Data: Entities (5, 7); Relationships (12, 3, +more)].", "He left."),
        ("He left [3, 4] early [2].", "He left early."),
        ("He left (Relationships 2, 3) in May (1987).", "He left in May (1987)."),
        ("A [sic] reply [and more].", "A [sic] reply [and more]."),
    ],
)
def test_references_are_taken_out_of_the_text(text: str, clean: str) -> None:
    def change(made: dict[str, Any]) -> None:
        made["summary"] = made["findings"][0]["explanation"] = text

    report = written(InMemoryTeacher(altered(change)))[1].to_pylist()[0]
    assert report["summary"] == report["findings"][0]["explanation"] == clean


def test_the_order_of_replies_does_not_matter() -> None:
    class Shuffling(InMemoryTeacher):
        def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
            outcomes = list(super().complete(calls))
            random.Random(5).shuffle(outcomes)
            yield from outcomes

    def script(call: Call[Any]) -> dict[str, Any] | None:
        return None if call.item_id.endswith(("1", "5", "a")) else scripted(call)

    once, again = written(InMemoryTeacher(script)), written(Shuffling(script))
    assert once[2].num_rows > 0
    for one, other in zip(once, again, strict=True):
        assert tables.content_hash(one) == tables.content_hash(other)


def test_a_community_whose_first_row_is_too_long_is_counted_without_a_call() -> None:
    entities, relationships = graph_tables(2, [(0, 1, 1.0)])
    place = entities.schema.get_field_index("description")
    entities = entities.set_column(place, "description", pa.array(["word " * 600] * 2))
    few = GRAPH.model_copy(update={"max_report_context_tokens": 500})
    communities = cluster(entities, relationships, few)
    teacher = InMemoryTeacher(scripted)
    graph = communities, entities, relationships, units_of(relationships)
    reports, failures = reports_with_teacher(*graph, teacher, few, words)
    assert teacher.calls == []
    assert "graph.max_report_context_tokens" in failures["reason"][0].as_py()
    assert reports.equals(extractive_reports(*graph, few))


def test_an_empty_graph_has_no_reports() -> None:
    entities, relationships = graph_tables(2, [])
    communities = cluster(entities, relationships, GRAPH)
    teacher = InMemoryTeacher(scripted)
    reports, failures = reports_with_teacher(
        communities, entities, relationships, units_of(relationships), teacher, GRAPH, words
    )
    tables.check_schema("community_reports", reports)
    assert (reports.num_rows, failures.num_rows, teacher.calls) == (0, 0, [])


def test_stand_ins_are_valid_replies_of_a_replys_length() -> None:
    made = report_stand_ins()[CommunityReport]
    lengths = []

    def script(call: Call[Any]) -> str:
        text = made(call).model_dump_json()
        lengths.append(len(text))
        return text

    few = GRAPH.model_copy(update={"max_report_context_tokens": 260})
    assert written(InMemoryTeacher(script), few)[2].num_rows == 0
    assert min(lengths) > 1200
    assert max(lengths) < 2400
