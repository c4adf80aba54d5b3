"""Log-probabilities a few tokens at a time: those of the model's own logits, which are never whole in memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from tpo_lite.training.token_log_probs import completion_log_probs

VOCABULARY = 1000
SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": VOCABULARY,
}  # fmt: skip
IDS = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[1] * 12, [1] * 9 + [0] * 3])
COMPLETION = torch.tensor([[0] * 3 + [1] * 9, [0] * 5 + [1] * 4 + [0] * 3])


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        parameter.requires_grad_("o_proj" in name)  # a head that is trained would get no gradient
    return model


def of_whole_logits(model):
    logits = model(input_ids=IDS, attention_mask=PADDED).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, IDS[:, 1:, None]).squeeze(-1)
    return log_probs * COMPLETION[:, 1:]


def gradient(model, log_probs):
    weight = model.base_model.layers[0].self_attn.o_proj.weight
    each = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
    return torch.autograd.grad((each * log_probs).sum(), weight)[0]


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        Gemma2Config(**SMALL, final_logit_softcapping=2.0),
        CohereConfig(**SMALL, logit_scale=0.3),
        GraniteConfig(**SMALL, logits_scaling=3.0),
    ],
    ids=lambda config: config.model_type,
)
def test_log_probs_and_gradients_are_those_of_the_models_own_logits(monkeypatch, config, chunk):
    monkeypatch.setattr("tpo_lite.training.token_log_probs.LOGIT_CHUNK", chunk)
    model = random_model(config)
    found, expected = completion_log_probs(model, IDS, PADDED, COMPLETION), of_whole_logits(model)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected))
    with torch.no_grad():
        assert torch.equal(completion_log_probs(model, IDS, PADDED, COMPLETION), found)
    assert model(input_ids=IDS).logits.shape == (2, 12, VOCABULARY)  # the model is left as it was


class Largest(TorchDispatchMode):
    """The most numbers that any tensor held."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def test_no_more_logits_than_those_of_a_chunk_are_in_memory(monkeypatch):
    monkeypatch.setattr("tpo_lite.training.token_log_probs.LOGIT_CHUNK", 2)
    model = random_model(LlamaConfig(**SMALL | {"hidden_size": 2, "head_dim": 2}))
    with Largest() as ours:
        completion_log_probs(model, IDS, PADDED, COMPLETION).sum().backward()
    with Largest() as whole:
        of_whole_logits(model).sum().backward()
    assert ours.numbers == 2 * VOCABULARY
    assert whole.numbers > 20 * VOCABULARY
