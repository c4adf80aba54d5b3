"""DPO with TRL: on the sampled ids, against M_t exactly, with float32 adapters, resumable."""

import math
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from tests.helpers.tiny_model import write_tiny_model
from tpo_lite.adapters import concatenate, fresh_block, linear_shapes, read_adapter, state_dict
from tpo_lite.base_weights import load_base
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import TpoError
from tpo_lite.recipe_keys import Train
from tpo_lite.records import Pair
from tpo_lite.training.checkpoints import last_complete_checkpoint
from tpo_lite.training.course import course, first_margin_limit
from tpo_lite.training.dpo import (
    ThoughtDPOTrainer,
    arguments,
    freeze_older_blocks,
    on_one_gpu,
    rows,
    trainable,
    trainer,
)

PAIRS = [
    Pair(f"p{n}", "best-worst", [5, 6, 7 + n], [20 + n, *[30] * (1 + n % 3), 3], [40 + n, 41, 42, 3], 0, 1, 2, 3)
    for n in range(6)
]
SETTINGS = Train(learning_rate=5e-3, schedule="constant", epochs=2, batch=4, micro_batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def older_blocks(model, rank):
    """An adapter that is not zero, as after a first iteration."""
    blocks = fresh_block(linear_shapes(model), rank, "older")
    generator = torch.Generator().manual_seed(1)
    return {name: type(b)(b.a, 0.05 * torch.randn(b.b.shape, generator=generator)) for name, b in blocks.items()}


def tuner(folder, out, settings=SETTINGS, older=True, frozen=False, precision="nf4", pairs=PAIRS):
    model = trainable(load_base(folder, "cpu", precision), 4 if older else 2, 1.0)
    fresh = fresh_block(linear_shapes(model), 2, "fresh")
    start = concatenate(older_blocks(model, 2), fresh) if older else fresh
    set_peft_model_state_dict(model, state_dict(start))
    if frozen:
        freeze_older_blocks(model, 2)
    return trainer(model, load_tokenizer(folder), pairs, settings, 0, out, "cpu", lambda *_: None), start


@pytest.mark.parametrize(
    ("older", "precision"), [(False, "nf4"), (True, "nf4"), (True, "float32"), (False, "bfloat16"), (True, "bfloat16")]
)
def test_the_reference_is_the_model_that_training_starts_from(folder, tmp_path, older, precision):
    trained, _ = tuner(folder, tmp_path, older=older, precision=precision)
    trained.train()
    first = trained.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert trained.state.log_history[-2]["rewards/margins"] > 0.001  # and it learns


def test_gradients_are_those_of_the_dequantized_model(folder):
    """Some CPUs have a 4-bit kernel without a backward, which a forward pass in eval mode would switch to."""
    model = trainable(load_base(folder, "cpu", "nf4"), 2, 1.0)
    set_peft_model_state_dict(model, state_dict(older_blocks(model, 2)))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            plain.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    plain = trainable(plain, 2, 1.0)
    set_peft_model_state_dict(plain, state_dict(older_blocks(plain, 2)))
    ids = torch.tensor([PAIRS[0].prompt_ids + PAIRS[0].chosen_ids])
    with torch.no_grad():
        model.eval()(input_ids=ids)
    gradients = {}
    for key, each in (("nf4", model.train()), ("plain", plain.train())):
        each(input_ids=ids, labels=ids).loss.backward()
        gradients[key] = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
    assert gradients["nf4"].keys() == gradients["plain"].keys()
    for name, gradient in gradients["plain"].items():
        torch.testing.assert_close(gradients["nf4"][name], gradient, rtol=1e-3, atol=1e-6)


def test_the_sampled_ids_are_what_is_trained_on(folder, tmp_path):
    trained, _ = tuner(folder, tmp_path)
    batch = next(iter(torch.utils.data.DataLoader(trained.train_dataset, 1, collate_fn=trained.data_collator)))
    assert batch["input_ids"][0, :6].tolist() == PAIRS[0].prompt_ids + PAIRS[0].chosen_ids
    assert batch["input_ids"][1].tolist() == PAIRS[0].prompt_ids + PAIRS[0].rejected_ids
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("precision", ["nf4", "bfloat16"])
def test_adapters_stay_float32_and_there_is_only_one(folder, tmp_path, precision):
    trained, start = tuner(folder, tmp_path, precision=precision)
    assert set(trained.model.peft_config) == {"default"}
    lora = {name: p for name, p in trained.model.named_parameters() if "lora_" in name}
    assert {p.dtype for p in lora.values()} == {torch.float32}
    base = trained.model.get_base_model().lm_head.weight
    assert base.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    assert all(p.requires_grad for p in lora.values())
    name = next(iter(start))
    assert torch.equal(lora[f"base_model.model.{name}.lora_B.default.weight"], start[name].b)


@pytest.mark.parametrize("frozen", [True, False])
def test_older_blocks_can_be_kept(folder, tmp_path, frozen):
    trained, start = tuner(folder, tmp_path, frozen=frozen)
    trained.train()
    blocks, _ = read_adapter(max(tmp_path.glob("checkpoint-*")))
    same = all(
        torch.equal(blocks[n].a[:2], start[n].a[:2]) and torch.equal(blocks[n].b[:, :2], start[n].b[:, :2])
        for n in start
    )
    assert same is frozen
    assert any(blocks[name].b[:, 2:].any() for name in start)
    assert not list(tmp_path.glob("checkpoint-*/tokenizer*"))  # of 17 MB with Llama-3's vocabulary


def test_irpo_adds_the_likelihood_of_the_chosen_output(folder, tmp_path):
    trained, _ = tuner(folder, tmp_path, SETTINGS.model_copy(update={"loss": "irpo"}))
    trained.train()
    # The random model is all but uniform: each token costs about ln(vocabulary), on top of ln 2.
    assert trained.state.log_history[0]["loss"] > math.log(2) + 2.0


def gradients(trained, batches):
    """The loss of an optimizer step with these micro-batches, and its gradient as one vector."""
    rows = sum(len(batch["input_ids"]) for batch in batches)
    trained._mean_rows = rows / len(batches)
    model = trained.accelerator.prepare_model(trained.model.train())  # as the Trainer does: autocast
    losses = []
    for batch in batches:
        loss = trained.compute_loss(model, trained._prepare_inputs(batch)) / len(batches)
        loss.backward()
        losses.append(loss.item())
    return sum(losses), torch.cat([p.grad.flatten() for p in trained.model.parameters() if p.requires_grad])


def micro_batches(trained, size):
    return list(DataLoader(trained.train_dataset, size, collate_fn=trained.data_collator))


def leave_the_reference(model):
    """Adapters as after some training, in float32."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


def assert_same(found, expected, tolerance):
    """Losses, and gradients up to a share of their norm."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    difference = expected[1] - found[1]
    assert difference.norm() <= tolerance * expected[1].norm()


@pytest.mark.parametrize("loss", ["dpo", "irpo"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [4, 16])
def test_losses_and_gradients_are_those_of_trl(folder, tmp_path, monkeypatch, bits, tied, checkpointing, loss):
    monkeypatch.setattr("tpo_lite.training.token_log_probs.LOGIT_CHUNK", 3)
    settings = SETTINGS.model_copy(update={"loss": loss, "gradient_checkpointing": checkpointing})
    args = arguments(settings, 0, tmp_path, "cpu") | {"bf16": bits == 16}
    found, metrics = {}, {}
    for kind in (ThoughtDPOTrainer, DPOTrainer):
        monkeypatch.setattr(kind, "_prepare_dataset", lambda self, dataset, *args: dataset)
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        base = load_base(folder, "cpu", "nf4") if bits == 4 else whole
        if tied:
            base.model.embed_tokens.weight.data[:, -1] = 0  # tied, this would lift all logits to 32, coarse in 16 bits
            base.lm_head.weight = base.model.embed_tokens.weight
        model = trainable(base, 2, 1.0)
        set_peft_model_state_dict(model, state_dict(older_blocks(model, 2)))
        config = DPOConfig(**args, precompute_ref_log_probs=kind is DPOTrainer)
        trained = kind(model, args=config, train_dataset=rows(PAIRS), processing_class=load_tokenizer(folder))
        leave_the_reference(model)
        if checkpointing:
            model.gradient_checkpointing_enable()  # as the Trainer does before the first step
        # TRL's likelihood term is IRPO's for one pair at a time alone.
        found[kind] = gradients(trained, micro_batches(trained, 1 if loss == "irpo" else 2))
        metrics[kind] = {name: sum(values) for name, values in trained._metrics["train"].items()}
    assert_same(found[ThoughtDPOTrainer], found[DPOTrainer], 1e-5 if bits == 4 else 0.03)
    assert metrics[ThoughtDPOTrainer] == {
        name: pytest.approx(metrics[DPOTrainer][name], rel=1e-4 if bits == 4 else 0.03, abs=1e-6 if bits == 4 else 0.05)
        for name in metrics[ThoughtDPOTrainer]
    }


@pytest.mark.parametrize("loss", ["dpo", "irpo"])
def test_micro_batches_of_any_size_give_the_same_gradient(folder, tmp_path, loss):
    settings = SETTINGS.model_copy(update={"loss": loss})
    found = []
    for size in (1, 2, 4):
        trained, _ = tuner(folder, tmp_path, settings)
        leave_the_reference(trained.model)
        found.append(gradients(trained, micro_batches(trained, size)))  # of the last size, one holds fewer pairs
    assert_same(found[1], found[0], 1e-5)
    assert_same(found[2], found[0], 1e-5)


@pytest.mark.parametrize(
    ("optimizer", "hidden"),
    [("adamw_torch", 64), ("paged_adamw_8bit", 1024)],  # smaller layers than 4,096 numbers keep 32-bit state
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_training_killed_after_an_epoch_ends_with_the_same_adapter(tmp_path, optimizer, hidden):
    folder = str(write_tiny_model(tmp_path / "model", hidden=hidden, layers=1))
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    whole, _ = tuner(folder, tmp_path / "whole", settings)
    whole.train()
    moments = [value for state in whole.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert any(moment.dtype == torch.uint8 for moment in moments) == ("8bit" in optimizer)
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole", resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    (resumed / "checkpoint-3").mkdir()  # half written: not marked complete
    checkpoint = last_complete_checkpoint(resumed)
    assert checkpoint.name == "checkpoint-2"
    assert not (resumed / "checkpoint-3").exists()
    again, _ = tuner(folder, resumed, settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    name = "checkpoint-4/adapter_model.safetensors"
    assert (resumed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [row.get("loss") for row in again.state.log_history] == [row.get("loss") for row in whole.state.log_history]


@pytest.mark.parametrize(("visible", "used"), [(2, 1), (1, 1), (0, 0)])
def test_gpu_audit_10_a_second_visible_gpu_leaves_the_batch_as_it_is(visible, used, tmp_path):
    settings = DPOConfig(**arguments(SETTINGS, 0, tmp_path, "cpu"))
    settings._n_gpu = visible
    assert settings.train_batch_size == SETTINGS.micro_batch * max(1, visible)
    assert on_one_gpu(settings).train_batch_size == SETTINGS.micro_batch
    assert settings.n_gpu == used


def test_gpu_audit_9_rounding_in_micro_batches_is_no_other_reference(folder, tmp_path):
    """Long outputs in bfloat16, in other batches and with other padding than when the reference was computed."""
    random = torch.Generator().manual_seed(0)

    def output(length):
        return [*torch.randint(20, 60, (length,), generator=random).tolist(), 3]

    pairs = [
        Pair(f"p{n}", "best-worst", [5, 6], output(100 * n), output(450 - 50 * n), 0, 1, 2, 3) for n in range(1, 9)
    ]
    settings = SETTINGS.model_copy(update={"batch": 8, "micro_batch": 4, "epochs": 1})
    trained, _ = tuner(folder, tmp_path, settings, precision="bfloat16", pairs=pairs)
    trained.train()
    margin = abs(trained.state.log_history[0]["rewards/margins"])
    assert margin < first_margin_limit(340, settings.beta)


@pytest.mark.parametrize(
    ("tokens", "beta", "margin", "sound"),
    [
        (600, 0.1, 0.011, True),
        (500, 0.1, 0.011, False),
        (1000, 0.1, 0.019, True),
        (1000, 0.1, 0.021, False),
        (100, 0.2, 0.019, True),
        (100, 0.05, -0.009, True),
        (100, 0.05, -0.011, False),
    ],
)
def test_gpu_audit_9_the_first_margin_may_grow_with_what_is_summed(tokens, beta, margin, sound, tmp_path):
    log = [{"loss": 0.69, "rewards/margins": margin, "rewards/accuracies": 0.5}]
    limit = first_margin_limit(tokens, beta)
    if sound:
        assert course(log, tmp_path, limit).steps == 1
    else:
        with pytest.raises(TpoError, match="the reference is not the model that sampled"):
            course(log, tmp_path, limit)
