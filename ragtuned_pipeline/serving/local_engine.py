"""The embedded profile's engine: one base model in this process, by transformers, with adapters.

Requests are written together, whatever their adapters, a token each at a time: one that comes
joins at the next token, one that ends leaves its place. They are taken in the order they came.

Adapters are not merged, so that they can share the base model. On a CPU an answer's numbers so
differ from those of the merged model (inference.transformers_engine) by rounding (1e-6 of them),
and the words could where two tokens are that close. It costs time where the model is so small that
calls and not numbers take it: a token of the embedded model takes twice as long as merged, with
three adapters in a batch of eight three times; with 0.5 billion weights no difference was seen
(docs/serving.md). Three adapters' batches one after the other would take twice as long as one.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from ragtuned_pipeline.serving.chat_request import ChatRequest
from ragtuned_pipeline.serving.interface import Body, Refused
from ragtuned_pipeline.serving.local_worker import PLACES, Answer, Piece, Worker
from ragtuned_pipeline.serving.to_the_end import to_the_end


class LocalEngine:
    """An Engine (see interface.py) over transformers.

    Args:
        base_model: the setting tuning.base_model.
        places: answers written at once; further ones wait.
    """

    def __init__(self, base_model: str, places: int = PLACES) -> None:
        self._base_model = base_model
        self._places = places
        self._worker: Worker | None = None

    async def start(self) -> None:
        """Load the model.

        Raises:
            SettingsError: there is no such model, or it keeps more than keys and values.
            TeacherStopped: it cannot be loaded, as where the memory is full.
        """
        self._worker = Worker(self._base_model, self._places)
        self._worker.start()
        await asyncio.wrap_future(self._worker.ready)

    async def load(self, adapter: str, folder: Path) -> None:
        """Raises Refused where it is no LoRA for this model; one that is there stays as it is."""
        await asyncio.wrap_future(self._at_work().load(adapter, folder))

    async def unload(self, adapter: str) -> None:
        """Return once the answers that still use it are written and its memory is given back."""
        await asyncio.wrap_future(self._at_work().unload(adapter))

    async def complete(self, adapter: str, body: Body) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            Refused: 400 for a parameter that is wrong or cannot be met, 404 for an adapter that is
                not loaded, 503 where nothing answers any more.
        """
        answer, next_piece = await self._ask(adapter, body)
        try:
            got = [await next_piece()]
            while got[-1].finish is None:
                got.append(await next_piece())
        finally:
            answer.gone = True
        message = {"role": "assistant", "content": "".join(piece.text for piece in got)}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": got[-1].finish,
        }
        return {
            **_header("chat.completion"),
            "choices": [choice],
            "usage": _usage(answer),
        }

    async def stream(self, adapter: str, body: Body) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer as its words come. Errors as of `complete`."""
        answer, next_piece = await self._ask(adapter, body)
        try:
            piece = await next_piece()
            header = _header("chat.completion.chunk")
            yield header | _delta({"role": "assistant", "content": ""})
            while True:
                if piece.text:
                    yield header | _delta({"content": piece.text})
                if piece.finish is not None:
                    break
                piece = await next_piece()
            yield header | _delta({}, piece.finish)
            yield header | {"choices": [], "usage": _usage(answer)}
        finally:
            answer.gone = True

    def why_ended(self) -> str | None:
        """Return why nothing can answer any more; None while all is well."""
        return self._worker.ended if self._worker else "the engine is not started"

    async def metrics(self) -> str:
        """Return how many answers are being written and wait, and the tokens read and written."""
        worker = self._worker
        if worker is None:
            return ""
        return "".join(
            f"# TYPE ragtuned_engine_{name} {kind}\nragtuned_engine_{name} {value}\n"
            for name, kind, value in (
                ("answers_running", "gauge", len(worker.running)),
                ("answers_waiting", "gauge", len(worker.waiting)),
                ("prompt_tokens_total", "counter", worker.prompt_tokens),
                ("completion_tokens_total", "counter", worker.completion_tokens),
            )
        )

    async def close(self) -> None:
        """Refuse what is not answered yet, and give all memory back."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
            await to_the_end(asyncio.to_thread(worker.join))

    async def _ask(self, adapter: str, body: Body) -> tuple[Answer, Callable[[], Awaitable[Piece]]]:
        """Return an answer that is on its way, and what waits for its next piece."""
        request = ChatRequest.of(body)
        worker = self._at_work()
        prompt = await asyncio.to_thread(worker.read_prompt, request)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Refused]()

        def tell(piece: Piece | Refused) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        async def next_piece() -> Piece:
            piece = await pieces.get()
            if isinstance(piece, Refused):
                raise piece
            return piece

        return worker.begin(adapter, request, prompt, tell), next_piece

    def _at_work(self) -> Worker:
        if self._worker is None:
            raise Refused(503, "the engine is not started", retry_after=5)
        return self._worker


def _header(kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": "",  # the gateway's to say
    }


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"choices": [choice]}


def _usage(answer: Answer) -> dict[str, int]:
    read, written = len(answer.prompt), len(answer.tokens)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
