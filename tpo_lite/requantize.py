"""Merges an adapter into 16-bit weights on disk, one shard in memory at a time.

The merged folder is loaded in 4-bit like any other, so the quantisation noise is rolled anew; what the
update keeps of itself is measured by the fold phase. Never merges into 4-bit weights in place, where an
update of a few percent of the weight's norm is lost in the rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from tpo_lite.adapters import Blocks
from tpo_lite.errors import InputError, TpoError


def local_folder(model: str) -> Path:
    """The folder of a model's files; a hub id is downloaded into the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))


def merge_to_disk(model: str, blocks: Blocks, scale: float, out: Path) -> None:
    """Writes `model` + scale * B A in the model's own 16-bit type to `out`, shard by shard.

    A shard that is there already was written whole and is kept. Raises `InputError` if the weights are
    not safetensors or a layer of the adapter is not among them, `TpoError` if the disk is too small.
    """
    source = local_folder(model)
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise InputError(f"model: {source} holds no *.safetensors, which merge: requantize needs. Convert it, or use merge: fold.")
    out.mkdir(parents=True, exist_ok=True)
    needed = sum(shard.stat().st_size for shard in shards if not (out / shard.name).exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise TpoError(
            f"merge: requantize needs {needed / 1e9:.1f} GB under {out}, and {free / 1e9:.1f} GB are free. "
            "Free some space and run the same command again, or use merge: fold, which needs none."
        )
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy2(file, out / file.name)
    merged = set()
    for shard in shards:
        names = _layers_of(shard)
        merged |= names & blocks.keys()
        if not (out / shard.name).exists():
            _merge_shard(shard, blocks, scale, out / shard.name)
    if missing := blocks.keys() - merged:
        raise InputError(f"model: {source} has no weights for {min(missing)!r}, which the adapter changes. Is it the adapter's base?")


def _layers_of(shard: Path) -> set[str]:
    with safe_open(shard, "pt") as tensors:
        return {name.removesuffix(".weight") for name in tensors.keys()}


def _merge_shard(shard: Path, blocks: Blocks, scale: float, out: Path) -> None:
    tensors = {}
    with safe_open(shard, "pt") as source:
        metadata = source.metadata()
        for name in source.keys():
            weight = source.get_tensor(name)
            block = blocks.get(name.removesuffix(".weight"))
            if block is not None:
                weight = (weight.float() + scale * (block.b @ block.a)).to(weight.dtype)
            tensors[name] = weight
    temporary = out.with_name(out.name + ".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(out)
