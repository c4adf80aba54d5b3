"""Cards by name, by size and as nvidia-smi lists them."""

from dataclasses import replace

import pytest

from tests.helpers.fake_nvidia import fake_nvidia_smi
from tpo_lite.errors import InputError
from tpo_lite.machine.cards import CARDS, GIB, choose_card, named_card

# Cards


def test_cards_by_name_and_size(tmp_path, monkeypatch):
    assert named_card("NVIDIA GeForce RTX 3090", 24 * GIB) == replace(CARDS[3], memory=24 * GIB)
    assert named_card("Some Other Card", 23 * GIB).bandwidth == 1008e9
    fake_nvidia_smi(
        tmp_path, monkeypatch, 'echo "0, NVIDIA L4, 23034, 22500"; echo "1, NVIDIA GeForce RTX 4090, 24564, 24080"'
    )
    card = choose_card(None, 1)
    assert (card.name, card.memory, card.flops) == ("RTX 4090", 24080 << 20, 165.2e12)
    with pytest.raises(InputError, match="there is no GPU 2; nvidia-smi lists 0, 1. .*--card-gb 24"):
        choose_card(None, 2)


def test_gpu_audit_8_memory_in_use_is_not_planned_with(tmp_path, monkeypatch):
    """A card whose half is taken is still taken for what it is: its speeds are those of its whole size."""
    fake_nvidia_smi(tmp_path, monkeypatch, 'echo "0, NVIDIA A100-SXM4-80GB, 81920, 40960"')
    card = choose_card(None)
    assert (card.memory, card.name, card.bandwidth) == (40 * GIB, "A100-SXM4-80GB", 2039e9)
