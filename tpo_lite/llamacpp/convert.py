"""Conversion of a Llama, Qwen2 or Qwen3 checkpoint from Hugging Face's layout to a GGUF file, and its quantization.

`convert` holds one tensor in memory at a time, and imports no torch. It supports 16-bit or 32-bit safetensors with
`default` or `llama3` rotary embeddings, and a byte-level BPE tokenizer that llama.cpp knows
(`tpo_lite.llamacpp.pre_tokenizers`). It refuses everything else, e.g. a Llama with biases. The GGUF gives the logits of
the checkpoint. Names, metadata and the rotary layout follow llama.cpp's own `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from tpo_lite.errors import InputError, TpoError
from tpo_lite.llamacpp.pre_tokenizers import pre_tokenizer
from tpo_lite.machine.threads import cores
from tpo_lite.safetensors_files import read_header

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Modules of a transformers Llama layer -> tensors of a GGUF block."""

_WEIGHTS = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in LAYER_NAMES.items()}
LAYER_TENSORS = {
    "llama": _WEIGHTS,
    "qwen2": _WEIGHTS | {f"self_attn.{letter}_proj.bias": f"attn_{letter}.bias" for letter in "qkv"},
    "qwen3": _WEIGHTS | {f"self_attn.{letter}_norm.weight": f"attn_{letter}_norm.weight" for letter in "qk"},
}
"""Architectures, named alike by both libraries -> tensors of a transformers layer -> tensors of a GGUF block."""
INTERLEAVED = ("llama",)
"""Architectures whose query and key rows llama.cpp keeps in another order; see `interleaved`."""

_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_CHUNK = 1 << 24
"""Elements widened to 32 bits at a time."""
_QUANTIZE_BUFFER = 1 << 30
"""Bytes of 32-bit rows that llama.cpp holds in memory while it quantizes; its default is 8 GiB."""
_NO_CONVERSION = "Convert it with llama.cpp's convert_hf_to_gguf.py."


def convert(folder: Path, out: Path, type: Literal["F16", "F32"] = "F16", name: str | None = None) -> None:
    """Write the checkpoint in `folder`, its tokenizer and its chat template to the GGUF file `out`.

    Matrices are stored as `type`, norms and biases in 32 bits. `name` is the model's name in the metadata, by default
    that of the folder. `out` appears only when it is complete. Raises `InputError` for a checkpoint that is not
    supported or lacks a tensor, and `TpoError` if there is too little disk space.
    """
    config = json.loads(_required(folder, "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in LAYER_TENSORS:
        known = ", ".join(LAYER_TENSORS)
        raise InputError(f"{folder} is a {config['model_type']!r} model, not one of {known}. {_NO_CONVERSION}")
    shape = Shape.of(config, folder)
    stored = _stored_tensors(folder)
    tensors = list(_tensors(shape, stored, folder))
    matrix = np.dtype(np.float16 if type == "F16" else np.float32)
    check_space(out, sum(math.prod(source.shape) for _, source, _ in tensors) * matrix.itemsize)

    temporary = out.with_name(out.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, shape.architecture)
    writer.add_name(name or folder.resolve().name)
    _add_shape(writer, shape)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if type == "F16" else gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, folder, shape.vocab_size)
    factors = shape.frequency_factors()
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    dtypes = [np.dtype(np.float32) if len(source.shape) == 1 else matrix for _, source, _ in tensors]
    for (target, source, _), dtype in zip(tensors, dtypes, strict=True):
        writer.add_tensor_info(target, source.shape, dtype, math.prod(source.shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for (_, source, heads), dtype in zip(tensors, dtypes, strict=True):
        weight = source.read(dtype)
        writer.write_tensor_data(interleaved(weight, heads) if heads else weight)
    writer.close()
    temporary.replace(out)


def quantize(f16: Path, out: Path, type: Literal["Q4_K_M", "Q8_0"]) -> None:
    """Quantize the GGUF file `f16` to `out` with llama.cpp, on all cores that this process may use.

    `out` appears only when it is complete. For rows whose width is not a multiple of 256, llama.cpp chooses a larger
    type than Q4_K. Raises `TpoError` with llama.cpp's last messages if it fails.
    """
    import llama_cpp

    messages: list[str] = []

    def keep(_level: int, text: bytes, _data: Any) -> None:
        messages.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(keep)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type}")
    params.max_buf_size = _QUANTIZE_BUFFER
    params.nthread = cores()
    temporary = out.with_name(out.name + ".tmp")
    before, its_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(its_data))
    llama_cpp.llama_log_set(callback, None)
    try:
        failed = llama_cpp.llama_model_quantize(str(f16).encode(), str(temporary).encode(), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(before, its_data)
    if failed:
        raise TpoError(f"{f16} could not be quantized to {type}: {' '.join(''.join(messages[-3:]).split())}")
    temporary.replace(out)


@dataclass(frozen=True)
class Shape:
    """What llama.cpp needs from a config.json."""

    architecture: str
    vocab_size: int
    context: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: dict[str, Any]
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any], folder: Path) -> Shape:
        """Return the shape in the config.json of `folder`. Raises `InputError` if it is not supported."""
        # transformers 5 writes rope_parameters. Older checkpoints have rope_theta and rope_scaling, and the oldest
        # say `type` for rope_type.
        rope = {"rope_theta": config.get("rope_theta", 10_000.0), "rope_type": "default"}
        rope |= config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope["rope_type"] = rope.get("type", rope["rope_type"])
        if rope["rope_type"] not in ("default", "llama3"):
            raise InputError(f"{folder}: rope_type {rope['rope_type']!r} is not supported. {_NO_CONVERSION}")
        if config.get("use_sliding_window"):
            raise InputError(f"{folder}: use_sliding_window is not supported. {_NO_CONVERSION}")
        heads = config["num_attention_heads"]
        return cls(
            architecture=config["model_type"],
            vocab_size=config["vocab_size"],
            context=config["max_position_embeddings"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            norm_eps=config["rms_norm_eps"],
            rope=rope,
            tied=config.get("tie_word_embeddings", False),
        )

    def frequency_factors(self) -> np.ndarray | None:
        """Return the divisors of the head_dim / 2 rotary frequencies in llama3 scaling; None without scaling.

        Long wavelengths are stretched by `factor`, short ones are kept, and those between are interpolated
        (transformers, `modeling_rope_utils._compute_llama3_parameters`).
        """
        if self.rope["rope_type"] == "default":
            return None
        factor, low, high = (self.rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
        frequencies = self.rope["rope_theta"] ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        turns = self.rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        divisors: np.ndarray = (1 / (kept + (1 - kept) / factor)).astype(np.float32)
        return divisors


@dataclass(frozen=True)
class _StoredTensor:
    """A tensor in a safetensors file."""

    shard: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, dtype: np.dtype[Any]) -> np.ndarray:
        """Return the tensor as `dtype`; only a few of the stored rows are in memory at a time."""
        stored: np.ndarray = np.memmap(self.shard, _STORED[self.dtype], "r", self.offset, self.shape)
        read = np.empty(self.shape, dtype)
        rows = max(1, _CHUNK // math.prod(self.shape[1:]))
        for start in range(0, len(read), rows):
            chunk: np.ndarray = stored[start : start + rows]
            if self.dtype == "BF16":
                # bfloat16 is the upper half of a float32; numpy does not have it.
                chunk = (chunk.astype(np.uint32) << 16).view(np.float32)
            read[start : start + rows] = chunk
        return read


def _stored_tensors(folder: Path) -> dict[str, _StoredTensor]:
    """Return the tensors of all shards by name."""
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise InputError(f"{folder} holds no model*.safetensors. Save the model as safetensors first.")
    tensors = {}
    for shard in shards:
        header, entries = read_header(shard)
        for name, entry in entries.items():
            if entry["dtype"] not in _STORED:
                raise InputError(f"{shard}: {name} is {entry['dtype']}; only 16 and 32 bit weights can be converted.")
            begin = len(header) + entry["data_offsets"][0]
            tensors[name] = _StoredTensor(shard, begin, entry["dtype"], tuple(entry["shape"]))
    return tensors


def tensor_names(shape: Shape) -> dict[str, str]:
    """Return the names of all weights: in a GGUF -> in a checkpoint."""
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not shape.tied:
        names["output.weight"] = "lm_head.weight"
    for layer in range(shape.layers):
        tensors = LAYER_TENSORS[shape.architecture].items()
        names |= {f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for theirs, ours in tensors}
    return names


def heads_to_interleave(name: str, shape: Shape) -> int | None:
    """Return the heads of a GGUF's tensor if it is a query or key projection that `interleaved` is for, else None."""
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads} if shape.architecture in INTERLEAVED else {}
    return heads.get(name.split(".")[-2])


def check_space(path: Path, needed: int) -> None:
    """Raise `TpoError` if there are fewer than `needed` bytes free for `path`, whose folder exists."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise TpoError(f"{path} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there. Free some space.")


def _tensors(
    shape: Shape, stored: dict[str, _StoredTensor], folder: Path
) -> Iterator[tuple[str, _StoredTensor, int | None]]:
    """Yield (GGUF name, source, heads to interleave or None) for every tensor of the GGUF.

    Raises `InputError` if one is not among `stored`, or the architecture has no tensor like one of these.
    """
    names = tensor_names(shape)
    missing = set(names.values()) - stored.keys()
    if missing:
        raise InputError(f"{folder} lacks the tensor {min(missing)!r}. Copy or download the model again.")
    # Tied checkpoints may repeat the embedding as lm_head, and old ones store frequencies that follow from rope_theta.
    known = {*names.values(), "lm_head.weight"}
    unknown = {name for name in stored if name not in known and not name.endswith("rotary_emb.inv_freq")}
    if unknown:
        raise InputError(
            f"{folder} has the tensor {min(unknown)!r}, which a plain {shape.architecture} model does not have. "
            f"{_NO_CONVERSION}"
        )
    for ours, theirs in names.items():
        yield ours, stored[theirs], heads_to_interleave(ours, shape)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a query or key projection's rows in llama.cpp's rotary order for a Llama.

    In a head of width d, llama.cpp rotates rows 2i and 2i + 1 together, and transformers rows i and i + d/2. Of other
    architectures, both rotate rows i and i + d/2.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.head_dim != shape.hidden // shape.heads:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope["rope_theta"])
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Add the tokenizer and chat template of `folder`, with the vocabulary padded to the embedding's `rows`."""
    file = _required(folder, "tokenizer.json")
    pre = pre_tokenizer(file)
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    settings = json.loads(_required(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
    bpe, added = tokenizer["model"], tokenizer["added_tokens"]
    ids = bpe["vocab"] | {token["content"]: token["id"] for token in added}
    kinds = {
        token["content"]: gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED for token in added
    }
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))) or len(tokens) > rows:
        raise InputError(f"{folder}/tokenizer.json: token ids do not match the {rows} embedding rows. {_NO_CONVERSION}")
    padding = rows - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(padding)])
    writer.add_token_types(
        [kinds.get(token, gguf.TokenType.NORMAL) for token in tokens] + [gguf.TokenType.UNUSED] * padding
    )
    # Older tokenizer.json files have "a b" where newer ones have ["a", "b"].
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    bos, eos, pad = (_text(settings.get(f"{kind}_token")) for kind in ("bos", "eos", "pad"))
    if bos is not None:
        writer.add_bos_token_id(ids[bos])
    if eos is not None:
        writer.add_eos_token_id(ids[eos])
        writer.add_eot_token_id(ids[eos])
    if pad is not None:
        writer.add_pad_token_id(ids[pad])
    # The post-processor is what puts BOS before a text. Qwen2 has none.
    writer.add_add_bos_token(bos is not None and bos in json.dumps(tokenizer["post_processor"]))
    template = folder / "chat_template.jinja"
    chat_template = template.read_text(encoding="utf-8") if template.exists() else settings.get("chat_template")
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _text(token: str | dict[str, str] | None) -> str | None:
    """Return the text of a special token in tokenizer_config.json, which holds it as text or with its properties."""
    return token["content"] if isinstance(token, dict) else token


def _required(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"{folder} has no {name}. Give the folder of a checkpoint with its tokenizer.")
    return folder / name
