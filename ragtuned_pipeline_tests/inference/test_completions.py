"""The completion store: never a wrong reply, never a lost one."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragtuned_pipeline.inference.completions import (
    CompletionStore,
    Scope,
    Stored,
    Usage,
    completion_key,
)

SCOPE = Scope("run-1", "news")
ASKED = ("model-a", [{"role": "user", "content": "Hello"}], {"type": "object"}, {"temperature": 0})
REPLY = Stored('{"answer": "yes"}', 12, 5)
PAID = Usage(calls=1, completed=1, prompt_tokens=12, completion_tokens=5, money=0.5)


def put(store: CompletionStore, key: bytes, reply: Stored = REPLY) -> None:
    store.put(key, "model-a", reply, SCOPE, "extraction", PAID)


@pytest.mark.parametrize(
    "other",
    [
        ("model-b", *ASKED[1:]),
        (ASKED[0], [{"role": "user", "content": "Hello!"}], *ASKED[2:]),
        (ASKED[0], [{"role": "system", "content": "Hello"}], *ASKED[2:]),
        (*ASKED[:2], {"type": "array"}, ASKED[3]),
        (*ASKED[:3], {"temperature": 0.7}),
        (*ASKED[:3], {"temperature": 0, "seed": 1}),
    ],
    ids=["model", "text", "role", "schema", "temperature", "seed"],
)
def test_another_request_never_gets_an_old_reply(tmp_path: Path, other: tuple) -> None:
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        put(store, completion_key(*ASKED))
        assert store.get(completion_key(*ASKED)) == REPLY
        assert store.get(completion_key(*other)) is None


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_keys_are_equal_only_for_equal_messages(one: list[str], two: list[str]) -> None:
    keys = [
        completion_key("m", [{"role": "user", "content": text} for text in texts], {}, {})
        for texts in (one, two)
    ]
    assert (keys[0] == keys[1]) == (one == two)


def test_a_reply_and_its_cost_are_stored_together(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        put(store, b"k" * 16)
        store.add(SCOPE, "extraction", "model-a", Usage(calls=2, retries=1, failed=1))
        store.add(Scope("run-2", "news"), "report", "model-a", Usage(hits=3))
        assert store.usage(SCOPE) == {"extraction": PAID + Usage(calls=2, retries=1, failed=1)}
        assert store.corpus_usage("news")["report"].hits == 3
        assert store.corpus_usage("journal") == {}


def test_the_first_of_two_replies_stays(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        put(store, b"k" * 16)
        put(store, b"k" * 16, Stored('{"answer": "no"}', 12, 5))
        assert store.get(b"k" * 16) == REPLY
        assert store.usage(SCOPE)["extraction"].calls == 2, "both were paid for"


WRITER = """
import sys
from pathlib import Path
from ragtuned_pipeline.inference.completions import CompletionStore, Scope, Stored, Usage
store = CompletionStore(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    key = f"{sys.argv[2]}-{i}".encode()
    usage = Usage(calls=1, completed=1)
    store.put(key, "m", Stored(key.decode(), 1, 1), Scope("r", "c"), "s", usage)
    print(key.decode(), flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    writers = [writer(path, f"w{i}", 200) for i in range(4)]
    assert [w.communicate(timeout=60) and w.returncode for w in writers] == [0] * 4
    with CompletionStore(path) as store:
        assert store.count() == 800
        assert store.usage(Scope("r", "c"))["s"].calls == 800


def test_a_killed_process_loses_nothing_that_it_had_stored(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    process = writer(path, "w", 1_000_000)
    assert process.stdout
    for _ in range(50):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    told = 50 + len(process.stdout.read().split("\n")) - 1
    process.wait()
    with CompletionStore(path) as store:
        assert all(store.get(f"w-{i}".encode()) for i in range(told))
        assert store.count() == store.usage(Scope("r", "c"))["s"].calls


def test_pruning_spares_what_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        for key in (b"used", b"old", b"new"):
            put(store, key)
    old = time.time() - 40 * 86_400
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE completions SET used_at = ? WHERE key != ?", (old, b"new"))
    with CompletionStore(path) as store:
        assert store.get(b"used")
    with CompletionStore(path) as store:
        assert store.prune(30) == 1
        assert [bool(store.get(key)) for key in (b"used", b"old", b"new")] == [True, False, True]
        assert store.usage(SCOPE)["extraction"].calls == 3, "what was spent stays counted"


def test_mean_reply_length_by_step(tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        for i, tokens in enumerate((10, 20)):
            put(store, bytes([i]) * 16, Stored("{}", 1, tokens))
        assert store.mean_completion_tokens("model-a") == {"extraction": 15}
        assert store.mean_completion_tokens("model-b") == {}


def test_text_of_any_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    text = json.dumps({"a": "Ж \u0000 😀 '; DROP TABLE completions"}, ensure_ascii=False)
    with CompletionStore(tmp_path / "completions.sqlite") as store:
        put(store, b"k", Stored(text, 1, 1))
        got = store.get(b"k")
        assert got
        assert got.text == text
