"""Files and folders that appear whole or not at all: made under another name, then put in place."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp")  # a temporary_name of that process


def temporary_name(name: str) -> str:
    """Return what a file or folder is called until it takes the place of `name` beside it.

    The process's number comes last: what it leaves when it is killed can be told from it.
    """
    return f".{name}.{os.getpid()}.tmp"


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(f"{path.name}.{threading.get_native_id()}"))
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
