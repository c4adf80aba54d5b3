"""One iteration's DPO with TRL: on sampled token ids, against M_t exactly, with float32 adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tpo_lite.adapters import lora_config
from tpo_lite.recipe import Train
from tpo_lite.records import Pair
from tpo_lite.training.token_log_probs import completion_log_probs

COMPLETE = "complete"
"""A file inside a checkpoint that was written to its end."""


class ThoughtDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with departures, each for a reason.

    - The data set holds `prompt_ids`, `chosen_ids`, `rejected_ids` as sampled; TRL would tokenise text
      again, and the boundary between thought and response could move.
    - The reference log-probabilities come from one pass over the pairs before the first step, while the
      policy still *is* M_t. TRL clones the adapter for it; the clone is dropped unused.
    - TRL casts adapters on a 4-bit base to bfloat16, which loses updates at small learning rates; here
      they stay float32.
    - Logits are never in memory but for a few tokens (`tpo_lite.training.token_log_probs`). TRL logs their mean, entropy
      and argmax; here these are not known.
    - Every pair of an optimizer step counts the same, so that the size of micro-batches does not change what is
      learned. The Trainer averages over micro-batches, of which the last of an epoch may hold fewer pairs; and
      TRL's likelihood term averages over a micro-batch's tokens, where IRPO (arXiv 2404.19733) divides each chosen
      output's by its own length.
    """

    def __init__(self, model: Any, **kwargs: Any):
        master = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **kwargs)
        model.delete_adapter("ref")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in master:
                    parameter.data = master[name]
        self.train_dataset = self._with_reference(self.train_dataset)

    def _with_reference(self, dataset: Dataset) -> Dataset:
        """Adds the reference's log-probability of each chosen and each rejected output."""
        found: dict[str, list[float]] = {"ref_chosen_logps": [], "ref_rejected_logps": []}
        size = self.args.per_device_train_batch_size
        for batch in DataLoader(dataset, size, collate_fn=self.data_collator):
            with torch.no_grad():
                log_probs = self._log_probs(self._prepare_inputs(batch)).sum(1)
            for column, half in zip(found.values(), log_probs.chunk(2)):
                column += half.tolist()
        return concatenate_datasets([dataset, Dataset.from_dict(found)], axis=1)

    def _log_probs(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(2 x pairs, length - 1): of the chosen outputs' tokens, then of the rejected ones'."""
        with self.accelerator.autocast():
            return completion_log_probs(
                self.model.get_base_model(), inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
            )

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        micro_batches, items = super().get_batch_samples(*args)
        self._mean_rows = sum(len(batch["input_ids"]) for batch in micro_batches) / max(1, len(micro_batches))
        return micro_batches, items

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        log_probs = self._log_probs(inputs)
        chosen, rejected = log_probs.sum(1).chunk(2)
        chosen_rewards = self.beta * (chosen - inputs["ref_chosen_logps"])
        rejected_rewards = self.beta * (rejected - inputs["ref_rejected_logps"])
        margins = chosen_rewards - rejected_rewards
        losses = -torch.nn.functional.logsigmoid(margins)
        if "sft" in self.loss_types:
            losses = losses - chosen / inputs["completion_mask"][: len(chosen), 1:].sum(1)
        metrics = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (margins > 0).float(),
            "rewards/margins": margins,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        for name, values in metrics.items():
            self._metrics["train"][name].append(values.detach().mean().item())
        return losses.mean() * (len(inputs["input_ids"]) / self._mean_rows)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


class MarkComplete(TrainerCallback):
    """Marks a checkpoint whose files are all there, so that a resume never reads half of one."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class Report(TrainerCallback):
    """Passes each optimizer step's loss and margin on to a progress display."""

    def __init__(self, advance: Any):
        self.advance = advance

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.advance(1, f"loss {logs['loss']:.3f} margin {logs['rewards/margins']:+.2f}")


def trainable(base: Any, rank: int, scale: float) -> Any:
    """`base` with a trainable adapter of `rank` on all linear layers."""
    return get_peft_model(base, lora_config(rank, scale))


def freeze_older_blocks(model: Any, older_rank: int) -> None:
    """Keeps the first `older_rank` ranks of every layer as they are: their gradients become zero."""

    def keep(grad: torch.Tensor, dim: int) -> torch.Tensor:
        grad = grad.clone()
        grad.narrow(dim, 0, older_rank).zero_()
        return grad

    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.register_hook(lambda grad: keep(grad, 0))
        elif ".lora_B." in name:
            parameter.register_hook(lambda grad: keep(grad, 1))


def arguments(settings: Train, seed: int, out: Path, device: str) -> dict[str, Any]:
    """What TRL's `DPOConfig` says for one iteration; checkpoints go to `out`, one an epoch."""
    micro_batch = min(settings.micro_batch, settings.batch)
    return {
        "output_dir": str(out),
        "loss_type": ["sigmoid"] if settings.loss == "dpo" else ["sigmoid", "sft"],
        "beta": settings.beta,
        "max_length": None,  # over-long pairs were dropped before: cutting would cut the response that was judged
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": max(1, round(settings.batch / micro_batch)),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "optim": settings.optimizer,
        "weight_decay": 0.0,
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device == "cuda",
    }


def rows(pairs: list[Pair]) -> Dataset:
    """The columns that TRL's collator takes."""
    return Dataset.from_list(
        [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    )


def trainer(
    model: Any, tokenizer: Any, pairs: list[Pair], settings: Train, seed: int, out: Path, device: str, advance: Any
) -> ThoughtDPOTrainer:
    """The trainer for one iteration."""
    tuner = ThoughtDPOTrainer(
        model=model,
        args=DPOConfig(**arguments(settings, seed, out, device)),
        train_dataset=rows(pairs),
        processing_class=tokenizer,
        callbacks=[MarkComplete(), Report(advance)],
    )
    tuner.remove_callback(PrinterCallback)
    tuner.processing_class = None  # or every checkpoint holds the whole tokenizer
    return tuner
