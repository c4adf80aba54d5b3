"""Hugging Face checkpoint to GGUF: same logits, same tokens, and a refusal of what would come out wrong."""

import json
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.helpers.random_adapter import largest_difference, random_adapter
from tests.helpers.tiny_checkpoint import edit, logits_of_both, write_checkpoint
from tests.helpers.tiny_model import write_tiny_model
from tpo_lite.adapters import lora_config, state_dict
from tpo_lite.embedded.gguf_export import write_gguf
from tpo_lite.embedded.tokenizer import train_tokenizer
from tpo_lite.errors import InputError, TpoError
from tpo_lite.hub import judge_path
from tpo_lite.llamacpp.adapter import write_adapter_gguf
from tpo_lite.llamacpp.convert import LAYER_NAMES, Shape, _stored_tensors, convert, quantize

STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"rope_parameters": STRETCHED},
        {"head_dim": 32},
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_logits_are_the_checkpoints(tmp_path, changes):
    folder = write_checkpoint(tmp_path / "model", **changes)
    convert(folder, tmp_path / "model.gguf")
    expected, logits = logits_of_both(folder, tmp_path / "model.gguf")
    np.testing.assert_allclose(logits, expected, atol=0.005 * expected.std())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ],
    ids=str,
)
def test_logits_of_qwen_are_the_checkpoints(tmp_path, architecture, changes, tied):
    folder = write_checkpoint(tmp_path / "model", architecture, tie_word_embeddings=tied, **changes)
    convert(folder, tmp_path / "model.gguf")
    expected, logits = logits_of_both(folder, tmp_path / "model.gguf")
    np.testing.assert_allclose(logits, expected, atol=0.005 * expected.std())


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_an_adapter_on_qwen_does_in_llama_cpp_what_it_does_in_peft(tmp_path, architecture):
    folder = write_checkpoint(tmp_path / "model", architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, lora_config(3, 2.0)).eval()
    blocks = random_adapter(model, rank=3, seed=0)
    set_peft_model_state_dict(model, state_dict(blocks))
    write_adapter_gguf(blocks, 2.0, 4, 2, tmp_path / "lora.gguf", architecture)
    adapted = SimpleNamespace(folder=folder, model=model)
    assert largest_difference(adapted, tmp_path / "lora.gguf") < 0.03
    assert largest_difference(adapted, tmp_path / "lora.gguf", attached=False) > 1


def test_a_tokenizer_without_bos_is_converted_as_it_is(tmp_path):
    """Qwen2's: no BOS, and nothing is put before a text."""
    folder = write_checkpoint(tmp_path / "model", "qwen2")
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(bos_token=None))
    convert(folder, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert "tokenizer.ggml.bos_token_id" not in fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_32_bits_are_kept(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    name = "model.embed_tokens.weight"
    weights = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    weights[name][0, 0] = 1 + 2**-20
    save_torch(weights, folder / "model.safetensors")
    convert(folder, tmp_path / "model.gguf", type="F32")
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    np.testing.assert_array_equal(read["token_embd.weight"].data, weights[name].numpy())


def test_every_bfloat16_is_read_exactly(tmp_path):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256)
    save_torch({"x": every}, tmp_path / "model.safetensors")
    read = _stored_tensors(tmp_path)["x"].read(np.dtype(np.float32))
    np.testing.assert_array_equal(read, every.float().numpy())


def test_tensors_are_read_in_pieces(tmp_path, monkeypatch):
    expected = np.arange(70, dtype=np.float32).reshape(10, 7)
    save_file({"x": expected}, tmp_path / "model.safetensors")
    monkeypatch.setattr("tpo_lite.llamacpp.convert._CHUNK", 21)
    read = _stored_tensors(tmp_path)["x"].read(np.dtype(np.float16))
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequency_factors_are_those_of_transformers(factor):
    rope = STRETCHED | {"factor": factor, "original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=128, rope_parameters=rope)
    plain = 500_000.0 ** -(np.arange(0, 128, 2) / 128)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    factors = Shape.of(config.to_dict(), Path()).frequency_factors()
    np.testing.assert_allclose(plain / factors, scaled, rtol=1e-5)


def test_configs_of_before_transformers_5(tmp_path):
    folder = write_checkpoint(tmp_path / "model", rope_parameters=STRETCHED)
    convert(folder, tmp_path / "new.gguf")

    def as_before(config):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        del config["head_dim"]

    edit(folder / "config.json", as_before)
    convert(folder, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_tokenizer_files_of_before_transformers_5(tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    convert(folder, tmp_path / "new.gguf")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()

    def as_before(settings):
        settings["chat_template"] = template
        settings["eos_token"] = {"content": settings["eos_token"], "special": True}

    edit(folder / "tokenizer_config.json", as_before)

    def joined(tokenizer):
        tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]

    edit(folder / "tokenizer.json", joined)
    convert(folder, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_the_judge_taken_apart_and_converted_is_itself(tmp_path):
    """The judge that comes with the package, byte for byte: names, order, rotary layout, metadata, tokenizer."""
    reader = gguf.GGUFReader(judge_path("embedded"))
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    config = json.loads((judge_path("embedded").parent / "policy/config.json").read_text())
    heads = config["num_attention_heads"]
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    weights = {theirs: tensors[ours] for theirs, ours in names.items()}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in LAYER_NAMES.items():
            weight = tensors[f"blk.{layer}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in np.split(weight, heads)])
            weights[f"model.layers.{layer}.{theirs}.weight"] = weight
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes((judge_path("embedded").parent / "policy" / file).read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    convert(tmp_path, tmp_path / "judge.gguf", name="tpo_lite embedded judge")
    assert (tmp_path / "judge.gguf").read_bytes() == judge_path("embedded").read_bytes()


def test_a_model_in_memory_is_written_as_its_folder_is(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    write_gguf(model, train_tokenizer(["The answer is 7."] * 50, 320), tmp_path / "memory.gguf", "tiny")
    train_tokenizer(["The answer is 7."] * 50, 320).save_pretrained(folder)
    convert(folder, tmp_path / "folder.gguf")  # named after its folder
    assert (tmp_path / "memory.gguf").read_bytes() == (tmp_path / "folder.gguf").read_bytes()


@pytest.mark.parametrize("type, bound", [("Q8_0", 0.05), ("Q4_K_M", 0.25)])
def test_quantized_logits_stay_near(tmp_path, type, bound):
    folder = write_checkpoint(tmp_path / "model", hidden_size=256, intermediate_size=256, initializer_range=0.05)
    convert(folder, tmp_path / "f16.gguf")
    quantize(tmp_path / "f16.gguf", tmp_path / "quantized.gguf", type)
    expected, logits = logits_of_both(folder, tmp_path / "quantized.gguf")
    error = (logits - expected).std() / expected.std()
    assert error < bound
    assert (tmp_path / "quantized.gguf").stat().st_size < 0.7 * (tmp_path / "f16.gguf").stat().st_size


def test_quantize_says_why_not(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(TpoError, match="broken.gguf could not be quantized to Q8_0: .*failed to"):
        quantize(tmp_path / "broken.gguf", tmp_path / "out.gguf", "Q8_0")
    assert not (tmp_path / "out.gguf").exists()


def set_config(**changes):
    return lambda folder: edit(folder / "config.json", lambda config: config.update(changes))


def drop(name):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        del weights[name]
        save_torch(weights, folder / "model.safetensors")

    return change


def add(name, dtype):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        save_torch(weights | {name: torch.zeros(64, dtype=dtype)}, folder / "model.safetensors")

    return change


def other_splitting(folder):
    metaspace = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer.update(pre_tokenizer=metaspace))


@pytest.mark.parametrize(
    "change, message",
    [
        (set_config(model_type="gemma2"), "'gemma2' model, not one of llama, qwen2, qwen3"),
        (set_config(rope_parameters={"rope_type": "yarn"}), "rope_type 'yarn' is not supported"),
        (set_config(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2}), "rope_type 'linear' is not"),
        (set_config(num_hidden_layers=3), "lacks the tensor 'model.layers.2.input_layernorm.weight'"),
        (drop("model.norm.weight"), "lacks the tensor 'model.norm.weight'"),
        (add("model.layers.0.self_attn.q_proj.bias", torch.float32), "has the tensor 'model.layers.0.*q_proj.bias'"),
        (add("x", torch.uint8), "x is U8; only 16 and 32 bit"),
        (
            other_splitting,
            r"tokenizer.json splits text in a way that llama.cpp does not know \(hash of .*: [0-9a-f]{64}\)",
        ),
        (set_config(use_sliding_window=True), "use_sliding_window is not supported"),
        (set_config(vocab_size=200), r"token ids do not match the 200 embedding rows"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read as a tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model\\*.safetensors"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, change, message):
    folder = write_checkpoint(tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(TpoError, match=r"model.gguf needs 0.0 GB, and 0.0 GB are free"):
        convert(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
