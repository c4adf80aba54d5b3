"""The 16-bit merge on disk: exact up to one rounding, shard by shard, and it goes on where it was stopped."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.tiny_run import train_here
from tpo_lite.adapters import Block, read_adapter
from tpo_lite.base_weights import load_base
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json
from tpo_lite.run import RunFolder
from tpo_lite.training.requantize import CHECKSUMS, INDEX, find_mismatch, merge_to_disk

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


def test_everything_but_the_changed_weights_is_the_original_byte_for_byte(model, tmp_path):
    out = tmp_path / "merged"
    merge_to_disk(str(model), {}, 2.0, out)
    for name in (ONE, TWO):
        assert (out / name).read_bytes() == (model / name).read_bytes()
        assert read_json(out / CHECKSUMS)[name] == hashlib.sha256((model / name).read_bytes()).hexdigest()


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


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it does not hold the tensors of the original"),
        (lambda path: flipped(path, 12), "it does not hold the tensors of the original"),
        (lambda path: flipped(path, -1), "norm.weight is not the sum of base and adapter"),
        (lambda path: flipped(path, -18), "layers.0.q_proj.weight is not the sum of base and adapter"),
        (lambda path: path.unlink(), "it is missing"),
    ],
)
def test_a_damaged_shard_is_found_and_written_again(spoil, wrong, model, tmp_path):
    out = tmp_path / "merged"
    merge_to_disk(str(model), BLOCKS, 2.0, out)
    whole = (out / ONE).read_bytes()
    assert find_mismatch(out / ONE, model / ONE, BLOCKS, 2.0) is None
    spoil(out / ONE)
    assert find_mismatch(out / ONE, model / ONE, BLOCKS, 2.0) == wrong
    merge_to_disk(str(model), BLOCKS, 2.0, out)
    assert (out / ONE).read_bytes() == whole


def test_a_shard_merged_with_another_adapter_or_none_is_found(model, tmp_path):
    merge_to_disk(str(model), BLOCKS, 2.0, tmp_path / "merged")
    for other in ({}, {name: Block(block.a, 1.01 * block.b) for name, block in BLOCKS.items()}):
        assert find_mismatch(tmp_path / "merged" / TWO, model / TWO, other, 2.0)


# Whole models


@pytest.fixture(scope="module")
def sharded(tiny_model, tmp_path_factory):
    """The tiny policy in bfloat16 and in several shards."""
    folder = tmp_path_factory.mktemp("sharded") / "policy"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(
        folder, max_shard_size="60KB"
    )
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_run):
    """An adapter of two blocks, its update made as large as that of long training."""
    blocks, scale = read_adapter(tiny_run / "direct" / "iteration-1" / "adapter")
    return {name: Block(block.a, 20 * block.b) for name, block in blocks.items()}, scale


IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def adapted_logits(base, adapter):
    """Logits of `base`, a model in memory, plus the adapter, added to its weights in float32."""
    blocks, scale = adapter
    with torch.no_grad():
        for name, block in blocks.items():
            base.get_submodule(name).weight += scale * block.b @ block.a
    return logits(base)


def test_the_merged_models_logits_are_those_of_base_and_adapter_to_16_bit_rounding(sharded, adapter, tmp_path):
    merge_to_disk(str(sharded), *adapter, tmp_path / "merged")
    bare = logits(AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32))
    expected = adapted_logits(AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32), adapter)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    assert (bare - expected).abs().max() > 0.1
    assert (merged - expected).abs().max() < 0.02 * (bare - expected).abs().max()


def test_the_merged_model_loads_in_4_bit_and_keeps_the_update(sharded, adapter, tmp_path):
    merge_to_disk(str(sharded), *adapter, tmp_path / "merged")
    bare, merged = (
        logits(load_base(str(sharded), "cpu", "nf4")),
        logits(load_base(str(tmp_path / "merged"), "cpu", "nf4")),
    )
    expected = adapted_logits(AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32), adapter)
    assert (merged - expected).norm() < 0.5 * (bare - expected).norm()


def test_nf4_merges_into_what_the_adapter_was_trained_on(sharded, adapter, tmp_path):
    blocks, scale = adapter
    merge_to_disk(str(sharded), blocks, scale, tmp_path / "merged", "nf4")
    trained_on = load_base(str(sharded), "cpu", "nf4")
    merged = {}
    for shard in tmp_path.glob("merged/*.safetensors"):
        merged |= load_file(shard)
    for name, block in blocks.items():
        weight = trained_on.get_submodule(name).weight
        exact = dequantize_4bit(weight.data, weight.quant_state) + scale * block.b @ block.a
        assert torch.equal(merged[f"{name}.weight"], exact.to(torch.bfloat16))


KILLED_IN_THE_LAST_SHARD = """
import os, signal, sys
from pathlib import Path

import torch

from tpo_lite.training import requantize
from tpo_lite.adapters import Block


def merged(weight, *arguments):
    if Path(sys.argv[2], "model-00002-of-00002.safetensors.tmp").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(weight, *arguments)


whole, requantize._merged = requantize._merged, merged
blocks = {f"layers.{n}.q_proj": Block(*tensors) for n, tensors in enumerate(torch.load(sys.argv[3]))}
requantize.merge_to_disk(sys.argv[1], blocks, 2.0, Path(sys.argv[2]))
"""


def test_killed_halfway_and_started_again(model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    torch.save([(block.a, block.b) for block in BLOCKS.values()], tmp_path / "blocks.pt")
    arguments = [sys.executable, "-c", KILLED_IN_THE_LAST_SHARD, model, killed, tmp_path / "blocks.pt"]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert (killed / f"{TWO}.tmp").stat().st_size < (model / TWO).stat().st_size
    assert not (killed / TWO).exists() and not (killed / CHECKSUMS).exists()
    before = (killed / ONE).stat().st_mtime_ns
    merge_to_disk(str(model), BLOCKS, 2.0, killed)
    merge_to_disk(str(model), BLOCKS, 2.0, whole)
    assert (killed / ONE).stat().st_mtime_ns == before
    made = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in (killed, whole)]
    assert made[0] == made[1]


MERGE_AND_MEASURE = """
import sys
from pathlib import Path

import torch

from tpo_lite.training import requantize
from tpo_lite.adapters import Block


def held(field):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


folder, base = Path(sys.argv[1]), sys.argv[2]
blocks = {f"layers.{n}": Block(torch.ones(2, 1024), torch.ones(1024, 2)) for n in range(48)}
# So that what libraries take for themselves at first is not counted.
requantize._merged(torch.ones(1, 1024), Block(torch.ones(2, 1024), torch.ones(1, 2)), 1.0, base)
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
requantize.merge_to_disk(str(folder / "base"), blocks, 1.0, folder / "merged", base)
print(held("VmHWM") - before)
"""


@pytest.mark.parametrize("base", ["w16", "nf4"])
def test_memory_holds_less_than_two_shards(base, tmp_path):
    """Three shards of 16 matrices of 2 MiB each, merged in a process of its own.

    malloc gives large blocks back at once, as those of a real model are (over 32 MiB in float32); these it is told to.
    """
    (tmp_path / "base").mkdir()
    for shard in range(3):
        weights = {f"layers.{16 * shard + n}.weight": torch.ones(1024, 1024, dtype=torch.bfloat16) for n in range(16)}
        save_file(weights, tmp_path / "base" / f"model-{shard}.safetensors")
    arguments = [sys.executable, "-c", MERGE_AND_MEASURE, tmp_path, base]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert len(list(tmp_path.glob("merged/*.safetensors"))) == 3
    assert 2**21 < int(done.stdout) < 2 * 16 * 2**21


def with_index(model, **more):
    """`model` with an index of its tensors, and of `more` {file: tensor} that are not there."""
    placed = {name: shard for shard in (ONE, TWO) for name in load_file(model / shard)}
    placed |= {name: file for file, name in more.items()}
    (model / INDEX).write_text(json.dumps({"weight_map": placed}))
    return model


def test_what_the_index_does_not_name_is_no_part_of_the_model(model, tmp_path):
    save_file({"layers.0.attention.wq.weight": torch.ones(2, 3)}, with_index(model) / "consolidated.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    merge_to_disk(str(model), BLOCKS, 2.0, tmp_path / "merged")
    made = {path.name for path in (tmp_path / "merged").iterdir()}
    assert made == {ONE, TWO, INDEX, CHECKSUMS, "config.json", "chat_template.jinja"}


@pytest.mark.parametrize("file", [ONE, "model-00003-of-00003.safetensors"])
def test_a_tensor_that_the_index_names_must_be_there(file, model, tmp_path):
    with_index(model, **{file: "lm_head.weight"})
    with pytest.raises(InputError, match=f"has no weights for 'lm_head.weight', which {INDEX} names. Download the"):
        merge_to_disk(str(model), BLOCKS, 2.0, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_that_was_damaged_since_is_not_merged_into(model, tmp_path):
    merge_to_disk(str(model), BLOCKS, 2.0, tmp_path / "one")
    merge_to_disk(str(tmp_path / "one"), BLOCKS, 2.0, tmp_path / "two")
    flipped(tmp_path / "one" / TWO, -1)
    with pytest.raises(TpoError, match=f"{TWO} is damaged: its checksum is not the one in {CHECKSUMS}. Delete it"):
        merge_to_disk(str(tmp_path / "one"), BLOCKS, 2.0, tmp_path / "again")


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


def test_half_a_shard_of_a_killed_merge_takes_no_room_from_the_next(model, tmp_path, monkeypatch):
    """A disk with room for the two shards and nothing more."""
    out, usage = tmp_path / "merged", namedtuple("usage", "total used free")
    room = sum((model / name).stat().st_size for name in (ONE, TWO))

    def disk_usage(path):
        used = sum(file.stat().st_size for file in Path(path).iterdir())
        return usage(room, used, room - used)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    out.mkdir()
    (out / f"{ONE}.tmp").write_bytes((model / ONE).read_bytes()[:-1])
    merge_to_disk(str(model), BLOCKS, 2.0, out)
    assert find_mismatch(out / ONE, model / ONE, BLOCKS, 2.0) is None


def test_the_base_may_be_chosen_on_the_command_line(tiny_arguments, tmp_path):
    train_here(*tiny_arguments, "--merge-base", "nf4", "--prompts", tmp_path / "none.txt", "--out", tmp_path / "run")
    assert RunFolder(tmp_path / "run").load_settled().merge_base == "nf4"
