"""A memory that lives, nobody touching it but through its folder.

    python -m ragtuned_pipeline_tests.benchmarks.living_memory [PICTURES]

`dagster dev` runs on a fresh home. A corpus appears in it, a file is added, the corpus is broken,
the adapter is rolled back and promoted again. Printed: what happened when, and what the corpus
answers in between. With PICTURES, a folder, the pages of the Dagster UI are written there (needs
chromium).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.promotion_history import Entry, history
from ragtuned_pipeline_tests.conftest import HARBOUR
from ragtuned_pipeline_tests.deploy.postgres import free_port
from ragtuned_pipeline_tests.evaluation.browser import start

ROOT = Path(__file__).parents[2]
CORPUS = "harbour"
QUESTION = "How many marks does the Tollen Harbour Trust pay Ottilie Brandt a month?"
NEWS = """# A keeper for the lamp

By Ines Quarrow, 2 November 2041

Ottilie Brandt keeps the lamp at Sallow Point. Ottilie Brandt moved from Varnholt to Sallow Point
in October 2041. The Tollen Harbour Trust pays Ottilie Brandt 310 marks a month. Ottilie Brandt
repaired the fog bell on 30 October 2041.
"""
SETTINGS = """
[tuning]
time_budget_minutes = 0.6
[evaluation]
questions_per_set = 40
local_queries = 20
global_queries = 10
control_facts = 10
[automation]
quiet_seconds = 3
"""
_PATIENCE = 1500  # seconds for one wait
_PAGES = {
    "asset-graph": "/asset-groups",
    "adapter-partitions": "/assets/lora_adapter?view=partitions",
    "adapter-lineage": "/assets/lora_adapter?view=lineage",
    "promotions": "/assets/promoted_adapter?view=events",
    "runs": "/runs",
    "automation": "/automation",
}


class Living:
    """One home under a running `dagster dev`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder = home.corpora / CORPUS
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", flush=True)

    def wait(self, done: Callable[[list[Entry]], bool]) -> Entry:
        """Wait for the next entries of the history; return the last.

        Raises:
            TimeoutError: nothing came.
        """
        before = len(self._entries())
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            entries = self._entries()[before:]
            if entries and done(entries):
                return entries[-1]
            time.sleep(1)
        raise TimeoutError("nothing was promoted or refused; see the log of dagster dev")

    def ragtuned(self, *arguments: str) -> str:
        """Return what a command prints."""
        command = [sys.executable, "-m", "ragtuned_pipeline.cli", *arguments]
        done = subprocess.run(
            [*command, "--home", str(self.home.folder)], capture_output=True, text=True
        )
        return done.stdout.strip() or done.stderr.strip()

    def ask(self) -> None:
        self.say(f"asked: {QUESTION}  answered: {self.ragtuned('ask', CORPUS, QUESTION)}")

    def _entries(self) -> list[Entry]:
        return list(history(self.home, CORPUS))


def tell(living: Living) -> None:
    """The whole story, step by step."""
    living.say("a folder appears in corpora/")
    shutil.copytree(HARBOUR, living.folder)
    first = living.wait(lambda entries: entries[-1].what == "promoted")
    living.say(f"promoted {first.adapter}")
    living.ask()

    living.say("a file is dropped into the folder")
    (living.folder / "2041-11-02-keeper.md").write_text(NEWS, encoding="utf-8")
    second = living.wait(lambda entries: entries[-1].what == "promoted")
    living.say(f"promoted {second.adapter}")
    living.ask()

    living.say("a broken copy damages five of the nine files")
    damaged = sorted(living.folder.iterdir())[:5]
    for file in damaged:
        file.write_bytes(bytes(2000))
    held = living.wait(lambda entries: entries[-1].what == "refused")
    living.say(f"refused {held.adapter}: {held.reasons[0]}")
    living.ask()

    living.say(f"ragtuned rollback: {living.ragtuned('rollback', CORPUS)}")
    living.ask()

    living.say(f"ragtuned promote: {living.ragtuned('promote', CORPUS, second.adapter)}")
    living.ask()


@contextmanager
def dagster_dev(home: Home) -> Iterator[str]:
    """Run webserver and daemon on `home`; yield the UI's address."""
    port = free_port()
    (home.folder / "dagster").mkdir()
    environment = dict(
        os.environ,
        RAGTUNED_HOME=str(home.folder),
        RAGTUNED_DAGSTER=str(home.folder / "dagster"),
        DAGSTER_HOME=str(ROOT),
    )
    command = [
        "env",
        "--default-signal=INT,TERM",  # a shell's background jobs ignore them, and so their children
        str(Path(sys.executable).parent / "dagster"),
        "dev",
        "--workspace",
        "workspace.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (home.folder / "dagster-dev.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _await(address)
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def take_pictures(address: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, start(Path(profile)) as browser:
        browser.resize(1600, 1000)
        for name, page in _PAGES.items():
            browser.send("Page.navigate", url=address + page)
            for _ in range(20):  # the UI goes on loading after its page has loaded
                time.sleep(1)
                browser.evaluate("0")  # keeps the connection alive
            browser.screenshot(folder / f"{name}.png")


def _await(address: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise TimeoutError("dagster dev did not answer")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        (home.folder / "settings.toml").write_text(SETTINGS, encoding="utf-8")
        home.corpora.mkdir()
        with dagster_dev(home) as address:
            try:
                tell(Living(home))
            except TimeoutError:
                print((home.folder / "dagster-dev.log").read_text()[-5000:], file=sys.stderr)
                raise
            if len(sys.argv) > 1:
                take_pictures(address, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
