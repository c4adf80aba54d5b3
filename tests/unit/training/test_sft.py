"""The supervised training of a warm start: on the outputs' tokens alone, seeded, resumable, on the base as it is."""

from contextlib import contextmanager

import pytest
import torch

from tests.helpers.tiny_model import write_tiny_model
from tpo_lite.adapters import read_adapter
from tpo_lite.base_weights import load_base
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import TpoError
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.records import Example
from tpo_lite.sampling.policy import Policy
from tpo_lite.settled import as_settled
from tpo_lite.training import sft
from tpo_lite.training.blocks import with_fresh_block
from tpo_lite.training.dpo import trainable
from tpo_lite.training.sft import rows, settings_of, train_on_examples, trainer

EXAMPLES = [Example(f"p{n}", 0, [5, 6, 7 + n], [20 + n, *[30] * (1 + n % 3), 3]) for n in range(6)]
KEYS = {
    "lora.rank": 2,
    "warm_start.batch": 4,
    "warm_start.epochs": 3,
    "warm_start.learning_rate": 5e-3,
}
RECIPE = as_settled(with_keys(load_recipe("embedded"), KEYS))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The folder of a warm start, and its course."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_on_examples(base, EXAMPLES, RECIPE, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return Policy(str(write_tiny_model(folder)), None, folder)


def loss(base, examples, adapter=None):
    """Mean negative log-probability of the outputs' tokens, by transformers alone."""
    model = load_base(base.model, "cpu", "nf4")
    if adapter is not None:
        model.load_adapter(str(adapter))
    total, tokens = 0.0, 0
    for x in examples:
        ids = torch.tensor([x.prompt_ids + x.output_ids])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, len(x.prompt_ids) - 1 : -1].log_softmax(-1)
        total -= log_probs.gather(-1, torch.tensor(x.output_ids)[:, None]).sum().item()
        tokens += len(x.output_ids)
    return total / tokens


def test_the_outputs_become_likely(base, trained):
    folder, course = trained
    assert course.steps == 6
    assert loss(base, EXAMPLES, folder / "adapter") < loss(base, EXAMPLES) - 0.05


def test_the_first_loss_is_that_of_the_base_over_the_outputs_tokens(base, tmp_path):
    """All examples in one optimizer step, in micro-batches of unequal lengths."""
    recipe = with_keys(RECIPE, {"warm_start.batch": 6, "train.micro_batch": 1})
    assert train_on_examples(base, EXAMPLES, recipe, tmp_path).first_loss == pytest.approx(
        loss(base, EXAMPLES), rel=1e-3
    )


def test_the_ids_are_trained_on_as_they_are(base, tmp_path):
    model = trainable(load_base(base.model, "cpu", "nf4"), 2, 1.0)
    tuner = trainer(
        model, load_tokenizer(base.model), EXAMPLES, settings_of(RECIPE), 0, 2, tmp_path, "cpu", lambda *_: None
    )
    batch = tuner.data_collator([tuner.train_dataset[0], tuner.train_dataset[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 20, 30, 3, 4], [5, 6, 8, 21, 30, 30, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 20, 30, 3, -100], [-100, -100, -100, 21, 30, 30, 3]]
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_training_that_was_stopped_ends_with_the_same_adapter(base, trained, tmp_path, monkeypatch):

    @contextmanager
    def stops_at_the_fifth_step(*_):
        steps = iter(range(1, 5))
        yield lambda *_: next(steps)

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(sft, "progress", stops_at_the_fifth_step)
        train_on_examples(base, EXAMPLES, RECIPE, tmp_path / "stopped")
    assert len(list(tmp_path.glob("stopped/train/checkpoint-*/complete"))) == 2
    train_on_examples(base, EXAMPLES, RECIPE, tmp_path / "stopped")
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_the_block_is_not_that_of_the_first_iteration(base, tmp_path):
    """Both would begin with the same A, if the same key drew it."""
    recipe = with_keys(RECIPE, {"warm_start.learning_rate": 1e-12, "warm_start.batch": 6, "warm_start.epochs": 1})
    train_on_examples(base, EXAMPLES, recipe, tmp_path)
    blocks, scale = read_adapter(tmp_path / "adapter")
    shapes = {name: (block.a.shape[1], block.b.shape[0]) for name, block in blocks.items()}
    first = with_fresh_block(shapes, None, recipe, "thinking", 0)
    assert scale == RECIPE.lora.alpha / 2
    assert not any(torch.allclose(blocks[name].a, first[name].a, atol=1e-3) for name in blocks)


def test_more_steps_than_examples_have_and_divergence(base, tmp_path):
    assert train_on_examples(base, EXAMPLES[:4], RECIPE, tmp_path / "more", steps=5).steps == 5
    with pytest.raises(TpoError, match="diverged"):
        train_on_examples(base, EXAMPLES, with_keys(RECIPE, {"warm_start.learning_rate": 1e30}), tmp_path / "nan")


@pytest.mark.parametrize(
    ("micro_batch", "batch", "rows_a_pass"), [(1, 8, 2), (8, 8, 8), (3, 8, 4), (2, 6, 3), (1, 1, 1)]
)
def test_rows_of_a_pass_divide_the_batch(micro_batch, batch, rows_a_pass):
    recipe = with_keys(RECIPE, {"train.batch": 24, "train.micro_batch": micro_batch, "warm_start.batch": batch})
    assert settings_of(recipe).micro_batch == rows_a_pass


def test_a_prompt_has_no_label():
    assert rows(EXAMPLES[:1])[0] == {"input_ids": [5, 6, 7, 20, 30, 3], "labels": [-100, -100, -100, 20, 30, 3]}
