"""The gguf engine: the adapter's conversion is exact, and it samples what transformers samples."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.random_adapter import PROMPTS, largest_difference, random_adapter
from tests.helpers.second_iteration import DEAD, check_sampled, second_iteration_to_sample, with_dead_adapter
from tests.helpers.tiny_model import write_tiny_model
from tests.helpers.tiny_run import finished_run
from tpo_lite.adapters import lora_config, state_dict, write_adapter
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json
from tpo_lite.insertion import Insertion
from tpo_lite.llamacpp import adapter as adapters_gguf
from tpo_lite.llamacpp.adapter import write_adapter_gguf
from tpo_lite.llamacpp.convert import convert, quantize
from tpo_lite.phases.process import run_phase
from tpo_lite.plan.shapes import model_shape
from tpo_lite.run import RunFolder
from tpo_lite.sampling.base import base_model
from tpo_lite.sampling.engines import gguf as gguf_engine
from tpo_lite.sampling.engines.gguf import GgufSampler, converted_base
from tpo_lite.sampling.huggingface import ContinuousSampler
from tpo_lite.sampling.policy import Policy
from tpo_lite.settled import SettledRecipe, SettledSampling

HEADS, KV_HEADS, SCALE = 2, 1, 2.0


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A tiny Llama of 16-bit weights and grouped queries, two adapters on it, and what peft makes of the first."""
    folder = write_tiny_model(tmp_path_factory.mktemp("policy"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(folder)
    model = get_peft_model(model.float(), lora_config(3, SCALE)).eval()
    adapters = [random_adapter(model, rank=3, seed=seed) for seed in range(2)]
    set_peft_model_state_dict(model, state_dict(adapters[0]))
    like = folder / "like"
    model.save_pretrained(like)
    for number, blocks in enumerate(adapters):
        write_adapter(folder / f"adapter-{number}", blocks, SCALE, str(folder), like)
    return SimpleNamespace(folder=folder, model=model, blocks=adapters[0])


def test_an_adapter_does_in_llama_cpp_what_it_does_in_peft(adapted, tmp_path):
    write_adapter_gguf(adapted.blocks, SCALE, HEADS, KV_HEADS, tmp_path / "lora.gguf")
    # Keys and values are in 16 bit; without the adapter the logits are far away.
    assert largest_difference(adapted, tmp_path / "lora.gguf") < 5e-4
    assert largest_difference(adapted, tmp_path / "lora.gguf", attached=False) > 0.1


@pytest.mark.parametrize("broken", ["permutation", "heads", "scale"])
def test_a_conversion_that_is_wrong_shows(adapted, tmp_path, monkeypatch, broken):
    if broken == "permutation":
        monkeypatch.setattr(adapters_gguf, "interleaved", lambda weight, heads: weight)
    heads = HEADS // 2 if broken == "heads" else HEADS
    scale = SCALE / 2 if broken == "scale" else SCALE
    write_adapter_gguf(adapted.blocks, scale, heads, KV_HEADS, tmp_path / "lora.gguf")
    assert largest_difference(adapted, tmp_path / "lora.gguf") > 5e-3


def sampler(adapted, work: Path, adapter: int | None, **settings) -> GgufSampler:
    """The engine on the 16-bit weights."""
    recipe = SettledRecipe(
        quantize="none", sampling=SettledSampling(**{"k": 4, "batch": 8, "max_new_tokens": 12} | settings)
    )
    folder = None if adapter is None else adapted.folder / f"adapter-{adapter}"
    return GgufSampler(Policy(str(adapted.folder), folder, work), recipe, "cpu", [3])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the base is converted once."""
    return tmp_path_factory.mktemp("work")


def test_token_ids_are_the_tokenizers(adapted, work):
    tokenizer = AutoTokenizer.from_pretrained(adapted.folder)
    decoder = sampler(adapted, work, None).decoder
    assert decoder.n_vocab == adapted.model.config.vocab_size
    text = "The answer is 1234. Here is my thought process:\n\n\tÄ 日本 🙂 it's  over"
    assert decoder.tokenize(text, special=False) == tokenizer.encode(text, add_special_tokens=False)
    assert all(
        decoder.token_bytes(token, special=True).decode() == tokenizer.decode([token])
        for token in tokenizer.get_vocab().values()
        if "\ufffd" not in tokenizer.decode([token])
    )


def rows(k: int) -> tuple[list[list[int]], list[str]]:
    """K samples of each prompt, and their keys."""
    numbered = [(prompt, number) for prompt in PROMPTS for number in range(k)]
    return [prompt for prompt, _ in numbered], [f"{prompt[0]}/{number}" for prompt, number in numbered]


def test_it_samples_what_transformers_samples(adapted, work):
    """The same random numbers in the same way: only rounding could make another token."""
    # A random model's probabilities are nearly equal, and rounding would order them; at this temperature they are not.
    settings = SettledSampling(k=4, batch=8, max_new_tokens=12, temperature=0.05)
    ours = sampler(adapted, work, 0, **settings.model_dump()).sample(*rows(8))
    theirs = ContinuousSampler(adapted.model, [3], 4, settings).sample(*rows(8))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) > 10  # of 16; with other numbers, none
    assert len({tuple(output) for output in ours}) > 8


def test_greedy_output_is_that_of_transformers(adapted, work):
    # At this temperature the most likely token has all the probability.
    ours = sampler(adapted, work, 0, temperature=1e-4, max_new_tokens=24).sample(*rows(1))
    for prompt, output in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = adapted.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[3],
            pad_token_id=4,
        )
        assert output == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("before_stop", [False, True])
def test_what_is_put_in_is_read_as_in_transformers(adapted, work, before_stop):
    settings = SettledSampling(k=4, batch=8, max_new_tokens=12, temperature=1e-4)
    insertion = Insertion(4, lambda row, output: [40 + row, 50] if row % 2 else [], before_stop)
    ours = sampler(adapted, work, 0, **settings.model_dump()).sample(*rows(4), insertion)
    assert ours == ContinuousSampler(adapted.model, [3], 4, settings).sample(*rows(4), insertion)
    assert all(50 in output for output in ours[1::2])
    assert not any(50 in output for output in ours[::2])


def test_samples_end_with_the_stop_token_and_are_the_same_again(adapted, work):
    first = sampler(adapted, work, 0)
    outputs = first.sample(*rows(8))
    assert outputs == first.sample(*rows(8)) == sampler(adapted, work, 0).sample(*rows(8))
    for output in outputs:
        assert 3 not in output[:-1]
        assert output[-1] == 3 or len(output) == 12


def test_the_probe_sees_the_adapter_and_another_one_can_take_its_place(adapted, work):
    swapped = sampler(adapted, work, 0)
    assert swapped.probe(PROMPTS) > 0.1
    first = swapped.sample(*rows(8))
    swapped.use_adapter(adapted.folder / "adapter-1")
    second = swapped.sample(*rows(8))
    assert first != second == sampler(adapted, work, 1).sample(*rows(8))
    assert sorted(path.name for path in work.iterdir()) == ["base-F16.gguf"]


def test_the_base_is_converted_once_and_a_kill_loses_one_step_at_most(adapted, tmp_path, monkeypatch):
    converted_base(str(adapted.folder), tmp_path, "F16")
    monkeypatch.setattr(gguf_engine, "convert", None)
    made = converted_base(str(adapted.folder), tmp_path, "Q4_K_M")
    assert [path.name for path in tmp_path.iterdir()] == ["base-Q4_K_M.gguf"]
    monkeypatch.setattr(gguf_engine, "quantize", None)
    assert converted_base(str(adapted.folder), tmp_path, "Q4_K_M") == made


def test_too_small_a_disk_is_told_before_anything_is_written(adapted, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(TpoError, match="engine: gguf needs 0.0 GB under .* Free some space"):
        converted_base(str(adapted.folder), tmp_path, "Q4_K_M")
    assert not list(tmp_path.iterdir())


# In a run


def test_a_whole_run(tiny_arguments, tmp_path):
    run = finished_run(tmp_path / "run", [*tiny_arguments, "--set", "engine=gguf"])
    assert (run / "base-Q4_K_M.gguf").exists()
    assert not (run / "sampling-adapter.gguf").exists()
    for t in range(2):
        summary = read_json(run / "direct" / f"iteration-{t}" / "done" / "generate.json")["summary"]
        assert summary["engine"] == "gguf"
        assert 0 < summary["shift"] < 0.1


def test_a_whole_run_from_a_gguf_samples_from_that_very_file(tiny_arguments, tiny_model, tmp_path, monkeypatch):
    convert(tiny_model, tmp_path / "f16.gguf")
    quantize(tmp_path / "f16.gguf", tmp_path / "model.gguf", "Q8_0")
    before, opened = (tmp_path / "model.gguf").read_bytes(), []
    load = gguf_engine.LlamaCpp
    monkeypatch.setattr(gguf_engine, "LlamaCpp", lambda path, **options: opened.append(path) or load(path, **options))
    options = ["--set", "engine=gguf", "--set", f"model={tmp_path / 'model.gguf'}"]
    run = finished_run(tmp_path / "run", [*tiny_arguments, *options])
    assert set(opened) == {tmp_path / "model.gguf"}
    assert (tmp_path / "model.gguf").read_bytes() == before
    assert (run / "base" / "config.json").exists()
    assert not list(run.glob("base-*.gguf"))
    for t in range(2):
        summary = read_json(run / "direct" / f"iteration-{t}" / "done" / "generate.json")["summary"]
        assert summary["engine"] == "gguf"
        assert 0 < summary["shift"] < 0.1


def test_a_gguf_is_dequantized_once(tiny_model, tmp_path):
    convert(tiny_model, tmp_path / "model.gguf")
    base = base_model(str(tmp_path / "model.gguf"), tmp_path)
    assert base == (str(tmp_path / "base"), tmp_path / "model.gguf")
    (tmp_path / "base" / "mark").write_text("")
    assert base_model(str(tmp_path / "model.gguf"), tmp_path) == base
    assert (tmp_path / "base" / "mark").exists()
    assert base_model(str(tiny_model), tmp_path) == (str(tiny_model), None)
    assert model_shape(str(tmp_path / "model.gguf")) == model_shape(base.model)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.gguf", "^model: no file 'none.gguf'"), ("hub:owner/model.gguf", "^model: .* is not hub:owner/repo/file")],
)
def test_a_gguf_that_is_not_there(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        base_model(name, tmp_path)
    with pytest.raises(InputError, match=message):
        model_shape(name)


def test_a_requantized_model_is_converted_in_its_own_folder(tiny_arguments, tmp_path):
    run = finished_run(tmp_path / "run", [*tiny_arguments, "--set", "engine=gguf", "--set", "merge=requantize"])
    assert RunFolder(run).trained("direct", 1) == 1
    assert (run / "direct" / "iteration-0" / "base-Q4_K_M.gguf").exists()


def test_gguf_samples_with_a_live_adapter_and_stops_with_a_dead_one(tiny_run, tmp_path):
    live = second_iteration_to_sample(tiny_run, tmp_path / "live", "gguf")
    run_phase("generate", live, "direct", 1)
    check_sampled(live, tiny_run, "gguf")
    dead = with_dead_adapter(second_iteration_to_sample(tiny_run, tmp_path / "dead", "gguf"))
    with pytest.raises(TpoError, match=f"{DEAD} gguf engine"):
        run_phase("generate", dead, "direct", 1)
