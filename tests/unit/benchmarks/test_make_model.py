"""Random models of public shapes: the true tokenizer, config and tensors, and the same weights as GGUF."""

import json
import math
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from benchmarks.make_model import TOKENIZER, make_gguf, make_model, write_weights
from benchmarks.shapes import SHAPES, parameters, tensor_shapes
from tests.helpers.shared import SHARED
from tpo_lite.hub import model_path
from tpo_lite.llamacpp.decoder import Leaf, LlamaCpp

VOCABULARY = TOKENIZER / "llama_cpp/ggml-vocab-llama-bpe.gguf"
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


def vocabulary_cases():
    # Every case ends with the separator, the last one too.
    cases = VOCABULARY.with_suffix(".gguf.inp").read_text().split("\n__ggml_vocab_test__\n")[:-1]
    ids = VOCABULARY.with_suffix(".gguf.out").read_text().splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(cases, ids, strict=True)]


def test_tokens_of_the_published_cases(tiny, tokenizer):
    cases = vocabulary_cases()
    assert len(cases) == 46
    engine = LlamaCpp(tiny / "model-Q4_K_M.gguf", n_ctx=16)
    for text, ids in cases:
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert engine.tokenize(text, special=False) == ids
        assert tokenizer.decode(ids) == text


def read_vocabulary(path):
    """Texts and kinds of a GGUF's tokens, those that end a turn, whether BOS comes first, and the chat template."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    ids = range(llama_cpp.llama_vocab_n_tokens(vocabulary))
    texts = [llama_cpp.llama_vocab_get_text(vocabulary, token).decode() for token in ids]
    kinds = [llama_cpp.llama_vocab_get_attr(vocabulary, token) for token in ids]
    ends = [token for token in ids if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
    adds_bos = llama_cpp.llama_vocab_get_add_bos(vocabulary)
    template = llama_cpp.llama_model_chat_template(model, None)
    llama_cpp.llama_model_free(model)
    return texts, kinds, ends, adds_bos, template and template.decode()


def test_vocabulary_is_the_published_one(tiny):
    texts, kinds, ends, adds_bos, _ = read_vocabulary(tiny / "model-Q8_0.gguf")
    published, published_kinds, *_ = read_vocabulary(VOCABULARY)
    # Llama 3.1 renamed some special tokens of Llama 3.
    assert texts[:128_000] == published[:128_000]
    assert kinds == published_kinds
    assert ends == SHAPES["tiny"].eos_token_id
    assert adds_bos


def test_gguf_splits_real_text_as_transformers_does(tiny, tokenizer):
    rows = (SHARED / "data/alpaca_eval2/instructions.jsonl").read_text().splitlines()
    engine = LlamaCpp(tiny / "model-Q4_K_M.gguf", n_ctx=16)
    for text in (json.loads(row)["instruction"] for row in rows):
        assert engine.tokenize(text, special=False) == tokenizer.encode(text, add_special_tokens=False)


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


def test_chat_template_is_metas(tiny, tokenizer):
    published = (TOKENIZER / "templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    assert tokenizer.chat_template == published
    assert read_vocabulary(tiny / "model-Q4_K_M.gguf")[-1] == published
    messages = [
        {"role": "system", "content": "You are a helpful assistant"},
        {"role": "user", "content": "Answer who are you in the form of jeopardy?"},
    ]
    # Meta's rendered prompt, with the two lines of dates that the template adds to every system message.
    document = (TOKENIZER / "llama3/prompt_format_llama3_1.md").read_text()
    start = document.index("<|begin_of_text|><|start_header_id|>system")
    end = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    prompt = document[start : document.index(end, start) + len(end)]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.replace("Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", "") == prompt


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
