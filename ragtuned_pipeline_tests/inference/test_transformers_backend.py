"""The teacher in this process: one batch for what comes together, and honest about its limits."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ragtuned_pipeline.inference.backend import RawReply, Request, RequestFailed
from ragtuned_pipeline.inference.base_models import EMBEDDED_FOLDER, identity
from ragtuned_pipeline.inference.engine import Message, Reply
from ragtuned_pipeline.inference.transformers_backend import TransformersBackend
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.settings import SettingsError

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}
ASKED = Request([{"role": "user", "content": "Who is Mirela Voss?"}], "Answer", SCHEMA, 16, 0.0, 1)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The last messages of each batch that an engine answers."""
    seen: list[list[str]] = []
    generate = TransformersEngine.generate

    def noted(
        self: TransformersEngine, conversations: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[Reply]:
        seen.append([conversation[-1]["content"] for conversation in conversations])
        return generate(self, conversations, max_tokens)

    monkeypatch.setattr(TransformersEngine, "generate", noted)
    return seen


def asked(name: str, max_tokens: int = 16) -> Request:
    messages = [{"role": "user", "content": f"Who is {name}?"}]
    return replace(ASKED, messages=messages, max_tokens=max_tokens)


def replies(requests: Sequence[Request], backend: TransformersBackend) -> list[RawReply]:
    async def ask() -> list[RawReply]:
        return list(await asyncio.gather(*map(backend.reply, requests)))

    return asyncio.run(ask())


def test_requests_that_come_together_share_a_batch(batches: list[list[str]]) -> None:
    names = ["Mirela Voss", "Tobin Calder", "Sanne Orrick", "Ada"]
    wanted = [asked(name) for name in names] + [asked(name, 5) for name in names]
    together = replies(wanted, TransformersBackend("embedded"))
    assert [len(batch) for batch in batches] == [4, 4]

    async def one_by_one() -> list[RawReply]:
        backend = TransformersBackend("embedded")
        return [await backend.reply(each) for each in wanted]

    assert together == asyncio.run(one_by_one())
    assert len(batches) == 2 + 8


def test_what_comes_while_a_batch_is_answered_is_the_next_batch(batches: list[list[str]]) -> None:
    async def ask() -> None:
        backend = TransformersBackend("embedded")
        first = asyncio.create_task(backend.reply(asked("Ada", 64)))
        while not batches:
            await asyncio.sleep(0.001)
        await asyncio.gather(first, *(backend.reply(asked(n, 64)) for n in ("Bo", "Cy", "Di")))

    asyncio.run(ask())
    assert [len(batch) for batch in batches] == [1, 3]


def test_the_schema_is_told_in_words_and_a_cut_reply_is_marked(batches: list[list[str]]) -> None:
    backend = TransformersBackend("embedded")
    assert backend.identity == identity("embedded")
    (cut,) = replies([asked("Mirela Voss", 2)], backend)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2)
    assert "- answer: text" in batches[0][0]
    (whole,) = replies([asked("Mirela Voss", 400)], TransformersBackend("embedded"))
    assert whole.finish_reason == ("stop" if whole.completion_tokens < 400 else "length")
    assert whole.prompt_tokens == cut.prompt_tokens > 0


def test_a_request_that_is_given_up_leaves_its_batch_alone() -> None:
    async def ask() -> RawReply:
        backend = TransformersBackend("embedded")
        given_up, kept = (asyncio.create_task(backend.reply(asked(n))) for n in ("Ada", "Bo"))
        await asyncio.sleep(0)
        given_up.cancel()
        return await kept

    assert asyncio.run(ask()) == replies([asked("Bo")], TransformersBackend("embedded"))[0]


def test_a_model_that_cannot_be_loaded_stops_the_run(tmp_path: Path) -> None:
    shutil.copytree(
        EMBEDDED_FOLDER,
        tmp_path,
        ignore=shutil.ignore_patterns("*.safetensors"),
        dirs_exist_ok=True,
    )
    with pytest.raises(RequestFailed, match=f"{tmp_path} cannot be loaded") as failed:
        replies([ASKED, ASKED], TransformersBackend(str(tmp_path)))
    assert failed.value.refused
    with pytest.raises(SettingsError, match="no folder with a model"):
        TransformersBackend("/nowhere/at/all")


def test_sampling_is_refused() -> None:
    with pytest.raises(RequestFailed, match=r"teacher\.temperature") as failed:
        replies([replace(ASKED, temperature=0.7)], TransformersBackend("embedded"))
    assert failed.value.refused
