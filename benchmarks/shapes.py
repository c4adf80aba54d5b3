"""Configurations of public Llama models, with the sizes of `tpo_lite.plan.shapes`, and of a tiny one for tests.

What is added here is as in config.json of meta-llama/Llama-3.1-8B-Instruct, Llama-3.2-3B-Instruct and
Llama-3.2-1B-Instruct.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import LlamaConfig

from tpo_lite.plan.shapes import PUBLISHED

# The narrowest that Q4_K (rows of 256) and NF4 (blocks of 64) hold without padding, with Llama-3's vocabulary.
TINY = PUBLISHED["llama-3.1-8b"] | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def llama_config(sizes: dict[str, Any], rope_factor: float) -> LlamaConfig:
    """Return a Llama-3 configuration of these sizes, which are keys of config.json."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        bos_token_id=128_000,
        eos_token_id=[128_001, 128_008, 128_009],
        dtype="bfloat16",
        **{key: value for key, value in sizes.items() if key != "model_type"},
    )


SHAPES = {
    "llama-3.1-8b": llama_config(PUBLISHED["llama-3.1-8b"], rope_factor=8.0),
    "llama-3.2-3b": llama_config(PUBLISHED["llama-3.2-3b"], rope_factor=32.0),
    "llama-3.2-1b": llama_config(PUBLISHED["llama-3.2-1b"], rope_factor=32.0),
    "tiny": llama_config(TINY, rope_factor=8.0),
}


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a Llama checkpoint by name, in the order of its layers."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def parameters(config: LlamaConfig) -> int:
    """Return the number of parameters of a Llama; tied embeddings count once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())
