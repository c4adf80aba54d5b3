"""DPO for one iteration, with TRL: on the sampled token ids, against exactly M_t, with float32 adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from tpo_lite.adapters import lora_config
from tpo_lite.machine.device import Device
from tpo_lite.progress import Advance
from tpo_lite.records import Pair
from tpo_lite.settled import SettledTrain
from tpo_lite.training.checkpoints import mark_complete
from tpo_lite.training.token_log_probs import completion_log_probs

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class ThoughtDPOTrainer(DPOTrainer):
    """TRL's `DPOTrainer` with these differences, each for a reason.

    - The data set holds `prompt_ids`, `chosen_ids` and `rejected_ids` as they were sampled. TRL would tokenise text
      again, and the boundary between thought and response could move.
    - The reference log-probabilities come from one pass over the pairs before the first step, while the policy still
      *is* M_t. TRL clones the adapter for this; the clone is deleted unused.
    - Adapters stay float32. On a 4-bit base TRL casts them to bfloat16, which loses updates at small learning rates.
    - Only the logits of a few tokens are in memory at a time (`tpo_lite.training.token_log_probs`). So the mean,
      entropy and argmax of the logits, which TRL logs, are not known here.
    - Every pair of an optimizer step counts the same, so the size of micro-batches does not change what is learned.
      The Trainer averages over micro-batches, and the last one of an epoch may hold fewer pairs. TRL's likelihood term
      averages over all tokens of a micro-batch, while IRPO (arXiv 2404.19733) divides each chosen output's
      log-probability by its own length.
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
        """Return `dataset` with the reference's log-probability of each chosen and each rejected output."""
        found: dict[str, list[float]] = {"ref_chosen_logps": [], "ref_rejected_logps": []}
        size = self.args.per_device_train_batch_size
        for batch in DataLoader(dataset, size, collate_fn=self.data_collator):
            with torch.no_grad():
                log_probs = self._log_probs(self._prepare_inputs(batch)).sum(1)
            for column, half in zip(found.values(), log_probs.chunk(2), strict=True):
                column += half.tolist()
        return concatenate_datasets([dataset, Dataset.from_dict(found)], axis=1)

    def _log_probs(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return log-probabilities (2 x pairs, length - 1): first the chosen outputs, then the rejected ones."""
        base = cast(PeftModel, self.model).get_base_model()
        with self.accelerator.autocast():
            return completion_log_probs(base, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of one optimizer step, and remember how many rows they have on average."""
        micro_batches, items = super().get_batch_samples(*args)
        self._mean_rows = sum(len(batch["input_ids"]) for batch in micro_batches) / max(1, len(micro_batches))
        return micro_batches, items

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a micro-batch (DPO, arXiv 2305.18290, equation 7; with "sft", that of IRPO).

        Its mean over pairs is weighted by the micro-batch's share of the optimizer step's rows. Also records what TRL
        records of rewards and log-probabilities.
        """
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
        """Return `dataset` as it is: it holds token ids already."""
        return dataset


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once all of its files are written, so that a resume never reads half of one."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the mark."""
        mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class ShowProgress(TrainerCallback):
    """Shows the loss, and the margin if there is one, of each optimizer step in a progress display."""

    def __init__(self, advance: Advance):
        self.advance = advance

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Advance the display by one step."""
        if logs and "loss" in logs:
            margin = f" margin {logs['rewards/margins']:+.2f}" if "rewards/margins" in logs else ""
            self.advance(1, f"loss {logs['loss']:.3f}{margin}")


def trainable(base: Any, rank: int, scale: float) -> Any:
    """Return `base` with a trainable adapter of `rank` on all linear layers but the LM head."""
    return get_peft_model(base, lora_config(rank, scale))


def freeze_older_blocks(model: Any, older_rank: int) -> None:
    """Keep the first `older_rank` ranks of every layer as they are, by setting their gradients to zero."""

    def without_older(grad: torch.Tensor, dim: int) -> torch.Tensor:
        grad = grad.clone()
        grad.narrow(dim, 0, older_rank).zero_()
        return grad

    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.register_hook(lambda grad: without_older(grad, 0))
        elif ".lora_B." in name:
            parameter.register_hook(lambda grad: without_older(grad, 1))


def arguments(settings: SettledTrain, seed: int, out: Path, device: Device) -> dict[str, Any]:
    """Return the arguments of TRL's `DPOConfig` for one iteration. Checkpoints go to `out`, one per epoch."""
    return shared_arguments(settings, seed, out, device) | {
        "loss_type": ["sigmoid"] if settings.loss == "dpo" else ["sigmoid", "sft"],
        "beta": settings.beta,
        "max_length": None,  # over-long pairs were dropped earlier; truncating would cut the response that was judged
    }


def shared_arguments(settings: SettledTrain, seed: int, out: Path, device: Device) -> dict[str, Any]:
    """Return the arguments that every training has. Checkpoints go to `out`, one per epoch."""
    micro_batch = min(settings.micro_batch, settings.batch)
    return {
        "output_dir": str(out),
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
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not finite
        "save_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device == "cuda",
    }


def on_one_gpu(settings: Arguments) -> Arguments:
    """Return the Trainer's settings for one GPU. It would multiply the batch by the number of visible ones."""
    settings._n_gpu = min(1, settings.n_gpu)
    return settings


def rows(pairs: list[Pair]) -> Dataset:
    """Return a data set with the columns that TRL's collator takes."""
    return Dataset.from_list(
        [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    )


def trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    settings: SettledTrain,
    seed: int,
    out: Path,
    device: Device,
    advance: Advance,
) -> ThoughtDPOTrainer:
    """Return the trainer of one iteration.

    `model`: M_t with the adapter to train (`trainable`). Its checkpoints go to `out`; `advance` shows each step.
    """
    tuner = ThoughtDPOTrainer(
        model=model,
        args=on_one_gpu(DPOConfig(**arguments(settings, seed, out, device))),
        train_dataset=rows(pairs),
        processing_class=tokenizer,
        callbacks=[MarkComplete(), ShowProgress(advance)],
    )
    tuner.remove_callback(PrinterCallback)
    tuner.processing_class = None  # otherwise every checkpoint would hold the whole tokenizer
    return tuner
