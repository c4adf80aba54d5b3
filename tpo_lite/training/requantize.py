"""Merges an adapter into 16-bit weights on disk, one tensor in memory at a time.

The merged folder is loaded in 4-bit like any other, so the quantisation noise is rolled anew; what the
update keeps of itself is measured by the fold phase and by `tpo-lite merge-report`.

Two bases can be merged into. `w16`, the default: the original 16-bit weights. The new noise is some
percent of a weight's norm, but it knows nothing of the update, which is kept. `nf4`: the dequantised 4-bit
weights, which the adapter was trained on. In 16-bit the merge is then nearly exact, and such a folder serves well
in 16-bit; but its weights lie on NF4's grid still, moved by an update that is small against the grid's steps, so
that loading it in 4-bit rounds most of the update away again. (So it does where the original weights are
dequantised 4-bit ones themselves.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors import safe_open

from tpo_lite.adapters import Block, Blocks
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json, write_json
from tpo_lite.hub import OTHER_FILES, local_folder
from tpo_lite.safetensors_files import read_header

CHECKSUMS = "checksums.json"
"""The file beside the merged shards with the SHA-256 of each by its name; read by the next merge, into this model."""

INDEX = "model.safetensors.index.json"
"""The file that says which shard holds each tensor of a model."""


MergeBase = Literal["w16", "nf4"]


def merge_to_disk(model: str, blocks: Blocks, scale: float, out: Path, base: MergeBase = "w16") -> None:
    """Writes `model` + scale * B A in the model's own types to `out`, shard by shard, and verifies each.

    Goes on where it was stopped: a shard with which nothing is wrong is kept. Raises `InputError` if the weights
    are not safetensors, one that the model's index names is missing or a layer of the adapter is not among them,
    `TpoError` if the disk is too small, a shard comes out wrong, or one of a `model` that was itself written here has
    changed since.
    """
    source = local_folder(model)
    shards = _shards(source)
    sums = read_json(source / CHECKSUMS) if (source / CHECKSUMS).exists() else {}
    for shard in shards:
        if shard.name in sums and _checksum(shard) != sums[shard.name]:
            raise TpoError(
                f"{shard} is damaged: its checksum is not that in {CHECKSUMS}. "
                "Delete it and run the same command again."
            )
    layers = {name.removesuffix(".weight") for shard in shards for name in read_header(shard)[1]}
    if unknown := blocks.keys() - layers:
        raise InputError(
            f"model: {source} has no weights for {min(unknown)!r}, which the adapter changes. Is it the adapter's base?"
        )
    out.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if whats_wrong(out / shard.name, shard, blocks, scale, base)]
    for left in [*(out / shard.name for shard in missing), *out.glob("*.tmp")]:  # of what was stopped, half a shard
        left.unlink(missing_ok=True)
    needed = sum(shard.stat().st_size for shard in missing)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise TpoError(
            f"merge: requantize needs {needed / 1e9:.1f} GB under {out}, and {free / 1e9:.1f} GB are free. "
            "Free some space and run the same command again, or use merge: fold, which needs none."
        )
    for file in (file for pattern in OTHER_FILES for file in source.glob(pattern)):
        if file.name != CHECKSUMS:
            shutil.copy2(file, out / file.name)
    for shard in missing:
        _merge_shard(shard, blocks, scale, out / shard.name, base)
        if wrong := whats_wrong(out / shard.name, shard, blocks, scale, base):
            raise TpoError(
                f"{out / shard.name} came out wrong: {wrong}. Check disk and memory, and run the same command again."
            )
    write_json(out / CHECKSUMS, {shard.name: _checksum(out / shard.name) for shard in shards})


def _shards(source: Path) -> list[Path]:
    """The files with a model's weights. Raises `InputError` for one that has none, and where a tensor is missing."""
    index = source / INDEX
    if not index.exists():
        shards = sorted(source.glob("*.safetensors"))
        if not shards:
            raise InputError(
                f"model: {source} holds no *.safetensors, which merge: requantize needs. "
                "Convert it, or use merge: fold."
            )
        return shards
    placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = [source / name for name in sorted(set(placed.values()))]
    there = {name for shard in shards if shard.exists() for name in read_header(shard)[1]}
    if missing := placed.keys() - there:
        raise InputError(
            f"model: {source} has no weights for {min(missing)!r}, which {INDEX} names. Download it again."
        )
    return shards


def _merge_shard(shard: Path, blocks: Blocks, scale: float, out: Path, base: MergeBase) -> None:
    """Writes one shard under the original's header: the same tensors, of the same types, at the same places."""
    temporary = out.with_name(out.name + ".tmp")
    header, entries = read_header(shard)
    with temporary.open("wb") as file:
        file.write(header)
        for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
            weight = _tensor(shard, name)
            block = blocks.get(name.removesuffix(".weight"))
            if block is not None:
                weight = _merged(weight, block, scale, base).to(weight.dtype)
            file.write(weight.view(-1).view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out)


def whats_wrong(merged: Path, shard: Path, blocks: Blocks, scale: float, base: MergeBase = "w16") -> str | None:
    """Reads a merged shard back and holds it against the original and the adapter; None if all is well.

    Each tensor must be there with its shape and type. One that the adapter does not change must be equal; each
    weight of one that it changes must be the sum to within a unit in its last place, so that the logits of the two
    models differ by this rounding alone.
    """
    header, entries = read_header(shard)
    if not merged.exists():
        return "it is missing"
    with merged.open("rb") as file:
        if merged.stat().st_size != shard.stat().st_size or file.read(len(header)) != header:
            return "it does not hold the tensors of the original"
    for name in entries:
        before, after = _tensor(shard, name), _tensor(merged, name)
        block = blocks.get(name.removesuffix(".weight"))
        if not (torch.equal(before, after) if block is None else _rounded(after, _merged(before, block, scale, base))):
            return f"{name} is not what base and adapter make it"
    return None


def _merged(weight: torch.Tensor, block: Block, scale: float, base: MergeBase) -> torch.Tensor:
    """weight (out, in), of the base chosen, + scale * B A, in float32."""
    full = weight.float()
    if base == "nf4":
        full = dequantize_4bit(*quantize_4bit(full, quant_type="nf4", compress_statistics=True))
    return torch.addmm(full, block.b, block.a, alpha=scale)


def _rounded(weight: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether `weight` is `exact`, rounded once to its own type: half to one unit in its last place away at most.

    Not by comparing with `exact` rounded: its float32 sums may have been made in another order.
    """
    kind = torch.finfo(weight.dtype)
    # Below the smallest normal number the steps no longer shrink.
    step = exact.abs().clamp_(min=kind.smallest_normal).mul_(kind.eps / 2)
    return bool((exact.sub_(weight.float()).abs_() <= step).all())


def _tensor(shard: Path, name: str) -> torch.Tensor:
    """One tensor. The file is opened for it alone: one that stays open keeps all that was read of it in memory."""
    with safe_open(shard, "pt") as file:
        return file.get_tensor(name)


def _checksum(file: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
