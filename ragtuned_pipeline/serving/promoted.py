"""Which adapters should be served: what <home>/adapters/<corpus>/current leads to, now."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ragtuned_pipeline.tuning.adapter_store import (
    AdapterError,
    check_base,
    current_link,
    is_link_lost,
)


@dataclass(frozen=True)
class Promoted:
    """A corpus's promoted adapter: its content hash, its folder, and since when (Unix time)."""

    content: str
    folder: Path
    since: float


@dataclass(frozen=True)
class Wanted:
    """What should be served, by corpus, and why other corpora, or newer promotions, are not."""

    adapters: dict[str, Promoted] = field(default_factory=dict)
    unserved: dict[str, str] = field(default_factory=dict)


class PromotedAdapters:
    """Looks at the store again and again; a look at a link that has not changed costs one readlink.

    Args:
        adapters: <home>/adapters.
        base_model: whose adapters are served; the setting tuning.base_model.
        corpora: only these; empty for all, also those that appear later.
    """

    def __init__(self, adapters: Path, base_model: str, corpora: Collection[str] = ()) -> None:
        self._adapters = adapters
        self._base_model = base_model
        self._corpora = sorted(corpora)
        self._seen: dict[str, tuple[str, Promoted | str]] = {}

    def look(self) -> Wanted:
        """Return what is promoted now."""
        wanted = Wanted()
        for corpus in self._corpora or self._all():
            try:
                found = self._one(corpus)
            except (OSError, ValueError, KeyError, TypeError) as error:
                # It stops no other, and what was served goes on.
                link, reason = (
                    current_link(self._adapters, corpus),
                    f"{type(error).__name__}: {error}",
                )
                wanted.unserved[corpus] = f"{link} cannot be read ({reason})"
                _, found = self._seen.get(corpus, ("", ""))
            if isinstance(found, Promoted):
                wanted.adapters[corpus] = found
            else:
                wanted.unserved.setdefault(corpus, found)
        return wanted

    def _all(self) -> list[str]:
        try:
            entries = os.listdir(self._adapters)
        except FileNotFoundError:
            return []
        except OSError:  # a disk across a network that is away for a while
            return sorted(self._seen)
        return sorted(name for name in entries if not name.startswith("."))

    def _one(self, corpus: str) -> Promoted | str:
        """Return what is promoted, or why nothing is.

        Raises:
            OSError, ValueError, KeyError, TypeError: it cannot be read, now or at all.
        """
        link = current_link(self._adapters, corpus)
        try:
            target = os.readlink(link)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL}:  # no link, a folder in its place
                raise
            self._seen.pop(corpus, None)
            lost = is_link_lost(self._adapters, corpus)
            remedy = "`ragtuned doctor` mends its link" if lost else "promote one"
            return f"no adapter of it is promoted; {remedy}"
        if (seen := self._seen.get(corpus)) is not None and seen[0] == target:
            return seen[1]
        since = link.lstat().st_mtime
        folder = (link.parent / target).resolve()  # not the link, which may lead elsewhere by now
        found: Promoted | str = Promoted(folder.name, folder, since)
        try:
            check_base(folder, self._base_model)
        except AdapterError as error:
            found = str(error)
        self._seen[corpus] = target, found
        return found
