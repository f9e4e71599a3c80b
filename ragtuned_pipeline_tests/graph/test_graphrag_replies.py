"""The reader of GraphRAG's tuple format, on the faults that real replies have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.graph.graphrag_replies import (
    EntityRecord,
    RelationshipRecord,
    read_graphrag_reply,
)

ANN = EntityRecord("Ann Orr", "person", "Ann Orr is a cook (of 2 inns).")
LINTZ = EntityRecord("Lintz", "geo", "Lintz is a town.")
LEFT = RelationshipRecord("Ann Orr", "Lintz", "Ann Orr left Lintz in 1987.", 8.0)
CLEAN = (
    '("entity"<|>"Ann Orr"<|>"person"<|>"Ann Orr is a cook (of 2 inns).")##'
    '("entity"<|>"Lintz"<|>"geo"<|>"Lintz is a town.")##'
    '("relationship"<|>"Ann Orr"<|>"Lintz"<|>"Ann Orr left Lintz in 1987."<|>8)<|COMPLETE|>'
)


@pytest.mark.parametrize(
    "reply",
    [
        CLEAN,
        CLEAN.replace("##", "\n##\n"),
        CLEAN.replace("##", "\n"),
        CLEAN.replace("##", ""),
        CLEAN.replace("<|COMPLETE|>", "##"),
        CLEAN.replace("<|COMPLETE|>", ""),
        CLEAN.replace("<|COMPLETE|>", "##\n\n<|complete|>"),
        CLEAN.replace("<|COMPLETE|>", "<|COMPLETE|>\n<|COMPLETE|>"),
        f"## \n{CLEAN}",
        f"```\n{CLEAN}\n```",
        "**Entities:**\n\n" + CLEAN.replace('##("rel', '##\n\n**Relationships:**\n\n("rel'),
        "1. " + CLEAN.replace('##("entity', '\n2. ("entity').replace('##("rel', '\n3. ("rel'),
        "- " + CLEAN.replace("##", "\n- "),
        CLEAN.replace('"', ""),
        CLEAN.replace('("', "(“").replace('"<|>"', "”<|>“").replace('")', "”)"),
        CLEAN.replace('"<|>8', '"|>8'),
        CLEAN.replace('"<|>8', '"</|>8'),
        CLEAN.replace('"<|>8', '"<|8'),
        CLEAN.replace("<|>", "<|#|>"),
        CLEAN.replace("<|>", "<SEP>"),
        CLEAN.replace("<|>", "<||>"),
        CLEAN.replace("<|>", " <|> "),
        CLEAN.replace("<|>", "\t"),
        CLEAN.replace("<|>", ", "),
        CLEAN.replace("<|>", " | "),
        CLEAN.replace("relationship", "relation"),
        CLEAN.replace("entity", "ENTITY").replace("relationship", "Relationship"),
        CLEAN.replace('("', '"').replace('")', '"').replace("8)", "8"),
        CLEAN.replace("<|>8", '<|>"8"'),
        CLEAN.replace("<|>8", "<|>strength: 8"),
        CLEAN.replace("<|>8", "<|>8/10"),
        CLEAN.replace("8)", "8.0)"),
    ],
)
def test_every_record_is_read_whole_for_all_faults(reply: str) -> None:
    records = read_graphrag_reply(reply)
    assert records.entities == (ANN, LINTZ)
    assert records.relationships == (LEFT,)


def test_peer_defect_2_the_last_weight_and_the_first_gleaned_record_are_kept() -> None:
    gleaned = '("entity"<|>"Bo"<|>"person"<|>"Bo wept.")##("entity"<|>"Cy"<|>"person"<|>"")'
    records = read_graphrag_reply(f"{CLEAN}{gleaned}")
    assert records.relationships == (LEFT,)
    assert [entity.name for entity in records.entities] == ["Ann Orr", "Lintz", "Bo", "Cy"]


@pytest.mark.parametrize(
    ("reply", "weight", "description"),
    [
        ('("relationship"<|>"A"<|>"B"<|>"A met B in 1987.")', None, "A met B in 1987."),
        ('("relationship"<|>"A"<|>"B"<|>7)', 7.0, ""),
        ('("relationship"<|>"A"<|>"B"<|>"A met B."<|>"meeting, tie"<|>4)', 4.0,
         "A met B. meeting, tie"),
        ('("relationship"<|>"A"<|>"B"<|>"A met B."<|>high)', None, "A met B. high"),
    ],
)  # fmt: skip
def test_a_weight_is_the_last_field_if_that_is_a_number(
    reply: str, weight: float | None, description: str
) -> None:
    (record,) = read_graphrag_reply(reply).relationships
    assert (record.weight, record.description) == (weight, description)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "<|COMPLETE|>",
        "##\n##",
        "()##()",
        '("entity"<|>""<|>"person"<|>"Nobody.")',
        '("entity"<|>"Scro',
        '("relationship"<|>"Ann"<|>""<|>"Ann met."<|>3)',
        '("relationship"<|>"Ann"<|>"B',
        '{"title": "A community", "summary": "This entity", "findings": []}',
        'A "relationship", "entity" or "relation" is no record in prose.',
    ],
)
def test_what_is_empty_cut_off_or_prose_is_no_record(reply: str) -> None:
    records = read_graphrag_reply(reply)
    assert not records.entities
    assert not records.relationships


def test_an_entity_cut_off_in_its_description_is_kept() -> None:
    (entity,) = read_graphrag_reply('("entity"<|>"Ann"<|>"person"<|>"Ann is a co').entities
    assert entity == EntityRecord("Ann", "person", "Ann is a co")


@given(st.text(alphabet='("entiyrlaoshp<|>#COMPLE)\n18. ', max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    for reply in (text, CLEAN + text):
        records = read_graphrag_reply(reply)
        assert all(entity.name for entity in records.entities)
        assert all(r.source and r.target for r in records.relationships)
