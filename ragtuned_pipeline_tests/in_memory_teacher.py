"""A teacher without a server: replies are made by a function, checked as the real one checks."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from ragtuned_pipeline.inference.calls import Call, Completed, Failed, Outcome, T


class InMemoryTeacher:
    """`reply` gets a call and returns the reply as a dict, as JSON text, or None for a failure.

    `calls` keeps every call asked, in order.
    """

    def __init__(self, reply: Callable[[Call[Any]], dict[str, Any] | str | None]) -> None:
        self._reply = reply
        self.calls: list[Call[Any]] = []

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        for call in calls:
            self.calls.append(call)
            yield self._outcome(call)

    def _outcome(self, call: Call[T]) -> Outcome[T]:
        made = self._reply(call)
        if made is None:
            return Failed(call, "the server sent no reply", 1)
        try:
            text = made if isinstance(made, str) else json.dumps(made)
            value = call.schema.model_validate_json(text)
        except ValidationError as error:
            return Failed(call, f"the reply does not fit the schema: {error.errors()[0]}", 1)
        wrong = call.check(value) if call.check else None
        return Failed(call, wrong, 1) if wrong else Completed(call, value, 100, len(text) // 4)
