"""llama.cpp's pre-tokenizers: found by hash, or by how a tokenizer splits text; llama.cpp has all of them."""

import mmap

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.helpers.shared import SHARED
from tests.helpers.tiny_gguf import byte_symbols, write_tiny_gguf
from tpo_lite.embedded.tokenizer import SPLIT
from tpo_lite.errors import InputError
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.llamacpp.model import GgufModel
from tpo_lite.llamacpp.pre_tokenizers import HASHES, PROBE, SPLITS, pre_tokenizer, probe_hash

BYTES = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


def byte_level(pre, vocabulary=BYTES, merges=(), **options):
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), list(merges), **options))
    tokenizer.pre_tokenizer = pre
    return tokenizer


def splitting(expression):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def saved(tokenizer, path):
    tokenizer.save(str(path))
    return path


def test_the_probe_is_hashed_by_its_ids():
    """Every byte a token: the ids are the bytes' numbers."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert tokenizer.encode(PROBE).ids == list(PROBE.encode())
    # sha256 of str(list(PROBE.encode()))
    assert probe_hash(tokenizer) == "89a1c8edbd3d80af57c0a40175ce814b8133c8a424f8be85c1712f52041a554f"


def test_the_split_tells_where_the_vocabulary_is_not_known(tmp_path):
    for expression, name in SPLITS.items():
        assert pre_tokenizer(saved(byte_level(splitting(expression)), tmp_path / "tokenizer.json")) == name
    assert SPLITS[SPLIT] == "qwen2"


def test_a_tokenizer_that_changes_the_text_first_is_unknown(tmp_path):
    tokenizer = byte_level(splitting(SPLIT))
    tokenizer.normalizer = normalizers.NFC()
    assert pre_tokenizer(saved(tokenizer, tmp_path / "tokenizer.json")) == "qwen2"
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=f"does not know .*{probe_hash(tokenizer)}.* Set engine: transformers"):
        pre_tokenizer(saved(tokenizer, tmp_path / "tokenizer.json"))


def test_llama_cpp_knows_every_name(tmp_path):
    for name in sorted({*HASHES.values(), *SPLITS.values()}):
        path = write_tiny_gguf(tmp_path / "vocabulary.gguf", pre_tokenizer=name)
        GgufModel(path, vocab_only=True)
    with pytest.raises(InputError):
        GgufModel(write_tiny_gguf(tmp_path / "other.gguf", pre_tokenizer="unheard-of"), vocab_only=True)


def published(name):
    """Tokens and merges of a published vocabulary."""
    path = SHARED / f"data/tokenizer/llama_cpp/ggml-vocab-{name}.gguf"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        values = GgufHeader(data, arrays=True).values
    tokens, merges = (values[f"tokenizer.ggml.{kind}"] for kind in ("tokens", "merges"))
    return {token: index for index, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges]


@pytest.mark.shared
def test_gpt_2_is_known_by_its_hash(tmp_path):
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), *published("gpt-2"))
    assert pre_tokenizer(saved(tokenizer, tmp_path / "tokenizer.json")) == "gpt-2"


@pytest.mark.shared
def test_llama_3_is_known_by_its_hash_with_and_without_bos(tmp_path):
    expression = next(expression for expression, name in SPLITS.items() if name == "llama-bpe")
    tokenizer = byte_level(splitting(expression), *published("llama-bpe"), ignore_merges=True)
    file = saved(tokenizer, tmp_path / "tokenizer.json")
    assert HASHES[probe_hash(tokenizer)] == "smaug-bpe"
    assert pre_tokenizer(file) == "llama-bpe"
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 128000)])
    assert HASHES[probe_hash(tokenizer)] == "llama-bpe"
