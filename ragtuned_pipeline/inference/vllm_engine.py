"""Answers through a managed vLLM server: many at once, greedy, with or without an adapter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tenacity import AsyncRetrying

from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.engine import Message, Reply
from ragtuned_pipeline.inference.limits import Backoff, retry_options
from ragtuned_pipeline.inference.vllm_server import ManagedVllm, ServedModel
from ragtuned_pipeline.settings import TeacherSettings

_TOO_LONG = (
    "; set evaluation.max_answer_tokens lower, or --max-model-len in vllm.arguments to the base "
    "model's whole context"
)


class VllmEngine:
    """A ChatEngine over the model of a managed server, which the first question starts.

    The server lays conversations out by the model's own chat template and counts the tokens, as
    TransformersEngine does; answers are the same up to how the two round.

    Args:
        adapter: a PEFT adapter in a folder that is named by its content, in one named by its
            corpus; None for the base model alone. Its rank is the server's max_rank at most.
        settings: teacher.concurrency requests at once, each sent teacher.max_attempts times at
            most and waited for teacher.timeout_seconds.
        backoff_seconds: the first wait before another attempt; it doubles with each.
    """

    def __init__(
        self,
        managed: ManagedVllm,
        adapter: Path | None,
        settings: TeacherSettings,
        *,
        backoff_seconds: float = 1.0,
    ) -> None:
        self._managed = managed
        self._adapter = adapter
        self._settings = settings
        self._backoff = Backoff(backoff_seconds)

    def generate(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[Reply]:
        """Return one reply a conversation, in order, each of at most `max_tokens` tokens.

        Prompt and reply together must fit in the context of the server, as TransformersEngine
        cannot check: who asks cuts his texts to the base model's context.

        Raises:
            TeacherStopped: the server cannot be started, ends, refuses the adapter or a request,
                or gives no answer in all attempts; its log is named where there is one.
        """
        if not conversations:
            return []
        return asyncio.run(self._all(conversations, max_tokens))

    async def _all(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[Reply]:
        model = self._managed.backend(self._adapter)
        slots = asyncio.Semaphore(self._settings.concurrency)

        async def asked(conversation: Sequence[Message]) -> RawReply:
            async with slots:
                return await self._reply(model, conversation, max_tokens)

        try:
            await model.ready()
            started = time.perf_counter()
            tasks = [asyncio.create_task(asked(each)) for each in conversations]
            try:
                raw = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            seconds = (time.perf_counter() - started) / len(conversations)
        except RequestFailed as failed:
            change = _TOO_LONG if "context length" in failed.reason else ""
            raise TeacherStopped(f"no answer: {failed.reason}{change}") from None
        finally:
            await model.close()
        return [
            Reply(each.text.strip(), each.prompt_tokens, each.completion_tokens, seconds)
            for each in raw
        ]

    async def _reply(
        self, model: ServedModel, conversation: Sequence[Message], max_tokens: int
    ) -> RawReply:
        request = Request(conversation, "", None, max_tokens, 0.0, self._settings.seed)
        async for attempt in AsyncRetrying(
            **retry_options(self._settings.max_attempts, self._backoff)
        ):
            with attempt:
                return await model.reply(request)
        raise AssertionError("an attempt returns or raises")
