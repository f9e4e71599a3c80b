"""Prompts are files with typed slots.

A prompt file is a Jinja template whose first line declares its slots and whose parts are the
messages of a conversation::

    {# slots: entity_types: list, text: str #}
    [system]
    You read text ...
    [user]
    {{ text }}

A stored reply's key holds the messages, so that a changed prompt never gets an old reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, StrictUndefined, Template, meta

from ragtuned_pipeline.inference.engine import Message

_TYPES: Mapping[str, type] = {"str": str, "int": int, "list": list, "bool": bool}
_HEADER = re.compile(r"\{# slots:(.*?)#\}\n")
_ROLE = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)


class PromptError(ValueError):
    """A prompt file is not well formed, or a slot was filled wrongly."""


@dataclass(frozen=True)
class Prompt:
    """A prompt file, read; `slots` maps each slot to its type."""

    file: Path
    slots: Mapping[str, type]
    parts: tuple[tuple[str, Template], ...]

    def messages(self, **values: Any) -> tuple[Message, ...]:
        """Return the conversation with its slots filled.

        Raises:
            PromptError: a slot is missing, unknown, or of another type.
        """
        if values.keys() != self.slots.keys():
            raise PromptError(
                f"{self.file.name}: slots {sorted(self.slots)}, filled {sorted(values)}"
            )
        for name, value in values.items():
            if not isinstance(value, self.slots[name]):
                raise PromptError(
                    f"{self.file.name}: slot {name} is a {self.slots[name].__name__}, "
                    f"not a {type(value).__name__}"
                )
        return tuple(
            cast(Message, {"role": role, "content": template.render(values).strip()})
            for role, template in self.parts
        )


@cache
def load_prompt(file: Path) -> Prompt:
    """Return the prompt in `file`.

    Raises:
        PromptError: it declares no slots or others than it uses, or holds no message.
    """
    text = file.read_text(encoding="utf-8")
    header = _HEADER.match(text)
    if header is None:
        raise PromptError(f"{file.name}: the first line must declare the slots: {{# slots: ... #}}")
    slots = {}
    for declared in filter(None, (part.strip() for part in header[1].split(","))):
        name, _, kind = (part.strip() for part in declared.partition(":"))
        if kind not in _TYPES:
            raise PromptError(f"{file.name}: slot {name}: {kind!r} is not one of {list(_TYPES)}")
        slots[name] = _TYPES[kind]
    environment = Environment(  # prompts are plain text, not HTML
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    body = text[header.end() :]
    used = meta.find_undeclared_variables(environment.parse(body))
    if used != slots.keys():
        raise PromptError(f"{file.name}: declares {sorted(slots)}, uses {sorted(used)}")
    before, *pieces = _ROLE.split(body)
    if before.strip() or not pieces:
        raise PromptError(f"{file.name}: starts with [system] or [user] after its slots")
    parts = zip(pieces[::2], pieces[1::2], strict=True)
    return Prompt(file, slots, tuple((r, environment.from_string(t)) for r, t in parts))
