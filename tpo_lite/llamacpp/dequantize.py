"""A GGUF file as a Hugging Face checkpoint in 16 bits, with its tokenizer and chat template.

`dequantize` holds a few rows of a tensor in memory at a time (a Llama's query and key projections whole), and imports
no torch. It supports Llama, Qwen2 and Qwen3 in one file, in every type that the gguf package can dequantize, and
tokenizers as in `tpo_lite.llamacpp.gguf_tokenizer`. It refuses everything else.
"""

from __future__ import annotations

import json
import math
import mmap
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize as dequantized

from tpo_lite.errors import InputError
from tpo_lite.files import write_json
from tpo_lite.gguf_header import GgufHeader, GgufTensor
from tpo_lite.llamacpp.convert import Shape, check_space, heads_to_interleave, tensor_names
from tpo_lite.llamacpp.gguf_tokenizer import write_tokenizer

SHARD_BYTES = 2 << 30
_CHUNK = 1 << 24
"""Weights dequantized at a time."""
_FACTORS = "rope_freqs.weight"
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_REMEDY = "Give the model's Hugging Face folder or hub id."


def dequantize(source: Path, folder: Path) -> None:
    """Write the GGUF file `source` as a checkpoint in float16 to `folder`, which appears only when it is complete.

    Raises `InputError` for a file that is not supported, and `TpoError` if there is too little disk space.
    """
    try:
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = GgufHeader(data, arrays=True)
            config = _config(header, source)
            shape = Shape.of(config, source)
            names = _names(header, shape, source)
            folder.parent.mkdir(parents=True, exist_ok=True)
            check_space(folder, sum(_half_bytes(header.tensors[name]) for name in names))
            temporary = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write_tokenizer(header.values, source, temporary)
            _write_weights(header, names, shape, temporary, source)
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        if isinstance(error, OSError) and source.is_file():
            raise
        raise InputError(
            f"model: {source} cannot be read as a GGUF ({error}). Copy or download the file again."
        ) from error
    write_json(temporary / "config.json", config)
    temporary.replace(folder)


def _config(header: GgufHeader, source: Path) -> dict[str, Any]:
    """Return the config.json of a GGUF. Raises `InputError` for an architecture or scaling that is not supported."""
    values = header.values
    architecture = values["general.architecture"]
    if architecture not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise InputError(f"model: {source} is a {architecture!r} model, not one of {known}. {_REMEDY}")
    if values.get("split.count", 1) > 1:
        raise InputError(
            f"model: {source} is one of {values['split.count']} files. Join them with llama.cpp's "
            "`llama-gguf-split --merge`."
        )
    get = {key.removeprefix(f"{architecture}."): value for key, value in values.items()}
    heads, hidden = get["attention.head_count"], get["embedding_length"]
    head_dim = get.get("attention.key_length", hidden // heads)
    scaling = get.get("rope.scaling.type", "none")
    if scaling != "none" or get.get("rope.dimension_count", head_dim) != head_dim:
        raise InputError(f"model: {source} has rotary embeddings ({scaling}) that are not supported. {_REMEDY}")
    config = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "dtype": "float16",
        "vocab_size": header.tensors["token_embd.weight"].dimensions[1],
        "max_position_embeddings": get["context_length"],
        "hidden_size": hidden,
        "intermediate_size": get["feed_forward_length"],
        "num_hidden_layers": get["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": get.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _shortest(get["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": get.get("rope.freq_base", 10_000.0)},
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": values.get("tokenizer.ggml.padding_token_id"),
    }
    if _FACTORS in header.tensors:
        config["rope_parameters"] |= _llama3_scaling(header, config, source)
    return config


def _llama3_scaling(header: GgufHeader, config: dict[str, Any], source: Path) -> dict[str, Any]:
    """Return the parameters of llama3 scaling that give the divisors in a GGUF, which holds nothing else of it.

    All published models have these but for `factor`, which is the largest divisor. Raises `InputError` if they do not
    give the divisors.
    """
    tensor = header.tensors[_FACTORS]
    stored = np.memmap(source, "<f4", "r", header.start + tensor.offset, tuple(tensor.dimensions))
    scaling = {
        "rope_type": "llama3",
        "factor": float(stored.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = config["rope_parameters"] | scaling
    expected = Shape.of(config | {"rope_parameters": rope}, source).frequency_factors()
    if expected is None or expected.shape != stored.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise InputError(f"model: {source} has rotary embeddings scaled in a way that is not supported. {_REMEDY}")
    return scaling


def _shortest(number: float) -> float:
    """Return the shortest decimal that is `number` in 32 bits, e.g. 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _names(header: GgufHeader, shape: Shape, source: Path) -> dict[str, str]:
    """Return the checkpoint's name of each tensor of the GGUF.

    Raises `InputError` if a tensor is missing, has no place in the checkpoint, or is of a type that cannot be
    dequantized.
    """
    names = tensor_names(shape)
    missing, unknown = names.keys() - header.tensors.keys(), header.tensors.keys() - names.keys() - {_FACTORS}
    if missing:
        raise InputError(f"model: {source} lacks the tensor {min(missing)!r}. Copy or download the file again.")
    if unknown:
        what = f"the tensor {min(unknown)!r}, which a plain {shape.architecture} model does not have"
        raise InputError(f"model: {source} has {what}. {_REMEDY}")
    for name in names:
        _type(header.tensors[name], name, source)
    return names


def _type(tensor: GgufTensor, name: str, source: Path) -> gguf.GGMLQuantizationType:
    """Return a tensor's type. Raises `InputError` if it cannot be dequantized."""
    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    known = {kind.value: kind for kind in (*plain, *gguf.quants._type_traits)}
    if tensor.kind not in known:
        every = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
        raise InputError(
            f"model: {source}: {name} is of type {every.get(tensor.kind, tensor.kind)}, which cannot be dequantized. "
            "Use another quantization of the model, such as Q4_K_M or Q8_0."
        )
    return known[tensor.kind]


def _half_bytes(tensor: GgufTensor) -> int:
    """Return a tensor's bytes in float16."""
    return 2 * math.prod(tensor.dimensions)


def _write_weights(header: GgufHeader, names: dict[str, str], shape: Shape, folder: Path, source: Path) -> None:
    """Write all tensors to shards of about `SHARD_BYTES`, and their index."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in names:
        width = _half_bytes(header.tensors[name])
        if shards[-1] and size + width > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += width
    files, total = {}, 0
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        entries, at = {}, 0
        for name in members:
            tensor = header.tensors[name]
            end = at + _half_bytes(tensor)
            entries[names[name]] = {"dtype": "F16", "shape": tensor.dimensions[::-1], "data_offsets": [at, end]}
            files[names[name]] = file
            at = end
        total += at
        text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name in members:
                for rows in _rows(header, name, shape, source):
                    out.write(rows.tobytes())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})


def _rows(header: GgufHeader, name: str, shape: Shape, source: Path) -> Iterator[np.ndarray]:
    """Yield a tensor's rows in float16, in transformers' order."""
    tensor = header.tensors[name]
    kind = _type(tensor, name, source)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    columns, rows = tensor.dimensions[0], math.prod(tensor.dimensions[1:])
    width = columns // block * block_bytes
    permuted = heads_to_interleave(name, shape)
    step = rows if permuted else max(1, _CHUNK // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        offset = header.start + tensor.offset + first * width
        weights = dequantized(np.memmap(source, np.uint8, "r", offset, (count, width)), kind)
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError(f"model: {source}: a weight of {name} is too large for float16. {_REMEDY}")
        yield _transformers_order(half, permuted) if permuted else half


def _transformers_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo `tpo_lite.llamacpp.convert.interleaved`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
