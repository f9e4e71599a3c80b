"""What single items of a step came to: a step whose input changed computes only what is new.

An item is stored under a key of everything that its result depends on; a step asks for all of its
items as if it were the first time, so that what it gives does not depend on what is stored. Items
that a finished step did not ask for are deleted with it: the store holds nothing that the tables of
today are not made of. A teacher's replies have a store of their own (inference/completions.py),
because they are paid for.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_BUSY_SECONDS = 60.0
_AT_ONCE = 500  # keys in one statement; SQLite allows 32,766


def item_key(*parts: str) -> bytes:
    """Return the key of an item, 16 bytes: equal only where all parts are."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


class Items:
    """The items of one step; `asked` and `known` count how many were asked for and were there."""

    def __init__(self, connection: sqlite3.Connection, step: str) -> None:
        self._connection = connection
        self._step = step
        self._seen: set[bytes] = set()
        self.known = 0

    @property
    def asked(self) -> int:
        return len(self._seen)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """Return what is stored under `keys`."""
        new = [key for key in dict.fromkeys(keys) if key not in self._seen]
        found: dict[bytes, str] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(part))
            found.update(
                self._connection.execute(
                    f"SELECT key, value FROM items WHERE step = ? AND key IN ({marks})",
                    (self._step, *part),
                )
            )
        self._seen.update(keys)
        self.known += sum(key in found for key in new)
        return found

    def put(self, made: Mapping[bytes, str]) -> None:
        """Store what was made, at once: a step that is killed later finds it again."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                ((self._step, key, value) for key, value in made.items()),
            )

    def drop_unseen(self) -> None:
        """Delete what nobody has asked for."""
        stored = self._connection.execute("SELECT key FROM items WHERE step = ?", (self._step,))
        gone = [(self._step, key) for (key,) in stored if key not in self._seen]
        with self._connection:
            self._connection.executemany("DELETE FROM items WHERE step = ? AND key = ?", gone)


@contextmanager
def open_items(file: Path, step: str) -> Iterator[Items]:
    """Yield the items of `step` in the SQLite file `file`, one a corpus, made where it is missing.

    What the step did not ask for is deleted at its end, unless it failed.

    Raises:
        sqlite3.DatabaseError: the file is no SQLite file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file, timeout=_BUSY_SECONDS)
    try:
        # Deleted items are overwritten: what was forgotten is in no byte of the file.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS items (step TEXT NOT NULL, key BLOB NOT NULL, "
            "value TEXT NOT NULL, PRIMARY KEY (step, key)) WITHOUT ROWID"
        )
        items = Items(connection, step)
        yield items
        items.drop_unseen()
    finally:
        connection.close()
