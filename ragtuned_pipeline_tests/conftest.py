"""What several rooms' tests share: the mini corpus, built once through Dagster."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.runs import run_assets
from ragtuned_pipeline_tests.vllm_stand_in import stand_in

__all__ = ["stand_in"]

FIXTURES = Path(__file__).parent / "fixtures"
HARBOUR = FIXTURES / "harbour"
HARBOUR_GOLD = FIXTURES / "harbour_gold.jsonl"
_LONG = {"test_teacher_end_to_end.py", "test_living_memory.py"}
# Small enough to train in seconds, large enough to learn.
SMALL = {
    "tuning": {"time_budget_minutes": 0.3},
    "evaluation": {
        "questions_per_set": 40,
        "local_queries": 30,
        "global_queries": 25,
        "control_facts": 20,
    },
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a fixture runs in one process: a file, and all that use the built corpus."""
    for item in items:
        shared = "built" if _shares_built(item) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(shared))
    # The longest groups first, so that the two processes end together.
    items.sort(key=lambda item: not (_shares_built(item) or item.path.name in _LONG))


def _shares_built(item: pytest.Item) -> bool:
    return "built" in getattr(item, "fixturenames", ())


def own_environment(patch: pytest.MonkeyPatch) -> None:
    """Let what the code sets in the environment be of this test alone."""
    for name in ("DAGSTER_HOME", "RAGTUNED_DAGSTER", "RAGTUNED_HOME", "RAGTUNED_TABLES"):
        patch.setenv(name, "")  # restored afterwards, also where the code sets it
        patch.delenv(name)


def build(home: Home, name: str = "harbour", folder: Path = HARBOUR) -> None:
    """Run the whole job for `folder`, as `ragtuned run` does."""
    home.register(name, folder, HARBOUR_GOLD, SMALL)
    run_assets(home, name, None, lambda _event: None)


@pytest.fixture(scope="session")
def _dagster_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The instance of these tests lies in their own folder, whatever the shell has set."""
    with pytest.MonkeyPatch.context() as patch:
        own_environment(patch)
        patch.setenv("RAGTUNED_DAGSTER", str(tmp_path_factory.mktemp("dagster")))
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, _dagster_environment: None) -> Home:
    """A home that holds the mini corpus, built; tests only read it."""
    home = Home(tmp_path_factory.mktemp("built"))
    folder = home.folder / "harbour"
    shutil.copytree(HARBOUR, folder)
    build(home, folder=folder)
    return home
