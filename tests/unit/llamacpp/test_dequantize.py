"""GGUF to Hugging Face checkpoint: the same weights, logits and tokens, and a refusal of what would come out wrong."""

import json
import mmap
import random
import unicodedata

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer

from tests.helpers.shared import SHARED
from tests.helpers.tiny_checkpoint import logits_of_both, write_checkpoint
from tests.helpers.tiny_gguf import CHAT_TEMPLATE, CONTROLS, MERGES, write_tiny_gguf, write_tiny_sentencepiece
from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.errors import InputError, TpoError
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.llamacpp.convert import convert, quantize
from tpo_lite.llamacpp.dequantize import dequantize
from tpo_lite.llamacpp.gguf_tokenizer import SPLIT_AS, build_tokenizer
from tpo_lite.llamacpp.model import GgufModel

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CHECKPOINTS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"head_dim": 32, "rope_parameters": LLAMA3}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("qwen3", {"head_dim": 32}),
]


@pytest.mark.parametrize(("architecture", "changes"), CHECKPOINTS, ids=str)
def test_there_and_back_gives_the_same_weights(tmp_path, architecture, changes, monkeypatch):
    monkeypatch.setattr("tpo_lite.llamacpp.dequantize.SHARD_BYTES", 100_000)
    monkeypatch.setattr("tpo_lite.llamacpp.dequantize._CHUNK", 1000)
    folder = write_checkpoint(tmp_path / "model", architecture, **changes)
    convert(folder, tmp_path / "model.gguf")
    dequantize(tmp_path / "model.gguf", tmp_path / "back")
    assert len(list((tmp_path / "back").glob("model*.safetensors"))) > 1
    back = {}
    for shard in (tmp_path / "back").glob("model*.safetensors"):
        back |= load_file(shard)
    weights = load_file(folder / "model.safetensors")
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(back[name], weight.half(), rtol=0, atol=0)
    expected, logits = logits_of_both(tmp_path / "back", tmp_path / "model.gguf")
    np.testing.assert_allclose(logits, expected, atol=0.005 * expected.std())


@pytest.mark.parametrize(("architecture", "changes"), CHECKPOINTS[1::2], ids=str)
@pytest.mark.parametrize(("type", "bound"), [("Q8_0", 0.03), ("Q4_K_M", 0.03)])
def test_logits_are_those_of_the_quantized_file(tmp_path, architecture, changes, type, bound):
    """llama.cpp also rounds activations to 8 bits; against the checkpoint before quantization, Q4_K_M is far off."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "initializer_range": 0.05}
    folder = write_checkpoint(tmp_path / "model", architecture, **changes, **wide)
    convert(folder, tmp_path / "f16.gguf")
    quantize(tmp_path / "f16.gguf", tmp_path / "quantized.gguf", type)
    dequantize(tmp_path / "quantized.gguf", tmp_path / "back")
    expected, logits = logits_of_both(tmp_path / "back", tmp_path / "quantized.gguf")
    assert (logits - expected).std() / expected.std() < bound


def test_an_interrupted_folder_is_made_anew(tmp_path):
    convert(write_checkpoint(tmp_path / "model"), tmp_path / "model.gguf")
    (tmp_path / "back.tmp").mkdir()
    (tmp_path / "back.tmp" / "half").write_text("")
    dequantize(tmp_path / "model.gguf", tmp_path / "back")
    assert not (tmp_path / "back" / "half").exists()
    assert not (tmp_path / "back.tmp").exists()


def characters():
    every = map(chr, range(1, 0x30000))
    return [character for character in every if unicodedata.category(character) not in ("Cn", "Cs", "Co")]


def random_texts(count):
    """Unicode of all kinds, in NFC: scripts, emoji, digits, controls, runs of spaces, contractions."""
    rng = random.Random(0)
    every = characters()
    latin, spaces = every[:600], list(" \n\t\r  '0123456789.,!?-")
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFG'"]
    pools = [every, latin, latin + spaces * 20, spaces + letters, every + spaces * 2000]
    texts = []
    for _ in range(count):
        pool = rng.choice(pools)
        texts.append(unicodedata.normalize("NFC", "".join(rng.choices(pool, k=rng.randint(1, 60)))))
    return texts


@pytest.fixture(scope="module")
def merges():
    """Merges learned from random texts, so that how a text is split shows in its tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["  ", "1234567890" * 3, "I'm, you'LL, they've!!\n\n", *random_texts(500)], trainer)
    learned = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    made = {merge.replace(" ", "") for merge in MERGES}
    return tuple(merge for merge in learned if merge.replace(" ", "") not in made)


@pytest.mark.parametrize("pre", ["llama-bpe", "smaug-bpe", "qwen2", "gpt-2", "smollm"])
def test_random_unicode_gets_llama_cpps_tokens(tmp_path, merges, pre):
    path = write_tiny_gguf(tmp_path / "model.gguf", pre_tokenizer=pre, extra_merges=merges, n_layer=1)
    dequantize(path, tmp_path / "back")
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "back"), GgufModel(path, vocab_only=True)
    for text in random_texts(1000):
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == model.tokenize(text, special=False), repr(text)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    marked = CONTROLS[2] + "user" + CONTROLS[3] + "\n\nthe" + CONTROLS[4]
    assert tokenizer.encode(marked, add_special_tokens=False) == model.tokenize(marked, special=True)


def test_chat_prompts_and_turn_ends(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    dequantize(path, tmp_path / "back")
    tokenizer = load_tokenizer(str(tmp_path / "back"))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}], tokenize=False, add_generation_prompt=True
    )
    assert Chat(tokenizer).prompt_ids("the cat") == GgufModel(path, vocab_only=True).tokenize(rendered, special=True)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    assert stop_ids(str(tmp_path / "back"), tokenizer) == ends
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.shared
@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2"])
def test_published_cases(name):
    path = SHARED / f"data/tokenizer/llama_cpp/ggml-vocab-{name}.gguf"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tokenizer = build_tokenizer(GgufHeader(data, arrays=True).values, path)
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) == len(lines) == 46
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == list(map(int, line.split()))


def test_what_splits_alike_is_known_to_llama_cpp(tmp_path):
    for name in SPLIT_AS:
        GgufModel(write_tiny_gguf(tmp_path / "model.gguf", pre_tokenizer=name), vocab_only=True)


def edited(path, key, value):
    """Write a tiny GGUF with another value in its metadata."""
    reader = gguf.GGUFReader(write_tiny_gguf(path.with_name("before.gguf")))
    writer = gguf.GGUFWriter(path, value if key == "general.architecture" else "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", key):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    if key != "general.architecture":
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "gemma2", "is a 'gemma2' model, not one of llama, qwen2, qwen3. Give the model's"),
        ("split.count", 3, "is one of 3 files. Join them with llama.cpp's `llama-gguf-split --merge`"),
        ("llama.rope.scaling.type", "yarn", r"rotary embeddings \(yarn\) that are not supported"),
        ("tokenizer.ggml.pre", "tekken", "has the pre-tokenizer 'tekken', which cannot be converted. Give the model's"),
        ("llama.block_count", 3, "lacks the tensor 'blk.2.attn_k.weight'"),
        ("llama.block_count", 1, "has the tensor 'blk.1.attn_k.weight', which a plain llama model does not have"),
    ],
)
def test_what_cannot_be_dequantized_is_refused(tmp_path, key, value, message):
    with pytest.raises(InputError, match=message):
        dequantize(edited(tmp_path / "model.gguf", key, value), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_quantization_that_cannot_be_dequantized_is_refused(tmp_path):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    data = bytearray(path.read_bytes())
    name = b"blk.1.attn_v.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # dimensions, then the type
    data[at : at + 4] = (31).to_bytes(4, "little")  # Q4_0_4_4, which llama.cpp has given up
    path.write_bytes(data)
    with pytest.raises(InputError, match="blk.1.attn_v.weight is of type 31, which cannot be dequantized. Use another"):
        dequantize(path, tmp_path / "back")


def test_another_rotary_scaling_is_refused(tmp_path):
    rope = LLAMA3 | {"original_max_position_embeddings": 64}
    convert(write_checkpoint(tmp_path / "model", rope_parameters=rope), tmp_path / "model.gguf")
    with pytest.raises(InputError, match="rotary embeddings scaled in a way that is not supported"):
        dequantize(tmp_path / "model.gguf", tmp_path / "back")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_tiny_gguf(path, chat_template=None), "has no chat template. Use the GGUF of an instruct"),
        (lambda path: write_tiny_sentencepiece(path, CHAT_TEMPLATE), "has a tokenizer of type 'llama', which cannot"),
        (lambda path: path.write_bytes(b"GGML"), "cannot be read as a GGUF .*Copy or download the file again"),
        (lambda path: path.write_bytes(b""), "cannot be read as a GGUF"),
        (lambda path: None, "cannot be read as a GGUF"),
        (lambda path: path.write_bytes(write_tiny_gguf(path).read_bytes()[:5000]), "cannot be read as a GGUF"),
        (lambda path: path.write_bytes(write_tiny_gguf(path).read_bytes()[:-1000]), "truncated|not within"),
    ],
    ids=["no template", "sentencepiece", "no gguf", "empty", "missing", "half a header", "half the weights"],
)
def test_other_files_are_refused(tmp_path, write, message):
    write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=message):
        dequantize(tmp_path / "model.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    path = write_tiny_gguf(tmp_path / "model.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(TpoError, match=r"back needs 0.0 GB, and 0.0 GB are free"):
        dequantize(path, tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


def test_the_folder_above_need_not_be_there(tmp_path):
    dequantize(write_tiny_gguf(tmp_path / "model.gguf"), tmp_path / "new" / "run" / "base")
    assert (tmp_path / "new" / "run" / "base" / "config.json").exists()
