"""The prepare phase on conversations: what it writes, and that it asks the chat template about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.shared import DATA
from tests.helpers.tiny_model import write_tiny_model
from tpo_lite.errors import InputError
from tpo_lite.phases import prepare as phase
from tpo_lite.recipe import with_keys
from tpo_lite.records import Instruction, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

RIVER = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Elbe."}]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettledRecipe:
    monkeypatch.setattr(phase, "check_judge", lambda *_: None)
    return with_keys(
        SettledRecipe(),
        {
            "model": str(write_tiny_model(tmp_path / "model")),
            "instructions.source": str(DATA / "prompts/trl.jsonl"),
            "instructions.turn": "last",
            "instructions.validation": 1,
            "instructions.test": 0,
            "instructions.per_iteration": 2,
            "iterations": 1,
        },
    )


def test_conversations_are_written_with_their_context(recipe: SettledRecipe, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert phase.run(folder, recipe, "cpu").kept == 3
    files = [folder.instructions(name) for name in ("validation", "iteration-0")]
    written = {row.text: row for path in files for row in read_jsonl(path, Instruction)}
    assert written["And where does it end?"].context == RIVER
    lines = {line["text"]: line for path in files for line in map(json.loads, path.read_text().splitlines())}
    assert list(lines["Why does bread rise?"]) == ["id", "text", "source", "category", "answer"]


def test_a_template_that_refuses_a_history_stops_the_first_phase(recipe: SettledRecipe, tmp_path: Path) -> None:
    template = tmp_path / "model/chat_template.jinja"
    template.write_text("{% if messages[1:] %}{{ raise_exception('one turn only') }}{% endif %}" + template.read_text())
    with pytest.raises(InputError, match=r"no place for the turns .*user, assistant, user \(one turn only\)"):
        phase.run(RunFolder(tmp_path), recipe, "cpu")
    assert not (tmp_path / "instructions").exists()
