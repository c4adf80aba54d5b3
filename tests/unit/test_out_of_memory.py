"""Which errors mean that memory ran out, and those that loading a model raises."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import modeling_utils
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

from tpo_lite.base_weights import load_base, loading
from tpo_lite.errors import InputError, OutOfMemory, is_out_of_memory
from tpo_lite.phases.process import exit_code

# What is taken for it


def raised(allocate):
    try:
        allocate()
    except Exception as error:
        return error
    raise AssertionError("there was memory for it")


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: bytearray(1 << 62)),
        raised(lambda: torch.empty(1 << 58, dtype=torch.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_mean_it(error, tmp_path, capsys):
    assert exit_code(error, tmp_path / "dpo.log", debug=False) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert "`tpo-lite train` tries again with smaller batches." in said
    assert (tmp_path / "dpo.log").exists()


def test_errors_that_do_not():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("the story of a man out of memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


# While a model is loaded

AT_LOADING = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError()]


@pytest.mark.parametrize("error", AT_LOADING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", [(modeling_utils, "safe_open"), (Bnb4bitQuantize, "convert")], ids=["read", "4-bit"])
def test_memory_that_runs_out_while_a_model_is_loaded(where, error, tiny_model):
    """While weights are read or quantized: of the latter, transformers says no more than that there was an error."""
    with patch.object(*where, side_effect=error), pytest.raises(OutOfMemory, match="End other programs that use it"):
        load_base(str(tiny_model), "cpu", "nf4")


def test_any_other_error_while_a_model_is_loaded_says_to_check_the_model(tiny_model):
    strange = patch.object(Bnb4bitQuantize, "convert", side_effect=ValueError("no such type"))
    with strange, pytest.raises(InputError, match="cannot be loaded .* Check that it is a causal language") as caught:
        load_base(str(tiny_model), "cpu", "nf4")
    assert not isinstance(caught.value, OutOfMemory)


LOAD_WITH_UNSLOTH = """
import sys
from unittest.mock import patch

from tpo_lite.sampling.engines import unsloth_model

import torch
from tpo_lite.errors import TpoError
from transformers import AutoModelForCausalLM

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ValueError("Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit"),
    ValueError("no such type"),
)
for error in ERRORS:
    with patch.object(AutoModelForCausalLM, "from_pretrained", side_effect=error):
        try:
            unsloth_model.load(sys.argv[1], None, "cpu", "nf4", 256)
        except TpoError as raised:
            print(raised.exit_code, raised)
"""


def test_memory_that_runs_out_while_unsloth_loads_a_model(tiny_model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_UNSLOTH, tiny_model],
        env=os.environ | {"PYTHONPATH": str(Path(sys.prefix) / "unsloth")},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # unsloth writes a cache of compiled code where it runs
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "cannot be loaded" in line]
    assert [line[0] for line in said] == ["3", "3", "2"]
    assert "memory ran out" in said[0] and "memory ran out" in said[1] and "no such type" in said[2]


def test_gpu_audit_12_a_download_of_weights_is_announced(tiny_model, tmp_path, monkeypatch, capsys):
    """21 GB in silence look like a program that hangs. What is here already is not announced."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with loading("owner/model"):
        assert "downloading owner/model from the hub" in capsys.readouterr().err
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    for here in ("owner/model", tiny_model):
        with loading(here):
            assert capsys.readouterr().err == ""
