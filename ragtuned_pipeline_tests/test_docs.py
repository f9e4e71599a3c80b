"""The tables of docs/configuration.md say what the settings models say."""

import re
from pathlib import Path

import pytest

from ragtuned_pipeline.settings import Settings, load_settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
SECTIONS = [name for name in Settings.model_fields if name != "profile"]
# The first two cells of a row, or the first three: code each.
NAME_AND_DEFAULT = re.compile(r"\| `(\w+)` \| `([^`]*)` \|")
SETTING_BY_PROFILE = re.compile(r"\| `(\w+)\.(\w+)` \| `([^`]*)` \| `([^`]*)` \|")


def part(heading: str) -> str:
    """What stands below a heading of the page, up to the next one."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [found] = [text for text in parts if text.startswith(f"{heading}\n")]
    return found


def read(section: str, name: str, written: str) -> object:
    """The value of a setting as it is written on the page, read as --set reads it."""
    return getattr(getattr(Settings.model_validate({section: {name: written}}), section), name)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_lists_every_setting_with_its_default(section: str) -> None:
    rows = dict(NAME_AND_DEFAULT.findall(part(section)))
    defaults = getattr(Settings(), section)
    assert list(rows) == list(type(defaults).model_fields)
    written = {name: read(section, name, text) for name, text in rows.items()}
    assert written == {name: getattr(defaults, name) for name in rows}


def test_the_page_lists_what_the_gpu_profile_changes(tmp_path: Path) -> None:
    embedded, gpu = (
        load_settings(tmp_path, profile=profile, environment={}) for profile in ("embedded", "gpu")
    )
    changed = {
        (section, name): (getattr(old, name), getattr(new, name))
        for section in SECTIONS
        for old, new in [(getattr(embedded, section), getattr(gpu, section))]
        for name in type(old).model_fields
        if getattr(old, name) != getattr(new, name)
    }
    written = {
        (section, name): tuple(read(section, name, text) for text in values)
        for section, name, *values in SETTING_BY_PROFILE.findall(part("Profiles"))
    }
    assert written == changed
