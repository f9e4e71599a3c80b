"""Routes at the moments when two things happen at once."""

import asyncio
from pathlib import Path

import pytest

from ragtuned_pipeline.serving.metrics import Metrics
from ragtuned_pipeline.serving.promoted import Promoted, Wanted
from ragtuned_pipeline.serving.router import Router
from ragtuned_pipeline_tests.serving.world import NotingEngine, new_adapter


@pytest.mark.parametrize("ticks", range(6))
def test_a_rollback_just_when_the_last_old_answer_ends_cuts_nothing_short(
    tmp_path: Path, ticks: int
) -> None:
    """The task that was to unload the old adapter must not go on, however far it was."""
    adapters = tmp_path / "adapters"
    old, new = (
        Promoted(content, adapters / "harbour" / content, 0.0)
        for content in (new_adapter(adapters, "harbour", weights) for weights in ("old", "new"))
    )

    async def main() -> None:
        engine = NotingEngine()
        router = Router(engine, Metrics(), 30.0, print)
        await router.sync(Wanted({"harbour": old}))
        async with router.lease("harbour"):
            await router.sync(Wanted({"harbour": new}))
            [retiring] = router._retiring.values()
            await asyncio.sleep(0.01)
        for _ in range(ticks):
            await asyncio.sleep(0)
        await router.sync(Wanted({"harbour": old}))
        async with router.lease("harbour") as adapter:
            await asyncio.sleep(0.05)
            assert adapter in engine.loaded
        await asyncio.wait([retiring.task])
        assert retiring.task.cancelled() or retiring.task.exception() is None

    asyncio.run(main())
