"""Print how busy the teacher keeps a server, and how much memory it takes for how many items.

    python ragtuned_pipeline_tests/benchmarks/teacher_throughput.py [ITEMS] [CONCURRENCY]

The server, in a process of its own, works on 32 requests at once, 0.2 s each, and lets more wait,
as vLLM does. One reply in ten is a fault: 500, 503, a dropped connection, cut-off JSON, a wrong
schema, a refusal, white space. (429 is left out: being asked for less is to be obeyed.) The
teacher's concurrency is 40 unless given: a few requests must wait at the server for it never to
wait for them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.inference.calls import Call, Failed
from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Usage
from ragtuned_pipeline.inference.engine import chat
from ragtuned_pipeline.inference.openai_backend import OpenAIBackend
from ragtuned_pipeline.inference.teacher import LlmTeacher
from ragtuned_pipeline.settings import BudgetSettings, TeacherSettings

SLOTS, LATENCY, FAULTS = 32, 0.2, 0.1
KINDS = "500,503,drop_before,drop_mid,truncated,wrong_schema,refused,refused_in_words,flood"
TEXT = "The mill by the river was bought by Mirela Voss in the spring of 1987. " * 20


class Entity(BaseModel):
    name: str
    kind: str
    description: str


class Entities(BaseModel):
    entities: list[Entity]


def calls(count: int, at_the_end: Callable[[], None]) -> Iterator[Call[Entities]]:
    for n in range(count):
        messages = tuple(chat(f"Entities of text {n}: {TEXT}"))
        yield Call("extraction", f"tu-{n}", messages, Entities, 1000)
    at_the_end()


def statistics(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address.removesuffix("/v1") + "/statistics") as answer:
        counted: dict[str, Any] = json.load(answer)
    return counted


def megabytes() -> float:
    """Return the most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(items: int, concurrency: int) -> None:
    command = [sys.executable, "-m", "ragtuned_pipeline_tests.chat_server"]
    command += ["--slots", str(SLOTS), "--latency", str(LATENCY)]
    command += ["--faults", str(FAULTS), "--kinds", KINDS]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as folder,
        CompletionStore(Path(folder) / "completions.sqlite") as store,
    ):
        try:
            assert server.stdout
            address = server.stdout.readline().strip()
            settings = TeacherSettings(address=address, model="test", concurrency=concurrency)
            scope = Scope("run", "corpus")
            backend = OpenAIBackend(settings)
            # The last few have nothing after them to keep the server busy with.
            steady: dict[str, Any] = {}
            asked = calls(items, lambda: steady.update(statistics(address)))
            failed, started = 0, time.perf_counter()
            with LlmTeacher(backend, settings, store, BudgetSettings(), scope) as teacher:
                for number, outcome in enumerate(teacher.complete(asked), 1):
                    failed += isinstance(outcome, Failed)
                    if number == items // 10:
                        print(f"peak memory after 10 %   {megabytes():8.1f} MB")
            seconds = time.perf_counter() - started
            print(f"peak memory at the end   {megabytes():8.1f} MB")
            counted = statistics(address)
        finally:
            server.kill()
        usage = sum(store.usage(scope).values(), Usage())
    print(f"items                    {items:8} of which failed: {failed}")
    print(f"requests                 {usage.calls:8} of which retried: {usage.retries}")
    print(f"requests of the server   {counted['requests']:8}")
    print(f"requests a second        {usage.calls / seconds:8.1f}")
    print(f"this process's CPU       {time.process_time() / seconds:8.1%} of a core")
    print(f"time with all {SLOTS} busy   {steady['busy_share']:8.1%}")
    print(f"of the {SLOTS} slots in use  {steady['used_share']:8.1%}")
    assert usage.calls == counted["requests"] == usage.completed + usage.retries + usage.failed


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(*(given + [100_000, 40][len(given) :]))
