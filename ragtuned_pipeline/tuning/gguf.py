"""GGUF by llama.cpp's own converter, which is looked for and not shipped."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ragtuned_pipeline.tuning.export import CannotExport

CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_VARIABLE = "LLAMA_CPP_CONVERTER"
# Of the types without quantisation that every build of llama.cpp runs, the one that rounds merged
# weights least for its size: 11 bits of each against 8 of bfloat16.
_WEIGHTS = "f16"
_HEADER = struct.Struct("<4sIQQ")
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class Header:
    """The beginning of a GGUF file (https://github.com/ggml-org/ggml, docs/gguf.md)."""

    version: int
    tensors: int
    metadata: int  # key-value pairs


def find_converter(given: Path | None) -> Path:
    """Return llama.cpp's converter: `given`, else $LLAMA_CPP_CONVERTER, else that on the PATH.

    Raises:
        CannotExport: it is nowhere.
    """
    named = given or os.environ.get(CONVERTER_VARIABLE)
    if named:
        source = "--converter" if given else f"${CONVERTER_VARIABLE}"
        if not Path(named).is_file():
            raise CannotExport(f"{source} {named}: no such file; give llama.cpp's {CONVERTER}")
        return Path(named).absolute()
    found = shutil.which(CONVERTER)
    if found is None:
        raise CannotExport(
            f"GGUF is made by llama.cpp's {CONVERTER}, which is not on the PATH; clone "
            f"https://github.com/ggml-org/llama.cpp and give its {CONVERTER} as --converter or "
            f"${CONVERTER_VARIABLE}"
        )
    return Path(found).absolute()


def convert(model: Path, target: Path, converter: Path) -> Header:
    """Convert a model's folder to one GGUF file with weights in 16-bit floating point.

    A Python script runs in this process's environment, which has the torch and transformers that
    it needs; any other program runs by itself.

    Args:
        model: as save_pretrained writes it.
        target: the file to write.

    Raises:
        CannotExport: the converter cannot be started or fails, or what it wrote is no GGUF.
    """
    program = [sys.executable, str(converter)] if converter.suffix == ".py" else [str(converter)]
    command = [*program, str(model), "--outfile", str(target), "--outtype", _WEIGHTS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise CannotExport(f"{converter} cannot be started: {error.strerror}") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise CannotExport(
            f"{converter} failed with exit status {done.returncode}: "
            f"{said[-1] if said else 'it said nothing'}"
        )
    if not target.is_file():
        raise CannotExport(f"{converter} ended well and wrote no {target.name}")
    return read_header(target)


def read_header(file: Path) -> Header:
    """Return what a GGUF file begins with.

    Raises:
        CannotExport: it is none, or of a version that is not known.
    """
    with file.open("rb") as handle:
        start = handle.read(_HEADER.size)
    if len(start) < _HEADER.size or not start.startswith(b"GGUF"):
        raise CannotExport(f"{file} is no GGUF file: it begins with {start[:4]!r}")
    _, version, tensors, metadata = _HEADER.unpack(start)
    if version not in _VERSIONS or not tensors:
        raise CannotExport(
            f"{file}: GGUF version {version} with {tensors} tensors; known are the versions "
            f"{', '.join(map(str, _VERSIONS))}, with at least one"
        )
    return Header(version, tensors, metadata)
