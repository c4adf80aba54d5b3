"""Sampling: own random numbers a sample, the right distribution, batches that do not depend on what is finished."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.recipe import Sampling
from tpo_lite.sampling import GenerateSampler, OwnRandomNumbers, batches, nucleus_choice, uniforms
from tests.tiny_model import write_tiny_model


def test_uniforms_depend_on_the_key_alone():
    assert uniforms("0/thinking/1/abc/3", 5).tolist() == uniforms("0/thinking/1/abc/3", 5).tolist()
    assert uniforms("0/thinking/1/abc/3", 5).tolist() == uniforms("0/thinking/1/abc/3", 9)[:5].tolist()
    assert uniforms("0/thinking/1/abc/3", 5).tolist() != uniforms("0/thinking/1/abc/4", 5).tolist()


def test_nucleus_by_hand():
    # Probabilities 0.5, 0.3, 0.2: with top-p 0.75 the nucleus is the first two, 0.8 of the mass.
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log()
    draw = lambda u: nucleus_choice(logits, torch.tensor([u]), 1.0, 0.75).item()  # noqa: E731
    assert [draw(0.0), draw(0.62), draw(0.63), draw(0.999999)] == [1, 1, 0, 0]


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


def test_a_batch_sampled_again_gives_the_same_tokens_and_each_row_follows_its_key(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sampler = GenerateSampler(model, [tokenizer.eos_token_id], tokenizer.pad_token_id, Sampling(max_new_tokens=12))
    prompts = [tokenizer.encode("one two"), tokenizer.encode("three"), tokenizer.encode("one two")]
    first = sampler.sample(prompts, ["a", "b", "c"])
    assert first == sampler.sample(prompts, ["a", "b", "c"])
    assert first[0] != first[2]
    swapped = sampler.sample(prompts, ["c", "b", "a"])
    assert (swapped[0], swapped[1], swapped[2]) == (first[2], first[1], first[0])
    for ids in first:
        assert len(ids) <= 12
        assert tokenizer.eos_token_id not in ids[:-1]
