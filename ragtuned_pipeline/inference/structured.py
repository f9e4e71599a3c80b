"""Structured output: how a reply's JSON schema is asked for, and how the reply is read.

A reply is repaired by these rules only, each of which leaves well-formed JSON as it is:

1. A <think>...</think> block at the start is dropped.
2. What stands before and after the outermost JSON object is dropped; code fences go with it.
3. A comma before a closing brace or bracket is dropped.
4. Raw control characters (line breaks, tabs) inside strings are read as what they are.

A JSON object that is not closed is never completed: what is missing cannot be known. Where a text
holds several objects none is chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import ValidationError

from ragtuned_pipeline.inference.backend import RawReply, Request
from ragtuned_pipeline.inference.calls import Call, T
from ragtuned_pipeline.inference.engine import Message

StructuredOutput = Literal["json_schema", "json_object", "prompt"]

_SHOWN = 200  # characters of a model's words in a reason
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
# A string, closed or not, or one mark; possessive, so that no text takes quadratic time.
_STRING = r'"(?:[^"\\]|\\.)*+(?:"|\Z)'
_STRING_OR_BRACE = re.compile(rf"{_STRING}|[{{}}]", re.DOTALL)
_STRING_OR_LOOSE_COMMA = re.compile(rf"({_STRING})|,(?=\s*[}}\]])", re.DOTALL)
_REFUSAL = re.compile(
    r"(?:i['’]m sorry|i am sorry|sorry|i apologi[sz]e|unfortunately|as an ai|"
    r"i (?:can(?:not|['’]t)|won['’]t|am unable|am not able)|"
    r"i['’]m (?:unable|not able|afraid))\b",
    re.IGNORECASE,
)


class ReplyInvalid(Exception):
    """A reply cannot be used; `reason` is told to the model and, at last, to the failures table."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def response_format(request: Request, how: StructuredOutput) -> dict[str, Any] | None:
    """Return the request's `response_format` in the OpenAI API, None where it has none."""
    if request.schema is None:
        return None
    match how:
        case "json_schema":
            named = {"name": request.name, "strict": True, "schema": _strict(request.schema)}
            return {"type": "json_schema", "json_schema": named}
        case "json_object":
            return {"type": "json_object"}
        case "prompt":
            return None


def conversation(request: Request, how: StructuredOutput) -> list[Message]:
    """Return the messages as sent: the schema is told in words where the server is not given it.

    The words end the last message, because chat templates differ in what may follow it.
    """
    messages = list(request.messages)
    if how == "json_schema" or request.schema is None:
        return messages
    last = messages[-1]
    content = f"{last['content']}\n\n{in_words(request.schema)}"
    return [*messages[:-1], cast(Message, {**last, "content": content})]


def in_words(schema: Mapping[str, Any]) -> str:
    """Return what the JSON schema of an object asks for, as instructions to a model."""
    fields = "\n".join(_fields(schema, schema.get("$defs", {}), ""))
    return f"Reply with one JSON object and nothing else. Its fields, all required:\n{fields}"


def read_reply(raw: RawReply, call: Call[T]) -> T:
    """Return the reply's value.

    Raises:
        ReplyInvalid: it was cut off or refused, is empty, is no JSON object even after the repairs
            named above, does not fit the schema, or does not pass the call's check.
    """
    if raw.refusal:
        raise ReplyInvalid(f"the model refused: {raw.refusal[:_SHOWN]}")
    if raw.finish_reason == "content_filter":
        raise ReplyInvalid("the server's content filter stopped the reply")
    if raw.finish_reason == "length":
        raise ReplyInvalid(f"the reply was cut off at {raw.completion_tokens} tokens: be shorter")
    if not raw.text.strip():
        raise ReplyInvalid("the reply is empty")
    text = _object(raw.text)
    try:
        value = call.schema.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the object"
        raise ReplyInvalid(f"the reply does not fit the schema: {where}: {first['msg']}") from None
    wrong = call.check(value) if call.check else None
    if wrong:
        raise ReplyInvalid(wrong)
    return value


def _object(text: str) -> str:
    """Return the one JSON object in `text`, repaired."""
    thoughts = _THOUGHTS.match(text)
    if thoughts:
        text = text[thoughts.end() :]
    spans = list(_spans(text))
    if not spans:
        said = text.strip()[:_SHOWN]
        if _REFUSAL.match(said):
            raise ReplyInvalid(f"the model refused: {said}")
        raise ReplyInvalid(f"the reply holds no JSON object: {said!r}")
    found = []
    for span in spans:
        try:
            data = _DECODER.decode(_STRING_OR_LOOSE_COMMA.sub(_string_only, span))
            found.append(json.dumps(data))
        except (ValueError, RecursionError) as error:
            wrong = str(error)
    if not found:
        raise ReplyInvalid(f"the reply is not valid JSON: {wrong}")
    if len(found) > 1:
        raise ReplyInvalid(f"the reply holds {len(found)} JSON objects instead of one")
    return found[0]


def _spans(text: str) -> Iterator[str]:
    """Yield what stands between outermost braces that match."""
    depth, start = 0, 0
    # Quotation marks before the first brace are prose, and need not be paired.
    first = text.find("{")
    while first >= 0:
        for mark in _STRING_OR_BRACE.finditer(text, first):
            if mark[0] == "{":
                start = start if depth else mark.start()
                depth += 1
            elif mark[0] == "}":
                depth -= 1
                if depth == 0:
                    yield text[start : mark.end()]
                    first = text.find("{", mark.end())
                    break
        else:
            raise ReplyInvalid("the reply ends before its JSON object does")


def _string_only(match: re.Match[str]) -> str:
    return match[1] or ""


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_number)


def _strict(node: Any) -> Any:
    """Return the schema as OpenAI's strict mode wants it, which other servers take too.

    Every field required, no others, no defaults, nothing beside a reference.
    """
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return {"$ref": node["$ref"]}
    made = {key: _strict(value) for key, value in node.items() if key != "default"}
    if "properties" in node:
        # The names of properties are no keywords: one called "default" stays.
        made["properties"] = {name: _strict(value) for name, value in node["properties"].items()}
        made |= {"required": list(node["properties"]), "additionalProperties": False}
    return made


def _fields(node: Mapping[str, Any], defs: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in node.get("properties", {}).items():
        told = f" ({field['description']})" if "description" in field else ""
        yield f"{indent}- {name}{told}: {_kind(field, defs, indent + '  ')}"


def _kind(node: Mapping[str, Any], defs: Mapping[str, Any], indent: str) -> str:
    if "$ref" in node:
        return _kind(defs[node["$ref"].rsplit("/", 1)[-1]], defs, indent)
    if "const" in node:
        return json.dumps(node["const"], ensure_ascii=False)
    if "enum" in node:
        return "one of " + ", ".join(json.dumps(v, ensure_ascii=False) for v in node["enum"])
    if "anyOf" in node:
        return " or ".join(_kind(choice, defs, indent) for choice in node["anyOf"])
    match node.get("type"):
        case "object":
            return "\n".join(["an object with the fields", *_fields(node, defs, indent)])
        case "array":
            bounds = _bounds(node, "minItems", "maxItems", "items")
            return f"a list{bounds}, each item {_kind(node.get('items', {}), defs, indent)}"
        case "string":
            return "text" + _bounds(node, "minLength", "maxLength", "characters")
        case "integer":
            return "a whole number" + _bounds(node, "minimum", "maximum")
        case "number":
            return "a number" + _bounds(node, "minimum", "maximum")
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case _:
            return "any value"


def _bounds(node: Mapping[str, Any], least: str, most: str, unit: str = "") -> str:
    words: Sequence[str] = [
        f"{word} {node[key]}"
        for word, key in (("at least", least), ("at most", most))
        if key in node
    ]
    return f" ({' and '.join(words)}{' ' + unit if unit else ''})" if words else ""
