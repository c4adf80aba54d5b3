"""The shape of a model: the sizes that memory and speed depend on, read without any weights."""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.hub import (
    cached_file,
    download_config,
    hub_file,
    is_gguf,
    judge_path,
    local_config,
    local_file,
    model_folder,
)
from tpo_lite.recipe import Recipe
from tpo_lite.recipe_keys import JudgeSettings

_LLAMA = {"model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                              "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True},
    "llama-3.2-3b": _LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                              "num_attention_heads": 24, "head_dim": 128, "tie_word_embeddings": True},
    "llama-3.1-8b": _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                              "num_attention_heads": 32, "tie_word_embeddings": False},
    "llama-3.1-70b": _LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                               "num_attention_heads": 64, "tie_word_embeddings": False},
    "qwen3-4b": {"model_type": "qwen3", "num_key_value_heads": 8, "vocab_size": 151936, "hidden_size": 2560,
                 "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "head_dim": 128,
                 "tie_word_embeddings": True},
    "smollm2-135m": {"model_type": "llama", "num_key_value_heads": 3, "vocab_size": 49152, "hidden_size": 576,
                     "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "tie_word_embeddings": True},
    "qwen2.5-coder-1.5b": {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 151936, "hidden_size": 1536,
                           "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                           "tie_word_embeddings": True},
}  # fmt: skip
"""Published configs of base models. If a model's name says which of them it is made from, a plan downloads nothing."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""The keys under which configs of mixtures of experts give the number of experts."""

GGUF_BITS = {"Q3_K_M": 3.996, "Q4_K_M": 4.894, "Q5_K_M": 5.704, "Q6_K": 6.563, "Q8_0": 8.501, "F16": 16.0}
"""Bits per weight of whole files, as llama.cpp's quantize tool lists them for Llama-3.1-8B."""


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: attention with grouped keys and values, and a gated MLP."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the LM head and the embedding are the same weights."""

    @cached_property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers in one block: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, i = self.hidden, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    @property
    def linear_parameters(self) -> int:
        """The number of weights in linear layers, which are quantized and carry adapters."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """The number of weights in the token embedding alone."""
        return self.vocabulary * self.hidden

    @property
    def other_parameters(self) -> int:
        """The number of weights that stay in 16 bits: embedding, LM head unless it is tied, and norms."""
        return (1 if self.tied else 2) * self.embedding_parameters + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """The number of all weights."""
        return self.linear_parameters + self.other_parameters

    def lora_parameters(self, rank: int) -> int:
        """Return the number of weights of an adapter on all linear layers: A (rank, in) and B (out, rank)."""
        return rank * self.layers * sum(a + b for a, b in self.linears)

    def kv_elements(self, tokens: int) -> int:
        """Return how many numbers the KV cache of `tokens` tokens holds."""
        return tokens * self.layers * 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class JudgeShape:
    """A judge with weights of its own, or a GGUF file."""

    model: ModelShape
    file_bytes: int
    gpu_bytes: int
    """Bytes on the GPU when all layers are there. llama.cpp keeps the token embedding in host memory, and a second copy
    of it on the GPU if it is tied."""


def model_shape(name: str, key: str = "model") -> ModelShape:
    """Return the shape of a recipe's `model`: `embedded`, a folder with a config.json, a hub id, or a GGUF file.

    A hub id is looked up in the hub's cache, then by its name among `PUBLISHED`, then on the hub (only config.json is
    downloaded). `key` is the recipe's key that names the model. Raises `InputError` if there is no config or it lacks
    a size.
    """
    if is_gguf(name):
        return gguf_shape(name, key).model
    return shape_of(_config(name, key), name, key)


def shape_of(config: dict[str, Any], source: str, key: str = "model") -> ModelShape:
    """Return the shape that a config.json describes. `source` and the recipe's `key` name it in messages.

    Raises `InputError` if a key is missing or is not a size, and for a mixture of experts.
    """
    remedy = "Give a Llama-like causal language model."
    if isinstance(config, dict):
        config = config.get("text_config") or config  # vision models have one
    config = config if isinstance(config, dict) else {}
    if any(config.get(experts) not in (None, 0, 1) for experts in EXPERTS):
        raise InputError(
            f"{key}: {source} is a mixture of experts, which tpo_lite can neither plan nor train. {remedy}"
        )
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        shape = ModelShape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )
        if not all(isinstance(size, int) and size > 0 for name, size in vars(shape).items() if name != "tied"):
            raise ValueError
    except KeyError as error:
        raise InputError(f"{key}: the config of {source} has no {error}. {remedy}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{key}: a size in the config of {source} is not a positive integer. {remedy}") from error
    return shape


def converts_to_gguf(name: str) -> bool:
    """Return whether `tpo_lite.llamacpp.convert` can convert a recipe's `model`, judging by its config and tokenizer.

    A model that is only known by its name is assumed to have the published tokenizer. A model on the hub whose
    tokenizer is not in the cache is assumed not to convert.
    """
    from tpo_lite.llamacpp.convert import LAYER_TENSORS
    from tpo_lite.llamacpp.pre_tokenizers import pre_tokenizer

    if is_gguf(name):
        return True  # it is sampled from as it is
    try:
        config = _config(name, "model")
    except InputError:
        return False
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    biases = config.get("attention_bias") or config.get("mlp_bias")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.get("model_type") not in LAYER_TENSORS or biases or kind not in ("default", "llama3"):
        return False
    if config.get("use_sliding_window"):
        return False
    tokenizer = local_file(name, "tokenizer.json")
    if tokenizer is None:
        return _published(name) is not None
    try:
        pre_tokenizer(tokenizer)
    except InputError:
        return False
    return True


def _config(name: str, key: str) -> dict[str, Any]:
    """Return a model's config: from its folder or the hub's cache, else published, else downloaded."""
    file = local_config(name, key)
    config: dict[str, Any]
    if file is None:
        config = _published(name) or json.loads(download_config(name, key).read_text(encoding="utf-8"))
        return config
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return config
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key}: {file} cannot be read ({error}). Give a folder with a Hugging Face config.json."
        ) from error


def taken_by_name(name: str) -> str | None:
    """Return the key in `PUBLISHED` that a model's name contains; None if the model's own config is here."""
    if model_folder(name).exists() or cached_file(name, "config.json") is not None:
        return None
    return _published_key(name)


def _published_key(name: str) -> str | None:
    """Return the key in `PUBLISHED` that a name contains."""
    return next((key for key in PUBLISHED if key in name.lower()), None)


def _published(name: str) -> dict[str, Any] | None:
    """Return the published config of the model that a name contains."""
    key = _published_key(name)
    return None if key is None else PUBLISHED[key]


def judge_shape(settings: JudgeSettings) -> JudgeShape | None:
    """Return the shape of a recipe's judge; None for a judge behind a server. Raises `InputError` as for a model."""
    if settings.mode == "openai":
        return None
    if settings.mode == "reward-model":
        # A reward model has a score head of one row, and no LM head.
        model = replace(model_shape(settings.model.removeprefix("hub:"), "judge.model"), tied=True)
        return JudgeShape(model, 2 * model.parameters, 2 * model.parameters)
    return gguf_shape(settings.model, "judge.model")


def choosing_shape(recipe: Recipe, judge: JudgeShape | None) -> JudgeShape | None:
    """Return the shape of the judge that chooses checkpoints: of `select.judge`, or else `judge`, the training one."""
    return _second_shape(recipe.select.judge) if recipe.select.judge is not None else judge


@cache
def _second_shape(settings: JudgeSettings) -> JudgeShape | None:
    """Do the same as `judge_shape`, once: the plan asks for many versions of one recipe."""
    return judge_shape(settings)


def gguf_shape(name: str, key: str) -> JudgeShape:
    """Return the shape of a GGUF file that the recipe's `key` names.

    The sizes of a file on the hub that is not in the cache yet follow from its name, if that names a published base
    model and a quantization. Raises `InputError` if it does not.
    """
    if not name.startswith("hub:"):
        return read_gguf(judge_path(name, key), key)
    repository, pattern = hub_file(name, key)
    file = cached_file(repository, pattern)
    if file is not None:
        return read_gguf(file, key)
    config = _published(name)
    bits = next((bits for kind, bits in GGUF_BITS.items() if re.search(rf"{kind}\b", pattern, re.IGNORECASE)), None)
    if config is None or bits is None:
        raise InputError(
            f"{key}: {name!r} is not in the hub's cache, and its name does not say how large it is. "
            f"Download it first: hf download {repository} --include '{pattern}'."
        )
    shape = shape_of(config, name, key)
    size = int(shape.parameters * bits / 8)
    embedding = int(shape.embedding_parameters * bits / 8)
    return JudgeShape(shape, size, size if shape.tied else size - embedding)


def read_gguf(path: Path, key: str = "judge.model") -> JudgeShape:
    """Read the shape from the header of a GGUF file that the recipe's `key` names.

    Raises `InputError` for a file that is missing or not a GGUF.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = GgufHeader(data)
        architecture = header.values["general.architecture"]
        get = {name.removeprefix(f"{architecture}."): value for name, value in header.values.items()}
        embedding = header.tensors["token_embd.weight"]
        heads, hidden = get["attention.head_count"], get["embedding_length"]
        shape = ModelShape(
            layers=get["block_count"],
            hidden=hidden,
            intermediate=get["feed_forward_length"],
            heads=heads,
            kv_heads=get.get("attention.head_count_kv", heads),
            head_dim=get.get("attention.key_length", hidden // heads),
            vocabulary=embedding.dimensions[1],
            tied="output.weight" not in header.tensors,
        )
        if None in vars(shape).values():
            raise ValueError("its layers differ in size")
        sizes = {}
        for name, tensor in header.tensors.items():
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
            sizes[name] = math.prod(tensor.dimensions) // block * block_bytes
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise InputError(
            f"{key}: {path} cannot be read as a GGUF ({error}). Give the GGUF file of a language model."
        ) from error
    size = sum(sizes.values())
    return JudgeShape(shape, size, size if shape.tied else size - sizes["token_embd.weight"])
