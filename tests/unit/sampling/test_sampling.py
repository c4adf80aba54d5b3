"""Sampling: own random numbers a sample, the right distribution, batches that do not depend on what is finished."""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_model import write_tiny_model
from tpo_lite import base_weights
from tpo_lite.insertion import Insertion
from tpo_lite.llamacpp.nucleus import nucleus_token
from tpo_lite.sampling import engines
from tpo_lite.sampling.huggingface import ContinuousSampler, GenerateSampler, OwnRandomNumbers, nucleus_choice
from tpo_lite.sampling.sampler import batches
from tpo_lite.seeds import generator, seed_of, uniforms
from tpo_lite.settled import SettledSampling
from tpo_lite.training.dpo import trainable


def test_uniforms_depend_on_the_key_alone():
    assert uniforms("0/thinking/1/abc/3", 5).tolist() == uniforms("0/thinking/1/abc/3", 5).tolist()
    assert uniforms("0/thinking/1/abc/3", 5).tolist() == uniforms("0/thinking/1/abc/3", 9)[:5].tolist()
    assert uniforms("0/thinking/1/abc/3", 5).tolist() != uniforms("0/thinking/1/abc/4", 5).tolist()


def test_uniforms_are_the_same_one_by_one():
    numbers = generator(seed_of("key"))
    assert [numbers.random() for _ in range(5)] == uniforms("key", 5).tolist()


def test_nucleus_by_hand():
    # Probabilities 0.5, 0.3, 0.2: with top-p 0.75 the nucleus is the first two, 0.8 of the mass.
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log()
    for u, token in [(0.0, 1), (0.62, 1), (0.63, 0), (0.999999, 0)]:
        assert nucleus_choice(logits, torch.tensor([u]), 1.0, 0.75).item() == token
        assert nucleus_token(logits[0].numpy(), u, 1.0, 0.75) == token


def test_temperature_sharpens():
    logits = torch.tensor([[0.0, 1.0]])
    # At T = 0.5 the second has sigmoid(2) = 0.881 of the mass.
    assert nucleus_choice(logits, torch.tensor([0.880]), 0.5, 1.0).item() == 1
    assert nucleus_choice(logits, torch.tensor([0.882]), 0.5, 1.0).item() == 0


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.floats(0.2, 2.0))
def test_choices_lie_in_transformers_nucleus(seed, top_p, temperature):
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 11, generator=generator)
    chosen = nucleus_choice(logits, torch.rand(4, generator=generator, dtype=torch.float64), temperature, top_p)
    kept = TopPLogitsWarper(min(top_p + 1e-6, 1.0))(None, TemperatureLogitsWarper(temperature)(None, logits))
    assert torch.isfinite(kept.gather(-1, chosen[:, None])).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.floats(0.2, 2.0), st.floats(0.1, 8.0))
def test_numpy_and_torch_choose_alike(seed, top_p, temperature, spread):
    logits = spread * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    draws = uniforms(str(seed), 20)
    torchs = nucleus_choice(logits.expand(20, 50), torch.tensor(draws), temperature, top_p).tolist()
    numpys = [nucleus_token(logits.numpy(), draw, temperature, top_p) for draw in draws]
    assert sum(a != b for a, b in zip(torchs, numpys, strict=True)) <= 1  # a draw on the edge between two tokens


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([0.6, 0.25, 0.15]).log().expand(20_000, 3)
    chosen = nucleus_choice(logits, torch.tensor(uniforms("frequencies", 20_000)), 1.0, 1.0)
    shares = torch.bincount(chosen, minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.6, 0.25, 0.15], abs=0.015)


def test_the_processor_leaves_one_token():
    draws = torch.tensor([[0.1, 0.9]])
    processor = OwnRandomNumbers(draws, prompt_length=3, temperature=1.0, top_p=1.0)
    scores = torch.tensor([[0.5, 0.5]]).log()
    first = processor(torch.zeros(1, 3, dtype=torch.long), scores)
    second = processor(torch.zeros(1, 4, dtype=torch.long), scores)
    assert torch.isfinite(first).sum() == torch.isfinite(second).sum() == 1
    assert first.argmax().item() != second.argmax().item()


def test_batches_are_sorted_by_length_and_cover_everything():
    assert batches([[1, 2, 3], [1], [1, 2]], 2) == [[1, 2], [0]]
    prompts = [[0] * n for n in np.random.default_rng(0).integers(1, 9, 23)]
    assert sorted(sum(batches(prompts, 5), [])) == list(range(23))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model whose next token depends on what it attends to, its stop token, its padding, and prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_tiny_model(tmp_path_factory.mktemp("policy"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in layer.self_attn.children():
                projection.weight *= 8
        model.lm_head.weight *= 5
        model.lm_head.weight[tokenizer.eos_token_id] /= 4
    prompts = [tokenizer.encode(text) for text in ("one two", "three", "four five six seven eight")]
    return model, [tokenizer.eos_token_id], tokenizer.pad_token_id, prompts


SAMPLERS = [GenerateSampler, ContinuousSampler]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_batch_sampled_again_gives_the_same_tokens_and_each_row_follows_its_key(tiny, kind):
    model, stops, padding, (one, two, _) = tiny
    sampler = kind(model, stops, padding, SettledSampling(max_new_tokens=12))
    first = sampler.sample([one, two, one], ["a", "b", "c"])
    assert first == sampler.sample([one, two, one], ["a", "b", "c"])
    assert first[0] != first[2]
    assert sampler.sample([one, two, one], ["c", "b", "a"]) == first[::-1]
    for ids in first:
        assert len(ids) <= 12
        assert stops[0] not in ids[:-1]


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_rows_that_join_and_leave_are_sampled_as_if_alone(tiny, batch):
    """In 32 bits nothing but rounding depends on the neighbours, and it decides nothing here."""
    model, stops, padding, prompts = tiny
    rows = [prompt for prompt in prompts for _ in range(6)]
    keys = [str(number) for number in range(len(rows))]
    settings = SettledSampling(max_new_tokens=20, batch=batch)
    alone = GenerateSampler(model, stops, padding, settings)
    expected = [alone.sample([row], [key])[0] for row, key in zip(rows, keys, strict=True)]
    assert len({len(ids) for ids in expected}) > 5
    assert ContinuousSampler(model, stops, padding, settings).sample(rows, keys) == expected


def test_a_row_is_given_when_it_ends_and_not_when_all_have(tiny, monkeypatch):
    model, stops, padding, prompts = tiny
    sampler = ContinuousSampler(model, stops, padding, SettledSampling(max_new_tokens=20, batch=8))
    steps, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: steps.append(1) or forward(**given))
    rows = [prompt for prompt in prompts for _ in range(6)]
    at = [len(steps) for _ in sampler.stream(rows, [str(number) for number in range(18)])]
    assert at[0] < 12 < at[-1] == len(steps)


def test_no_more_rows_than_the_batch_are_in_memory_and_a_prompt_is_computed_once(tiny, monkeypatch):
    model, stops, padding, prompts = tiny
    sampler = ContinuousSampler(model, stops, padding, SettledSampling(max_new_tokens=20, batch=8))
    shapes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: shapes.append(given["input_ids"].shape) or forward(**given))
    sampler.sample([prompt for prompt in prompts for _ in range(6)], [str(number) for number in range(18)])
    assert shapes[0] == (2, len(prompts[0]))  # the first eight rows are of two prompts
    assert max(rows for rows, _ in shapes) <= 8
    prefills = [rows for rows, width in shapes if width > 1]
    assert len(prefills) > 2 and sum(prefills) < 18


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("before_stop", [False, True])
def test_what_is_put_in_is_read_and_other_rows_are_as_ever(tiny, kind, before_stop):
    """Without chance, a row goes on as a prompt would that held the output so far and what was put in."""
    model, stops, padding, prompts = tiny
    settings = SettledSampling(max_new_tokens=20, batch=4, temperature=1e-4)
    sampler, alone = kind(model, stops, padding, settings), GenerateSampler(model, stops, padding, settings)
    rows, keys = prompts * 2, [str(number) for number in range(6)]
    plain = sampler.sample(rows, keys)
    put_in = {row: [40 + row, 50 + row] for row in (0, 2, 5)}
    given = sampler.sample(rows, keys, Insertion(4, lambda row, output: put_in.get(row, []), before_stop))
    for row, (prompt, output) in enumerate(zip(rows, plain, strict=True)):
        at = min(4, len(output) - 1) if before_stop else 4
        if row in put_in and (len(output) > 4 or before_stop):
            begun = output[:at] + put_in[row]
            (rest,) = alone.sample([prompt + begun], ["any"])
            output = (begun + rest)[:20]
        assert given[row] == output
    assert given != plain


@pytest.mark.parametrize("kind", SAMPLERS)
def test_token_i_is_drawn_with_number_i_also_after_tokens_that_were_put_in(tiny, kind):
    """What the model would have said anyway, put in, changes nothing."""
    model, stops, padding, prompts = tiny
    sampler = kind(model, stops, padding, SettledSampling(max_new_tokens=20, batch=4))
    rows, keys = prompts * 4, [str(number) for number in range(12)]
    plain = sampler.sample(rows, keys)
    again = sampler.sample(rows, keys, Insertion(3, lambda row, output: [t for t in plain[row][3:6] if t not in stops]))
    assert again == plain
    assert sum(len(output) > 8 for output in plain) > 3


@pytest.mark.parametrize("precision", ["nf4", "bfloat16"])
def test_gpu_audit_1_unsloth_loads_the_base_that_is_trained(precision, monkeypatch):
    """Without `use_exact_model_name` it takes a repository of its own, with weights quantized in another way."""
    unsloth = SimpleNamespace(FastLanguageModel=MagicMock())
    unsloth.FastLanguageModel.from_pretrained.return_value = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "unsloth", unsloth)
    name = "tpo_lite.sampling.engines.unsloth_model"
    monkeypatch.delitem(sys.modules, name, raising=False)
    unsloth_model = importlib.import_module(name)
    del sys.modules[name], engines.unsloth_model  # no other test may find it
    unsloth_model.load("meta-llama/Llama-3.1-8B-Instruct", None, "cpu", precision, 256)
    (call,) = unsloth.FastLanguageModel.from_pretrained.call_args_list
    assert call.args == ("meta-llama/Llama-3.1-8B-Instruct",)
    assert call.kwargs["use_exact_model_name"] is True
    assert call.kwargs["load_in_4bit"] is (precision == "nf4")


def test_gpu_audit_2_cudnn_comes_before_the_slowest_attention():
    orders = []

    class Model:
        device = "cpu"

        def generate(self, input_ids, **_):
            orders.append(list(_cur_sdpa_kernel_backends(with_priority=True)))
            return torch.cat([input_ids, torch.full((len(input_ids), 1), 3)], dim=1)

    sampler = GenerateSampler(Model(), [3], 0, SettledSampling(batch=2, max_new_tokens=4))
    before = _cur_sdpa_kernel_backends(with_priority=True)
    assert list(sampler.stream([[5, 6], [7]], ["a", "b"])) == [(0, [3]), (1, [3])]
    (order,) = orders
    assert order.index(SDPBackend.CUDNN_ATTENTION) < order.index(SDPBackend.MATH)
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [("cpu", "nf4", torch.float32), ("cuda", "nf4", torch.bfloat16), ("cuda", "float16", torch.float16)],
)
def test_gpu_audit_7_the_sampled_adapter_computes_as_the_base_does(device, precision, dtype, tmp_path, monkeypatch):
    """In float32 peft casts each layer's input and output: 113 operations a layer instead of 64."""
    base = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "base"))
    trainable(base, 2, 1.0).save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    monkeypatch.setattr(base_weights, "load_base", lambda *_: fresh)
    loaded = base_weights.load(str(tmp_path / "base"), tmp_path / "adapter", device, precision)
    assert {parameter.dtype for name, parameter in loaded.named_parameters() if ".lora_" in name} == {dtype}
