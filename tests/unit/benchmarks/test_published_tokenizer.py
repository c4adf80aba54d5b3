"""Random models with Llama-3.1's own tokenizer: the published vocabulary, its published test cases, Meta's template."""

import base64
import json

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.llama3_tokenizer import llama3_tokenizer
from benchmarks.make_model import make_gguf, make_model
from benchmarks.shapes import SHAPES
from tests.helpers.shared import SHARED
from tests.helpers.vocabulary import read_vocabulary
from tpo_lite.llamacpp.decoder import LlamaCpp

TOKENIZER = SHARED / "data/tokenizer"
VOCABULARY = TOKENIZER / "llama_cpp/ggml-vocab-llama-bpe.gguf"
TEMPLATE = TOKENIZER / "templates/meta-llama-Llama-3.1-8B-Instruct.jinja"

pytestmark = pytest.mark.shared


class Published(TikTokenConverter):
    """Reads the ranks that Meta publishes as `tokenizer.model`; transformers' own reader needs the tiktoken package."""

    @staticmethod
    def load_tiktoken_bpe(path):
        """Token bytes -> rank, from lines of base64 and rank."""
        lines = path.read_bytes().splitlines()
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of the published tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "tokenizer"
    ranks = TOKENIZER / "llama3/tokenizer.model"
    vocabulary, merges = Published(ranks).extract_vocab_merges_from_model(ranks)
    llama3_tokenizer(vocabulary, merges, TEMPLATE.read_text(encoding="utf-8")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(published, tmp_path_factory):
    """The tiny shape with the published tokenizer, and its GGUF form."""
    folder = tmp_path_factory.mktemp("shapes") / "tiny"
    make_model(SHAPES["tiny"], folder, tokenizer=str(published))
    make_gguf(folder, ["Q4_K_M"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


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


def test_vocabulary_is_the_published_one(tiny):
    ours, published = read_vocabulary(tiny / "model-Q4_K_M.gguf"), read_vocabulary(VOCABULARY)
    # Llama 3.1 renamed some special tokens of Llama 3.
    assert ours.texts[:128_000] == published.texts[:128_000]
    assert ours.kinds == published.kinds
    assert ours.ends == SHAPES["tiny"].eos_token_id
    assert ours.adds_bos


def test_gguf_splits_real_text_as_transformers_does(tiny, tokenizer):
    rows = (SHARED / "data/alpaca_eval2/instructions.jsonl").read_text().splitlines()
    engine = LlamaCpp(tiny / "model-Q4_K_M.gguf", n_ctx=16)
    for text in (json.loads(row)["instruction"] for row in rows):
        assert engine.tokenize(text, special=False) == tokenizer.encode(text, add_special_tokens=False)


def test_chat_template_is_metas(tiny, tokenizer):
    template = TEMPLATE.read_text()
    assert tokenizer.chat_template == template
    assert read_vocabulary(tiny / "model-Q4_K_M.gguf").chat_template == template
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


def test_special_tokens_follow_the_vocabulary(tokenizer):
    assert tokenizer.convert_tokens_to_ids("<|begin_of_text|>") == 128_000
    assert tokenizer.convert_tokens_to_ids("<|reserved_special_token_247|>") == 128_255
    assert len(tokenizer) == 128_256
