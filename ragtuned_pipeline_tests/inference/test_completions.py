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
    StoreInUse,
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


# --- forgetting -------------------------------------------------------------------------------

SECRET = "The skipper keeps his savings in the lamp room."


def paid(store: CompletionStore, key: bytes, corpus: str, text: str = "{}") -> None:
    scope = Scope("run", corpus)
    store.put(key, "model-a", Stored(text, 1, 1), scope, "extraction", Usage(calls=1, completed=1))


def kept(path: Path, *keys: bytes) -> list[bool]:
    with CompletionStore(path) as store:
        return [store.get(key) is not None for key in keys]


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.iterdir()))


def test_a_reply_is_forgotten_unless_it_is_used_again_or_by_another_corpus(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        for key in (b"gone", b"again", b"shared", b"discarded"):
            paid(store, key, "news", json.dumps(SECRET) if key == b"gone" else "{}")
        paid(store, b"theirs", "journal")
        paid(store, b"both", "journal")
        assert store.get(b"shared", "journal")
        assert store.get(b"both", "news")
    assert SECRET.encode() in everything_in(tmp_path)
    with CompletionStore(path) as store:
        assert store.forgettable("news") == 3
        store.begin_forgetting("news")
    with CompletionStore(path) as store:  # the run after it
        assert store.get(b"again", "news")
        store.discard(b"discarded")
        paid(store, b"discarded", "news")
        paid(store, b"new", "news")
        assert store.get(b"gone"), "a plan's look is no use"
    with CompletionStore(path) as store:
        assert store.forget("news") == 1
        assert store.forget("news") == 0, "repeating it deletes no more"
        assert store.usage(Scope("run", "news"))["extraction"].calls == 6, "spending stays counted"
        assert SECRET.encode() not in everything_in(tmp_path), "not even in the log of an open file"
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA freelist_count").fetchone() == (0,), "it was written anew"
        other.close()
    others = (b"again", b"shared", b"discarded", b"theirs", b"both", b"new")
    assert kept(path, b"gone", *others) == [False] + [True] * len(others)


def test_what_a_corpus_has_forgotten_the_last_user_can_forget(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        paid(store, b"shared", "news")
        paid(store, b"shared", "journal")  # both asked at once; the first reply stays
        for corpus, deleted in (("news", 0), ("journal", 1)):
            store.begin_forgetting(corpus)
            assert store.forget(corpus) == deleted


def test_a_store_from_before_payers_were_noted_opens_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        for key in (b"perhaps", b"again"):
            paid(store, key, "news")
        store.put(b"not ours", "model-a", REPLY, Scope("run", "journal"), "report", PAID)
    with sqlite3.connect(path) as connection:  # as the older layout was
        connection.execute("DROP TABLE uses")
        connection.execute("ALTER TABLE completions DROP COLUMN paid_by")
    with CompletionStore(path) as store:
        assert store.forgettable("news") == 2
        store.begin_forgetting("news")
        assert store.get(b"again", "news")
        assert store.forget("news") == 1
    assert kept(path, b"perhaps", b"again", b"not ours") == [False, True, True]


def test_pruning_forgets_users_too(tmp_path: Path) -> None:
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        paid(store, b"key", "news")
        assert store.get(b"key", "journal")
    with CompletionStore(path) as store:
        assert store.prune(0) == 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM uses").fetchone() == (0,)


READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN")
print(connection.execute("SELECT count(*) FROM completions").fetchone(), flush=True)
sys.stdin.read()
"""


def test_a_reader_that_never_ends_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragtuned_pipeline.inference.completions._BUSY_SECONDS", 0.2)
    path = tmp_path / "completions.sqlite"
    with CompletionStore(path) as store:
        paid(store, b"key", "news")
        store.begin_forgetting("news")
        command = [sys.executable, "-c", READER, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as reader:
            assert reader.stdout
            reader.stdout.readline()
            with pytest.raises(StoreInUse, match="repeat the command"):
                store.forget("news")
            reader.communicate()
        assert store.forget("news") == 0
