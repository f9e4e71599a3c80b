"""Pace, adaptive concurrency and budget, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.inference.completions import Usage
from ragtuned_pipeline.inference.limits import AdaptiveConcurrency, Budget, Pace
from ragtuned_pipeline.settings import BudgetSettings


class FakeClock:
    """Sleepers wake in order of their time; nobody waits for real."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, woken))
        await woken

    async def run(self, *work: Awaitable[Any]) -> None:
        tasks = [asyncio.ensure_future(each) for each in work]
        while not all(task.done() for task in tasks):
            for _ in range(5):
                await asyncio.sleep(0)
            if self._sleepers:
                self.now, _, woken = heapq.heappop(self._sleepers)
                woken.set_result(None)
        for task in tasks:
            task.result()


Takes = list[tuple[float, float]]


def starts(
    per_minute: float | None, takes: Takes, correct: Callable[[int], float] | None = None
) -> list[tuple[float, float]]:
    """Return (start, units) of each of `takes`, pairs of (seconds of rest before it, units)."""
    clock = FakeClock()
    started: list[tuple[float, float]] = []

    async def take(pace: Pace, at: float, units: float, number: int) -> None:
        await clock.sleep(at)
        await pace.take(units)
        started.append((clock.now, units))
        if correct:
            pace.correct(correct(number))

    async def main() -> None:
        pace = Pace(per_minute, clock.time, clock.sleep)
        at, work = 0.0, []
        for number, (rest, units) in enumerate(takes):
            at += rest
            work.append(take(pace, at, units, number))
        await clock.run(*work)

    asyncio.run(main())
    return started


_TAKES = st.lists(
    st.tuples(st.floats(0, 20), st.floats(1, 50, allow_subnormal=False)), min_size=1, max_size=60
)


@settings(deadline=None)
@given(st.floats(5, 500), _TAKES)
def test_no_minute_holds_more_than_the_rate_and_one_taker(per_minute: float, takes: Takes) -> None:
    started = starts(per_minute, takes)
    assert len(started) == len(takes)
    for first, (start, _) in enumerate(started):
        within = [units for at, units in started[first:] if at < start + 60 - 1e-6]
        assert sum(within[:-1]) <= per_minute + 1e-6


@settings(deadline=None)
@given(st.floats(5, 500), _TAKES)
def test_takers_go_in_the_order_they_came_and_none_waits_without_need(
    per_minute: float, takes: Takes
) -> None:
    started = starts(per_minute, takes)
    came, free = 0.0, 0.0
    for (rest, units), (start, taken) in zip(takes, started, strict=True):
        came += rest
        assert taken == units
        assert start == pytest.approx(max(came, free), abs=1e-6)
        free = max(came, free) + units * 60 / per_minute


def test_without_a_rate_nobody_waits() -> None:
    assert [start for start, _ in starts(None, [(0, 1000)] * 50)] == [0.0] * 50


def test_a_correction_moves_the_takers_after_it() -> None:
    assert starts(60, [(0, 10), (1, 1)]) == [(0.0, 10), (10.0, 1)]
    assert starts(60, [(0, 10), (1, 1)], lambda n: -7 if n == 0 else 0) == [(0.0, 10), (3.0, 1)]
    assert starts(60, [(0, 1), (1, 1)], lambda n: 5 if n == 0 else 0) == [(0.0, 1), (6.0, 1)]


def test_the_limiter_never_blocks_the_event_loop() -> None:
    """Peers' defect 5: a limiter that sleeps in the loop stalls every other request."""

    async def main() -> int:
        pace = Pace(600)  # on the real clock: one in a tenth of a second
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        other = asyncio.create_task(count())
        await asyncio.gather(*(pace.take(1) for _ in range(4)))
        other.cancel()
        return turns

    # A loop that was blocked would have turned a few times only.
    assert asyncio.run(main()) > 100


def test_no_more_than_the_limit_hold_a_slot_and_all_get_one() -> None:
    async def main() -> tuple[int, int]:
        concurrency = AdaptiveConcurrency(3)
        held = most = done = 0

        async def work() -> None:
            nonlocal held, most, done
            async with concurrency.slot():
                held += 1
                most = max(most, held)
                await asyncio.sleep(0)
                held -= 1
            done += 1

        await asyncio.gather(*(work() for _ in range(50)))
        return most, done

    assert asyncio.run(main()) == (3, 50)


def test_it_halves_once_a_round_trip_and_grows_by_one_after_as_many_successes() -> None:
    async def main() -> list[int]:
        concurrency = AdaptiveConcurrency(16)
        limits = []
        async with concurrency.slot() as mark, concurrency.slot() as same:
            concurrency.throttled(mark)
            concurrency.throttled(same)  # sent before it was halved
            limits.append(concurrency.limit)
        async with concurrency.slot() as mark:
            concurrency.throttled(mark)
            limits.append(concurrency.limit)
        for _ in range(3):
            concurrency.succeeded()
        limits.append(concurrency.limit)
        for _ in range(1 + 5):
            concurrency.succeeded()
        limits.append(concurrency.limit)
        for _ in range(1000):
            concurrency.succeeded()
        limits.append(concurrency.limit)
        for _ in range(10):
            async with concurrency.slot() as mark:
                concurrency.throttled(mark)
        return [*limits, concurrency.limit]

    assert asyncio.run(main()) == [8, 4, 4, 6, 16, 1]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["start", "finish", "throttle", "cancel"]), max_size=80))
def test_slots_are_never_lost(events: list[str]) -> None:
    async def main() -> None:
        concurrency = AdaptiveConcurrency(4)
        holding: list[tuple[asyncio.Event, int]] = []
        tasks: list[asyncio.Task[None]] = []

        async def work() -> None:
            async with concurrency.slot() as mark:
                finish = asyncio.Event()
                holding.append((finish, mark))
                try:
                    await finish.wait()
                finally:
                    holding.remove((finish, mark))
                concurrency.succeeded()

        for event in events:
            if event == "start":
                tasks.append(asyncio.create_task(work()))
            elif event == "finish" and holding:
                holding[0][0].set()
            elif event == "throttle" and holding:
                concurrency.throttled(holding[-1][1])
            elif event == "cancel" and tasks:
                tasks[len(tasks) // 2].cancel()
            await asyncio.sleep(0)
            assert len(holding) <= 4
        while not all(task.done() for task in tasks):
            for finish, _ in list(holding):
                finish.set()
            await asyncio.sleep(0)
        # All slots are free again: as many as the limit can be held at once.
        async with AsyncExitStack() as slots:
            for _ in range(concurrency.limit):
                await slots.enter_async_context(concurrency.slot())

    asyncio.run(asyncio.wait_for(main(), 5))


def test_a_slot_that_was_granted_to_a_cancelled_waiter_goes_on_to_the_next() -> None:
    async def main() -> list[str]:
        concurrency = AdaptiveConcurrency(1)
        got: list[str] = []

        async def work(name: str) -> None:
            async with concurrency.slot():
                got.append(name)

        async with concurrency.slot():
            second = asyncio.create_task(work("second"))
            third = asyncio.create_task(work("third"))
            await asyncio.sleep(0)
        second.cancel()  # it has the slot, and has not run yet
        await third
        return got

    assert asyncio.run(asyncio.wait_for(main(), 5)) == ["third"]


def test_the_budget_counts_what_is_in_flight() -> None:
    budget = Budget(BudgetSettings(max_calls=3, max_tokens=1000, max_money=0.5))
    one = Usage(calls=1, prompt_tokens=100, completion_tokens=100, money=0.1)
    assert budget.exceeded(Usage(), one) is None
    with budget.reserved(one), budget.reserved(one):
        assert budget.exceeded(Usage(), one) is None
        assert "budget.max_calls = 3" in str(budget.exceeded(one, one))
    assert budget.exceeded(one, one) is None
    tokens = Usage(prompt_tokens=500, completion_tokens=301)
    assert "budget.max_tokens = 1000" in str(budget.exceeded(tokens, one))
    assert "budget.max_money = 0.5" in str(budget.exceeded(Usage(money=0.41), one))
    assert budget.exceeded(Usage(money=0.4, calls=2, completion_tokens=800), one) is None


def test_what_was_reserved_too_much_is_waited_for() -> None:
    """A first guess that is far too high must not end the run with the budget unspent."""

    async def main() -> list[bool]:
        budget = Budget(BudgetSettings(max_tokens=1000))
        one = Usage(calls=1, completion_tokens=600)
        seen = [await budget.settled()]
        with budget.reserved(one):
            waiting = asyncio.create_task(budget.settled())
            await asyncio.sleep(0)
            seen += [budget.exceeded(Usage(), one) is None, waiting.done()]
        seen += [await waiting, budget.exceeded(Usage(), one) is None]
        return seen

    assert asyncio.run(main()) == [False, False, False, True, True]


def test_without_limits_there_is_no_end() -> None:
    budget = Budget(BudgetSettings())
    assert budget.exceeded(Usage(calls=10**9, completion_tokens=10**15, money=1e9), Usage()) is None
