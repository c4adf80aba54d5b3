"""A LoRA adapter as a GGUF file, for llama.cpp to attach to a GGUF of the same base.

llama.cpp adds alpha / rank * B A x to each layer's output, and reads the rank from the tensors. So alpha is
scale * rank. Its rotary embedding of a Llama pairs other rows of the query and key projections than that of
transformers, so the rows of their B are permuted like those of the base. The factors stay in float32: in 16 bits, the
small B after a few steps at a small learning rate would lose digits.
"""

from __future__ import annotations

from pathlib import Path

import gguf

from tpo_lite.adapters import Blocks, rank_of
from tpo_lite.llamacpp.convert import INTERLEAVED, LAYER_NAMES, interleaved


def write_adapter_gguf(
    blocks: Blocks, scale: float, heads: int, kv_heads: int, path: Path, architecture: str = "llama"
) -> None:
    """Write `blocks` to `path`; `heads` and `kv_heads` are the numbers of the base's query and key heads.

    `architecture` is that of the base, one of `tpo_lite.llamacpp.convert.LAYER_TENSORS`.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * rank_of(blocks))
    permuted = {"attn_q": heads, "attn_k": kv_heads} if architecture in INTERLEAVED else {}
    for name, block in blocks.items():
        _, _, layer, module = name.split(".", 3)  # model.layers.<layer>.<module>
        ours = LAYER_NAMES[module]
        b = block.b.numpy()
        if ours in permuted:
            b = interleaved(b, permuted[ours])
        writer.add_tensor(f"blk.{layer}.{ours}.weight.lora_a", block.a.numpy())
        writer.add_tensor(f"blk.{layer}.{ours}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
