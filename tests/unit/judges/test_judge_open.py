"""Opening a GGUF judge, checking it without its weights, and what to do where memory runs out."""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import patch

import llama_cpp
import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError, OutOfMemory
from tpo_lite.judges.open import check_judge, open_judge, with_fewer_layers
from tpo_lite.llamacpp.model import CELL_BYTES, GgufModel
from tpo_lite.settled import SettledJudge


def cut(path: Path) -> Path:
    whole = write_tiny_gguf(path)
    whole.write_bytes(whole.read_bytes()[:-10_000])
    return path


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda path: path, {}, "judge.model: no file"),
        (cut, {}, "cut short: download it again"),
        (lambda path: write_tiny_gguf(path, embedding=True), {}, "is an embedding model and writes no text"),
        (lambda path: write_tiny_gguf(path, chat_template=None), {}, "has no chat template"),
        (lambda path: write_tiny_gguf(path, left_out="AB"), {}, r"tells \[\[A\]\] from \[\[B\]\]"),
        (lambda path: write_tiny_gguf(path, left_out="4"), {"mode": "score"}, r"tells \[\[4\]\] from \[\[1\]\]"),
        (write_tiny_gguf, {"template": "Which?"}, "judge template lacks"),
        (write_tiny_gguf, {"chat_template": "{% for %}"}, "chat template of .* fails"),
        (write_tiny_gguf, {"context": 1400}, r"takes 1\d\d\d tokens with its explanation .* 1400 is .* fewer j"),
        (write_tiny_gguf, {"context": 900, "mode": "verdict"}, r"takes 9\d\d tokens before any text is filled in, and"),
        (write_tiny_gguf, {"context": 99, "mode": "score"}, "and 99 is all it can hold. Give a larger context, or u"),
    ],
)
def test_what_cannot_judge_shows_without_loading_weights(make, options, text, tmp_path, monkeypatch):
    settings = SettledJudge(model=str(make(tmp_path / "judge.gguf")), **options)
    with pytest.raises(InputError, match=text):
        open_judge(settings)
    load = llama_cpp.llama_model_load_from_file

    def vocabulary_alone(path: bytes, params: llama_cpp.llama_model_params) -> object:
        assert params.vocab_only
        return load(path, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", vocabulary_alone)
    with pytest.raises(InputError, match=text):
        check_judge(settings)


@pytest.mark.parametrize("mode", ["verdict", "explain", "score"])
def test_a_judge_that_can_judge_passes_the_check(tiny_judge, mode):
    check_judge(SettledJudge(model=str(tiny_judge), mode=mode))


def test_a_batch_is_no_larger_than_the_context(tiny_judge):
    judge = open_judge(SettledJudge(model=str(tiny_judge), mode="verdict", context=3000, batch=10**9))
    assert judge.decoder.n_batch == 3000


@pytest.mark.parametrize("context", [1_000_000_000, 10**12])
@pytest.mark.parametrize("use", [open_judge, check_judge])
def test_a_context_beyond_the_memory_is_refused_at_once(tiny_judge, context, use):
    began = time.monotonic()
    with pytest.raises(OutOfMemory, match=rf"no context of {context} tokens .*GB of memory are free. Use a smaller"):
        use(SettledJudge(model=str(tiny_judge), context=context))
    assert time.monotonic() - began < 5


def test_the_room_for_a_context_is_at_least_what_llama_cpp_takes(tiny_judge):
    """2 layers, keys and values of one head of 32 (the file names no key-value heads) in 16 bit, and the cell."""
    loaded = GgufModel(tiny_judge, vocab_only=True)
    assert loaded.n_layer == 2
    with patch("tpo_lite.llamacpp.model._available_memory", lambda: 1000 * (2 * 2 * 32 * 2 + CELL_BYTES)):
        loaded.check_context(1000, "f16", on_gpu=False)
        with pytest.raises(OutOfMemory):
            loaded.check_context(1001, "f16", on_gpu=False)
        loaded.check_context(1500, "q8_0", on_gpu=False)
        loaded.check_context(1500, "f16", on_gpu=True)


@pytest.mark.parametrize(
    ("room", "tried"),
    [
        (33, [33]),
        (30, [33, 29]),
        (5, [33, 29, 25, 21, 17, 13, 9, 5]),
        (0, [33, 29, 25, 21, 17, 13, 9, 5, 1, 0]),
    ],
)
def test_fewer_gpu_layers_are_tried_where_memory_runs_out(room, tried, capsys):
    asked = []

    def load(layers: int) -> str:
        asked.append(layers)
        if layers > room:
            raise OutOfMemory("too little")
        return f"judge with {layers}"

    assert with_fewer_layers(load, 33) == f"judge with {asked[-1]}"
    assert asked == tried
    warning = f"judge: the GPU's memory holds {asked[-1]} of 33 layers; the others are on the CPU.\n"
    assert capsys.readouterr().err == ("" if room == 33 else warning)


def test_too_little_memory_for_any_number_of_layers():
    def load(layers: int) -> None:
        raise OutOfMemory(f"too little for {layers}")

    with pytest.raises(OutOfMemory, match="too little for 0"):
        with_fewer_layers(load, 3)


@pytest.mark.parametrize(("allowed", "asked"), [(False, [-1]), (True, [3, 2])])
def test_layers_are_given_up_only_if_the_recipe_allows_it(allowed, asked, tiny_judge, monkeypatch):
    """A loader without room for all three layers (two and the output) stands for a small GPU."""
    tried = []

    def load(settings: SettledJudge, path: Path, layers: int) -> str:
        tried.append(layers)
        if layers in (-1, 3):
            raise OutOfMemory("too little")
        return "judge"

    monkeypatch.setattr("tpo_lite.judges.open._gguf", load)
    settings = SettledJudge(model=str(tiny_judge), fewer_gpu_layers=allowed)
    if allowed:
        assert open_judge(settings, "cuda") == "judge"
    else:
        with pytest.raises(OutOfMemory):
            open_judge(settings, "cuda")
    assert tried == asked
