"""How many replies a second the completion store reads and writes.

    python -m ragtuned_pipeline_tests.benchmarks.completion_store

Prints, from one run: writes, reads of replies that are there by the corpus that paid for them and
by another one, reads of ones that are not there, the floor of a read, which is SQLite alone
fetching the same rows by key, and how long it takes to forget half of the replies.
"""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ragtuned_pipeline.inference.completions import (
    CompletionStore,
    Scope,
    Stored,
    Usage,
    completion_key,
)

COUNT = 50_000
TEXT = '{"entities": [' + ", ".join(['{"name": "Mirela Voss", "type": "person"}'] * 40) + "]}"


def per_second(what: str, act: Callable[[bytes], object], keys: list[bytes]) -> None:
    began = time.perf_counter()
    for key in keys:
        act(key)
    print(f"{what:<28}{len(keys) / (time.perf_counter() - began):>10,.0f} a second")


def main() -> None:
    keys = [
        completion_key("m", [{"role": "user", "content": str(i)}], {}, {}) for i in range(COUNT)
    ]
    absent = [key[::-1] for key in keys]
    scope, usage = Scope("run", "corpus"), Usage(calls=1, completed=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.sqlite"
        with CompletionStore(path) as store:
            reply = Stored(TEXT, 900, 600)
            per_second("writes", lambda k: store.put(k, "m", reply, scope, "step", usage), keys)
            per_second("reads", lambda k: store.get(k, "corpus"), keys)
            per_second("reads by another corpus", lambda k: store.get(k, "other"), keys[::2])
            per_second("reads of what is not there", store.get, absent)
        plain = sqlite3.connect(path)
        query = "SELECT text FROM completions WHERE key = ?"
        per_second("floor: SQLite alone", lambda k: plain.execute(query, (k,)).fetchone(), keys)
        plain.close()
        with CompletionStore(path) as store:
            store.begin_forgetting("corpus")
            began = time.perf_counter()
            gone = store.forget("corpus")
            print(f"{gone:,} of {COUNT:,} replies forgotten in {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
