"""How a schema is asked for and a reply read; each repair alone, and what is never repaired."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from ragtuned_pipeline.inference.backend import RawReply, Request
from ragtuned_pipeline.inference.calls import Call
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.structured import (
    ReplyInvalid,
    conversation,
    in_words,
    read_reply,
    response_format,
)


class Part(BaseModel):
    kind: Literal["door", "window"]
    note: str = Field("", max_length=40, description="what is special about it")


class House(BaseModel):
    name: str
    parts: list[Part] = Field(default_factory=list, max_length=3)
    floors: int | None = Field(None, ge=1)


GOOD = '{"name": "Mill", "parts": [{"kind": "door", "note": "red, {old}"}], "floors": 2}'
MILL = House(name="Mill", parts=[Part(kind="door", note="red, {old}")], floors=2)


def call(check: Any = None) -> Call[House]:
    return Call("step", "item", tuple(chat("Describe the mill.")), House, 100, check)


def read(text: str, finish_reason: str = "stop", refusal: str | None = None) -> House:
    return read_reply(RawReply(text, finish_reason, refusal, 10, 20), call())


def test_a_good_reply_is_read() -> None:
    assert read(GOOD) == MILL


@pytest.mark.parametrize(
    "text",
    [
        f"Here it is:\n{GOOD}",
        f'The "mill\'s" data: {GOOD}',
        f"{GOOD}\nI hope that helps :-}}",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```\nDone.",
        f"<think>A mill {{with a door}}... I'd say two floors.</think>\n{GOOD}",
        f"<think>\n</think>{GOOD}",
        f"The set {{a, b}} gives {GOOD}",
        GOOD.replace('"floors": 2}', '"floors": 2,}').replace("}],", "} , ],"),
        GOOD.replace("}],", "}\n,\n],"),
    ],
    ids=[
        "text before",
        "quotation marks before",
        "text after",
        "fence",
        "fence and text",
        "thoughts",
        "empty thoughts",
        "braces in prose",
        "trailing commas",
        "trailing comma on a line of its own",
    ],
)
def test_a_rule_repairs_it(text: str) -> None:
    assert read(text) == MILL


def test_raw_control_characters_in_strings_are_read_as_they_are() -> None:
    assert read('{"name": "a\nb\tc\x01"}') == House(name="a\nb\tc\x01")


@settings(deadline=None)
@given(st.text(alphabet='",]}[{ \\\n:a'))
def test_repairs_never_change_a_string(name: str) -> None:
    for text in (json.dumps({"name": name}), json.dumps({"name": name}, indent=1)):
        assert read(text).name == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t \n" * 100, "empty"),
        (GOOD[:-1], "ends before"),
        (GOOD[: GOOD.index("door") + 2], "ends before"),
        (GOOD[: GOOD.index("}")], "ends before"),
        ('{"name": "A", "parts": [{"kind": "door"}, {"ki', "ends before"),
        ("```json\n" + GOOD[:-5], "ends before"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I can’t assist with this request.", "refused"),
        ("As an AI, I do not read letters.", "refused"),
        ("The mill has two floors.", "no JSON object"),
        ("<think>What now?", "no JSON object"),
        ('["name"]', "no JSON object"),
        ("{'name': 'Mill'}", "not valid JSON"),
        ('{"name": Mill}', "not valid JSON"),
        ('{"name" "Mill"}', "not valid JSON"),
        ('{"name": "Mill", "floors": NaN}', "no JSON number"),
        ('{"name": "Mill", "floors": [}', "not valid JSON"),
        (GOOD + "\n" + GOOD, "2 JSON objects"),
        ("{}", "name: Field required"),
        ('{"name": 3}', "name: Input should be a valid string"),
        ('{"name": "Mill", "floors": 0}', "floors: .*greater than or equal"),
        ('{"name": "Mill", "parts": [{"kind": "roof"}]}', "parts.0.kind"),
        ('{"name": "\\ud800"}', "fit the schema"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "recursion"),
    ],
)
def test_an_unusable_reply_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ReplyInvalid, match=reason):
        read(text)


def test_a_reply_cut_off_by_length_is_invalid_even_where_its_json_is_whole() -> None:
    with pytest.raises(ReplyInvalid, match="cut off at 20 tokens"):
        read(GOOD, finish_reason="length")


def test_refusals_in_the_apis_own_ways_are_invalid() -> None:
    with pytest.raises(ReplyInvalid, match="refused: I will not"):
        read(GOOD, refusal="I will not.")
    with pytest.raises(ReplyInvalid, match="content filter"):
        read(GOOD, finish_reason="content_filter")


def test_the_calls_own_check_has_the_last_word() -> None:
    raw = RawReply(GOOD, "stop", None, 1, 1)
    assert read_reply(raw, call(lambda house: None)) == MILL
    with pytest.raises(ReplyInvalid, match=r"^Mill is no house$"):
        read_reply(raw, call(lambda house: f"{house.name} is no house"))


def test_floods_take_linear_time() -> None:
    for flood in ('{"a": "' + '\\"' * 200_000, "{" * 200_000, "," * 200_000 + "{", "}" * 200_000):
        with pytest.raises(ReplyInvalid):
            read(flood)


@settings(deadline=None)
@given(st.text(alphabet='{}",\\[]: a\n<think>/'))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        house = read(text)
    except ReplyInvalid:
        return
    assert read(house.model_dump_json()) == house


def request() -> Request:
    messages = chat("Describe the mill.", system="Be exact.")
    return Request(messages, "House", House.model_json_schema(), 100, 0.0, 42)


def test_json_schema_is_strict_as_openai_wants_it() -> None:
    form = response_format(request(), "json_schema")
    assert form is not None
    assert form["type"] == "json_schema"
    made = form["json_schema"]
    assert (made["name"], made["strict"]) == ("House", True)
    schema = made["schema"]
    assert schema["required"] == ["name", "parts", "floors"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["parts"]["items"] == {"$ref": "#/$defs/Part"}
    part = schema["$defs"]["Part"]
    assert (part["required"], part["additionalProperties"]) == (["kind", "note"], False)
    assert part["properties"]["note"]["maxLength"] == 40
    assert '"default"' not in json.dumps(schema)
    assert conversation(request(), "json_schema") == list(request().messages)


def test_a_field_may_be_called_default() -> None:
    class Odd(BaseModel):
        default: str = ""

    odd = Request(chat("?"), "Odd", Odd.model_json_schema(), 9, 0.0, 1)
    form = response_format(odd, "json_schema")
    assert form is not None
    assert list(form["json_schema"]["schema"]["properties"]) == ["default"]


@pytest.mark.parametrize("how", ["json_object", "prompt"])
def test_elsewhere_the_schema_is_told_in_words(how: Any) -> None:
    form = response_format(request(), how)
    assert form == ({"type": "json_object"} if how == "json_object" else None)
    system, asked = conversation(request(), how)
    assert system["content"] == "Be exact."
    assert asked["content"].startswith("Describe the mill.\n\nReply with one JSON object")
    assert request().messages[-1]["content"] == "Describe the mill."


def test_the_words_name_every_field_and_bound() -> None:
    assert in_words(House.model_json_schema()).split("\n") == [
        "Reply with one JSON object and nothing else. Its fields, all required:",
        "- name: text",
        "- parts: a list (at most 3 items), each item an object with the fields",
        '  - kind: one of "door", "window"',
        "  - note (what is special about it): text (at most 40 characters)",
        "- floors: a whole number (at least 1) or null",
    ]
