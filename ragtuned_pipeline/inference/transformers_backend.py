"""The teacher in this process, for small work: requests that come together share a batch."""

from __future__ import annotations

import asyncio

from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.inference.engine import Reply
from ragtuned_pipeline.inference.structured import conversation
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import SettingsError


class TransformersBackend:
    """A Backend over a TransformersEngine, loaded by the first request; belongs to one event loop.

    Nothing holds the model to a schema here: it is told the fields in words, and may not keep to
    them. Answers are greedy.

    Args:
        model: "embedded", a local folder, or a Hugging Face id.

    Raises:
        SettingsError: there is no such model.
    """

    def __init__(self, model: str) -> None:
        self.identity = identity(model)
        self._model = model
        self._engine: TransformersEngine | None = None
        self._one_at_a_time = asyncio.Lock()
        self._next: dict[int, _Batch] = {}  # by max_tokens

    async def reply(self, request: Request) -> RawReply:
        """Answer together with all requests that come until the batch before is answered.

        Raises:
            RequestFailed: the model cannot be loaded, or the request wants sampling.
        """
        if request.temperature > 0:
            raise _refused("teacher.engine = transformers is greedy: set teacher.temperature to 0")
        most = request.max_tokens
        if most not in self._next:
            self._next[most] = _Batch(self, most)
        batch = self._next[most]
        place = len(batch.requests)
        batch.requests.append(request)
        try:
            # A request that is given up must not take the others of its batch with it.
            reply = (await asyncio.shield(batch.replies))[place]
        except SettingsError as error:
            raise _refused(str(error)) from None
        return RawReply(
            reply.text,
            "stop" if reply.completion_tokens < most else "length",
            None,
            reply.prompt_tokens,
            reply.completion_tokens,
        )

    async def close(self) -> None:
        self._engine = None

    async def answer(self, max_tokens: int) -> list[Reply]:
        """Return the replies to the batch that is next for `max_tokens`, when its turn comes."""
        async with self._one_at_a_time:
            batch = self._next.pop(max_tokens)
            conversations = [conversation(request, "prompt") for request in batch.requests]
            if self._engine is None:
                self._engine = await asyncio.to_thread(TransformersEngine, self._model)
            return await asyncio.to_thread(self._engine.generate, conversations, max_tokens)


class _Batch:
    def __init__(self, backend: TransformersBackend, max_tokens: int) -> None:
        self.requests: list[Request] = []
        self.replies = asyncio.create_task(backend.answer(max_tokens))


def _refused(reason: str) -> RequestFailed:
    return RequestFailed(reason, again=False, refused=True)
