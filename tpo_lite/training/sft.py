"""Supervised training of a warm start, with TRL: on the token ids of outputs, with float32 adapters."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from tpo_lite.adapters import WEIGHTS, linear_shapes, read_adapter, state_dict, write_adapter
from tpo_lite.base_weights import load_base
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import TpoError
from tpo_lite.files import write_json
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.progress import Advance, progress
from tpo_lite.records import Example
from tpo_lite.sampling.policy import Policy
from tpo_lite.settled import SettledRecipe, SettledTrain
from tpo_lite.training.blocks import with_fresh_block
from tpo_lite.training.checkpoints import COMPLETE, drop_optimizer_state, last_complete_checkpoint, step_of
from tpo_lite.training.dpo import MarkComplete, ShowProgress, on_one_gpu, shared_arguments, trainable

IGNORED = -100
"""The label of a token that is read and not learned (torch's `ignore_index`)."""


@dataclass(frozen=True)
class Supervised:
    """The course of supervised training."""

    first_loss: float
    """Loss of the first optimizer step, in nats per token."""
    last_loss: float
    """Loss of the last optimizer step."""
    steps: int
    """Optimizer steps."""


class ExampleTrainer(SFTTrainer):
    """TRL's `SFTTrainer` whose adapters stay float32. On a 4-bit base TRL casts them to bfloat16."""

    def __init__(self, model: Any, **kwargs: Any):
        master = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **kwargs)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in master:
                    parameter.data = master[name]


def train_on_examples(
    base: Policy,
    examples: Sequence[Example],
    recipe: SettledRecipe,
    out: Path,
    *,
    arm: Arm = "thinking",
    steps: int | None = None,
    device: Device = "cpu",
) -> Supervised:
    """Train an adapter on `base` to write the outputs of `examples`; write it to OUT/adapter, and OUT/log.json.

    The loss is that of the outputs' tokens alone. `steps`: optimizer steps; None: `warm_start.epochs` passes. Training
    that was stopped goes on after its last complete checkpoint, in OUT/train. Raises `TpoError` if it diverges.
    """
    settings = settings_of(recipe)
    model = trainable(
        load_base(base.model, device, recipe.precision(device)), recipe.lora.rank, recipe.lora.alpha / recipe.lora.rank
    )
    blocks = with_fresh_block(linear_shapes(model), None, recipe, arm, "warm_start")
    set_peft_model_state_dict(model, state_dict(blocks))
    work = out / "train"
    if any(not (mark.parent / WEIGHTS).exists() for mark in work.glob(f"checkpoint-*/{COMPLETE}")):
        shutil.rmtree(work)  # someone deleted a damaged checkpoint, which a resume would not make again
    resume = last_complete_checkpoint(work)
    steps = steps or steps_of(recipe, len(examples))
    with progress(f"{arm} warm start", steps, "steps", step_of(resume.name) if resume else 0) as advance:
        tuner = trainer(
            model, load_tokenizer(base.model), examples, settings, recipe.seed, steps, work, device, advance
        )
        tuner.train(resume_from_checkpoint=str(resume) if resume else None)
    log = [row for row in tuner.state.log_history if "loss" in row]
    if not math.isfinite(log[-1]["loss"]):
        raise TpoError("the warm start diverged (the loss is not finite). Lower warm_start.learning_rate, with --new.")
    write_json(out / "log.json", tuner.state.log_history)
    last = last_complete_checkpoint(work)
    assert last is not None  # TRL saves one after every epoch
    shutil.rmtree(out / "adapter", ignore_errors=True)
    write_adapter(out / "adapter", *read_adapter(last), base.model, like=last)
    drop_optimizer_state(work)
    return Supervised(log[0]["loss"], log[-1]["loss"], len(log))


def steps_of(recipe: SettledRecipe, examples: int) -> int:
    """Return the optimizer steps of a warm start on so many examples."""
    return recipe.warm_start.epochs * math.ceil(examples / recipe.warm_start.batch)


def settings_of(recipe: SettledRecipe) -> SettledTrain:
    """Return the settings of a warm start: its own epochs, batch and learning rate, the others those of `train`.

    A pair of `train.micro_batch` is two rows, an example one. So twice as many examples fit the memory of a pass.
    """
    warm, train = recipe.warm_start, recipe.train
    rows = next(rows for rows in range(min(2 * train.micro_batch, warm.batch), 0, -1) if warm.batch % rows == 0)
    own = {"epochs": warm.epochs, "batch": warm.batch, "learning_rate": warm.learning_rate, "micro_batch": rows}
    return train.model_copy(update=own)


def rows(examples: Sequence[Example]) -> Dataset:
    """Return a data set with the columns that TRL's collator takes; a prompt's tokens have no label."""
    return Dataset.from_list(
        [
            {"input_ids": x.prompt_ids + x.output_ids, "labels": [IGNORED] * len(x.prompt_ids) + x.output_ids}
            for x in examples
        ]
    )


def trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: SettledTrain,
    seed: int,
    steps: int,
    out: Path,
    device: Device,
    advance: Advance,
) -> ExampleTrainer:
    """Return the trainer of a warm start. Its checkpoints go to `out`; `advance` shows each step."""
    own = {
        "loss_type": "chunked_nll",  # logits of a few tokens at a time, and of no prompt
        "max_length": None,  # cutting the end of an output would teach the model not to end
        "max_steps": steps,
        "dataset_kwargs": {"skip_prepare_dataset": True},  # it holds token ids already
    }
    tuner = ExampleTrainer(
        model=model,
        args=on_one_gpu(SFTConfig(**shared_arguments(settings, seed, out, device) | own)),
        train_dataset=rows(examples),
        processing_class=tokenizer,
        callbacks=[MarkComplete(), ShowProgress(advance)],
    )
    tuner.remove_callback(PrinterCallback)
    tuner.processing_class = None  # otherwise every checkpoint would hold the whole tokenizer
    return tuner
