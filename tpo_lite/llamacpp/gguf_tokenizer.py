"""The tokenizer of a GGUF file as a Hugging Face one: byte-level BPE whose text splitting both libraries have.

The names of llama.cpp's pre-tokenizers and what each of them does are those of `llama-vocab.cpp` as of llama-cpp-python
0.3.36. A tokenizer is written only if it gives llama.cpp's own ids on a probe text. The ids differ for two kinds of
text: Qwen's tokenizers put a text into NFC first, and where a vocabulary lacks a byte (SmolLM's lacks some control
characters), llama.cpp does not merge what is left and right of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tpo_lite.errors import InputError
from tpo_lite.files import write_json
from tpo_lite.llamacpp.pre_tokenizers import PROBE, SPLITS

_EXPRESSIONS = {name: expression for expression, name in SPLITS.items()}
_KINDS = {
    "llama-bpe": "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 smaug-bpe",
    "qwen2": "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez",
    "gpt-2": "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4",
    "smollm": "smollm",
}
SPLIT_AS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""llama.cpp's pre-tokenizers that can be rebuilt -> how they split text."""

_TURN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")
"""Control tokens after which no model of these families says anything, whether its GGUF names them or not."""


def write_tokenizer(values: dict[str, Any], source: Path, folder: Path) -> None:
    """Write tokenizer, chat template and generation config from the `values` of the GGUF file `source` to `folder`.

    Raises `InputError` for a tokenizer that is not byte-level BPE or splits text in a way that is not supported, for a
    file without a chat template, and if llama.cpp gives a probe text other ids.
    """
    if values.get("tokenizer.ggml.model") != "gpt2":
        raise _unsupported(source, f"a tokenizer of type {values.get('tokenizer.ggml.model')!r}")
    if not values.get("tokenizer.chat_template"):
        raise InputError(f"model: {source} has no chat template. Use the GGUF of an instruct model.")
    tokens = values["tokenizer.ggml.tokens"]
    bos, eos, pad = (_token(values, tokens, key) for key in ("bos", "eos", "padding"))
    tokenizer = build_tokenizer(values, source)
    _check(tokenizer, source)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": values[f"{values['general.architecture']}.context_length"],
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(values["tokenizer.chat_template"], encoding="utf-8")
    vocabulary = tokenizer.get_vocab()
    ends = {eos, _token(values, tokens, "eot"), *_TURN_ENDS}
    ids = sorted(vocabulary[token] for token in ends if token in vocabulary)
    generation = {"eos_token_id": ids} | ({} if bos is None else {"bos_token_id": tokens.index(bos)})
    write_json(folder / "generation_config.json", generation)


def build_tokenizer(values: dict[str, Any], source: Path) -> Tokenizer:
    """Return the byte-level BPE tokenizer in the `values` of the GGUF file `source`.

    Raises `InputError` if its way of splitting text is not supported.
    """
    pre = values.get("tokenizer.ggml.pre")
    kind = SPLIT_AS.get(pre or "")
    if kind is None:
        raise _unsupported(source, f"the pre-tokenizer {pre!r}")
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, _, right in (text.partition(" ") for text in values["tokenizer.ggml.merges"])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    whole = kind == "llama-bpe" and pre != "smaug-bpe"  # llama.cpp takes a word that is a token as it is
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    if values["general.architecture"] in ("qwen2", "qwen3"):
        tokenizer.normalizer = normalizers.NFC()  # theirs; transformers adds it anyway, and llama.cpp leaves it out
    tokenizer.pre_tokenizer = _splitting(kind)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = dict(zip(tokens, values.get("tokenizer.ggml.token_type", []), strict=False))
    for special, type in ((True, TokenType.CONTROL), (False, TokenType.USER_DEFINED)):
        added = [AddedToken(token, normalized=False, special=special) for token in tokens if kinds.get(token) == type]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    bos = _token(values, tokens, "bos")
    if bos is not None and values.get("tokenizer.ggml.add_bos_token", whole):
        single = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
        tokenizer.post_processor = single
    return tokenizer


def _splitting(kind: str) -> pre_tokenizers.PreTokenizer:
    if kind == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if kind == "smollm"
        else pre_tokenizers.Split(Regex(_EXPRESSIONS[kind]), "isolated")
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    return pre_tokenizers.Sequence([first, byte_level])


def _token(values: dict[str, Any], tokens: list[str], key: str) -> str | None:
    index = values.get(f"tokenizer.ggml.{key}_token_id")
    return None if index is None else tokens[index]


def _check(tokenizer: Tokenizer, source: Path) -> None:
    """Raise `InputError` if the probe's ids are not those of llama.cpp, which reads the vocabulary of `source`."""
    from tpo_lite.llamacpp.model import GgufModel

    expected = GgufModel(source, vocab_only=True).tokenize(PROBE, special=False)
    if tokenizer.encode(PROBE, add_special_tokens=False).ids != expected:
        raise _unsupported(source, "a tokenizer that splits text in a way of its own")


def _unsupported(source: Path, what: str) -> InputError:
    return InputError(
        f"model: {source} has {what}, which cannot be converted. Give the model's Hugging Face folder or hub id."
    )
