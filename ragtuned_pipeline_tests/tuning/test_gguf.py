"""The converter is another program: stand-ins for it are programs too."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from ragtuned_pipeline.tuning.export import CannotExport
from ragtuned_pipeline.tuning.gguf import Header, convert, find_converter, read_header

# Called as llama.cpp's converter is; writes a file with as many tensors as the folder has files.
STAND_IN = """
import argparse, pathlib, struct
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f16"])
given = parser.parse_args()
tensors = len(list(given.model.iterdir()))
given.outfile.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, 7) + b"the rest")
"""


def program(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("name", ["convert_hf_to_gguf.py", "converter"])
def test_a_script_runs_here_and_another_program_by_itself(
    model: Path, tmp_path: Path, name: str
) -> None:
    made = program(tmp_path / name, f"#!{sys.executable}\n{STAND_IN}")
    if name.endswith(".py"):
        made.chmod(0o644)
    target = tmp_path / "model.gguf"
    assert convert(model, target, made) == Header(version=3, tensors=2, metadata=7)
    assert target.read_bytes().endswith(b"the rest")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import sys; sys.exit('BPE pre-tokenizer was not recognized\\n\\n')", "status 1: BPE pre"),
        ("import sys; sys.exit(3)", "status 3: it said nothing"),
        ("", "ended well and wrote no model.gguf"),
        (STAND_IN.replace('b"GGUF"', 'b"GGML"'), "is no GGUF file: it begins with b'GGML'"),
        (STAND_IN.replace('b"GGUF", 3', 'b"GGUF", 9'), "GGUF version 9 with 2 tensors"),
        (STAND_IN.replace("tensors, 7", "0, 7"), "GGUF version 3 with 0 tensors"),
    ],
)
def test_what_the_converter_does_wrong_is_one_sentence(
    model: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    made = program(tmp_path / "convert.py", text)
    with pytest.raises(CannotExport) as raised:
        convert(model, tmp_path / "model.gguf", made)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 3, 23])
def test_half_a_header_is_none(tmp_path: Path, size: int) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 2, 7)[:size])
    with pytest.raises(CannotExport, match="is no GGUF file"):
        read_header(file)


def test_the_converter_is_looked_for_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP_CONVERTER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotExport, match=r"not on the PATH; clone .* --converter"):
        find_converter(None)
    on_path = program(tmp_path / "convert_hf_to_gguf.py", "")
    named, given = (program(tmp_path / name, "") for name in ("named.py", "given.py"))
    assert find_converter(None) == on_path
    monkeypatch.setenv("LLAMA_CPP_CONVERTER", str(named))
    assert find_converter(None) == named
    assert find_converter(given) == given
    with pytest.raises(CannotExport, match=r"--converter .*none\.py: no such file"):
        find_converter(tmp_path / "none.py")
    monkeypatch.setenv("LLAMA_CPP_CONVERTER", str(tmp_path / "gone.py"))
    with pytest.raises(CannotExport, match=r"\$LLAMA_CPP_CONVERTER .*gone\.py: no such file"):
        find_converter(None)
