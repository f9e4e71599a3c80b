"""The teacher: answers calls by one backend, with what is paid for stored before it is used.

The caller's thread reads calls, looks them up in the store and hands out outcomes; requests run on
an event loop in a thread of the teacher's own.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
)

from ragtuned_pipeline.inference.backend import Backend, RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.calls import (
    Call,
    Completed,
    Failed,
    Outcome,
    T,
    TeacherStopped,
)
from ragtuned_pipeline.inference.completions import (
    CompletionStore,
    Scope,
    Stored,
    Usage,
    completion_key,
)
from ragtuned_pipeline.inference.engine import Message
from ragtuned_pipeline.inference.limits import (
    AdaptiveConcurrency,
    Backoff,
    Budget,
    Pace,
    estimated_tokens,
)
from ragtuned_pipeline.inference.structured import ReplyInvalid, read_reply
from ragtuned_pipeline.settings import BudgetSettings, TeacherSettings

# Calls read ahead, for each request that may be in flight: those that wait to be tried again must
# not leave the server idle.
_WINDOW = 8
_HITS_AT_ONCE = 1000  # counted in one transaction
_QUOTED = 2000  # characters of an invalid reply that are shown to the model again
_LOST_ITEMS = 8  # in a row, at least, before the server counts as down


def call_key(model: str, call: Call[T], settings: TeacherSettings) -> bytes:
    """Return the key of the call's reply in the store.

    It is made of what the first attempt asks. How the server is held to the schema is no part of
    it: a valid reply is one whatever made it so.
    """
    sampling = {
        "temperature": settings.temperature,
        "seed": settings.seed,
        "max_tokens": call.max_tokens,
    }
    return completion_key(model, call.messages, _json_schema(call.schema), sampling)


class Prices(Protocol):
    """Money for a million tokens."""

    @property
    def price_prompt(self) -> float: ...

    @property
    def price_completion(self) -> float: ...


def price(settings: Prices, prompt_tokens: float, completion_tokens: float) -> float:
    """Return what the tokens cost, in the currency of the prices."""
    return (
        prompt_tokens * settings.price_prompt + completion_tokens * settings.price_completion
    ) / 1e6


class LlmTeacher:
    """Implements calls.Teacher; close it (or use it in a `with`) when done.

    A call's reply is looked up in the store, else asked for. A reply is validated, stored with its
    cost, and only then yielded. Equal calls that are open at once are sent once. Lost requests and
    invalid replies are tried again, up to teacher.max_attempts in all; the latter with the reason
    told to the model and another seed, so that temperature 0 does not repeat itself.

    Args:
        backend: closed by close().
        store: not closed by close().
        scope: whom usage is counted for; the budget holds for all that it has spent, earlier
            processes included.
        backoff_seconds: the first wait before another attempt; it doubles with each.
    """

    def __init__(
        self,
        backend: Backend,
        settings: TeacherSettings,
        store: CompletionStore,
        budget: BudgetSettings,
        scope: Scope,
        *,
        backoff_seconds: float = 1.0,
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._store = store
        self._scope = scope
        self._spending = _Spending(backend.identity, settings, store, budget, scope)
        self._hits: Counter[str] = Counter()  # by step, not yet counted
        self._concurrency = AdaptiveConcurrency(settings.concurrency)
        self._requests = Pace(settings.requests_per_minute, sleep=self._pause)
        self._tokens = Pace(settings.tokens_per_minute, sleep=self._pause)
        self._backoff = Backoff(backoff_seconds)
        self._lost = 0  # items given up since the last reply, because the server gave none
        self._why: str | None = None  # the teacher cannot go on
        self._stopped = asyncio.Event()
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="teacher", daemon=True)
        self._thread.start()

    def __enter__(self) -> LlmTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complete(self, calls: Iterable[Call[T]]) -> Iterator[Outcome[T]]:
        """Yield one outcome a call, as calls.Teacher says.

        Raises:
            TeacherStopped: as soon as no request is in flight any more.
        """
        window = _WINDOW * self._settings.concurrency
        done: queue.SimpleQueue[tuple[bytes, Future[Outcome[T]]]] = queue.SimpleQueue()
        futures: dict[bytes, Future[Outcome[T]]] = {}
        waiting: dict[bytes, list[Call[T]]] = {}  # calls by key, the one that is asked first
        ahead = 0
        stopped = False

        def outcomes() -> Iterator[Outcome[T]]:
            nonlocal ahead, stopped
            key, future = done.get()
            del futures[key]
            _, *equal = waiting.pop(key)
            ahead -= 1 + len(equal)
            try:
                outcome = future.result()
            except TeacherStopped:
                stopped = True
                return
            yield outcome
            for call in equal:
                yield self._same(call, outcome)

        try:
            for call in calls:
                key = call_key(self._backend.identity, call, self._settings)
                stored = self._look_up(call, key)
                if stored is not None:
                    yield stored
                    continue
                ahead += 1
                if key in waiting:
                    waiting[key].append(call)
                else:
                    waiting[key] = [call]
                    futures[key] = self._submit(call, key, done)
                while ahead >= window or not done.empty():
                    yield from outcomes()
                if stopped:
                    break
            while waiting:
                yield from outcomes()
            if stopped:
                raise TeacherStopped(self._last_words())
        finally:
            # Those that wait first: a slot that is given back must not go to one of them.
            for future in reversed(futures.values()):
                future.cancel()
            self._count_hits()

    def close(self) -> None:
        """Cancel what is in flight, close the backend and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    # In the caller's thread.

    def _look_up(self, call: Call[T], key: bytes) -> Completed[T] | None:
        """Return the stored reply; one that code has changed so that it is not valid any more is
        discarded, for a new one to take its place."""
        stored = self._store.get(key, self._scope.corpus)
        if stored is None:
            return None
        hit = self._hit(call, stored)
        if hit is None:
            self._store.discard(key)
        return hit

    def _hit(self, call: Call[T], stored: Stored) -> Completed[T] | None:
        """Return the outcome of a call that has its reply already, if it is valid for it."""
        try:
            value = call.schema.model_validate_json(stored.text)
        except ValidationError:
            return None
        if call.check and call.check(value):
            return None
        self._hits[call.step] += 1
        if self._hits[call.step] >= _HITS_AT_ONCE:
            self._count_hits()
        return Completed(call, value, stored.prompt_tokens, stored.completion_tokens, stored=True)

    def _count_hits(self) -> None:
        for step, hits in self._hits.items():
            self._spending.count(step, Usage(hits=hits))
        self._hits.clear()

    def _same(self, call: Call[T], outcome: Outcome[T]) -> Outcome[T]:
        """Return the outcome of a call that is equal to the one that was asked."""
        if isinstance(outcome, Failed):
            return Failed(call, outcome.reason, outcome.attempts)
        text = outcome.value.model_dump_json(by_alias=True)
        tokens = outcome.prompt_tokens, outcome.completion_tokens
        return self._hit(call, Stored(text, *tokens)) or Failed(
            call, "the reply to an equal call does not pass this one's check", 1
        )

    def _submit(
        self,
        call: Call[T],
        key: bytes,
        done: queue.SimpleQueue[tuple[bytes, Future[Outcome[T]]]],
    ) -> Future[Outcome[T]]:
        future = asyncio.run_coroutine_threadsafe(self._answer(call, key), self._loop)
        future.add_done_callback(lambda finished: done.put((key, finished)))
        return future

    def _last_words(self) -> str:
        spent = self._spending.total()
        return (
            f"the teacher stopped: {self._why}. Spent in this run: {spent.calls} calls, "
            f"{spent.prompt_tokens + spent.completion_tokens} tokens, {spent.money:.4f} in money. "
            "Whatever was paid for is stored: once that is changed, the same command goes on "
            "from here"
        )

    # On the event loop.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._closing.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._backend.close()

    async def _answer(self, call: Call[T], key: bytes) -> Outcome[T]:
        attempts = 0
        invalid: list[tuple[str, str]] = []  # texts and what was wrong with them
        try:
            async for attempt in AsyncRetrying(
                sleep=self._pause,
                stop=stop_after_attempt(self._settings.max_attempts),
                wait=self._backoff,
                retry=retry_if_exception(_may_help),
                reraise=True,
            ):
                with attempt:
                    attempts += 1
                    last = attempts == self._settings.max_attempts
                    return await self._attempt(call, key, invalid, last)
        except (RequestFailed, ReplyInvalid) as error:
            if isinstance(error, RequestFailed):
                self._stop_if_hopeless(error)
            return Failed(call, error.reason, attempts)
        raise AssertionError("an attempt returns or raises")

    async def _attempt(
        self, call: Call[T], key: bytes, invalid: list[tuple[str, str]], last: bool
    ) -> Completed[T]:
        """Send one request and store its reply; count it, whatever comes of it."""
        request = self._request(call, invalid)
        raw = None
        try:
            raw = await self._send(call.step, request)
            value = read_reply(raw, call)
        except (RequestFailed, ReplyInvalid) as error:
            ends = last or not _may_help(error)
            came_of_it = Usage(failed=1) if ends else Usage(retries=1)
            self._spending.count(call.step, self._spending.of(raw) + came_of_it)
            if raw is not None:
                invalid.append((raw.text[:_QUOTED], error.reason))
            raise
        stored = Stored(
            value.model_dump_json(by_alias=True), raw.prompt_tokens, raw.completion_tokens
        )
        # Read back, so that this run goes on with what a later one will find.
        value = call.schema.model_validate_json(stored.text)
        self._spending.store(key, stored, call.step, self._spending.of(raw) + Usage(completed=1))
        return Completed(call, value, raw.prompt_tokens, raw.completion_tokens)

    def _request(self, call: Call[T], invalid: list[tuple[str, str]]) -> Request:
        """Return the request, after invalid replies with the last one and its fault shown."""
        messages = list(call.messages)
        if invalid:
            text, reason = invalid[-1]
            fault = f"That reply cannot be used: {reason}. Reply again, with the JSON object only."
            messages += [
                Message(role="assistant", content=text.strip() or "(empty)"),
                Message(role="user", content=fault),
            ]
        return Request(
            messages,
            call.schema.__name__,
            _json_schema(call.schema),
            call.max_tokens,
            self._settings.temperature,
            self._settings.seed + len(invalid),
        )

    async def _send(self, step: str, request: Request) -> RawReply:
        """Send the request once, when slots, rates and budget allow it."""
        async with self._concurrency.slot() as mark:
            expected = self._spending.expected(step, request)
            tokens = expected.prompt_tokens + expected.completion_tokens
            await self._requests.take(1)
            await self._tokens.take(tokens)
            while (why := self._spending.exceeded(expected)) and await self._spending.settled():
                expected = self._spending.expected(step, request)
            if why:
                self._stop(why)
            self._raise_if_stopped()
            used = 0
            with self._spending.reserved(expected):
                try:
                    raw = await self._backend.reply(request)
                    used = raw.prompt_tokens + raw.completion_tokens
                except RequestFailed as error:
                    if error.throttled:
                        self._concurrency.throttled(mark)
                    raise
                except asyncio.CancelledError:
                    self._spending.count(step, Usage(calls=1, failed=1))
                    raise
                finally:
                    self._tokens.correct(used - tokens)
            self._lost = 0
            self._concurrency.succeeded()
            return raw

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake and raise as soon as the teacher stops."""
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return
        self._raise_if_stopped()

    def _stop_if_hopeless(self, error: RequestFailed) -> None:
        """Stop where an item's failure shows that the other items would fail too."""
        if error.refused:
            self._stop(error.reason)
            self._raise_if_stopped()
        if error.again:
            self._lost += 1
            if self._lost >= max(_LOST_ITEMS, self._settings.concurrency):
                what = "reached no server" if error.unreachable else "got no reply"
                self._stop(
                    f"{self._lost} calls in a row {what} ({error.reason}); "
                    "see to the server, or check teacher.address"
                )

    def _stop(self, why: str) -> None:
        self._why = self._why or why
        self._stopped.set()

    def _raise_if_stopped(self) -> None:
        if self._why:
            raise TeacherStopped(self._why)


class _Spending:
    """What a run has asked and paid, counted in the store and held to the budget.

    Threads may share it.
    """

    def __init__(
        self,
        model: str,
        settings: TeacherSettings,
        store: CompletionStore,
        budget: BudgetSettings,
        scope: Scope,
    ) -> None:
        self._model = model
        self._settings = settings
        self._store = store
        self._scope = scope
        self._budget = Budget(budget)
        self._lock = threading.Lock()
        self._usage = store.usage(scope)

    def of(self, raw: RawReply | None) -> Usage:
        """Return the usage of one request; one without a reply cost nothing that is known."""
        return self._request(raw.prompt_tokens, raw.completion_tokens) if raw else Usage(calls=1)

    def expected(self, step: str, request: Request) -> Usage:
        """Return what the request will probably cost: a step's replies are of about one length."""
        so_far = self._usage.get(step, Usage())
        completion = (
            so_far.completion_tokens / so_far.calls if so_far.calls else request.max_tokens / 4
        )
        return self._request(estimated_tokens(request.messages), math.ceil(completion))

    def exceeded(self, wanted: Usage) -> str | None:
        """Return which limit the request `wanted` would exceed, in words, or None."""
        return self._budget.exceeded(self.total(), wanted)

    async def settled(self) -> bool:
        """Wait until a request in flight is counted; return False where there is none."""
        return await self._budget.settled()

    def reserved(self, wanted: Usage) -> AbstractContextManager[None]:
        """Hold `wanted` back until the request is counted."""
        return self._budget.reserved(wanted)

    def count(self, step: str, usage: Usage) -> None:
        """Count usage that brought no reply."""
        self._store.add(self._scope, step, self._model, usage)
        self._note(step, usage)

    def store(self, key: bytes, reply: Stored, step: str, usage: Usage) -> None:
        """Store a reply and count it."""
        self._store.put(key, self._model, reply, self._scope, step, usage)
        self._note(step, usage)

    def total(self) -> Usage:
        with self._lock:
            return sum(self._usage.values(), Usage())

    def _request(self, prompt_tokens: int, completion_tokens: int) -> Usage:
        return Usage(
            calls=1,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            money=price(self._settings, prompt_tokens, completion_tokens),
        )

    def _note(self, step: str, usage: Usage) -> None:
        with self._lock:
            self._usage[step] = self._usage.get(step, Usage()) + usage


def _may_help(error: BaseException) -> bool:
    """Return whether another attempt may help."""
    return isinstance(error, ReplyInvalid) or (isinstance(error, RequestFailed) and error.again)


@cache
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()
