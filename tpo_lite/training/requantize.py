"""Merging an adapter into 16-bit weights on disk, one tensor in memory at a time (`merge: requantize`).

The merged folder is loaded in 4-bit like any other model, so its weights are rounded anew. How much of the update
survives that is measured by the fold phase and by `tpo-lite merge-report`.

There are two bases to merge into:

- `w16`, the default: the original 16-bit weights. The new rounding error is some percent of a weight's norm, but it is
  independent of the update, which survives.
- `nf4`: the dequantized 4-bit weights, on which the adapter was trained. In 16-bit this merge is nearly exact, and the
  folder serves well in 16-bit. But its weights still lie on NF4's grid, moved by an update that is small against the
  grid's steps, so loading them in 4-bit rounds most of the update away. (The same happens where the original weights
  are dequantized 4-bit ones themselves.)
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors import safe_open

from tpo_lite.adapters import Block, Blocks
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import checksum, read_json, write_json
from tpo_lite.hub import OTHER_FILES, local_folder
from tpo_lite.kinds import MergeBase
from tpo_lite.safetensors_files import read_header

CHECKSUMS = "checksums.json"
"""The file beside the merged shards that holds the SHA-256 of each by its name. The next merge checks it."""

INDEX = "model.safetensors.index.json"
"""The file that says which shard holds each tensor of a model."""


def merge_to_disk(model: str, blocks: Blocks, scale: float, out: Path, base: MergeBase = "w16") -> None:
    """Write `model` + scale * B A to `out` in the model's own types, shard by shard, and verify each.

    A merge that was stopped goes on: shards that are already right are kept.

    Raises `InputError` if the weights are not safetensors, if a tensor that the model's index names is missing, or if
    the adapter changes a layer that the model does not have. Raises `TpoError` if the disk is too small, if a shard
    comes out wrong, or if a shard of a `model` that was itself merged here has changed since.
    """
    source = local_folder(model)
    shards = _shards(source)
    _refuse_damaged(source, shards)
    _refuse_unknown_layers(source, shards, blocks)
    out.mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if find_mismatch(out / shard.name, shard, blocks, scale, base)]
    # A merge that was stopped leaves half a shard, whose space is needed.
    for left in [*(out / shard.name for shard in missing), *out.glob("*.tmp")]:
        left.unlink(missing_ok=True)
    _refuse_full_disk(out, missing)
    for file in (file for pattern in OTHER_FILES for file in source.glob(pattern)):
        if file.name != CHECKSUMS:
            shutil.copy2(file, out / file.name)
    for shard in missing:
        _merge_shard(shard, blocks, scale, out / shard.name, base)
        if mismatch := find_mismatch(out / shard.name, shard, blocks, scale, base):
            raise TpoError(
                f"{out / shard.name} came out wrong: {mismatch}. "
                "Check the disk and the memory of this machine, and run the same command again."
            )
    write_json(out / CHECKSUMS, {shard.name: checksum(out / shard.name) for shard in shards})


def _shards(source: Path) -> list[Path]:
    """Return the files that hold a model's weights. Raises `InputError` if there are none or a tensor is missing."""
    index = source / INDEX
    if not index.exists():
        shards = sorted(source.glob("*.safetensors"))
        if not shards:
            raise InputError(
                f"model: {source} holds no *.safetensors, which merge: requantize needs. "
                "Convert the model, or use merge: fold."
            )
        return shards
    placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = [source / name for name in sorted(set(placed.values()))]
    there = {name for shard in shards if shard.exists() for name in read_header(shard)[1]}
    if missing := placed.keys() - there:
        raise InputError(
            f"model: {source} has no weights for {min(missing)!r}, which {INDEX} names. Download the model again."
        )
    return shards


def _refuse_damaged(source: Path, shards: list[Path]) -> None:
    """Raise `TpoError` if a shard that was merged here does not have the checksum that was written then."""
    sums = read_json(source / CHECKSUMS) if (source / CHECKSUMS).exists() else {}
    for shard in shards:
        if shard.name in sums and checksum(shard) != sums[shard.name]:
            raise TpoError(
                f"{shard} is damaged: its checksum is not the one in {CHECKSUMS}. "
                "Delete it and run the same command again."
            )


def _refuse_unknown_layers(source: Path, shards: list[Path], blocks: Blocks) -> None:
    """Raise `InputError` if the adapter changes a layer that the model does not have."""
    layers = {name.removesuffix(".weight") for shard in shards for name in read_header(shard)[1]}
    if unknown := blocks.keys() - layers:
        raise InputError(
            f"model: {source} has no weights for {min(unknown)!r}, which the adapter changes. "
            "Give the model that the adapter was trained on."
        )


def _refuse_full_disk(out: Path, missing: list[Path]) -> None:
    """Raise `TpoError` if there is no room under `out` for the shards that are missing there."""
    needed = sum(shard.stat().st_size for shard in missing)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise TpoError(
            f"merge: requantize needs {needed / 1e9:.1f} GB under {out}, and {free / 1e9:.1f} GB are free. "
            "Free some space and run the same command again, or use merge: fold, which needs none."
        )


def _merge_shard(shard: Path, blocks: Blocks, scale: float, out: Path, base: MergeBase) -> None:
    """Write a merged shard under the original's header: the same tensors, of the same types, in the same places."""
    temporary = out.with_name(out.name + ".tmp")
    header, entries = read_header(shard)
    with temporary.open("wb") as file:
        file.write(header)
        for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
            weight = _tensor(shard, name)
            block = blocks.get(name.removesuffix(".weight"))
            if block is not None:
                weight = _merged(weight, block, scale, base).to(weight.dtype)
            file.write(weight.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out)


def find_mismatch(merged: Path, original: Path, blocks: Blocks, scale: float, base: MergeBase = "w16") -> str | None:
    """Read a merged shard back and compare it with the original and the adapter.

    Returns what does not match, or None if all does. Each tensor must be there with its shape and type. A tensor that
    the adapter does not change must be equal. Each weight of one that it changes must be within a unit in the last
    place of the exact sum, so that the logits of the two models differ by this rounding alone.
    """
    header, entries = read_header(original)
    if not merged.exists():
        return "it is missing"
    with merged.open("rb") as file:
        if merged.stat().st_size != original.stat().st_size or file.read(len(header)) != header:
            return "it does not hold the tensors of the original"
    for name in entries:
        before, after = _tensor(original, name), _tensor(merged, name)
        block = blocks.get(name.removesuffix(".weight"))
        if not (
            torch.equal(before, after) if block is None else _is_rounded(after, _merged(before, block, scale, base))
        ):
            return f"{name} is not the sum of base and adapter"
    return None


def _merged(weight: torch.Tensor, block: Block, scale: float, base: MergeBase) -> torch.Tensor:
    """Return `weight` (out, in), as the chosen base has it, plus scale * B A, in float32."""
    full = weight.float()
    if base == "nf4":
        full = dequantize_4bit(*quantize_4bit(full, quant_type="nf4", compress_statistics=True))
    return torch.addmm(full, block.b, block.a, alpha=scale)


def _is_rounded(weight: torch.Tensor, exact: torch.Tensor) -> bool:
    """Return whether `weight` is `exact` (float32) rounded once to its own type: at most one last place away.

    Rounding `exact` and comparing would be too strict: its float32 sums may have been made in another order.
    `exact` is overwritten.
    """
    kind = torch.finfo(weight.dtype)
    # Below the smallest normal number the steps no longer shrink.
    step = exact.abs().clamp_(min=kind.smallest_normal).mul_(kind.eps / 2)
    return bool((exact.sub_(weight.float()).abs_() <= step).all())


def _tensor(shard: Path, name: str) -> torch.Tensor:
    """Return one tensor. The file is opened anew each time: an open file keeps all that was read of it in memory."""
    with safe_open(shard, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
