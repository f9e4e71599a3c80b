"""Chat completion requests: read, checked, and completed so that they are answered as tuned."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ragtuned_pipeline.inference.engine import system_message
from ragtuned_pipeline.serving.interface import Refused

MOST_BYTES = 8 << 20  # of a request's body; a long conversation has a tenth of it


@dataclass(frozen=True)
class Defaults:
    """What stands in for what a request leaves open.

    Attributes:
        system: the system message that tuning used; None for none.
        max_tokens: of an answer.
    """

    system: str | None
    max_tokens: int

    @classmethod
    def of(cls, base_model: str, max_tokens: int) -> Defaults:
        return cls(system_message(base_model), max_tokens)


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        corpus: its `model`.
        body: as the client sent it, completed; without `model` and `stream`.
        wants_usage: whether the client asked for the usage of a streamed answer.
    """

    corpus: str
    body: dict[str, Any]
    stream: bool
    wants_usage: bool


def read_request(data: bytes, defaults: Defaults) -> Asked:
    """Return what a request's body asks for.

    What is tuned is answering with the words most likely, after a given system message: a request
    that names no temperature gets 0, one without a system message gets that one.

    Raises:
        Refused: it is no chat completion request. What only an engine can tell is left to it.
    """
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        reason = "a text in it holds half of a character, as \\ud800 is"
        raise Refused(400, f"the request's body cannot be read: {reason}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
        raise Refused(400, f"the request's body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the request's body is no JSON object")
    corpus, stream = body.pop("model", None), body.pop("stream", None)
    if not isinstance(corpus, str):
        raise Refused(400, "model: give the name of a corpus", "model")
    if not isinstance(stream, bool | None):
        raise Refused(400, "stream: give true or false", "stream")
    body["messages"] = _with_system(_messages(body), defaults.system)
    if body.get("temperature") is None:
        body["temperature"] = 0
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        body["max_tokens"] = defaults.max_tokens
    if not stream:
        body.pop("stream_options", None)
        return Asked(corpus, body, False, True)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "stream_options: give an object", "stream_options")
    body["stream_options"] = {**options, "include_usage": True}  # the gateway counts tokens
    return Asked(corpus, body, True, bool(options.get("include_usage")))


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: give a list of at least one message", "messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, "messages: each has to be an object with a role", "messages")
    # OpenAI's newer word for "system", which chat templates do not know.
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def _with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    if system is None or any(each["role"] == "system" for each in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]
