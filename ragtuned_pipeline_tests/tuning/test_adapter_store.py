"""Adapters are named by what they are, not by where they were made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ragtuned_pipeline.tuning.adapter_store import (
    AdapterError,
    adapter_shape,
    current,
    delete,
    find,
    promote,
    promoted,
    restore_link,
    store,
    stored,
)


def adapter(folder: Path, value: float = 1.0, modules: Sequence[str] = ("q", "v")) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": np.full(4, value, np.float32)}, folder / "adapter_model.safetensors")
    config: dict[str, object] = {
        "peft_type": "LORA",
        "r": 2,
        "base_model_name_or_path": str(folder / "elsewhere"),
    }
    config["target_modules"] = list(modules)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_equal_weights_have_equal_names_wherever_they_were_made(tmp_path: Path) -> None:
    one = store(adapter(tmp_path / "a"), tmp_path / "home1", "news", "embedded")
    two = store(adapter(tmp_path / "b", modules=("v", "q")), tmp_path / "home2", "news", "embedded")
    other = store(adapter(tmp_path / "c", 2.0), tmp_path / "home1", "news", "embedded")
    assert one == two != other
    stored = tmp_path / "home1" / "news" / one
    assert str(tmp_path) not in (stored / "adapter_config.json").read_text()
    assert {f.name for f in stored.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
    }
    assert {f.name for f in (tmp_path / "home1" / "news").iterdir()} == {one, other}


def test_storing_again_changes_nothing(tmp_path: Path) -> None:
    given = adapter(tmp_path / "a")
    assert store(given, tmp_path, "news", "embedded") == store(given, tmp_path, "news", "embedded")


def test_the_current_adapter_follows_promotion(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no promoted adapter"):
        current(tmp_path, "news", "embedded")
    one = store(adapter(tmp_path / "a"), tmp_path, "news", "embedded")
    two = store(adapter(tmp_path / "b", 2.0), tmp_path, "news", "embedded")
    promote(tmp_path, "news", one)
    assert current(tmp_path, "news", "embedded").name == one
    promote(tmp_path, "news", two)
    assert current(tmp_path, "news", "embedded").name == two
    assert (tmp_path / "news" / "current").readlink() == Path(two)


def test_stored_adapters_are_listed_and_deleted_but_not_the_promoted_one(tmp_path: Path) -> None:
    assert stored(tmp_path, "news") == []
    assert promoted(tmp_path, "news") is None
    one = store(adapter(tmp_path / "a"), tmp_path, "news", "embedded")
    two = store(adapter(tmp_path / "b", 2.0), tmp_path, "news", "embedded")
    promote(tmp_path, "news", one)
    (tmp_path / "news" / ".half.tmp").mkdir()
    for name in (one, two):
        (tmp_path / "news" / f"{name}.rows.parquet").touch()
    assert stored(tmp_path, "news") == sorted([one, two]), "the link and what is half made apart"
    assert promoted(tmp_path, "news") == one
    with pytest.raises(AdapterError, match="it is not deleted"):
        delete(tmp_path, "news", one)
    delete(tmp_path, "news", two)
    assert stored(tmp_path, "news") == [one]
    assert {file.name for file in (tmp_path / "news").iterdir()} == {
        one,
        f"{one}.rows.parquet",
        "current",
        ".half.tmp",
    }


def test_a_folder_in_the_links_place_becomes_a_link_to_what_it_is_a_copy_of(
    tmp_path: Path,
) -> None:
    one = store(adapter(tmp_path / "a"), tmp_path, "news", "embedded")
    two = store(adapter(tmp_path / "b", 2.0), tmp_path, "news", "embedded")
    link = tmp_path / "news" / "current"
    for stored_still in (True, False):
        promote(tmp_path, "news", one)
        link.unlink()
        shutil.copytree(tmp_path / "news" / one, link)
        if not stored_still:
            shutil.rmtree(tmp_path / "news" / one)
        assert promoted(tmp_path, "news") is None
        assert "current" not in stored(tmp_path, "news")
        restore_link(tmp_path, "news")
        assert link.readlink() == Path(one)
        assert stored(tmp_path, "news") == sorted([one, two])
    link.unlink()
    shutil.copytree(tmp_path / "news" / one, link)
    (link / "adapter_model.safetensors").unlink()
    restore_link(tmp_path, "news")
    assert {file.name for file in (tmp_path / "news").iterdir()} == {one, two}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        store(tmp_path, tmp_path, "news", "embedded")
    with pytest.raises(AdapterError, match="corpus news has no adapter abc"):
        promote(tmp_path, "news", "abc")
    with pytest.raises(AdapterError, match="corpus news has no adapter abc"):
        find(tmp_path, "news", "abc", "embedded")


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    content = store(adapter(tmp_path / "a"), tmp_path, "news", "some-org/some-model")
    with pytest.raises(
        AdapterError, match=r"was trained on some-org/some-model .*tuning\.base_model"
    ):
        find(tmp_path, "news", content, "embedded")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"r": 8}', '{"r": "8", "lora_alpha": 16}'])
def test_an_adapter_without_a_shape_is_told(tmp_path: Path, config: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match=r"adapter_config\.json says no rank|Expecting property"):
        adapter_shape(tmp_path)
