"""The plan's memory arithmetic against what torch and llama.cpp allocate and write."""

import re
from itertools import accumulate
from typing import get_args

import llama_cpp
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.llamacpp import model as gguf_model
from tpo_lite.plan.memory import KV_BYTES, LOGIT_CHUNK, OPTIMIZER_BYTES, compute_buffer, saved_bytes, step_bytes
from tpo_lite.plan.shapes import read_gguf, shape_of
from tpo_lite.recipe_keys import Train
from tpo_lite.training.token_log_probs import LOGIT_CHUNK as CHUNK
from tpo_lite.training.token_log_probs import completion_log_probs

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


def peak_of(work):
    """Bytes that the CPU allocator held at most while `work` ran, more than before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("vocabulary", [128, 16384])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "compute"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_the_peak_of_a_training_step(dtype, compute, checkpointing, vocabulary):
    """Either the layers are at the peak or, with as many tokens to choose from, the LM head is."""
    config = SMALL | {"hidden_size": 128, "intermediate_size": 448, "vocab_size": vocabulary, "num_hidden_layers": 6}
    model = LlamaForCausalLM(LlamaConfig(**config)).to(dtype)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"), autocast_adapter_dtype=False).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    mask = torch.ones(2, 512, dtype=torch.long)
    mask[1, 400:] = 0

    def step():
        completion_log_probs(model.get_base_model(), mask, mask, mask).sum().backward()

    step()  # what is made once
    model.zero_grad()
    shape = shape_of(config, "small")
    activations, logits = step_bytes(shape, 8, compute, 2, 512, checkpointing)
    assert (logits > 0) == (vocabulary == 16384)
    expected = activations + logits + compute * shape.lora_parameters(8)
    measured = peak_of(step)
    assert 0.97 * measured <= expected <= 1.1 * measured


def test_what_is_said_of_the_lm_head_is_true():
    assert LOGIT_CHUNK == CHUNK


@pytest.mark.parametrize("optimizer", get_args(Train.model_fields["optimizer"].annotation))
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_moments_of_an_optimizer(optimizer, tmp_path):
    adapter = torch.nn.Linear(1024, 16, bias=False)
    arguments = TrainingArguments(str(tmp_path), optim=optimizer, use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    made = kind(adapter.parameters(), **options)
    adapter(torch.ones(1024)).sum().backward()
    made.step()
    (state,) = made.state.values()
    moments = [value for name, value in state.items() if torch.is_tensor(value) and value.dim() and "qmap" not in name]
    assert sum(moment.nbytes for moment in moments) == OPTIMIZER_BYTES[optimizer] * 16 * 1024


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
    llama_cpp.llama_log_set(gguf_model._LOG_CALLBACK, None)
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
