"""A reward model as a judge: a sequence-classification model that scores one response (the paper's ArmoRM).

P(A is better) is the sigmoid of the difference of the scores: reward models are trained with this Bradley-Terry model
(InstructGPT, arXiv 2203.02155, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification

from tpo_lite.base_weights import compute_dtype, nf4
from tpo_lite.errors import InputError, OutOfMemory, TpoError, first_line, is_out_of_memory
from tpo_lite.judges.pointwise import compare_scores
from tpo_lite.judges.protocol import Item, JudgeRequest, Verdict
from tpo_lite.judges.reward_inputs import RewardInputs
from tpo_lite.machine.device import Device, check_torch, leave_room


class RewardModelJudge:
    """Scores responses with `model` (a folder or hub id); implements `tpo_lite.judges.protocol.PointwiseJudge`.

    The score is the model's only logit, or `output.score` if the model's own code provides that (ArmoRM). A batch holds
    conversations of similar length: at most `sequences` of them, and at most `context` tokens with padding. For a
    conversation longer than `context` or the model's positions, `overlong` says "drop" (label "overlong") or "truncate"
    (the middle of the response is cut out). A model without padding token scores one conversation at a time. `day` is
    the date in the chat template, as in `RewardInputs`.

    Raises `InputError` as `RewardInputs` does and for weights that are damaged or lack the score head, and
    `OutOfMemory` if they do not fit.
    """

    pointwise = True

    def __init__(
        self,
        model: str,
        quantize: Literal["none", "nf4"] = "none",
        trust_remote_code: bool = False,
        overlong: Literal["drop", "truncate"] = "drop",
        context: int = 8192,
        sequences: int = 32,
        device: Device = "cpu",
        day: date | None = None,
    ):
        check_torch(device)
        leave_room(device)
        self._inputs = RewardInputs(model, trust_remote_code, day)
        self._name, self._device, self._truncate = model, device, overlong == "truncate"
        self._model = _load(model, quantize, trust_remote_code, self._device)
        config = self._inputs.config.get_text_config()
        self._pad = config.pad_token_id
        self._context = context
        self._sequences = 1 if self._pad is None else sequences
        self.max_tokens = min(context, getattr(config, "max_position_embeddings", context))
        """The most tokens of one conversation."""
        self.tokens_decoded = 0
        """Tokens evaluated so far, without padding."""

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in the same order; see `tpo_lite.judges.protocol.Judge`."""
        return compare_scores(requests, self.scores, p_better, lambda score: f"{score:.4g}")

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return the score of each (instruction, response); None if it is too long."""
        ids = [self._inputs.fitted_ids(*item, self.max_tokens, self._truncate) for item in items]
        scores: list[float | None] = [None] * len(items)
        for batch in self._batches(ids):
            fitting = [each for index in batch if (each := ids[index]) is not None]
            for index, score in zip(batch, self._forward(fitting), strict=True):
                scores[index] = score
        return scores

    def _batches(self, ids: list[list[int] | None]) -> Iterator[list[int]]:
        """Yield the indices of the conversations that fit, the longest first: memory runs out at once or never."""
        lengths = {index: len(each) for index, each in enumerate(ids) if each is not None}
        order = sorted(lengths, key=lambda index: -lengths[index])
        while order:
            size = min(self._sequences, self._context // lengths[order[0]])
            yield order[:size]
            order = order[size:]

    @torch.inference_mode()
    def _forward(self, batch: list[list[int]]) -> list[float]:
        """Return the scores of a batch of conversations, padded to the longest."""
        longest = max(map(len, batch))
        padded = [ids + [self._pad] * (longest - len(ids)) for ids in batch]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]
        output = self._model(
            input_ids=torch.tensor(padded, device=self._device), attention_mask=torch.tensor(mask, device=self._device)
        )
        scores = output["score"] if "score" in output else output["logits"]
        if scores.numel() != len(batch):
            raise InputError(
                f"judge.model: {self._name} gives {scores.numel() // len(batch)} scores per response and names none as "
                "its `score`. Use another reward model."
            )
        self.tokens_decoded += sum(map(len, batch))
        found: list[float] = scores.flatten().tolist()
        if not all(map(math.isfinite, found)):
            raise TpoError(f"judge.model: {self._name} gives scores that are not finite numbers: replace its files.")
        return found


def p_better(a: float, b: float) -> float:
    """Return sigmoid(a - b), for scores of any size.

    >>> p_better(0.0, 0.0), p_better(1e4, 0.0), p_better(0.0, 1e4)
    (0.5, 1.0, 0.0)
    """
    return 0.5 + 0.5 * math.tanh((a - b) / 2)


def _load(model: str, quantize: str, trust_remote_code: bool, device: Device) -> Any:
    quantization = {"quantization_config": nf4(device)} if quantize == "nf4" else {}
    try:
        loaded, info = AutoModelForSequenceClassification.from_pretrained(
            model,
            dtype=compute_dtype(device),
            device_map={"": device},
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **quantization,
        )
    except (MemoryError, OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"judge.model: {model} does not fit the memory. Set judge.quantize: nf4, or use a smaller model."
            ) from error
        raise InputError(
            f"judge.model: {model} cannot be loaded ({first_line(error)}). Check that its files are complete, and "
            "check the network."
        ) from error
    if info["missing_keys"]:
        raise InputError(
            f"judge.model: {model} has no weights for {min(info['missing_keys'])}, so its scores would be random. Use "
            "a reward model."
        )
    return loaded.eval()
