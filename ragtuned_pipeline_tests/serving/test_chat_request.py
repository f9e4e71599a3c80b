"""What is asked for is met or refused by name, never passed over."""

from __future__ import annotations

from typing import Any

import pytest

from ragtuned_pipeline.serving.chat_request import ChatRequest
from ragtuned_pipeline.serving.interface import Refused

ASKED = [{"role": "user", "content": "Who?"}]


def test_a_plain_request_is_greedy() -> None:
    request = ChatRequest.of({"messages": ASKED, "max_tokens": 7, "stop": "\n"})
    assert (request.temperature, request.most, request.stop) == (0.0, 7, ("\n",))
    assert request.conversation == ASKED


def test_the_newer_name_of_max_tokens_wins() -> None:
    body = {"messages": ASKED, "max_tokens": 512, "max_completion_tokens": 5}
    assert ChatRequest.of(body).most == 5


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ann"},
        ]
    }
    assert ChatRequest.of(body).conversation == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
    ]


@pytest.mark.parametrize(
    "asks_nothing",
    [
        {"n": 1},
        {"logprobs": False},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": None, "tool_choice": "auto"},
        {"frequency_penalty": 0.0, "presence_penalty": 0},
        {"user": "ann", "metadata": {"a": "b"}, "seed": None},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_what_asks_for_nothing_is_let_be(asks_nothing: dict[str, Any]) -> None:
    assert ChatRequest.of({"messages": ASKED, **asks_nothing}).conversation == ASKED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"50": 1}),
        ("top_k", 5),
        ("no_such_parameter", 1),
        ("max_tokens", 0),
        ("max_completion_tokens", "many"),
        ("temperature", 2.5),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["a", 1]),
        ("messages", []),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("messages", [{"role": "user"}]),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(Refused) as refused:
        ChatRequest.of({"messages": ASKED, name: value})
    assert (refused.value.status, refused.value.parameter) == (400, name)
    assert name in refused.value.message
