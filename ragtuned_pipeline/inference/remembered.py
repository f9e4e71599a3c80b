"""An engine whose replies are remembered: only what it was never asked goes to the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice

from ragtuned_pipeline.inference.engine import ChatEngine, Message, Reply
from ragtuned_pipeline.item_store import Items, item_key

_AT_ONCE = 256  # conversations


class RememberingEngine:
    """Answers as the engine behind it does; that is loaded when something new is asked.

    Args:
        identity: of the weights, the adapter's too, and of the code that decodes: with another one
            nothing is remembered.
        load: called once at most.
        items: where replies are kept.
    """

    def __init__(self, identity: str, load: Callable[[], ChatEngine], items: Items) -> None:
        self._identity = identity
        self._load = load
        self._items = items
        self._engine: ChatEngine | None = None

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order."""
        keys = [
            item_key(self._identity, str(max_tokens), json.dumps(list(conversation)))
            for conversation in conversations
        ]
        replies = {key: Reply(**json.loads(text)) for key, text in self._items.get(keys).items()}
        new = {
            key: conversation
            for key, conversation in zip(keys, conversations, strict=True)
            if key not in replies
        }
        # In parts, each stored at once: a process that is killed loses one of them.
        for start in range(0, len(new), _AT_ONCE):
            part = dict(islice(new.items(), start, start + _AT_ONCE))
            self._engine = self._engine or self._load()
            given = self._engine.generate(list(part.values()), max_tokens)
            made = dict(zip(part, given, strict=True))
            self._items.put({key: json.dumps(asdict(reply)) for key, reply in made.items()})
            replies |= made
        return [replies[key] for key in keys]
