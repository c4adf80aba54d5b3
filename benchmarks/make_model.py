"""Writes a random Llama of a public model's shape: what memory and speed depend on, without its weights.

    python -m benchmarks.make_model --shape llama-3.2-1b OUT
    python -m benchmarks.make_model --shape llama-3.1-8b OUT --device cuda --gguf Q4_K_M --gguf Q8_0

OUT becomes a checkpoint as on the hub: config, generation config, tokenizer with chat template, and bfloat16 weights
in shards of at most 5 GB, one in memory at a time. Each --gguf adds the same weights as OUT/model-TYPE.gguf. The F16
form is written on the way, so it takes the checkpoint's size on disk once more.

The tokenizer is that of --tokenizer, a folder or hub id of a Llama-3 model. Without it, one of the same size is made
(benchmarks/llama3_tokenizer.py), and nothing is downloaded.

Weights depend only on the seed and the kind of device. Matrices are normal with standard deviation 0.02, and those
that write to the residual stream are 1 / sqrt(2 layers) of that, as in GPT-2. So activations stay finite, and the
next token is close to uniform over the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig

from benchmarks.llama3_tokenizer import synthetic_tokenizer
from benchmarks.shapes import SHAPES, tensor_shapes
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import InputError, TpoError
from tpo_lite.llamacpp.convert import convert, quantize

SHARD_BYTES = 5_000_000_000
STANDARD_DEVIATION = 0.02
RESIDUAL = ("o_proj.weight", "down_proj.weight")


def make_model(
    config: LlamaConfig, out: Path, *, tokenizer: str | None = None, device: str = "cpu", seed: int = 0
) -> None:
    """Write a random checkpoint of `config` to the folder `out`.

    `tokenizer` is a folder or hub id; without one, a synthetic tokenizer is made. Raises `InputError` if it has
    another number of tokens than `config`.
    """
    words = load_tokenizer(tokenizer) if tokenizer else synthetic_tokenizer(config.vocab_size)
    if len(words) != config.vocab_size:
        raise InputError(
            f"--tokenizer: {tokenizer} has {len(words):,} tokens, and the model {config.vocab_size:,}. "
            "Give the tokenizer of a Llama-3 model."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_weights(config, out, device=device, seed=seed)
    config.save_pretrained(out)
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    GenerationConfig(**ends, **sampling).save_pretrained(out)
    words.save_pretrained(out)


def write_weights(
    config: LlamaConfig, out: Path, *, device: str = "cpu", seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write random bfloat16 weights in shards to the folder `out`, with an index where there is more than one."""
    tensors = tensor_shapes(config)
    seeds = {name: seed + index for index, name in enumerate(tensors)}
    for old in out.glob("model*.safetensors*"):  # perhaps of another shape
        old.unlink()
    shards = _shards(tensors, shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {name: _weight(name, tensors[name], config, device, seeds[name]) for name in names}
        save_file(weights, out / file, metadata={"format": "pt"})
        del weights  # before the next shard is drawn
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_bytes(shape) for shape in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_gguf(folder: Path, types: list[str]) -> list[Path]:
    """Write the checkpoint in `folder` as model-TYPE.gguf, in the same folder.

    F16 stays only if it is one of `types`.
    """
    f16 = folder / "model-F16.gguf"
    convert(folder, f16)
    made = [folder / f"model-{type}.gguf" for type in types]
    for type, path in zip(types, made, strict=True):
        if path != f16:
            quantize(f16, path, type)
    if f16 not in made:
        f16.unlink()
    return made


def _shards(tensors: dict[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    """Cut the tensors' names, in order, into shards of at most `limit` bytes."""
    shards, size = [[]], 0
    for name, shape in tensors.items():
        if shards[-1] and size + _bytes(shape) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(shape)
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * torch.bfloat16.itemsize


def _weight(name: str, shape: tuple[int, ...], config: LlamaConfig, device: str, seed: int) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    scale = STANDARD_DEVIATION
    if name.endswith(RESIDUAL):
        scale /= math.sqrt(2 * config.num_hidden_layers)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, scale, generator=generator)


def main() -> None:
    """Write the checkpoint and its GGUF forms, and print what they take on disk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", metavar="PATH|HUB_ID", help="of a Llama-3 model; default: one made here")
    parser.add_argument("--device", default="cpu", help="where weights are drawn: cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gguf", action="append", choices=["Q4_K_M", "Q8_0", "F16"], default=[], help="repeatable")
    options = parser.parse_args()
    shape, placed = SHAPES[options.shape], {"device": options.device, "seed": options.seed}
    try:
        make_model(shape, options.out, tokenizer=options.tokenizer, **placed)
    except TpoError as error:
        sys.exit(f"error: {error}")
    made = make_gguf(options.out, options.gguf) if options.gguf else []
    for path in [*sorted(options.out.glob("*.safetensors")), *made]:
        print(f"{path.stat().st_size / 1e9:6.2f} GB  {path}")


if __name__ == "__main__":
    main()
