"""What is promoted, where the disk does not say so at once."""

import errno
import os
from pathlib import Path

import pytest

from ragtuned_pipeline.serving import promoted
from ragtuned_pipeline.serving.promoted import PromotedAdapters
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.serving.world import new_adapter, promote


def served(look: PromotedAdapters) -> dict[str, str]:
    return {corpus: each.content for corpus, each in look.look().adapters.items()}


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EIO, True), (errno.ENOENT, False)])
def test_a_link_that_cannot_be_read_now_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, goes_on: bool
) -> None:
    content = promote(tmp_path / "adapters", "harbour", "one")
    look = PromotedAdapters(tmp_path / "adapters", "embedded")
    assert served(look) == {"harbour": content}

    def fails(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(promoted.os, "readlink", fails)
        assert served(look) == ({"harbour": content} if goes_on else {})
        assert ("cannot be read" in look.look().unserved["harbour"]) is goes_on
    assert served(look) == {"harbour": content}
    assert look.look().unserved == {}


@pytest.mark.parametrize("base", ["{", "[]", None])
def test_a_new_promotion_that_cannot_be_read_leaves_the_old_one(
    tmp_path: Path, base: str | None
) -> None:
    adapters = tmp_path / "adapters"
    old = promote(adapters, "harbour", "old")
    look = PromotedAdapters(adapters, "embedded")
    assert served(look) == {"harbour": old}
    new = promote(adapters, "harbour", "new")
    file = adapters / "harbour" / new / "base_model.json"
    whole = file.read_text(encoding="utf-8")
    if base is None:
        file.unlink()
    else:
        file.write_text(base, encoding="utf-8")
    assert served(look) == {"harbour": old}
    assert "cannot be read" in look.look().unserved["harbour"]
    file.write_text(whole, encoding="utf-8")
    assert served(look) == {"harbour": new}


def test_a_link_that_moves_while_it_is_read_is_taken_for_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = tmp_path / "adapters"
    one, other = new_adapter(adapters, "harbour", "one"), new_adapter(adapters, "harbour", "other")
    look = PromotedAdapters(adapters, "embedded")
    adapter_store.promote(adapters, "harbour", other)
    with monkeypatch.context() as patch:
        patch.setattr(promoted.os, "readlink", lambda _: one)  # and then it moved
        assert served(look) == {"harbour": one}
    adapter_store.promote(adapters, "harbour", one)
    assert look.look().adapters["harbour"].folder == adapters / "harbour" / one
