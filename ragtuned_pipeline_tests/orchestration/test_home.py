import json
from pathlib import Path

import pytest

from ragtuned_pipeline.orchestration.home import CorpusMissing, Home
from ragtuned_pipeline.settings import SettingsError, load_settings


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def test_a_registered_corpus_keeps_its_settings_and_gold(home: Home, folder: Path) -> None:
    gold = folder.parent / "gold.jsonl"
    gold.write_text("")
    home.register("n", folder, gold, {"profile": "embedded", "tuning": {"epochs": "2"}})
    home.register("n", folder, None, {})
    assert home.names() == ["n"]
    assert home.documents("n") == folder.resolve()
    assert home.settings("n").tuning.epochs == 2
    assert home.gold("n") == gold.resolve()


def test_a_name_belongs_to_one_folder(home: Home, folder: Path) -> None:
    home.register("n", folder, None, {})
    other = folder.parent / "other"
    other.mkdir()
    with pytest.raises(SettingsError, match="choose another --name"):
        home.register("n", other, None, {})


def test_a_folder_that_is_gone_is_named(home: Home, folder: Path) -> None:
    home.register("n", folder, None, {})
    folder.rmdir()
    with pytest.raises(CorpusMissing, match=r"notes is gone.*ragtuned run DIR --name n"):
        home.documents("n")
    folder.mkdir()
    moved = folder.rename(folder.parent / "moved")
    home.register("n", moved, None, {})
    assert home.documents("n") == moved.resolve()


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "x" * 65, "a\n", "ä"])
def test_names_that_could_leave_the_folder_are_refused(home: Home, folder: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="corpus name"):
        home.register(name, folder, None, {})


def test_unknown_corpus_says_what_is_known(home: Home, folder: Path) -> None:
    home.register("n", folder, None, {})
    with pytest.raises(CorpusMissing, match="known: n"):
        home.documents("m")


def test_settings_sources_win_in_order(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[tuning]\nepochs = 2\nrank = 8\n")
    found = load_settings(
        tmp_path, overrides={"tuning": {"seed": 7}}, environment={"RAGTUNED_TUNING__RANK": "16"}
    )
    assert (found.tuning.epochs, found.tuning.rank, found.tuning.seed) == (2, 16, 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tuning": {"epochz": 2}}, r"setting tuning.epochz"),
        ({"tuning": {"epochs": 0}}, r"setting tuning.epochs.*greater than or equal to 1.*got 0"),
        ({"profile": "huge"}, r"profile|setting profile"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, overrides: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(tmp_path, overrides=overrides, environment={})


def test_a_broken_corpus_record_is_named(home: Home, folder: Path) -> None:
    home.register("n", folder, None, {})
    (home.corpora / "n.json").write_text("{")
    with pytest.raises(SettingsError, match=r"n\.json: not valid JSON"):
        home.settings("n")
    (home.corpora / "n.json").write_text(json.dumps([]))
    with pytest.raises(SettingsError, match="expected an object"):
        home.gold("n")
