"""The card that a run is planned for: its memory and its speeds, given by size or found with nvidia-smi.

Also what nvidia-smi says about the GPUs of this machine, and what this machine has beside them: its CPU and its disk.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError

GIB = 1 << 30
"""Bytes."""

SMI_SECONDS = 30
"""The longest to wait for nvidia-smi. It takes seconds if no driver is loaded yet, and may hang."""

SMI_FIELDS: dict[str, Callable[[str], Any]] = {
    "index": int,
    "name": str,
    "memory.total": lambda mebibytes: int(mebibytes) << 20,
    "memory.used": lambda mebibytes: int(mebibytes) << 20,
    "memory.free": lambda mebibytes: int(mebibytes) << 20,
    "compute_cap": float,
    "driver_version": str,
}
"""What nvidia-smi can be asked for, and how to read its answers: memory in bytes."""


@dataclass(frozen=True)
class Card:
    """A device to run on."""

    name: str
    memory: int
    """Bytes. For a CPU, the memory of the machine."""
    bandwidth: float
    """Bytes per second from its memory."""
    flops: float
    """Dense bfloat16 operations per second, summed in float32."""
    cuda: bool = True


def _card(name: str, gib: float, gigabytes_per_second: float, teraflops: float) -> Card:
    return Card(name, int(gib * GIB), gigabytes_per_second * 1e9, teraflops * 1e12)


CARDS = [
    _card("RTX 3060", 12, 360, 25.5),
    _card("RTX 4060 Ti", 16, 288, 44.1),
    _card("RTX 4090", 24, 1008, 165.2),
    _card("RTX 3090", 24, 936, 71.0),
    _card("L4", 24, 300, 121.0),
    _card("RTX 5090", 32, 1792, 209.5),
    _card("A100-SXM4-40GB", 40, 1555, 312.0),
    _card("A100-SXM4-80GB", 80, 2039, 312.0),
    _card("H100 80GB HBM3", 80, 3350, 989.0),
    _card("H200", 141, 4800, 989.0),
]
"""NVIDIA's published figures, under the names that nvidia-smi gives. If two have the same size, the first is used."""


def cpu() -> Card:
    """Return this machine's CPU. Its speeds are nominal: hours on a CPU come from rates that were measured on one."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Card("CPU", memory, 20e9, 0.1e12, cuda=False)


def free_disk(folder: Path) -> int:
    """Return the bytes that are free on this machine's disk where `folder` is or would be."""
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def choose_card(gib: float | None, index: int = 0) -> Card:
    """Return a card of `gib` GiB if that is given, otherwise GPU `index` of this machine, with the memory that is free.

    What the driver keeps for itself and what other programs use is not there for a run.

    A card given by its size gets the speeds of the card in the table that is nearest in size. Raises `InputError` if
    nvidia-smi cannot report this machine's GPU.
    """
    if gib is not None:
        nearest = min(CARDS, key=lambda card: abs(card.memory - gib * GIB))
        return Card(f"a card of the {nearest.name}'s speed", int(gib * GIB), nearest.bandwidth, nearest.flops)
    remedy = "Name the card to plan for by its memory, such as --card-gb 24, or use --cpu."
    try:
        asked = nvidia_smi("index", "name", "memory.total", "memory.free")
        found = {number: (name, total, free) for number, name, total, free in asked}
    except FileNotFoundError:
        raise InputError(f"plan: this machine has no nvidia-smi, so no NVIDIA GPU. {remedy}") from None
    except RuntimeError as error:
        raise InputError(f"plan: nvidia-smi does not say what GPU {index} is ({error}). {remedy}") from None
    if index not in found:
        listed = ", ".join(map(str, found)) or "none"
        raise InputError(f"plan: there is no GPU {index}; nvidia-smi lists {listed}. {remedy}")
    name, total, free = found[index]
    return replace(named_card(name, total), memory=free)


def named_card(name: str, memory: int) -> Card:
    """Return the card with this name and memory in bytes, as nvidia-smi gives them.

    A card that is not in the table gets the speeds of the one that is nearest in memory.
    """
    known = [card for card in CARDS if card.name.lower() in name.lower()]
    like = min(known or CARDS, key=lambda card: abs(card.memory - memory))
    return Card(like.name if known else f"{name}, taken for a {like.name}", memory, like.bandwidth, like.flops)


def nvidia_smi(*fields: str) -> list[tuple[Any, ...]]:
    """Return these `SMI_FIELDS` of each GPU of this machine.

    Raises `FileNotFoundError` without nvidia-smi, and `RuntimeError` with its words if it fails, hangs or answers
    something else.
    """
    if shutil.which("nvidia-smi") is None:
        raise FileNotFoundError("nvidia-smi")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=SMI_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {SMI_SECONDS} s") from None
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode != 0:
        raise RuntimeError(said or f"exit code {done.returncode}")
    try:
        rows = [line.split(", ") for line in done.stdout.splitlines()]
        return [tuple(SMI_FIELDS[field](cell) for field, cell in zip(fields, row, strict=True)) for row in rows]
    except ValueError:
        raise RuntimeError(f"it says {said!r}") from None
