"""The completion store: replies that were paid for, and what was spent, in one SQLite file.

A reply is stored after it was validated and before anything else happens to it, in the same
transaction as its cost, so that neither can be there without the other. The key is the model's
identity, the messages, the reply's schema and the sampling: another model, temperature or schema
never gets an old reply. Several processes may use one file (write-ahead log); a killed one loses
nothing that it had stored.

Which corpora have used a reply is noted beside it, so that a corpus can forget those that are made
of a document it no longer has. Replies of a file from before that was noted have no known user;
those are forgotten with the first corpus that may have used them (the same step and model).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from ragtuned_pipeline.inference.engine import Message

_BUSY_SECONDS = 60.0
_DAY = 86_400.0
_NOTED_AT_ONCE = 1000  # replies read
_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    key BLOB PRIMARY KEY,
    model TEXT NOT NULL,
    step TEXT NOT NULL,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    used_at REAL NOT NULL,
    paid_by TEXT  -- the corpus whose run asked for it; null where it is not known, or has forgotten
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (  -- by the corpora that found the reply here
    key BLOB NOT NULL,
    corpus TEXT NOT NULL,
    old INTEGER NOT NULL,  -- 1: from before forgetting began, and not used since
    PRIMARY KEY (key, corpus)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    run TEXT NOT NULL,
    corpus TEXT NOT NULL,
    step TEXT NOT NULL,
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    hits INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    money REAL NOT NULL,
    PRIMARY KEY (run, corpus, step, model)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stored:
    """A validated reply, as JSON, and the tokens it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Usage:
    """What a step has asked and what it cost; adds up.

    Attributes:
        calls: requests that were sent; always completed + retries + failed.
        completed: requests with a valid reply.
        retries: requests without one, after which the item was tried again.
        failed: last requests of items that gave up.
        hits: items answered from the store, without a request.
        prompt_tokens, completion_tokens, money: of all requests.
    """

    calls: int = 0
    completed: int = 0
    retries: int = 0
    failed: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))


_NOTE = (
    "INSERT INTO uses VALUES (?, ?, 0) ON CONFLICT (key, corpus) DO UPDATE SET old = 0 WHERE old"
)
# Before it is forgotten, what a corpus paid for is noted as used by it.
_NOTE_PAID = """
INSERT INTO uses SELECT key, paid_by, 1 FROM completions WHERE paid_by = :corpus
ON CONFLICT (key, corpus) DO NOTHING
"""
_OF_OTHERS = """(
    coalesce(c.paid_by, :corpus) != :corpus
    OR EXISTS (SELECT 1 FROM uses o WHERE o.key = c.key AND o.corpus != :corpus)
)"""
_USER_UNKNOWN = """(
    c.paid_by IS NULL AND NOT EXISTS (SELECT 1 FROM uses o WHERE o.key = c.key)
    AND (c.step, c.model) IN (SELECT step, model FROM usage WHERE corpus = :corpus)
)"""
_OLD = "EXISTS (SELECT 1 FROM uses o WHERE o.key = c.key AND o.corpus = :corpus AND o.old)"
_FORGET = f"""
DELETE FROM completions AS c WHERE NOT {_OF_OTHERS} AND ({_OLD} OR {_USER_UNKNOWN})
"""
_FORGETTABLE = f"""
SELECT count(*) FROM completions AS c WHERE NOT {_OF_OTHERS} AND (
    c.paid_by = :corpus
    OR EXISTS (SELECT 1 FROM uses o WHERE o.key = c.key AND o.corpus = :corpus)
    OR {_USER_UNKNOWN}
)
"""
_NOT_PAID_ANY_MORE = """
UPDATE completions SET paid_by = NULL WHERE paid_by = :corpus
    AND EXISTS (SELECT 1 FROM uses o WHERE o.key = completions.key AND o.corpus = :corpus AND o.old)
"""
_DELETE_IDLE_USES = "DELETE FROM uses WHERE key NOT IN (SELECT key FROM completions)"
_COUNTS = [f.name for f in fields(Usage)]


class StoreInUse(RuntimeError):
    """Another process reads the file all the time, so that deleted text cannot leave it."""


@dataclass(frozen=True)
class Scope:
    """Whom usage is counted for: one run of one corpus."""

    run: str
    corpus: str


def completion_key(
    model: str,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    sampling: Mapping[str, Any],
) -> bytes:
    """Return the key of a reply, 16 bytes: equal only where all four arguments are."""
    asked = json.dumps(
        [model, list(messages), schema, sampling], ensure_ascii=False, sort_keys=True
    )
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class CompletionStore:
    """Opens or makes the file `path`; close it when done. Threads may share one store.

    Raises:
        sqlite3.DatabaseError: the file is no SQLite file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._read: list[tuple[bytes, str | None]] = []  # keys whose use is not noted yet; by whom
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        # In a write-ahead log NORMAL loses nothing when the process dies; FULL would also outlive
        # a power cut, at one disk flush a reply, which the event loop would wait for.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        self._add_payer()

    def __enter__(self) -> CompletionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._note_use()
            self._connection.close()

    def get(self, key: bytes, corpus: str | None = None) -> Stored | None:
        """Return the reply stored under `key`.

        Args:
            corpus: noted as one that uses the reply; None where nothing is made of it (a plan).
        """
        with self._lock:
            row = self._connection.execute(
                "SELECT text, prompt_tokens, completion_tokens FROM completions WHERE key = ?",
                (key,),
            ).fetchone()
            if row is None:
                return None
            self._read.append((key, corpus))
            if len(self._read) >= _NOTED_AT_ONCE:
                self._note_use()
        return Stored(*row)

    def put(
        self, key: bytes, model: str, reply: Stored, scope: Scope, step: str, usage: Usage
    ) -> None:
        """Store a reply and what it cost, both or neither.

        Where another process was faster its reply stays: both get the same one from then on.
        """
        with self._lock, self._transaction():
            stored = self._connection.execute(
                "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    model,
                    step,
                    reply.text,
                    reply.prompt_tokens,
                    reply.completion_tokens,
                    time.time(),
                    scope.corpus,
                ),
            )
            if not stored.rowcount:
                self._connection.execute(_NOTE, (key, scope.corpus))
            self._count(scope, step, model, usage)

    def discard(self, key: bytes) -> None:
        """Delete the reply under `key`, for a new one: it is of no use any more."""
        with self._lock, self._transaction():
            self._connection.execute("DELETE FROM completions WHERE key = ?", (key,))
            self._connection.execute("UPDATE uses SET old = 0 WHERE key = ?", (key,))

    def add(self, scope: Scope, step: str, model: str, usage: Usage) -> None:
        """Count usage that brought no reply: hits, retries, failures."""
        with self._lock, self._transaction():
            self._count(scope, step, model, usage)

    def usage(self, scope: Scope) -> dict[str, Usage]:
        """Return usage by step of one run of one corpus."""
        return self._usage("WHERE run = ? AND corpus = ?", (scope.run, scope.corpus))

    def corpus_usage(self, corpus: str) -> dict[str, Usage]:
        """Return usage by step over all runs of a corpus."""
        return self._usage("WHERE corpus = ?", (corpus,))

    def mean_completion_tokens(self, model: str) -> dict[str, float]:
        """Return the mean length of the stored replies of `model` by step."""
        with self._lock:
            return dict(
                self._connection.execute(
                    "SELECT step, avg(completion_tokens) FROM completions WHERE model = ? "
                    "GROUP BY step",
                    (model,),
                )
            )

    def count(self) -> int:
        """Return how many replies are stored."""
        with self._lock:
            (count,) = self._connection.execute("SELECT count(*) FROM completions").fetchone()
        return int(count)

    def prune(self, days: float) -> int:
        """Delete the replies that no run has used for `days` days; return how many.

        What was spent stays counted.
        """
        with self._lock:
            self._note_use()
            with self._transaction():
                deleted = self._connection.execute(
                    "DELETE FROM completions WHERE used_at < ?", (time.time() - days * _DAY,)
                ).rowcount
                self._connection.execute(_DELETE_IDLE_USES)
            self._shrink()
        return int(deleted)

    def forgettable(self, corpus: str) -> int:
        """Return how many replies no other corpus has used: the most that `forget` could delete."""
        with self._lock:
            self._note_use()
            [count] = self._connection.execute(_FORGETTABLE, {"corpus": corpus}).fetchone()
        return int(count)

    def begin_forgetting(self, corpus: str) -> None:
        """Count all that `corpus` has used so far as old. Whatever it uses again is spared."""
        named = {"corpus": corpus}
        with self._lock:
            self._note_use()
            with self._transaction():
                self._connection.execute("UPDATE uses SET old = 1 WHERE corpus = :corpus", named)
                self._connection.execute(_NOTE_PAID, named)

    def forget(self, corpus: str) -> int:
        """Delete the replies that `corpus` has not used again since `begin_forgetting`, and that no
        other corpus has used; return how many. Their bytes are gone from the file and its log.

        What was spent stays counted.

        Raises:
            StoreInUse: the bytes are still in the file; call it again.
        """
        named = {"corpus": corpus}
        with self._lock:
            self._note_use()
            self._connection.execute("PRAGMA secure_delete = ON")
            with self._transaction():
                deleted = self._connection.execute(_FORGET, named).rowcount
                self._connection.execute(_NOT_PAID_ANY_MORE, named)
                self._connection.execute("DELETE FROM uses WHERE corpus = :corpus AND old", named)
            if not self._shrink():
                raise StoreInUse(
                    "another process reads the completion store without a pause; stop it and "
                    "repeat the command, so that the deleted replies leave the file"
                )
        return int(deleted)

    def _shrink(self) -> bool:
        """Write the file anew without what was deleted; return whether its log is empty, too."""
        self._connection.execute("VACUUM")
        (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _add_payer(self) -> None:
        """Bring a file from before the payers were noted up to date."""
        query = "SELECT 1 FROM pragma_table_info('completions') WHERE name = 'paid_by'"
        if self._connection.execute(query).fetchone():
            return
        with self._transaction():
            if not self._connection.execute(query).fetchone():  # another process may have
                self._connection.execute("ALTER TABLE completions ADD COLUMN paid_by TEXT")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a writer waits for another process here, and not half-way.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _note_use(self) -> None:
        """Note to the day when the replies were last used, so that pruning spares them; and by
        which corpora."""
        now = time.time()
        read = sorted(self._read, key=itemgetter(0))  # in the order in which they lie on the disk
        with self._transaction():
            self._connection.executemany(
                "UPDATE completions SET used_at = ? WHERE key = ? AND used_at < ?",
                ((now, key, now - _DAY) for key, _ in read),
            )
            self._connection.executemany(_NOTE, (each for each in read if each[1] is not None))
        self._read.clear()

    def _count(self, scope: Scope, step: str, model: str, usage: Usage) -> None:
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
        marks = ", ".join("?" * (4 + len(_COUNTS)))
        self._connection.execute(
            f"INSERT INTO usage VALUES ({marks}) "
            f"ON CONFLICT (run, corpus, step, model) DO UPDATE SET {sums}",
            (
                scope.run,
                scope.corpus,
                step,
                model,
                *(getattr(usage, name) for name in _COUNTS),
            ),
        )

    def _usage(self, where: str, values: tuple[str, ...]) -> dict[str, Usage]:
        sums = ", ".join(f"sum({name})" for name in _COUNTS)
        with self._lock:
            rows = self._connection.execute(
                f"SELECT step, {sums} FROM usage {where} GROUP BY step ORDER BY step", values
            ).fetchall()
        return {step: Usage(*counts) for step, *counts in rows}
