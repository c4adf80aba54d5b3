"""The card that a run is planned for: how much memory, how many bytes and operations a second."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from tpo_lite.errors import InputError

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """A device to run on."""

    name: str
    memory: int
    """Bytes; of a CPU, the machine's."""
    bandwidth: float
    """Bytes a second from its memory."""
    flops: float
    """Dense bfloat16 operations a second with float32 sums."""
    cuda: bool = True


def _card(name: str, gib: float, gigabytes_a_second: float, teraflops: float) -> Card:
    return Card(name, int(gib * GIB), gigabytes_a_second * 1e9, teraflops * 1e12)


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
"""NVIDIA's published figures; names as nvidia-smi gives them. Where two have one size, the first stands for it."""


def cpu() -> Card:
    """This machine's CPU. Its speeds are nominal: hours on a CPU come from rates that were measured on one."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Card("CPU", memory, 20e9, 0.1e12, cuda=False)


def choose_card(gib: float | None, index: int = 0) -> Card:
    """The card of `gib` GiB where that is given, else the GPU `index` of this machine.

    The speeds of a card given by its size are those of the table's card nearest to it. Raises
    `InputError` if this machine's GPU cannot be asked for.
    """
    if gib is not None:
        nearest = min(CARDS, key=lambda card: abs(card.memory - gib * GIB))
        return Card(f"a card of the {nearest.name}'s speed", int(gib * GIB), nearest.bandwidth, nearest.flops)
    name, memory = _ask_nvidia_smi(index)
    return named_card(name, memory)


def named_card(name: str, memory: int) -> Card:
    """A card by the name and bytes that nvidia-smi gives; one that is not in the table gets the speeds of the one
    nearest in memory."""
    known = [card for card in CARDS if card.name.lower() in name.lower()]
    like = min(known or CARDS, key=lambda card: abs(card.memory - memory))
    return Card(like.name if known else f"{name}, taken for a {like.name}", memory, like.bandwidth, like.flops)


def _ask_nvidia_smi(index: int) -> tuple[str, int]:
    if shutil.which("nvidia-smi") is None:
        raise InputError(
            "plan: no GPU is found here (no nvidia-smi). Say which card to plan for, as --card-gb 24, or use --cpu."
        )
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    asked = subprocess.run(["nvidia-smi", f"--id={index}", *query], capture_output=True, text=True, check=False)
    name, comma, mebibytes = asked.stdout.strip().rpartition(",")
    if asked.returncode != 0 or not comma or not mebibytes.strip().isdigit():
        said = " ".join((asked.stdout + asked.stderr).split())
        raise InputError(
            f"plan: nvidia-smi does not say what GPU {index} is ({said}). Say which, as --card-gb 24, or use --cpu."
        )
    return name, int(mebibytes) << 20
