"""Shapes of models and judges: from configs, published names and GGUF headers."""

import json

import gguf
import pytest

from tests.helpers.plans import DEFAULT, planned
from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.hub import ASSETS
from tpo_lite.plan.shapes import PUBLISHED, judge_shape, model_shape, read_gguf, shape_of
from tpo_lite.recipe import load_recipe

LLAMA_3_1_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3_2_3B = LLAMA_3_1_8B | {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_3_2_1B = LLAMA_3_2_3B | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}


# Shapes


@pytest.mark.parametrize(
    ("config", "parameters", "linear", "adapter"),
    [
        (LLAMA_3_1_8B, 8_030_261_248, 6_979_321_856, 41_943_040),
        (LLAMA_3_2_3B, 3_212_749_824, 2_818_572_288, 24_313_856),
        (LLAMA_3_2_1B, 1_235_814_400, 973_078_528, 11_272_192),
    ],
)
def test_parameters_of_a_folder_with_nothing_but_a_config(config, parameters, linear, adapter, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = model_shape(str(tmp_path))
    assert (shape.parameters, shape.linear_parameters, shape.lora_parameters(16)) == (parameters, linear, adapter)
    assert shape in [shape_of(published, "published") for published in PUBLISHED.values()]


def test_heads_may_be_wider_than_the_hidden_size():
    qwen3_4b = {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    shape = shape_of(qwen3_4b, "Qwen3-4B")
    assert shape.linear_parameters == 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    assert shape_of({"text_config": qwen3_4b}, "one that sees as well") == shape


def test_a_judge_known_by_its_name():
    _, _, judge = planned()
    assert judge.model == shape_of(LLAMA_3_1_8B, "8B")
    assert judge.file_bytes == pytest.approx(4.92e9, rel=0.01)  # the file on the hub


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        (DEFAULT, 8_030_261_248 - 128_256 * 4096),  # Llama-3.1-8B without its LM head
        ("llama-3.2-3b-12gb", 4_022_458_880),  # Qwen3-4B, whose LM head is its embedding; norms of q and k left out
    ],
)
def test_a_reward_model_known_by_its_name(recipe, parameters):
    judge = judge_shape(load_recipe(recipe).judge)
    assert judge.gpu_bytes == pytest.approx(2 * parameters, rel=1e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=no/where/at/all", "model: no folder 'no/where/at/all'"),
        ("judge.model=none.gguf", "judge.model: no file 'none.gguf'"),
        ("judge.model=hub:some/thing/model.gguf", "its name does not say how large it is"),
    ],
)
def test_a_shape_that_cannot_be_had(override, message):
    with pytest.raises(InputError, match=message):
        planned(DEFAULT, override)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": 8}, "is a mixture of experts, which tpo_lite can neither plan nor train"),
        ({"num_attention_heads": 0}, "is not a positive integer"),
        ({"hidden_size": "2048"}, "is not a positive integer"),
        ({"num_hidden_layers": -3}, "is not a positive integer"),
    ],
)
def test_configs_of_no_shape(changes, message):
    with pytest.raises(InputError, match=message):
        shape_of(PUBLISHED["llama-3.2-1b"] | changes, "a model")
    for config in ([], {"text_config": None}):
        with pytest.raises(InputError, match="has no 'num_attention_heads'"):
            shape_of(config, "nothing")


def test_configs_and_files_that_are_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no 'num_attention_heads'"):
        model_shape(str(tmp_path))
    (tmp_path / "judge.gguf").write_bytes(b"no GGUF")
    with pytest.raises(InputError, match=r"^judge\.model: .* cannot be read as a GGUF"):
        read_gguf(tmp_path / "judge.gguf")
    with pytest.raises(InputError, match="^model: .* cannot be read as a GGUF"):
        model_shape(str(tmp_path / "judge.gguf"))


@pytest.mark.parametrize("kept", [0, 20, 1000, 5000])
def test_a_gguf_cut_short_in_its_header(kept, tmp_path):
    whole = write_tiny_gguf(tmp_path / "judge.gguf").read_bytes()
    (tmp_path / "judge.gguf").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="cannot be read as a GGUF"):
        read_gguf(tmp_path / "judge.gguf")


def test_a_header_holds_what_ggufs_own_reader_finds():
    found, reader = read_gguf(ASSETS / "judge.gguf"), gguf.GGUFReader(ASSETS / "judge.gguf")
    assert found.file_bytes == sum(int(tensor.n_bytes) for tensor in reader.tensors)
    assert found.model.vocabulary == len(reader.get_field("tokenizer.ggml.tokens").data)
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count"):
        value = reader.get_field(f"llama.{key}").contents()
        assert value in (found.model.layers, found.model.hidden, found.model.intermediate, found.model.heads)
