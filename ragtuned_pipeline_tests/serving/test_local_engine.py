"""The engine in this process: each answer is its own adapter's, however requests come and go."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from ragtuned_pipeline.inference.engine import Reply, chat
from ragtuned_pipeline.inference.transformers_engine import TransformersEngine
from ragtuned_pipeline.serving.interface import Refused
from ragtuned_pipeline.serving.local_engine import LocalEngine
from ragtuned_pipeline.serving.mixed_model import Batch
from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.serving.world import HTTP, serving
from ragtuned_pipeline_tests.tuning.adapters import random_adapter

if TYPE_CHECKING:
    from torch import Tensor

QUESTIONS = [
    "Who opened the Harrow Bakery in 1987?",
    "Tell me about Mirela Voss.",
    "I came across the name Tobin Calder in an old letter about the mill. Who is that?",
]
TOKENS = 16
# With the second adapter it does not end by itself.
LONG = {"messages": chat("Why?"), "temperature": 1.9, "seed": 1, "max_tokens": 900}
ADAPTERS = ["notes@a1", "v1.2@b2", "notes@c3"]  # a corpus's name may have dots


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of unlike ranks and layers that say unlike things."""
    kinds: tuple[dict[str, Any], ...] = (
        {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
        {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "down_proj"]},
    )
    return {
        adapter: random_adapter(tmp_path_factory.mktemp("adapter"), seed, **kind)
        for seed, (adapter, kind) in enumerate(zip(ADAPTERS, kinds, strict=True))
    }


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[tuple[str, str], Reply]:
    """What each adapter answers by itself, merged, as it was evaluated."""
    found = {}
    for adapter, folder in folders.items():
        replies = TransformersEngine("embedded", folder).generate(
            [chat(question) for question in QUESTIONS], TOKENS
        )
        found.update({(adapter, q): reply for q, reply in zip(QUESTIONS, replies, strict=True)})
    assert len({reply.text for reply in found.values()}) == len(found), found
    return found


@asynccontextmanager
async def _engine(folders: dict[str, Path], places: int = 16) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine("embedded", places)
    await engine.start()
    try:
        for adapter, folder in folders.items():
            await engine.load(adapter, folder)
        yield engine
    finally:
        await engine.close()


def _body(question: str, **more: Any) -> dict[str, Any]:
    return {"messages": chat(question), "max_tokens": TOKENS, "temperature": 0, **more}


def _text(completion: dict[str, Any]) -> str:
    text: str = completion["choices"][0]["message"]["content"]
    return text


def _streamed(chunks: list[dict[str, Any]]) -> str:
    choices = (choice for chunk in chunks for choice in chunk["choices"])
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_answers_written_together_are_each_adapters_own(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    async def ask_all(places: int) -> list[dict[str, Any]]:
        async with _engine(folders, places) as engine:
            asked = (engine.complete(adapter, _body(q)) for adapter, q in alone)
            return await asyncio.gather(*asked)

    for places in (16, 2):
        for (key, reply), given in zip(alone.items(), asyncio.run(ask_all(places)), strict=True):
            assert _text(given) == reply.text, (places, key)
            assert given["usage"] == {
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "total_tokens": reply.prompt_tokens + reply.completion_tokens,
            }
            # One as long as that may have ended by itself, too.
            ends = {"stop", "length"} if reply.completion_tokens == TOKENS else {"stop"}
            assert given["choices"][0]["finish_reason"] in ends
            assert json.loads(json.dumps(given))["object"] == "chat.completion"


def test_adapters_come_and_go_while_others_answer(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    """Under load, one adapter is replaced by another again and again; a running answer ends well,
    and the adapter goes when it has."""

    async def play() -> None:
        first, second, third = ADAPTERS
        async with _engine({first: folders[first]}) as engine:
            over = asyncio.Event()

            async def ask_first(question: str) -> int:
                asked = 0
                while not over.is_set():
                    given = _text(await engine.complete(first, _body(question)))
                    assert given == alone[first, question].text
                    asked += 1
                return asked

            asking = [asyncio.create_task(ask_first(question)) for question in QUESTIONS]
            for _ in range(3):
                for adapter in (second, third):
                    await engine.load(adapter, folders[adapter])
                    await engine.load(adapter, folders[adapter])  # it is there already
                    running = engine.stream(adapter, _body(QUESTIONS[2]))
                    chunks = [await anext(running)]  # it has begun
                    unloaded = asyncio.create_task(engine.unload(adapter))
                    chunks += [chunk async for chunk in running]
                    await unloaded
                    assert _streamed(chunks) == alone[adapter, QUESTIONS[2]].text
                    with pytest.raises(Refused, match="there is no model") as refused:
                        await engine.complete(adapter, _body("Why?"))
                    assert refused.value.status == 404
            over.set()
            assert min(await asyncio.gather(*asking)) > 0

    asyncio.run(play())


def test_a_stream_is_the_answer_in_pieces(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    async def streamed(engine: LocalEngine, adapter: str, question: str) -> list[dict[str, Any]]:
        return [chunk async for chunk in engine.stream(adapter, _body(question))]

    async def all_streamed() -> list[list[dict[str, Any]]]:
        async with _engine(folders) as engine:
            return await asyncio.gather(*(streamed(engine, *key) for key in alone))

    for (key, reply), chunks in zip(alone.items(), asyncio.run(all_streamed()), strict=True):
        *told, usage = chunks
        deltas = [chunk["choices"][0]["delta"] for chunk in told]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert _streamed(chunks) == reply.text, key
        assert len(deltas) > 4
        ends = [chunk["choices"][0]["finish_reason"] for chunk in told]
        assert ends[:-1] == [None] * (len(told) - 1)
        assert ends[-1] in {"stop", "length"}
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == reply.completion_tokens
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_sampling_follows_its_seed_whoever_is_beside_it(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    adapter, question = ADAPTERS[0], QUESTIONS[0]

    async def play() -> None:
        async with _engine(folders) as engine:

            async def ask(**more: Any) -> str:
                return _text(await engine.complete(adapter, _body(question, **more)))

            hot = {"temperature": 1.5}
            by_itself = await ask(**hot, seed=7)
            others = [engine.complete(other, _body("Why?", **hot)) for other in ADAPTERS]
            beside, *_ = await asyncio.gather(ask(**hot, seed=7), *others)
            assert beside == by_itself
            unlike = {await ask(**hot, seed=seed) for seed in range(4)}
            assert len(unlike) == 4
            assert await ask(**hot) != await ask(**hot)
            # So few of the likeliest tokens that there is one, and so cold that it is one.
            greedy = alone[adapter, question].text
            assert await ask(**hot, top_p=1e-6) == greedy
            assert await ask(temperature=1e-6) == greedy

    asyncio.run(play())


def test_a_stop_string_ends_the_answer(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    adapter, question = ADAPTERS[0], QUESTIONS[2]
    whole = alone[adapter, question].text
    stop = whole[len(whole) // 2 :][:3]

    async def ask() -> dict[str, Any]:
        async with _engine(folders) as engine:
            return await engine.complete(adapter, _body(question, stop=[stop, "nowhere"]))

    given = asyncio.run(ask())
    assert _text(given) == whole[: whole.index(stop)].rstrip()
    assert given["choices"][0]["finish_reason"] == "stop"
    assert given["usage"]["completion_tokens"] < alone[adapter, question].completion_tokens


def test_what_leaves_no_room_is_refused_and_what_leaves_some_gets_that(
    folders: dict[str, Path],
) -> None:
    async def ask(words: int, **more: Any) -> dict[str, Any]:
        async with _engine({ADAPTERS[0]: folders[ADAPTERS[0]]}) as engine:
            return await engine.complete(ADAPTERS[0], _body("why " * words, **more))

    with pytest.raises(Refused, match="context holds 1,024") as refused:
        asyncio.run(ask(1100))
    assert (refused.value.status, refused.value.parameter) == (400, "messages")
    given = asyncio.run(ask(1000, max_tokens=500))
    assert given["usage"]["total_tokens"] <= 1024
    with pytest.raises(Refused) as refused:
        asyncio.run(ask(1, logprobs=True))
    assert (refused.value.status, refused.value.parameter) == (400, "logprobs")


def test_who_goes_away_frees_the_place_and_the_loop_is_never_held_up(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply]
) -> None:
    """One place: what is in it has to leave before another can be answered."""

    async def play() -> None:
        async with _engine(folders, places=1) as engine:
            hog = engine.stream(ADAPTERS[1], LONG)
            await anext(hog)
            waits = asyncio.create_task(engine.complete(ADAPTERS[1], LONG))
            wanted = asyncio.create_task(engine.complete(ADAPTERS[0], _body(QUESTIONS[0])))
            turns = 0
            while "answers_waiting 2" not in await engine.metrics():
                await asyncio.sleep(0)
            for _ in range(200):  # of the event loop, while the model is at work
                await asyncio.sleep(0)
                turns += "answers_running 1" in await engine.metrics()
            assert turns == 200
            assert not wanted.done()
            waits.cancel()
            await hog.aclose()
            assert _text(await wanted) == alone[ADAPTERS[0], QUESTIONS[0]].text
            with pytest.raises(asyncio.CancelledError):
                await waits

    asyncio.run(play())


def test_the_oldest_is_answered_first(folders: dict[str, Path]) -> None:
    async def play() -> list[int]:
        done: list[int] = []
        async with _engine(folders, places=1) as engine:

            async def ask(place: int) -> None:
                await engine.complete(ADAPTERS[place % 3], _body("Why?", max_tokens=4))
                done.append(place)

            hog = engine.stream(ADAPTERS[1], LONG)
            await anext(hog)
            tasks = []
            for place in range(6):
                tasks.append(asyncio.create_task(ask(place)))
                while f"answers_waiting {place + 1}\n" not in await engine.metrics():
                    await asyncio.sleep(0)
            await hog.aclose()
            await asyncio.gather(*tasks)
        return done

    assert asyncio.run(play()) == list(range(6))


def _broken(kind: str, folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    if kind == "no config":
        (folder / "adapter_config.json").unlink()
    elif kind == "half a file":
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    elif kind == "another shape":
        (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    elif kind == "missing weights":
        from safetensors.torch import load_file, save_file

        weights = folder / "adapter_model.safetensors"
        some = {k: v for k, v in load_file(weights).items() if ".layers.0." not in k}
        save_file(some, weights)
    elif kind == "DoRA":
        (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))


@pytest.mark.parametrize("first", [True, False])
def test_a_broken_adapter_is_refused_and_leaves_nothing_behind(
    first: bool, folders: dict[str, Path], alone: dict[tuple[str, str], Reply], tmp_path: Path
) -> None:
    kinds = ["no config", "half a file", "another shape", "missing weights", "DoRA"]
    for kind in kinds:
        shutil.copytree(folders[ADAPTERS[0]], tmp_path / kind)
        _broken(kind, tmp_path / kind)

    async def play() -> None:
        async with _engine({} if first else {ADAPTERS[0]: folders[ADAPTERS[0]]}) as engine:
            for kind in kinds:
                with pytest.raises(Refused, match=r"the adapter in|no adapter in"):
                    await engine.load("notes@0", tmp_path / kind)
            await engine.load("notes@0", folders[ADAPTERS[1]])
            given = await engine.complete("notes@0", _body(QUESTIONS[0]))
            assert _text(given) == alone[ADAPTERS[1], QUESTIONS[0]].text
            assert engine.why_ended() is None

    asyncio.run(play())


def test_a_base_model_that_is_none_is_named(tmp_path: Path) -> None:
    engine = LocalEngine(str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"tuning\.base_model"):
        asyncio.run(engine.start())
    assert "tuning.base_model" in (engine.why_ended() or "")


def test_all_who_wait_are_told_when_the_engine_is_closed(folders: dict[str, Path]) -> None:
    async def play() -> None:
        async with _engine(folders, places=1) as engine:
            running = asyncio.create_task(engine.complete(ADAPTERS[1], LONG))
            waiting = asyncio.create_task(engine.complete(ADAPTERS[1], LONG))
            while "answers_waiting 1" not in await engine.metrics():
                await asyncio.sleep(0)
            await engine.close()
            for task in (running, waiting, engine.complete(ADAPTERS[0], LONG)):
                with pytest.raises(Refused) as refused:
                    await task
                assert refused.value.status == 503
            await engine.start()  # begins anew, without adapters
            await engine.load(ADAPTERS[2], folders[ADAPTERS[2]])
            assert _text(await engine.complete(ADAPTERS[2], _body("Why?")))

    asyncio.run(play())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_fails_is_told_to_all(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the GPU's memory is full."""
    from ragtuned_pipeline.serving.mixed_model import Batch

    def full(*_: Any) -> None:
        raise MemoryError("no room")

    async def play() -> None:
        async with _engine(folders) as engine:
            monkeypatch.setattr(Batch, "step", full)
            asked = [
                asyncio.create_task(engine.complete(adapter, _body("Why?"))) for adapter in ADAPTERS
            ]
            for each in asked:
                with pytest.raises(Refused, match="no room") as refused:
                    await each
                assert refused.value.status == 503
            assert "no room" in (engine.why_ended() or "")
            tries: list[Callable[[], Awaitable[Any]]] = [
                lambda: engine.complete(ADAPTERS[0], _body("Why?")),
                lambda: engine.load("more", folders[ADAPTERS[0]]),
                lambda: engine.unload(ADAPTERS[0]),
            ]
            for attempt in tries:
                with pytest.raises(Refused, match="no room"):
                    await attempt()

    asyncio.run(play())


def test_openai_clients_ask_corpora_and_a_promotion_is_answered_without_a_pause(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply], tmp_path: Path
) -> None:
    """The whole way: store, promotion, gateway, client."""
    first, second, _ = ADAPTERS
    question = QUESTIONS[2]
    contents = [adapter_store.store(folders[a], tmp_path, "notes", "embedded") for a in ADAPTERS]
    adapter_store.promote(tmp_path, "notes", contents[0])
    with serving(LocalEngine("embedded"), tmp_path) as running:
        client = openai.OpenAI(
            base_url=running.address, api_key="any", max_retries=0, http_client=HTTP
        )

        def ask() -> str:
            given = client.chat.completions.create(
                model="notes", messages=[{"role": "user", "content": question}], max_tokens=TOKENS
            )
            return given.choices[0].message.content or ""

        assert ask() == alone[first, question].text
        chunks = client.chat.completions.create(
            model="notes",
            messages=[{"role": "user", "content": question}],
            max_tokens=TOKENS,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(pieces) == alone[first, question].text
        adapter_store.promote(tmp_path, "notes", contents[1])
        answers = [ask()]
        while answers[-1] == answers[0]:
            answers.append(ask())
        assert answers[-1] == alone[second, question].text
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="notes", messages=[{"role": "user", "content": question}], n=2
            )
        assert refused.value.param == "n"
        metrics = HTTP.get(running.address.replace("/v1", "/metrics")).text
        assert "ragtuned_engine_completion_tokens_total" in metrics


def test_a_request_at_the_edge_of_what_is_allowed_ends_no_other(
    folders: dict[str, Path], alone: dict[tuple[str, str], Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that are 0 in float32, and a prompt that the memory does not hold."""
    adapter, question = ADAPTERS[0], QUESTIONS[0]
    prefill = Batch.prefill

    def full(self: Batch, name: str | None, prompt: Sequence[int]) -> Tensor:
        if len(prompt) > 200:
            raise RuntimeError("CUDA out of memory")
        return prefill(self, name, prompt)

    monkeypatch.setattr(Batch, "prefill", full)

    async def play() -> None:
        async with _engine({adapter: folders[adapter]}) as engine:
            asked: list[dict[str, Any]] = [
                {"temperature": 1e-50},
                {"temperature": 1e-5},
                {"temperature": 1.0, "top_p": 1e-46},
            ]
            for more in asked:
                given = await engine.complete(adapter, _body(question, **more))
                assert _text(given) == alone[adapter, question].text, more
            beside = asyncio.create_task(engine.complete(adapter, _body(question)))
            with pytest.raises(Refused, match="out of memory") as refused:
                await engine.complete(adapter, _body("long " * 300))
            assert (refused.value.status, refused.value.retry_after) == (503, 5)
            assert _text(await beside) == alone[adapter, question].text

    asyncio.run(play())


def test_a_file_that_is_json_and_no_adapter_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("[]", encoding="utf-8")

    async def play() -> None:
        async with _engine({}) as engine:
            with pytest.raises(Refused, match="no JSON object"):
                await engine.load("notes@x", tmp_path)
            await engine.load(ADAPTERS[0], folders[ADAPTERS[0]])

    asyncio.run(play())
