"""One byte of a run folder that is another: it is found by name before anything is made of it."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.helpers.tiny_run import invoke
from tpo_lite.errors import InputError
from tpo_lite.files import read_json, read_sealed, write_json, write_sealed
from tpo_lite.phases.process import run_phase
from tpo_lite.run import RunFolder
from tpo_lite.training.checkpoints import last_complete_checkpoint, mark_complete

OUTPUTS = [
    ("instructions/validation.jsonl", "generate", 0),
    ("direct/iteration-0/samples.jsonl", "judge", 0),
    ("direct/iteration-0/judgements.jsonl", "pair", 0),
    ("direct/iteration-0/pairs.jsonl", "dpo", 0),
    ("direct/iteration-0/train/checkpoint-2/adapter_model.safetensors", "validate", 0),
    ("direct/base-validation.jsonl", "select", 1),
    ("direct/iteration-0/validation/checkpoint-4.jsonl", "select", 0),
    ("direct/iteration-0/validation.json", "fold", 0),
    ("direct/iteration-0/adapter/adapter_model.safetensors", "generate", 1),
    ("direct/iteration-0/adapter/adapter_config.json", "generate", 1),
    ("direct/iteration-1/test/answers.jsonl", "match", 1),
]
"""A file that a phase left, and a phase of an iteration that reads it."""


def flip_a_byte(path):
    """Change one byte that the path's name chooses to another printable one."""
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content))
    content[place] = ord("0") + (content[place] + 1) % 10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(("file", "phase", "iteration"), OUTPUTS)
def test_a_flipped_byte_is_found_before_a_phase_reads_it(file, phase, iteration, tiny_run, tmp_path):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    run.done_path(phase, "direct", iteration).unlink()
    flip_a_byte(run.root / file)
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(InputError, match=rf"{file} is not what the \w+ phase wrote.* Delete it and run the same"):
        run_phase(phase, run.root, "direct", iteration)
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != ".phase.lock")


def test_a_run_of_a_version_without_checksums_goes_on(tiny_run, tmp_path):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    for path in run.root.rglob("done/*.json"):
        data = read_json(path)
        if "outputs" in data:
            del data["sha256"]
            write_json(path, data | {"outputs": list(data["outputs"])})
    run.done_path("pair", "direct", 0).unlink()
    run_phase("pair", run.root, "direct", 0)
    assert run.is_done("pair", "direct", 0)


def test_figures_of_a_phase_that_were_changed_are_named(tiny_run, tmp_path):
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    path = run.done_path("pair", "direct", 0)
    path.write_text(path.read_text().replace('"pairs": 7', '"pairs": 8'))
    for command in (("status", run.root), ("pair", run.root)):
        done = invoke(*command)
        assert done.exit_code == 2
        assert "pair.json is damaged (its checksum is another). Delete it and run the same command" in done.output


def test_a_sealed_file_is_read_as_it_was_written(tmp_path):
    data = {"b": [1, 2.5, None], "a": {"ä": "\ud800"}}
    write_sealed(tmp_path / "a.json", data | {"a": {"ä": "x"}})
    assert read_sealed(tmp_path / "a.json") == data | {"a": {"ä": "x"}}


@pytest.fixture
def checkpoints(tmp_path):
    """Two complete checkpoints, and one that a kill left half written."""
    for step in (2, 10, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
            (folder / name).write_text(f"{name} after {step}")
        if step != 12:
            mark_complete(folder)
    return tmp_path


@pytest.mark.parametrize(
    ("damaged", "last"),
    [
        ([], "checkpoint-10"),
        (["checkpoint-10/optimizer.pt"], "checkpoint-2"),
        (["checkpoint-10/complete"], "checkpoint-2"),
        (["checkpoint-2/adapter_model.safetensors"], None),  # training must write it again
        (["checkpoint-2/trainer_state.json", "checkpoint-10/trainer_state.json"], None),
    ],
)
def test_training_goes_on_before_what_was_damaged(damaged, last, checkpoints):
    for file in damaged:
        flip_a_byte(checkpoints / file)
    found = last_complete_checkpoint(checkpoints)
    assert (found and found.name) == last
    left = {"checkpoint-10": ["checkpoint-10", "checkpoint-2"], "checkpoint-2": ["checkpoint-2"], None: []}[last]
    assert sorted(path.name for path in checkpoints.iterdir()) == left


def test_what_only_a_resume_needs_may_be_gone(checkpoints):
    (checkpoints / "checkpoint-10/optimizer.pt").unlink()
    (checkpoints / "checkpoint-2/complete").write_text("")  # as an earlier version left it
    assert last_complete_checkpoint(checkpoints) == checkpoints / "checkpoint-10"
