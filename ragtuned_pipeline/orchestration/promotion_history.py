"""Which adapter of a corpus answered when, and why: <home>/adapters/<corpus>/history.json.

An entry is written before the link `current` is moved. Where a crash came between the two, the next
reading moves the link: the history says what was decided. Only while a document is being forgotten
it does not: what answered then has been deleted on purpose. The history holds numbers and no text
of the corpus, so that it may stay when a document is forgotten.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.tuning import adapter_store

What = Literal["promoted", "refused", "promoted by hand", "rolled back"]
COMMAND_LINE = "command line"


class PromotionError(ValueError):
    """An adapter cannot be promoted or rolled back to; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One decision.

    Args:
        adapter: that was promoted or refused; of "rolled back" the one that answers since.
        left: that answered before; None where none did.
        trained: the last trained one at that time.
        when: UTC, ISO 8601.
        run: id of Dagster's run, or COMMAND_LINE.
        data_version: of the training rows of `adapter`; empty where it is not known.
        numbers: of `adapter`, by name.
        reasons: why it was refused, or would have been.
    """

    what: What
    adapter: str
    left: str | None
    trained: str | None
    when: str
    run: str
    data_version: str
    numbers: Mapping[str, float]
    reasons: tuple[str, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether `adapter` answers since."""
        return self.what != "refused"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def history(home: Home, corpus: str) -> tuple[Entry, ...]:
    """Return a corpus's entries, the oldest first, and finish what a crash cut off.

    Raises:
        PromotionError: the file is damaged.
    """
    entries = _read(home, corpus)
    if not _cut_off(home, corpus, entries):
        return entries
    with locked(home, corpus) as settled:  # a promotion that goes on looks cut off: wait for it
        return settled


@contextmanager
def locked(home: Home, corpus: str) -> Iterator[tuple[Entry, ...]]:
    """Yield the entries with the history to oneself; whoever comes second waits.

    Raises:
        PromotionError: the file is damaged.
    """
    folder = home.adapters / corpus
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".history.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        entries = _read(home, corpus)
        if _cut_off(home, corpus, entries):
            _finish(home, corpus, entries)
        yield entries


def append(home: Home, corpus: str, entries: Sequence[Entry], entry: Entry) -> tuple[Entry, ...]:
    """Write `entries` and `entry`; then move the link where the entry says so."""
    written = (*entries, entry)
    text = json.dumps([asdict(each) for each in written], indent=1, ensure_ascii=False)
    write_text(_file(home, corpus), text + "\n")
    if entry.moved:
        adapter_store.promote(home.adapters, corpus, entry.adapter)
    return written


def _file(home: Home, corpus: str) -> Path:
    return home.adapters / corpus / "history.json"


def _read(home: Home, corpus: str) -> tuple[Entry, ...]:
    file = _file(home, corpus)
    if not file.is_file():
        return ()
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return tuple(Entry(**row | {"reasons": tuple(row["reasons"])}) for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise PromotionError(
            f"{file}: not a history of promotions ({error}); put it back from a copy, or remove "
            "it: the adapter that answers stays"
        ) from None


def _cut_off(home: Home, corpus: str, entries: Sequence[Entry]) -> bool:
    """Whether the link is not one, or leads elsewhere than the last entry wants it to."""
    wanted = _wanted(home, corpus, entries)
    settled = wanted in {None, adapter_store.promoted(home.adapters, corpus)}
    if settled and not adapter_store.is_link_lost(home.adapters, corpus):
        return False
    return not home.forgetting_note(corpus).is_file()  # else the link is gone on purpose


def _finish(home: Home, corpus: str, entries: Sequence[Entry]) -> None:
    if adapter_store.is_link_lost(home.adapters, corpus):
        adapter_store.restore_link(home.adapters, corpus)
    wanted = _wanted(home, corpus, entries)
    if wanted is not None:
        adapter_store.promote(home.adapters, corpus, wanted)


def _wanted(home: Home, corpus: str, entries: Sequence[Entry]) -> str | None:
    """The adapter that the last entry wants the link to lead to, if it is stored."""
    last = next((entry.adapter for entry in reversed(entries) if entry.moved), None)
    return last if last in adapter_store.stored(home.adapters, corpus) else None


def set_aside(entries: Sequence[Entry]) -> set[str]:
    """Return the adapters that only a person may promote.

    What a person decided holds until another adapter is trained: the one rolled back from, and the
    last trained one where a person chose another.
    """
    aside: set[str] = set()
    for entry in entries:
        if entry.trained is not None and entry.trained not in aside:
            aside.clear()
        if entry.what == "rolled back":
            aside |= {name for name in (entry.left, entry.trained) if name}
        elif entry.what == "promoted by hand" and entry.trained:
            aside.add(entry.trained)
        if entry.moved:
            aside.discard(entry.adapter)
    return aside


def set_aside_sentence(corpus: str, adapter: str) -> str:
    return (
        f"adapter {adapter} is set aside, because another one was chosen by hand: it is not "
        f"promoted until another adapter is trained, or by `ragtuned promote {corpus} {adapter}`"
    )


def earlier(entries: Sequence[Entry]) -> list[str]:
    """Return the adapters that answered before the one that does, the last of them first."""
    order: dict[str, None] = {}
    for entry in entries:
        if entry.moved:
            for adapter in (entry.left, entry.adapter):
                if adapter is not None:
                    order.pop(adapter, None)
                    order[adapter] = None
    return list(order)[-2::-1]


def before(entries: Sequence[Entry]) -> list[str]:
    """Return the adapters that a rollback leads to, one after the other.

    As `earlier`, without those that were rolled back: two rollbacks lead two promotions back.
    """
    answered: list[str] = []
    for entry in entries:
        if not entry.moved:
            continue
        if entry.left and entry.left not in answered:  # it answered before there was a history
            answered.append(entry.left)
        if entry.what == "rolled back" and entry.adapter in answered:
            del answered[answered.index(entry.adapter) + 1 :]
        else:
            answered = [each for each in answered if each != entry.adapter] + [entry.adapter]
    return answered[-2::-1]


def refusal(entries: Sequence[Entry], trained: str | None, promoted: str | None) -> str | None:
    """Return why the last trained adapter does not answer, where the gate refused it."""
    last = next((entry for entry in reversed(entries) if entry.adapter == trained), None)
    if last is None or last.what != "refused" or trained == promoted:
        return None
    return "; ".join(last.reasons)
