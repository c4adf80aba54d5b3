"""The 16-bit merge on disk: exact up to one rounding, shard by shard, and it goes on where it was stopped."""

import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tpo_lite.adapters import Block
from tpo_lite.errors import InputError, TpoError
from tpo_lite.requantize import merge_to_disk

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BLOCKS = {
    "layers.0.q_proj": Block(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[3.0], [-1.0]])),
    "layers.1.q_proj": Block(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5], [0.25]])),
}


@pytest.fixture
def model(tmp_path):
    """Two shards in bfloat16 with a linear layer each, and a config."""
    folder = tmp_path / "base"
    folder.mkdir()
    norm = torch.full((3,), 7.0, dtype=torch.bfloat16)
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    save_file({"layers.0.q_proj.weight": weight, "norm.weight": norm}, folder / ONE, metadata={"format": "pt"})
    save_file({"layers.1.q_proj.weight": weight}, folder / TWO, metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_by_hand(model, tmp_path):
    out = tmp_path / "merged"
    merge_to_disk(str(model), BLOCKS, 2.0, out)
    one, two = load_file(out / ONE), load_file(out / TWO)
    # W + scale * B A: 1 + 2 * [3, -1]' [1, 2, 0]
    assert one["layers.0.q_proj.weight"].tolist() == [[7.0, 13.0, 1.0], [-1.0, -3.0, 1.0]]
    assert two["layers.1.q_proj.weight"].tolist() == [[1.0, 1.0, 2.0], [1.0, 1.0, 1.5]]
    assert one["norm.weight"].tolist() == [7.0, 7.0, 7.0]
    assert one["layers.0.q_proj.weight"].dtype == torch.bfloat16
    assert (out / "config.json").read_text() == (model / "config.json").read_text()


def test_it_goes_on_where_it_was_stopped(model, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    merge_to_disk(str(model), BLOCKS, 2.0, whole)
    resumed.mkdir()
    shutil.copy(whole / ONE, resumed)
    (resumed / f"{TWO}.tmp").write_bytes(b"half")
    before = (resumed / ONE).stat().st_mtime_ns
    merge_to_disk(str(model), BLOCKS, 2.0, resumed)
    assert (resumed / ONE).stat().st_mtime_ns == before
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert (resumed / TWO).read_bytes() == (whole / TWO).read_bytes()


def test_an_adapter_of_another_model_is_refused(model, tmp_path):
    blocks = BLOCKS | {"layers.2.q_proj": BLOCKS["layers.0.q_proj"]}
    with pytest.raises(InputError, match="has no weights for 'layers.2.q_proj', which the adapter changes"):
        merge_to_disk(str(model), blocks, 1.0, tmp_path / "merged")


def test_a_model_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no \*.safetensors, which merge: requantize needs"):
        merge_to_disk(str(tmp_path), BLOCKS, 1.0, tmp_path / "merged")


def test_a_disk_too_small_is_said_before_anything_is_written(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10, 10))
    with pytest.raises(TpoError, match="0.0 GB are free. Free some space and run the same command again"):
        merge_to_disk(str(model), BLOCKS, 1.0, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []
