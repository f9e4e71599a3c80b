"""The house rules that can be read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ragtuned_pipeline

PACKAGE = Path(ragtuned_pipeline.__path__[0])

# What each room may import of the package: rooms to its left in the way of the data, and the
# shared modules.
LEFT = {
    "corpus": set(),
    "inference": set(),
    "graph": {"corpus", "inference"},
    "synthesis": {"corpus", "graph", "inference"},
    "tuning": {"corpus", "graph", "synthesis", "inference"},
    "evaluation": {"corpus", "graph", "synthesis", "tuning", "inference"},
    "serving": {"tuning", "inference"},
}
SHARED = {"files", "ids", "item_store", "settings", "tables", "samples"}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "matplotlib", "pandas", "scipy"}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", sorted(LEFT))
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            first, *rest = name.split(".")
            assert first not in {"dagster", "dagster_pipes"}, f"{file} imports {name}"
            if first == "ragtuned_pipeline" and rest:
                allowed = LEFT[room] | SHARED | {room}
                assert rest[0] in allowed, f"{file} imports {name}"


def test_nothing_but_the_command_line_and_the_definitions_sees_orchestration() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE)
        if place.parts[0] in {"orchestration", "cli.py", "definitions.py"}:
            continue
        assert not {n for n in imported(file) if n.startswith("ragtuned_pipeline.orchestration")}


def loaded_by(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(printed.split())


def test_the_code_location_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded_by("import ragtuned_pipeline.definitions")


def test_the_command_line_loads_neither_dagster_nor_anything_heavy() -> None:
    assert not ({"dagster", "pyarrow", "numpy"} | HEAVY) & loaded_by("import ragtuned_pipeline.cli")


def test_no_source_names_a_place_outside_the_repository() -> None:
    for file in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("docs/*.md")]:
        text = file.read_text(encoding="utf-8")
        assert "../shared" not in text, file
        assert "/work/" not in text, file
