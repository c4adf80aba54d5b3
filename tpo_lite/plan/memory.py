"""Peak memory of the work that phases do, term by term.

Arithmetic over a model's shape and a recipe, which follows what the phases' code and the libraries below it allocate.
It assumes the longest prompts and outputs that the recipe allows, in the last iteration, whose adapter is the largest.
What arithmetic cannot give is a constant below, which says where it comes from.
"""

from __future__ import annotations

import math

from tpo_lite.kinds import Precision
from tpo_lite.llamacpp.leaves import whole_cells
from tpo_lite.machine.cards import Card
from tpo_lite.phase_order import warm_phases
from tpo_lite.plan.shapes import JudgeShape, ModelShape
from tpo_lite.plan.weights import Terms, base, compute_bytes, dequantized, gguf_bits, held_in
from tpo_lite.sampling.room import gguf_room, longest_prompt
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.room import KL_POSITIONS, LOGIT_CHUNK, longest_pair

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes per number in llama.cpp's KV cache. q8_0 takes 32 bytes and a 16-bit scale for 32 numbers."""

OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "paged_adamw_8bit": 2 * (1 + 4 / 256)}
"""Bytes of Adam's two moments per trained weight. 8-bit moments have a float32 constant for each 256."""

LOGIT_BYTES = {2: 10, 4: 8}
"""Bytes per logit while training, by the bytes of the compute type: the logit in that type, in float32 if that is
another type, and its log-probability in float32."""

GRADIENTS = 0.4
"""The extra memory of a layer's backward pass, as a share of what its forward pass kept. Measured on a CPU with torch
2.13, where shapes with Llama's proportions took 0.23 to 0.42."""

SAMPLING_LOGIT_BYTES = 40
"""Bytes per logit while a token is sampled. `tpo_lite.sampling.huggingface` sorts probabilities (4, with indices 8),
sums them (8), keeps float32 scores beside the model's own (2 + 4 + 4 + 4), and masks (6)."""

CUDA_CONTEXT = 600 << 20
"""Bytes of one process's CUDA context, with its kernels and cuBLAS workspaces. Assumed, not measured."""

ALLOCATOR_SLACK = 0.05
"""What a GPU's allocator holds beyond what is in use, as a share of everything but weights. Assumed, not measured."""


GGUF_DECODE = 512
"""Tokens per decode of the `gguf` engine."""


def sampled_rank(recipe: SettledRecipe, iteration: int) -> int:
    """Return the rank of M_t's adapter. A warm start, if the recipe may have one, makes M_0's."""
    rank, blocks = recipe.lora.rank, iteration + warm_blocks(recipe)
    warm = rank * warm_blocks(recipe) if iteration == 0 else 0
    return {"fold": blocks * rank, "continue": min(blocks, 1) * rank, "requantize": warm}[recipe.merge]


def trained_rank(recipe: SettledRecipe, iteration: int) -> int:
    """Return the rank of the adapter that iteration t trains."""
    return recipe.lora.rank * (iteration + 1 + warm_blocks(recipe) if recipe.merge == "fold" else 1)


def warm_blocks(recipe: SettledRecipe) -> int:
    """Return how many blocks of ranks a warm start adds: 1, or 0 for a recipe without."""
    return 1 if warm_phases(recipe) else 0


def with_overhead(weights: Terms, working: Terms, card: Card) -> Terms:
    """Return the terms of weights and of the work on them, and on a GPU those of the context and the allocator."""
    if not card.cuda:
        return weights | working
    slack = ALLOCATOR_SLACK * sum(working.values())
    return weights | working | {"CUDA context": CUDA_CONTEXT, "allocator slack": slack}


def forward_bytes(model: ModelShape, card: Card, rank: int, precision: Precision) -> float:
    """Return the bytes per token of one layer's forward pass without gradients, at its widest, the MLP's `up`.

    The residual, the norm's output and `silu(gate)` are in memory beside the projection. With an adapter, outside
    autocast, peft computes in the adapter's float32: its input, its output and the scaled output.
    """
    c, h, i = compute_bytes(card, precision), model.hidden, model.intermediate
    return c * (2 * h + 2 * i) + (4 * h + 8 * i if rank else 0)


def rows_sampled(recipe: SettledRecipe, k: int) -> int:
    """Return how many sequences are in the KV cache at a time when each prompt is sampled `k` times."""
    batch = recipe.sampling.batch
    return max(1, batch // k) * k if recipe.engine == "unsloth" else batch


def sampling(recipe: SettledRecipe, model: ModelShape, card: Card, k: int, rank: int) -> Terms:
    """Return the terms of sampling `k` outputs per prompt, all of the longest length.

    The peak is either the forward pass over the prompts or the last steps. In those, a layer's cache is copied to grow
    by a token, and its keys and values are repeated for all heads, since left padding needs a mask. unsloth's
    `generate` computes a prompt once for each of its rows, the loop of `tpo_lite.sampling.huggingface` only once.
    """
    if recipe.engine == "gguf":
        return sampling_gguf(recipe, model, card, rank)
    precision = held_in(recipe, card)
    c = compute_bytes(card, precision)
    rows, prompt = rows_sampled(recipe, k), longest_prompt(recipe)
    start = c * model.kv_elements(rows * prompt)
    full = c * model.kv_elements(rows * (prompt + recipe.sampling.max_new_tokens))
    prompts = rows if recipe.engine == "unsloth" else math.ceil(rows / k)
    prefill = prompts * prompt * forward_bytes(model, card, rank, precision)
    step = full / model.layers * (0.5 + model.heads / model.kv_heads)
    cache, activations = max((start, prefill), (full, step), key=sum)
    working = {
        "LoRA": 4 * model.lora_parameters(rank),
        "KV cache": cache,
        "activations": activations + dequantized(model, card, precision),
        "logits": SAMPLING_LOGIT_BYTES * rows * model.vocabulary,
    }
    return with_overhead(base(model, card, precision), working, card)


def sampling_gguf(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int) -> Terms:
    """Return the terms of sampling in llama.cpp: weights of a GGUF and the adapter in float32."""
    parameters = model.parameters if model.tied or not card.cuda else model.parameters - model.embedding_parameters
    sequences, cells = gguf_room(recipe)
    working = {
        "LoRA": 4 * model.lora_parameters(rank),
        "KV cache": KV_BYTES["f16"] * model.kv_elements(cells),
        "activations": compute_buffer(model, GGUF_DECODE, cells),
        "logits": 4 * sequences * model.vocabulary,
    }
    return with_overhead({"GGUF weights": parameters * gguf_bits(recipe) / 8}, working, card)


def compute_buffer(model: ModelShape, batch: int, cells: int) -> float:
    """Return the bytes of llama.cpp's buffer for decodes of `batch` tokens with flash attention.

    It holds about three times a layer's widest rows in float32, and the 16-bit mask of every token against every cell.
    """
    return batch * (12 * (model.hidden + model.intermediate) + 2 * cells)


def judging(recipe: SettledRecipe, judge: JudgeShape | None, card: Card) -> Terms:
    """Return the terms of judging; none for a judge behind a server.

    llama.cpp has `judge.context` KV cells and decodes `judge.batch` tokens at a time. With a q8_0 cache, its flash
    attention unpacks a layer's keys and values to 16 bits. A reward model has batches of `judge.context` tokens.
    """
    if judge is None:
        return {}
    settings, model = recipe.judge, judge.model
    if settings.mode == "reward-model":
        whole: Terms = {"judge weights": compute_bytes(card, "nf4") * model.parameters}
        working = {
            "activations": settings.context * forward_bytes(model, card, 0, "nf4") + dequantized(model, card, "nf4")
        }
        return with_overhead(whole if settings.quantize == "none" else base(model, card, "nf4"), working, card)
    on_card = share_on_card(recipe, judge, card)
    cells = whole_cells(settings.context)
    kv = model.kv_elements(cells)
    unpacked = 2 * kv / model.layers if settings.kv_type == "q8_0" else 0
    working = {
        "KV cache": on_card * kv * KV_BYTES[settings.kv_type],
        "activations": compute_buffer(model, settings.batch, cells) + unpacked,
        "logits": 4 * settings.sequences * model.vocabulary,
    }
    weights = {"judge weights": on_card * (judge.gpu_bytes if card.cuda else judge.file_bytes)}
    return with_overhead(weights, working, card)


def share_on_card(recipe: SettledRecipe, judge: JudgeShape, card: Card) -> float:
    """Return the share of a GGUF judge's layers that is on the device. Without a GPU it is all of them."""
    layers = recipe.judge.gpu_layers
    if layers < 0 or not card.cuda or recipe.judge.mode == "reward-model":
        return 1.0
    return min(1.0, layers / judge.model.layers)


def judge_ram(recipe: SettledRecipe, judge: JudgeShape | None, card: Card) -> float:
    """Return the bytes of RAM that a judge needs beside a GPU.

    They hold the token embedding, the layers that `judge.gpu_layers` leaves to the host, and their share of the KV
    cache.
    """
    if judge is None or not card.cuda:
        return 0.0
    on_card = share_on_card(recipe, judge, card)
    cache = KV_BYTES[recipe.judge.kv_type] * judge.model.kv_elements(whole_cells(recipe.judge.context))
    return judge.file_bytes - on_card * judge.gpu_bytes + (1 - on_card) * cache


def saved_bytes(model: ModelShape, rank: int, compute: int, length: int) -> int:
    """Return the bytes per token that one layer keeps for the backward pass of its adapters.

    `length`: of the padded sequences. A frozen linear layer keeps nothing of its input, an adapter does. In float32
    (h hidden, i intermediate):

        2 norms          their input, and a number per token    8 h + 8

    And in the compute type (q = heads * head_dim; a padded batch needs a mask, for which keys and values are repeated
    for all heads):

        q, k, v          the norm's output, shared              h
        attention        queries, keys, values, output          4 q     (and log-sum-exp: 4 bytes per head)
                         the mask, one row                      length
        o                the attention's output, shared         -
        gate, up         the norm's output, shared              h
        silu, product    gate; silu(gate) and up                3 i
        down             the product                            i
        7 adapters       A x                                    7 r
    """
    h, i, q = model.hidden, model.intermediate, model.heads * model.head_dim
    return 8 * h + 8 + 4 * model.heads + compute * (2 * h + 4 * q + length + 4 * i + 7 * rank)


def supervising(recipe: SettledRecipe, model: ModelShape, card: Card) -> Terms:
    """Return the terms of a warm start's training: like those of DPO, with the rows and the length of its examples."""
    warm = recipe.warm_start
    rows = min(2 * recipe.train.micro_batch, warm.batch)
    length = min(longest_pair(recipe), longest_prompt(recipe) + warm.thought_tokens + warm.response_tokens)
    return learning(recipe, model, card, recipe.lora.rank, rows, length)


def training(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int) -> Terms:
    """Return the terms of DPO on the longest pairs, with both sides of `train.micro_batch` pairs in one pass.

    Adapters and their gradients are float32, Adam's moments float32 or 8-bit. With CUDA, autocast keeps a bfloat16
    copy of the adapters. The pass for the reference comes before all this and has no gradients.
    """
    rows = 2 * min(recipe.train.micro_batch, recipe.train.batch)
    return learning(recipe, model, card, rank, rows, longest_pair(recipe))


def learning(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int, rows: int, length: int) -> Terms:
    """Return the terms of training an adapter on `rows` sequences of `length` tokens in one pass."""
    settings = recipe.train
    weights = model.lora_parameters(rank)
    precision = held_in(recipe, card)
    c = compute_bytes(card, precision)
    activations, logits = step_bytes(model, rank, c, rows, length, settings.gradient_checkpointing)
    working = {
        "LoRA": weights * (4 + (2 if card.cuda else 0)),
        "LoRA gradients": weights * 4,
        "optimizer": weights * OPTIMIZER_BYTES[settings.optimizer],
        "activations": activations + dequantized(model, card, precision),
        "logits": logits,
    }
    return with_overhead(base(model, card, precision), working, card)


def step_bytes(
    model: ModelShape, rank: int, compute: int, rows: int, length: int, checkpointing: bool
) -> tuple[float, float]:
    """Return the bytes of activations and of what the LM head needs, at the peak of a forward and backward pass.

    Between the two passes come the head and the loss: logits of some tokens, and hidden states and gradients of all.
    With gradient checkpointing each layer keeps only its input and is computed again when its turn comes. The peak is
    either at the head or in the backward pass of the last layer.
    """
    tokens = rows * length
    layer = tokens * saved_bytes(model, rank, compute, length)
    head = min(tokens, LOGIT_CHUNK) * model.vocabulary * LOGIT_BYTES[compute] + 3 * tokens * compute * model.hidden
    if checkpointing:
        saved, backward = tokens * model.layers * compute * model.hidden, (1 + GRADIENTS) * layer
    else:
        saved, backward = model.layers * layer, GRADIENTS * layer
    return (saved + backward, 0.0) if backward > head else (saved, head)


def folding(recipe: SettledRecipe, model: ModelShape, card: Card, rank: int) -> Terms:
    """Return the terms of the base, the trained adapter and the one that the next iteration starts from.

    Sequences are read one at a time. The peak is either a sequence's logits or the norm of the largest weight, which is
    computed in float64.
    """
    after = {"fold": rank + recipe.lora.rank, "continue": rank, "requantize": 0}[recipe.merge]
    precision = held_in(recipe, card)
    tokens = longest_prompt(recipe) + KL_POSITIONS
    logits = tokens * model.vocabulary * compute_bytes(card, precision) + KL_POSITIONS * model.vocabulary * 8
    norm = 16 * max(a * b for a, b in model.linears)
    activations = tokens * forward_bytes(model, card, rank, precision) + dequantized(model, card, precision)
    working = {
        "LoRA": 4 * (model.lora_parameters(rank) + model.lora_parameters(after)),
        "activations": activations + max(0, norm - logits),
        "logits": logits,
    }
    return with_overhead(base(model, card, precision), working, card)
