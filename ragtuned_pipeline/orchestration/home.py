"""Where everything of a home lies: corpora, tables, adapters, reports."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtuned_pipeline.files import write_text
from ragtuned_pipeline.settings import (
    Settings,
    SettingsError,
    check_corpus_name,
    home_folder,
    load_settings,
)


class CorpusMissing(ValueError):
    """No corpus of that name is known in this home."""


@dataclass(frozen=True)
class Home:
    """The folder $RAGTUNED_HOME.

    ``corpora/<name>`` is a folder of documents or a link to one; ``corpora/<name>.json`` holds what
    belongs to that corpus alone: its settings, and the file of gold questions.
    """

    folder: Path

    @classmethod
    def find(cls, folder: str | Path | None = None) -> Home:
        return cls(home_folder(folder))

    @property
    def corpora(self) -> Path:
        return self.folder / "corpora"

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    @property
    def tables(self) -> str:
        """A folder or any fsspec address."""
        return os.environ.get("RAGTUNED_TABLES") or str(self.folder / "tables")

    @property
    def completions(self) -> Path:
        """The completion store, shared by all corpora."""
        return self.folder / "completions.sqlite"

    def items(self, corpus: str) -> Path:
        """The store of what single items of the corpus's steps came to."""
        return self.folder / "items" / f"{check_corpus_name(corpus)}.sqlite"

    def forgetting_note(self, corpus: str) -> Path:
        """What is being forgotten of the corpus; there until it is done."""
        return self.corpora / f".{corpus}.forgetting.json"

    def report(self, corpus: str) -> Path:
        return self.folder / "reports" / corpus

    def training(self, corpus: str, fingerprint: str) -> Path:
        """The folder of one training: its rows, its checkpoints, its lock."""
        return self.folder / "training" / corpus / fingerprint

    def training_logs(self, corpus: str) -> Path:
        """The curves of its trainings, where the setting tuning.trackers names a tracker."""
        return self.folder / "training-logs" / corpus

    def documents(self, corpus: str) -> Path:
        """The corpus's folder of documents.

        Raises:
            CorpusMissing: there is none, or its link leads nowhere.
        """
        folder = self.corpora / check_corpus_name(corpus)
        if folder.is_dir():
            return folder.resolve()
        if folder.is_symlink():
            raise CorpusMissing(
                f"corpus {corpus!r}: its folder {folder.readlink()} is gone; "
                f"put it back or run `ragtuned run DIR --name {corpus}` with the new place"
            )
        known = ", ".join(self.names()) or "none yet"
        raise CorpusMissing(
            f"no corpus {corpus!r} in {self.folder} (known: {known}); "
            f"run `ragtuned run DIR --name {corpus}` first"
        )

    def names(self) -> list[str]:
        """Names of all corpora, sorted."""
        if not self.corpora.is_dir():
            return []
        return sorted(p.name for p in self.corpora.iterdir() if p.is_dir() and p.name[0] != ".")

    def register(
        self, name: str, documents: Path, gold: Path | None, settings: Mapping[str, Any]
    ) -> None:
        """Make `documents` known as the corpus `name`, with what belongs to it alone.

        Raises:
            SettingsError: another folder has the name already, or a path does not exist.
        """
        check_corpus_name(name)
        if not documents.is_dir():
            raise SettingsError(f"{documents}: no such folder")
        if gold is not None and not gold.is_file():
            raise SettingsError(f"{gold}: no such file of gold questions (--gold)")
        self.corpora.mkdir(parents=True, exist_ok=True)
        link = self.corpora / name
        if link.is_symlink() and not link.exists():
            link.unlink()
        if not link.exists():
            link.symlink_to(documents.resolve(), target_is_directory=True)
        elif link.resolve() != documents.resolve():
            raise SettingsError(
                f"corpus {name!r} is the folder {link.resolve()}; "
                f"choose another --name for {documents}"
            )
        record = {
            "gold": str(gold.resolve()) if gold else self._record(name).get("gold"),
            "settings": settings or self._record(name).get("settings", {}),
        }
        write_text(self.corpora / f"{name}.json", json.dumps(record, indent=2, sort_keys=True))

    def settings(self, corpus: str) -> Settings:
        """The settings that hold for one corpus: the home's, then the corpus's own."""
        return load_settings(self.folder, overrides=self._record(corpus).get("settings", {}))

    def gold(self, corpus: str) -> Path | None:
        """The corpus's file of gold questions, if it has one."""
        path = self._record(corpus).get("gold")
        return Path(path) if path else None

    def _record(self, corpus: str) -> dict[str, Any]:
        file = self.corpora / f"{corpus}.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:  # no JSON, or no UTF-8
            raise SettingsError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise SettingsError(f"{file}: expected an object with 'gold' and 'settings'")
        return record


def remove(place: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
