"""Rules of the code base: short files and functions, tests that stand alone, imports that load only what they need."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tpo_lite", "tests", "benchmarks")
LINES, FUNCTION_LINES = 400, 60


def sources(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def imported(source: str) -> set[str]:
    """The modules that a file imports anywhere; `from a import b` counts as `a` and as `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_long(folder):
    lengths = {str(path): len(source.splitlines()) for path, source in sources(folder)}
    assert {path: length for path, length in lengths.items() if length > LINES} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_function_is_long(folder):
    """From `def` to the last line, docstring included."""
    lengths = {
        f"{path}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, source in sources(folder)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_no_test_imports_another():
    """What tests share is in tests/helpers and in conftest.py."""
    for path, source in sources("tests"):
        from_tests = {name for name in imported(source) if name.split(".")[0] == "tests" and name != "tests"}
        assert all(name.startswith("tests.helpers") for name in from_tests), path


def test_benchmarks_import_no_tests():
    for path, source in sources("benchmarks"):
        assert not any(name.split(".")[0] == "tests" for name in imported(source)), path


@pytest.mark.parametrize(
    "module", ["tpo_lite.judges.gguf", "tpo_lite.preferences.tournament", "tpo_lite.recipe", "tpo_lite.run", "tpo_lite"]
)
def test_an_import_loads_neither_the_plan_nor_torch(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert module in loaded
    heavy = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets"}
    assert [name for name in loaded if name in heavy or name.startswith("tpo_lite.plan")] == []
