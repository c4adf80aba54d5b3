"""The public API: every name is there, and asking for the package loads no library of models."""

import subprocess
import sys

import pytest

import tpo_lite


def test_every_name_is_there():
    assert sorted(tpo_lite._HOME) == tpo_lite.__all__[:-1] and tpo_lite.__all__[-1] == "__version__"
    for name in tpo_lite.__all__:
        assert getattr(tpo_lite, name) is not None
    assert dir(tpo_lite) == sorted(tpo_lite.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        tpo_lite.tran  # noqa: B018


def test_importing_the_package_loads_no_model_library():
    code = "import sys, tpo_lite; tpo_lite.load_recipe; tpo_lite.RunFolder; tpo_lite.make_pairs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "llama_cpp", "peft", "trl", "datasets"} & set(done.stdout.split())


def test_settle_leaves_nothing_open():
    recipe = tpo_lite.load_recipe("embedded", ["sampling.batch=auto", "judge.context=auto", "engine=auto"])
    settled = tpo_lite.settle(recipe)
    values = (settled.engine, settled.sampling.batch, settled.judge.context)
    assert "auto" not in values and [type(value) for value in values] == [str, int, int]


def test_train_goes_on_with_a_finished_run(tiny_run, tmp_path):
    import shutil

    shutil.copytree(tiny_run, tmp_path / "run")
    folder = tpo_lite.RunFolder(tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert tpo_lite.train(folder.load_recipe(), tmp_path / "run").root == folder.root
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    results = tpo_lite.read_results(folder)
    assert len(results.arms["direct"].iterations) == 2


def test_train_refuses_another_run(tiny_run):
    other = tpo_lite.RunFolder(tiny_run).load_recipe().model_copy(update={"seed": 99})
    with pytest.raises(tpo_lite.InputError, match="seed: 4 -> 99"):
        tpo_lite.train(other, tiny_run)


def test_instructions_of_a_gguf_are_counted_with_its_tokenizer(tiny_model, tmp_path):
    from tpo_lite.llamacpp.convert import convert

    convert(tiny_model, tmp_path / "model.gguf")
    sizes = [f"instructions.{name}=3" for name in ("per_iteration", "validation", "test")]
    recipe = tpo_lite.load_recipe(
        "embedded", [*sizes, "iterations=1", "thought.style=generic", f"model={tmp_path / 'model.gguf'}"]
    )
    slices = tpo_lite.load_instructions(recipe, tmp_path / "run")
    assert len(slices.iterations[0]) == len(slices.validation) == len(slices.test) == 3
    assert tpo_lite.base_policy(recipe, tmp_path / "run").model == str(tmp_path / "run" / "base")
