"""Clients that ask without a pause while adapters are swapped, and which answers are right."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai

from ragtuned_pipeline.tuning import adapter_store


@dataclass(frozen=True)
class Asked:
    """A request of a corpus, when it began and ended (monotonic), its answer or its failure."""

    corpus: str
    began: float
    ended: float
    answer: str
    failed: str = ""


@dataclass
class _Promoted:
    content: str
    at: float
    seen_at: float = float("inf")


@dataclass
class History:
    """What was promoted when, and from when on it was seen to serve."""

    _promoted: dict[str, list[_Promoted]] = field(default_factory=dict)

    def promote(self, adapters: Path, corpus: str, content: str) -> None:
        """Promote an adapter, and remember when."""
        entries = self._promoted.setdefault(corpus, [])
        entries.append(_Promoted(content, time.monotonic()))
        adapter_store.promote(adapters, corpus, content)

    def last(self, corpus: str) -> str:
        return self._promoted[corpus][-1].content

    def before(self, corpus: str) -> str:
        return self._promoted[corpus][-2].content

    def seen(self, corpus: str) -> None:
        """The last promoted one serves."""
        self._promoted[corpus][-1].seen_at = time.monotonic()

    def allowed(self, asked: Asked) -> set[str]:
        """Return the adapters that may have answered: promoted before the answer was there, and not
        replaced, as could be seen, before it was asked for."""
        entries = self._promoted[asked.corpus]
        replaced = [*(each.seen_at for each in entries[1:]), float("inf")]
        return {
            each.content
            for each, until in zip(entries, replaced, strict=True)
            if each.at <= asked.ended and until >= asked.began
        }


@contextmanager
def load(
    address: str, corpora: Sequence[str], messages: list[Any], clients: int = 2
) -> Iterator[list[Asked]]:
    """Ask while the block runs, each corpus by `clients` clients, every second of which streams;
    yield what has been asked, complete after the block."""
    done: list[Asked] = []
    stop = threading.Event()
    asking = [(corpus, number % 2 == 1) for corpus in corpora for number in range(clients)]
    thread = threading.Thread(
        target=lambda: asyncio.run(_all(address, asking, messages, stop, done))
    )
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


async def _all(
    address: str,
    asking: list[tuple[str, bool]],
    messages: list[Any],
    stop: threading.Event,
    done: list[Asked],
) -> None:
    async with httpx2.AsyncClient(trust_env=False, timeout=120) as http:
        client = openai.AsyncOpenAI(
            base_url=address, api_key="any", max_retries=0, http_client=http
        )

        async def ask_on(corpus: str, stream: bool) -> None:
            while not stop.is_set():
                began = time.monotonic()
                text, failed = "", ""
                try:
                    text = await _ask(client, corpus, messages, stream)
                except openai.APIError as error:
                    failed = f"{type(error).__name__}: {error}"
                done.append(Asked(corpus, began, time.monotonic(), text, failed))

        await asyncio.gather(*(ask_on(corpus, stream) for corpus, stream in asking))


async def _ask(client: openai.AsyncOpenAI, corpus: str, messages: list[Any], stream: bool) -> str:
    if not stream:
        given = await client.chat.completions.create(model=corpus, messages=messages)
        return given.choices[0].message.content or ""
    chunks = await client.chat.completions.create(model=corpus, messages=messages, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
