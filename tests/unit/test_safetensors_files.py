"""The header of a safetensors file, against the library's own reader."""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tpo_lite.safetensors_files import read_header


def test_a_header_says_where_each_tensor_lies(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.bfloat16)}
    save_file(weights, file, metadata={"format": "pt"})
    header, entries = read_header(file)

    data = file.read_bytes()
    assert data.startswith(header)
    with safe_open(file, "pt") as opened:
        assert set(entries) == set(opened.keys())
    for name, weight in weights.items():
        begin, end = entries[name]["data_offsets"]
        assert entries[name]["shape"] == list(weight.shape)
        assert data[len(header) + begin : len(header) + end] == weight.view(-1).view(torch.uint8).numpy().tobytes()
