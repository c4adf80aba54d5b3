"""docs/promises.md: every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs/promises.md").read_text()


def test_every_promise_names_tests_that_exist():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PROMISES)
    assert len(named) > 10
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_promise_has_a_test():
    sections = PROMISES.split("\n## ")[1:5]  # the last one also says what is not ours
    promises = [promise for section in sections for promise in section.split("\n- ")[1:]]
    assert all("::test_" in promise for promise in promises)
