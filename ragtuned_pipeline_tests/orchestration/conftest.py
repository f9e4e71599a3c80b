"""What several tests of runs share."""

from pathlib import Path

import pytest

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.runs import prepare_environment
from ragtuned_pipeline_tests.conftest import own_environment


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, which Dagster's environment names."""
    own_environment(monkeypatch)
    made = Home(tmp_path / "home")
    prepare_environment(made)
    return made
