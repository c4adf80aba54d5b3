"""The plan's memory arithmetic against what torch and llama.cpp allocate and write."""

import re

import llama_cpp
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_gguf import write_tiny_gguf
from tpo_lite import gguf_model
from tpo_lite.plan.memory import KV_BYTES, compute_buffer, saved_bytes
from tpo_lite.plan.shapes import read_gguf, shape_of

SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128
}  # fmt: skip


def saved_by_a_layer(config, rank, dtype, checkpointing=False):
    """Bytes that autograd keeps for one more layer: all saved storages but the model's own weights."""
    totals = []
    for layers in (1, 3):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **config)).to(dtype)
        lora = LoraConfig(r=rank, target_modules="all-linear")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor, own=own, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage  # stays alive, so that no address comes twice
            return tensor

        mask = torch.tensor([[1] * 64, [1] * 41 + [0] * 23])
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.ones_like(mask), attention_mask=mask, use_cache=False)
        totals.append(sum(storage.nbytes() for storage in kept.values()))
    return (totals[1] - totals[0]) / 2


@pytest.mark.parametrize(("dtype", "compute"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_what_a_layer_keeps_for_its_backward_pass(dtype, compute):
    shape = shape_of(SMALL | {"num_hidden_layers": 1}, "small")
    assert 128 * saved_bytes(shape, 8, compute, 64) == saved_by_a_layer(SMALL, 8, dtype)


def test_what_a_checkpointed_layer_keeps():
    assert saved_by_a_layer(SMALL, 8, torch.bfloat16, checkpointing=True) == 128 * 2 * 64


@pytest.mark.parametrize(("n_embd", "n_ctx", "n_batch"), [(256, 8192, 512), (512, 4096, 2048)])
def test_the_compute_buffer_of_llama_cpp(n_embd, n_ctx, n_batch, tmp_path):
    path = write_tiny_gguf(tmp_path / "judge.gguf", n_embd=n_embd, n_head=4, n_ctx=n_ctx)
    said = []
    collect = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text.decode()))
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_batch
    params.n_seq_max = params.n_outputs_max = 16
    params.kv_unified, params.flash_attn_type = True, 1
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_Q8_0
    llama_cpp.llama_log_set(collect, None)
    context = llama_cpp.llama_init_from_model(model, params)
    llama_cpp.llama_log_set(gguf_model._keep_log, None)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    found = re.findall(r"CPU (\w+) buffer size = +([\d.]+) MiB", "".join(said))
    sizes = {kind: float(size) * 2**20 for kind, size in found}
    shape = read_gguf(path).model
    assert sizes["KV"] == shape.kv_elements(n_ctx) * KV_BYTES["q8_0"]
    assert compute_buffer(shape, n_batch, n_ctx) == pytest.approx(sizes["compute"], rel=0.1)


def test_the_shape_of_a_gguf_is_that_of_its_header(tmp_path):
    judge = read_gguf(write_tiny_gguf(tmp_path / "judge.gguf", n_layer=3, n_embd=64, n_head=2))
    shape = judge.model
    assert (shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.head_dim) == (3, 64, 128, 2, 32)
    assert judge.file_bytes == 4 * shape.parameters
    assert judge.file_bytes - judge.gpu_bytes == 4 * shape.embedding_parameters  # stays in host memory
