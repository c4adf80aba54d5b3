"""What a model's weights take: those of the base in each precision, and those of a GGUF file."""

from __future__ import annotations

from tpo_lite.hub import is_gguf
from tpo_lite.kinds import Precision
from tpo_lite.machine.cards import Card
from tpo_lite.plan.shapes import GGUF_BITS, ModelShape
from tpo_lite.settled import SettledRecipe

NF4_BITS = 4.0
STATE_BITS = 8 / 64 + 32 / (64 * 256)
"""Bits per weight of NF4 with double quantization (QLoRA, section 3): the weight, and its share of an 8-bit constant
for each 64 weights and a float32 constant for each 256 of those."""

CPU_SLACK = 0.3
"""What a CPU's allocator does not give back, as a share of the base: from tensors that were in 16 and 32 bits while
they were loaded, and from layers that were unpacked. 0.1 to 0.4 were measured at Llama-3.2-1B's shape. At the 3B shape,
4.84 GiB were planned for dpo with this value, and it took 4.54."""

Terms = dict[str, float]
"""Bytes by their purpose."""


def held_in(recipe: SettledRecipe, card: Card) -> Precision:
    """Return what the base's linear layers are held in on the card."""
    return recipe.precision("cuda" if card.cuda else "cpu")


def compute_bytes(card: Card, precision: Precision) -> int:
    """Return the bytes of a number in the compute type: of an NF4 base, bfloat16 with CUDA and float32 on a CPU."""
    if precision == "nf4":
        return 2 if card.cuda else 4
    return 2 if precision == "bfloat16" else 4


def linear_bytes(model: ModelShape, precision: Precision) -> Terms:
    """Return the terms of the weights of the linear layers."""
    if precision != "nf4":
        return {"linear weights": model.linear_parameters * (2.0 if precision == "bfloat16" else 4.0)}
    return {
        "NF4 weights": model.linear_parameters * NF4_BITS / 8,
        "quantization state": model.linear_parameters * STATE_BITS / 8,
    }


def base(model: ModelShape, card: Card, precision: Precision) -> Terms:
    """Return the terms of the base, whose embedding, LM head and norms are never quantized."""
    weights = linear_bytes(model, precision)
    weights |= {"embedding, head, norms": model.other_parameters * compute_bytes(card, precision)}
    return weights if card.cuda else weights | {"allocator slack": CPU_SLACK * sum(weights.values())}


def dequantized(model: ModelShape, card: Card, precision: Precision) -> float:
    """Return the bytes of the largest linear layer in the compute type: bitsandbytes unpacks one at a time."""
    if precision != "nf4":
        return 0.0
    return compute_bytes(card, precision) * max(a * b for a, b in model.linears)


def gguf_bits(recipe: SettledRecipe) -> float:
    """Return the bits per weight of what engine gguf samples. A GGUF that is M_0 is taken for a Q4_K_M."""
    return GGUF_BITS["Q4_K_M" if is_gguf(recipe.model) else recipe.gguf_type]
