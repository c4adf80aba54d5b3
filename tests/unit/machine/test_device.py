"""What a phase's process is told about its GPU, and how much of it torch may take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tpo_lite.machine.cards import GIB
from tpo_lite.machine.device import CPU, Place, leave_room
from tpo_lite.phases import process
from tpo_lite.run import RunFolder


def test_gpu_audit_4_a_growing_cache_leaves_no_unusable_blocks():
    environment: dict[str, str] = {}
    Place(1).pin(environment)
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    own = {"PYTORCH_ALLOC_CONF": "garbage_collection_threshold:0.8"}
    Place(1).pin(own)
    assert own["PYTORCH_ALLOC_CONF"] == "garbage_collection_threshold:0.8"


@pytest.mark.parametrize(("total", "share"), [(24 * GIB, 23.2 / 24), (8 * GIB, 7.2 / 8), (GIB, 0.5)])
def test_gpu_audit_4_torch_leaves_room_for_what_allocates_beside_it(total, share, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    leave_room("cpu")
    assert asked == []
    leave_room("cuda")
    assert asked == [pytest.approx(share)]


@pytest.mark.parametrize(("place", "visible"), [(Place(1), "1"), (CPU, "")])
def test_gpu_audit_10_a_phase_by_hand_sees_the_one_gpu_of_the_run(place, visible, tmp_path, monkeypatch):
    """Whatever this process saw before: every GPU of the machine, or none."""
    started = []
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    monkeypatch.setattr(process.os, "environ", environment)
    monkeypatch.setattr(process.threads, "limit", lambda environment: None)
    monkeypatch.setattr(RunFolder, "settle_old", lambda folder: None)
    monkeypatch.setattr(RunFolder, "load_place", lambda folder: place)
    monkeypatch.setattr(process, "run_phase", lambda *phase: started.append(environment["CUDA_VISIBLE_DEVICES"]))
    process.start_phase("judge", tmp_path, "thinking", 0)
    assert started == [visible]
