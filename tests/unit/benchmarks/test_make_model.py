"""Random models of public shapes: tokenizer, config and tensors, and the same weights as GGUF."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.make_model import make_gguf, make_model, write_weights
from benchmarks.shapes import SHAPES, parameters, tensor_shapes
from benchmarks.texts import corpus
from tests.helpers.vocabulary import read_vocabulary
from tpo_lite.errors import InputError
from tpo_lite.hub import model_path
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf

TEXT = "A dog, a cat and 1234 mice:  don't they all think before they answer? Żółw 你好 🐢" * 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny shape with its three GGUF forms."""
    folder = tmp_path_factory.mktemp("shapes") / "tiny"
    make_model(SHAPES["tiny"], folder)
    make_gguf(folder, ["Q4_K_M", "Q8_0", "F16"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def prefixes(tiny, tokenizer):
    """Prefixes of a text, and the next token's logits after each, by transformers in float32."""
    ids = tokenizer.encode(TEXT)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    ends = range(1, len(ids) + 1, 9)
    return [ids[:end] for end in ends], np.stack([logits[end - 1] for end in ends])


def test_llama_cpp_reads_the_vocabulary_as_transformers_does(tiny, tokenizer):
    found = read_vocabulary(tiny / "model-Q8_0.gguf")
    assert found.texts == tokenizer.convert_ids_to_tokens(range(128_256))
    assert len(set(found.kinds[:128_000])) == 1 and len(set(found.kinds[128_000:])) == 1
    assert found.kinds[0] != found.kinds[-1]
    assert found.ends == SHAPES["tiny"].eos_token_id
    assert found.adds_bos
    assert found.chat_template == tokenizer.chat_template


def test_gguf_splits_text_as_transformers_does(tiny, tokenizer):
    texts = [TEXT, *corpus()]
    engine = LlamaCpp(tiny / "model-Q4_K_M.gguf", n_ctx=16)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert engine.tokenize(text, special=False) == ids
        assert tokenizer.decode(ids) == text


def test_the_synthetic_tokenizer_is_always_the_same(tiny, tmp_path):
    """In another process too, where sets and hash tables have another order."""
    code = "import sys; from benchmarks.llama3_tokenizer import synthetic_tokenizer as make\n"
    code += "make(128_256).save_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (tiny / file.name).read_bytes()


def test_words_of_plain_english_take_few_tokens(tokenizer):
    text = (
        "The weather was fine, so my neighbour walked to the market and bought apples, bread and a bunch of flowers. "
        "On the way back she met an old friend, who asked whether he could carry her basket up the hill."
    )
    assert len(tokenizer.encode(text, add_special_tokens=False)) < 2 * len(text.split())


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--tokenizer: .*policy has 768 tokens, and the model 128,256\. Give"):
        make_model(SHAPES["tiny"], tmp_path / "model", tokenizer=model_path("embedded"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "token, expected",
    [
        ("<|begin_of_text|>", 128_000),
        ("<|end_of_text|>", 128_001),
        ("<|reserved_special_token_0|>", 128_002),
        ("<|finetune_right_pad_id|>", 128_004),
        ("<|reserved_special_token_2|>", 128_005),
        ("<|start_header_id|>", 128_006),
        ("<|end_header_id|>", 128_007),
        ("<|eom_id|>", 128_008),
        ("<|eot_id|>", 128_009),
        ("<|python_tag|>", 128_010),
        ("<|reserved_special_token_3|>", 128_011),
        ("<|reserved_special_token_247|>", 128_255),
    ],
)
def test_special_tokens(tokenizer, token, expected):
    assert tokenizer.encode(token, add_special_tokens=False) == [expected]
    assert len(tokenizer) == 128_256


@pytest.mark.parametrize(
    "shape, count", [("llama-3.1-8b", 8_030_261_248), ("llama-3.2-3b", 3_212_749_824), ("llama-3.2-1b", 1_235_814_400)]
)
def test_shapes_have_the_published_number_of_parameters(shape, count):
    assert parameters(SHAPES[shape]) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_transformers(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape])
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if SHAPES[shape].tie_word_embeddings:
        del expected["lm_head.weight"]
    assert tensor_shapes(SHAPES[shape]) == expected


def test_the_tiny_shape_suits_every_quantization():
    widths = {shape[-1] for shape in tensor_shapes(SHAPES["tiny"]).values()}
    assert all(width % 256 == 0 for width in widths)  # Q4_K; NF4 needs 64


def small_config():
    return LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )


def test_shards_hold_what_one_file_holds(tmp_path):
    one, many, other = (tmp_path / name for name in ("one", "many", "other"))
    for folder, options in ((one, {}), (many, {"shard_bytes": 60_000}), (other, {"seed": 1})):
        folder.mkdir()
        small_config().save_pretrained(folder)
        write_weights(small_config(), folder, **options)
    shards = sorted(many.glob("*.safetensors"))
    assert [path.name for path in one.glob("*.safetensors")] == ["model.safetensors"]
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 60_000 + 2_000 for path in shards)  # tensors and a header
    first, second, third = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, many, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], third["lm_head.weight"])


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    write_weights(small_config(), tmp_path, shard_bytes=1)
    assert all(len(load_file(path)) == 1 for path in tmp_path.glob("*.safetensors"))


def test_no_two_matrices_are_alike(tmp_path):
    write_weights(small_config(), tmp_path)
    (tmp_path / "config.json").write_text(small_config().to_json_string())
    weights = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    queries = [weights[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in range(3)]
    assert not torch.equal(queries[0], queries[1]) and not torch.equal(queries[1], queries[2])
    assert queries[0].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["model.layers.0.mlp.down_proj.weight"].std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert torch.equal(weights["model.norm.weight"], torch.ones(64))


def test_outputs_are_finite_and_not_degenerate(prefixes):
    _, logits = prefixes
    assert np.isfinite(logits).all()
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = shifted / shifted.sum(-1, keepdims=True)
    entropies = -(probabilities * np.log(probabilities)).sum(-1)
    assert (entropies > 0.9 * np.log(128_256)).all()
    assert len(set(logits.argmax(-1))) > 0.8 * len(logits)


@pytest.mark.parametrize("form, bound", [("F16", 0.002), ("Q8_0", 0.03), ("Q4_K_M", 0.2)])
def test_gguf_has_the_logits_of_the_checkpoint(tiny, prefixes, form, bound):
    leaves, expected = prefixes
    decoded = LlamaCpp(tiny / f"model-{form}.gguf", n_ctx=512).decode([Leaf(ids) for ids in leaves])
    logits = np.stack([leaf.logits for leaf in decoded])
    assert (logits - expected).std() < bound * expected.std()
    if form == "F16":
        assert (logits.argmax(-1) == expected.argmax(-1)).all()


def test_the_f16_form_stays_only_if_asked_for(tmp_path):
    for file in Path(model_path("embedded")).iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert make_gguf(tmp_path, ["Q8_0"]) == [tmp_path / "model-Q8_0.gguf"]
    assert [path.name for path in tmp_path.glob("*.gguf*")] == ["model-Q8_0.gguf"]
