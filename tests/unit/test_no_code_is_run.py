"""Reading what others made runs nothing of it: seen through Python's audit events."""

from __future__ import annotations

import mmap
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tpo_lite import base_weights
from tpo_lite.adapters import read_adapter
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.records import PromptJudgements, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder

CODE = {
    "exec",
    "compile",
    "pickle.find_class",
    "marshal.loads",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
}
"""Audit events of running, building or loading code."""

_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event in CODE:
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_hook)  # which stays, as hooks do; it looks only while `watched` is open


@contextmanager
def watched() -> Iterator[list[str]]:
    """Keep what runs, builds or loads code meanwhile."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


class Harmful:
    """Unpickling one of these runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_the_hook_sees_what_unpickling_does():
    with watched() as seen, pytest.raises(SystemExit):
        pickle.loads(pickle.dumps(Harmful()))
    assert any(event.startswith("pickle.find_class") for event in seen)
    assert any(event.startswith("exec") for event in seen)


def read_all(root, model, judge):
    """Read everything that phases read of a run, its base and its judge's header."""
    run = RunFolder(root)
    run.load_recipe()
    run.load_settled()
    here = run.iteration("direct", 0)
    assert list(read_jsonl(here / "samples.jsonl", PromptSamples))
    assert list(read_jsonl(here / "judgements.jsonl", PromptJudgements))
    assert run.done("pair", "direct", 0)
    with judge.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        GgufHeader(data, arrays=True)
    read_adapter(here / "adapter")
    base_weights.load(str(model), here / "adapter", "cpu", "nf4")


def test_reading_a_run_and_its_models_runs_no_code(tiny_run, tiny_model, tiny_judge):
    read_all(tiny_run, tiny_model, tiny_judge)  # imports what it needs, which is running code
    with watched() as seen:
        read_all(tiny_run, tiny_model, tiny_judge)
    assert seen == []
