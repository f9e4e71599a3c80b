"""kill -9 at random moments of a run with a teacher, and what is left of it.

    python -m ragtuned_pipeline_tests.benchmarks.kill_and_resume [KILLS]

A few articles of the news sample are run up to their training rows, against a server that counts,
and killed again and again. Printed: how often a reply that had been stored was asked for again,
and whether the tables are, byte for byte, those of a run that nobody killed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ragtuned_pipeline.inference.completions import completion_key
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline_tests.chat_server import ChatServer
from ragtuned_pipeline_tests.scripted import teacher

GROUPS = ("corpus", "graph", "synthesis")
_MODULE = "ragtuned_pipeline_tests.benchmarks.kill_and_resume"
MODEL = "scripted"
CONCURRENCY = 4
LATENCY = 0.1  # seconds
MOST_REQUESTS = 9  # of a run before it is killed


@dataclass(frozen=True)
class Outcome:
    """What a killed and resumed run came to.

    Attributes:
        kills: that hit a run before it was done.
        stored_at_kills: replies in the store after each kill.
        repeated: requests for a reply that had been stored before the last kill.
        requests: all of them; `needed` are those of a run that nobody killed.
        different: tables that are not those of that run.
    """

    kills: int
    stored_at_kills: list[int]
    repeated: int
    requests: int
    needed: int
    different: list[str]


class Counting:
    """A reply function that knows what must not be asked again."""

    def __init__(self) -> None:
        self.requests = 0
        self.repeated = 0
        self.forbidden: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests += 1
            self.repeated += _key(request) in self.forbidden
        return teacher.news(request)


def _key(request: Mapping[str, Any]) -> bytes:
    """The key under which the reply to a request is stored."""
    schema = _schemas()[request["response_format"]["json_schema"]["name"]].model_json_schema()
    sampling = {name: request[name] for name in ("temperature", "seed", "max_tokens")}
    return completion_key(request["model"], request["messages"], schema, sampling)


def _schemas() -> dict[str, type[BaseModel]]:
    from ragtuned_pipeline.graph import extraction_llm, reports_llm  # noqa: F401
    from ragtuned_pipeline.synthesis import replies  # noqa: F401

    def below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    return {kind.__name__: kind for kind in below(BaseModel)}


def kill_and_resume(folder: Path, kills: int, articles: int, seed: int = 0) -> Outcome:
    """Run `articles` articles once in peace and once with `kills` kills, both below `folder`."""
    documents = folder / "documents"
    documents.mkdir()
    for article in sorted((teacher.SAMPLES / "news" / "documents").iterdir())[:articles]:
        shutil.copy(article, documents)
    peaceful, counting = Counting(), Counting()
    with ChatServer(peaceful) as server:
        reference = _home(folder / "peaceful", documents, server.address)
        assert _start(reference).wait() == 0
    draw = random.Random(seed)
    stored: list[int] = []
    with ChatServer(counting, latency=LATENCY) as server:
        home = _home(folder / "killed", documents, server.address)
        while len(stored) < kills:
            run = _start(home)
            enough = counting.requests + draw.randint(0, MOST_REQUESTS)
            while run.poll() is None and counting.requests < enough:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 2 * LATENCY))
            if run.poll() is not None:
                break  # done before the kill
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            counting.forbidden |= _stored(home)
            stored.append(len(counting.forbidden))
        assert _start(home).wait() == 0
    return Outcome(
        len(stored),
        stored,
        counting.repeated,
        counting.requests,
        peaceful.requests,
        sorted(_different(reference, home)),
    )


def _home(folder: Path, documents: Path, address: str) -> Home:
    home = Home(folder)
    asked = {"address": address, "model": MODEL, "concurrency": CONCURRENCY}
    home.register("news", documents, None, {"profile": "api", "teacher": asked})
    return home


def _start(home: Home) -> subprocess.Popen[bytes]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RAGTUNED_", "DAGSTER_"))}
    environment = own | {"RAGTUNED_DAGSTER": str(home.folder / "dagster")}
    return subprocess.Popen([sys.executable, "-m", _MODULE, str(home.folder)], env=environment)


def _stored(home: Home) -> set[bytes]:
    if not home.completions.is_file():
        return set()
    connection = sqlite3.connect(home.completions)
    try:
        return {key for (key,) in connection.execute("SELECT key FROM completions")}
    except sqlite3.OperationalError:
        return set()  # killed before the tables were made
    finally:
        connection.close()


def _different(one: Home, two: Home) -> Iterator[str]:
    for file in sorted(Path(one.tables).rglob("*.parquet")):
        place = file.relative_to(one.tables)
        other = Path(two.tables) / place
        if not other.is_file() or file.read_bytes() != other.read_bytes():
            yield str(place.parent)


def _drive(home: Home) -> None:
    """Materialise everything up to the training rows, as `ragtuned run` does."""
    from ragtuned_pipeline.orchestration.runs import run_assets

    for group in GROUPS:
        run_assets(home, "news", (group,), lambda _event: None)


def main() -> None:
    given = sys.argv[1] if len(sys.argv) > 1 else "50"
    if not given.isdecimal():
        _drive(Home(Path(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        # Enough calls for so many runs that are killed after a few.
        kills = int(given)
        outcome = kill_and_resume(Path(folder), kills, articles=2 + kills // 4)
    print(f"kills that hit a run            {outcome.kills}")
    print(f"replies stored after each kill  {outcome.stored_at_kills}")
    print(f"requests; without kills         {outcome.requests}; {outcome.needed}")
    print(f"stored replies asked for again  {outcome.repeated}")
    print(f"tables that differ              {', '.join(outcome.different) or 'none'}")


if __name__ == "__main__":
    main()
