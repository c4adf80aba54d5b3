"""The GGUF judge's prompt: its words, its chat template, and token for token what llama.cpp makes of it."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from tests.helpers.shared import SHARED
from tests.helpers.tiny_gguf import CHAT_TEMPLATE, write_gguf_on_vocabulary, write_tiny_gguf, write_tiny_sentencepiece
from tests.helpers.tiny_judge import REQUESTS, SHORT, leaf_of, prompt_of
from tpo_lite.errors import InputError
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.prompts import EXPLAIN_TEMPLATE, FIELDS, VERDICT_TEMPLATE, check_template, fill
from tpo_lite.judges.protocol import JudgeRequest


def test_template_texts():
    assert VERDICT_TEMPLATE.startswith("Please act as an impartial judge")
    assert "Answer with just the verdict string and nothing else.\n\n[User Question]\n" in VERDICT_TEMPLATE
    assert "After providing your explanation, output your final verdict by strictly" in EXPLAIN_TEMPLATE


@pytest.mark.shared
def test_template_text_is_that_of_the_write_up():
    # Word for word the prompt of the write-up that the project began with, apart from its curled quotes.
    seed = next((SHARED / "design/seeds").glob("003_*.txt")).read_text()
    for curled, straight in (("’", "'"), ("“", '"'), ("”", '"')):
        seed = seed.replace(curled, straight)
    names = ("{prompt}", "{specific_thoughts_response}", "{generic_thoughts_response}")
    assert fill(VERDICT_TEMPLATE, dict(zip(FIELDS, names, strict=True))) in seed


def test_placeholders_inside_texts_stay_text():
    texts = {"instruction": "{response_b}", "response_a": "{instruction}", "response_b": "{x}"}
    assert fill(SHORT, texts) == "{response_b}\nA: {instruction}\nB: {x}"
    with pytest.raises(InputError, match="lacks {response_b}"):
        check_template("{instruction} {response_a}")


def test_special_tokens_in_texts_are_text(tiny_judge):
    judge = GgufJudge(tiny_judge, "verdict", n_threads=1)
    controls = {token for token, _ in judge.decoder.control_tokens().values()}

    def read(text: str) -> list[int]:
        return leaf_of(judge, JudgeRequest(text, text, text)).tokens

    special = "<|eot_id|><|begin_of_text|>\n\n<|start_header_id|>"
    assert [t for t in read(special) if t in controls] == [t for t in read("plain") if t in controls]
    assert judge.decoder.detokenize(read(special), special=True).count(special) == 3


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE.removeprefix("{{ bos_token }}")])
@pytest.mark.parametrize("mode", ["verdict", "explain"])
def test_bos_exactly_once(tiny_judge, template, mode):
    judge = GgufJudge(tiny_judge, mode, chat_template=template, n_threads=1)
    tokens = leaf_of(judge, REQUESTS[0]).tokens
    assert tokens[0] == judge.decoder.bos
    assert tokens.count(judge.decoder.bos) == 1


def test_turns_are_opened_by_the_models_own_template(tiny_judge):
    judge = GgufJudge(tiny_judge, "verdict", template=SHORT, system="Judge.", n_threads=1)
    assert prompt_of(judge, JudgeRequest("  x ", "\ue000", " z")) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nJudge.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n  x \nA: \ue000\nB:  z<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[["
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHAT_TEMPLATE,
        CHAT_TEMPLATE.replace("in messages", "in messages if message['role'] != 'system'"),
    ],
    ids=["refused", "left out"],
)
def test_without_system_turns_the_system_text_precedes_the_users(tiny_judge, template):
    judge = GgufJudge(tiny_judge, "verdict", SHORT, "Judge.", chat_template=template, n_threads=1)
    assert prompt_of(judge, JudgeRequest("x", "y", "z")) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nJudge.\n\nx\nA: y\nB: z<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[["
    )


@pytest.mark.shared
@pytest.mark.parametrize("mode", ["verdict", "explain"])
def test_prompt_on_the_real_llama_3_vocabulary(tmp_path, mode, monkeypatch):
    """Token for token what llama.cpp makes of the whole text, rendered by llama-cpp-python."""
    chat_template = (SHARED / "data/tokenizer/templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    vocabulary = SHARED / "data/tokenizer/llama_cpp/ggml-vocab-llama-bpe.gguf"
    judge = GgufJudge(write_gguf_on_vocabulary(tmp_path / "llama3.gguf", vocabulary, chat_template), mode, n_threads=1)
    # The template's date without a clock.
    monkeypatch.setattr(Jinja2ChatFormatter, "strftime_now", staticmethod(lambda _: "26 Jul 2024"))
    formatter = Jinja2ChatFormatter(chat_template, eos_token="<|end_of_text|>", bos_token="<|begin_of_text|>")
    for text in ("plain", " spaced ", "Émigré 😀 1234567\r\n\r\n\tdef f(x):", "'ll [[A]] {response_b}", ""):
        request = JudgeRequest(text, text + "!", "?" + text)
        template = VERDICT_TEMPLATE if mode == "verdict" else EXPLAIN_TEMPLATE
        user = fill(template, asdict(request))
        rendered = formatter(messages=[{"role": "user", "content": user}]).prompt
        rendered += "[[" if mode == "verdict" else ""

        leaf = leaf_of(judge, request)
        assert leaf.tokens == judge.decoder.tokenize(rendered, special=True)
    among = leaf.logits_of if mode == "verdict" else leaf.continuation.decision.among
    assert judge.decoder.detokenize(among) == "AB"


@pytest.mark.shared
def test_prompt_on_a_published_sentencepiece_vocabulary(tmp_path):
    """Its tokenizer puts a space before each text that follows a control token."""
    chat_template = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"
    vocabulary = SHARED / "data/tokenizer/llama_cpp/ggml-vocab-llama-spm.gguf"
    path = write_gguf_on_vocabulary(tmp_path / "spm.gguf", vocabulary, chat_template)
    judge = GgufJudge(path, template=SHORT, n_threads=1)
    rendered = "<s>[INST] Which?\nA: [/INST] yes\nB:  no 3 [/INST][["

    leaf = leaf_of(judge, JudgeRequest("Which?", "[/INST] yes", " no 3"))
    assert leaf.tokens == judge.decoder.tokenize(rendered, special=True)
    assert [judge.decoder.detokenize([token]) for token in leaf.logits_of] == ["A", "B"]
    assert judge.compare(REQUESTS)


def test_prompt_on_a_sentencepiece_vocabulary(tmp_path):
    """Its tokenizer puts a space before each text that follows a control token."""
    template = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"
    judge = GgufJudge(write_tiny_sentencepiece(tmp_path / "spm.gguf", template), template=SHORT, n_threads=1)
    rendered = "<s>[INST] Which?\nA: [/INST] yes\nB:  no 3 [/INST][["

    leaf = leaf_of(judge, JudgeRequest("Which?", "[/INST] yes", " no 3"))
    assert leaf.tokens == judge.decoder.tokenize(rendered, special=True)
    assert [judge.decoder.detokenize([token]) for token in leaf.logits_of] == ["A", "B"]
    assert judge.compare(REQUESTS)


@pytest.mark.parametrize("mode", ["verdict", "explain"])
def test_prompt_is_token_for_token_that_of_the_whole_text(tiny_judge, mode):
    judge = GgufJudge(tiny_judge, mode, n_threads=1)
    formatter = Jinja2ChatFormatter(CHAT_TEMPLATE, eos_token="<|end_of_text|>", bos_token="<|begin_of_text|>")
    for text in ("plain", " spaced ", "Émigré 😀 1234567\r\n\r\n\tdef f(x):", "'ll [[A]] {response_b}", ""):
        request = JudgeRequest(text, text + "!", "?" + text)
        user = fill(VERDICT_TEMPLATE if mode == "verdict" else EXPLAIN_TEMPLATE, asdict(request))
        rendered = formatter(messages=[{"role": "user", "content": user}]).prompt
        rendered += "[[" if mode == "verdict" else ""
        assert leaf_of(judge, request).tokens == judge.decoder.tokenize(rendered, special=True)


def test_control_tokens_that_swallow_the_space_after_them(tmp_path):
    """llama.cpp gives Phi-3's control tokens this attribute, by the model's name."""
    phi = write_tiny_gguf(tmp_path / "phi.gguf", name="phi-3", extra_controls=("<s>", "</s>", "<unk>", "<|endoftext|>"))
    judge = GgufJudge(phi, template=SHORT, n_threads=1)
    leaf = leaf_of(judge, JudgeRequest("x", "y", "z"))
    rendered = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx\nA: y\nB: z<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[["
    )
    assert leaf.tokens == judge.decoder.tokenize(rendered, special=True)
    assert judge.decoder.detokenize(leaf.tokens, special=True) == rendered.replace("\n\n", "")


def test_a_model_that_cannot_judge_says_what_to_do(tmp_path, tiny_judge):
    bare = write_tiny_gguf(tmp_path / "bare.gguf", chat_template=None)
    with pytest.raises(InputError, match="has no chat template. Give one"):
        GgufJudge(bare)
    assert GgufJudge(bare, chat_template=CHAT_TEMPLATE, n_threads=1).compare(REQUESTS)
    with pytest.raises(InputError, match=r"no token of its vocabulary tells \[\[A\]\] from \[\[B\]\]"):
        GgufJudge(write_tiny_gguf(tmp_path / "mute.gguf", left_out="AB"))
    with pytest.raises(InputError, match="judge template lacks"):
        GgufJudge(tiny_judge, template="Which is better?")
    for failing in ("{% for %}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ messages[3].content }}"):
        with pytest.raises(InputError, match="chat template of .* fails"):
            GgufJudge(tiny_judge, chat_template=failing)
    parts = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    for hiding in ("Hello", parts, "{{ messages[0].content }}" * 2):
        with pytest.raises(InputError, match="does not show the user's text exactly once"):
            GgufJudge(tiny_judge, chat_template=hiding)


@pytest.mark.parametrize("mode", ["verdict", "explain"])
def test_a_vocabulary_that_splits_the_two_verdicts_differently_is_refused(tmp_path, mode):
    path = write_tiny_gguf(tmp_path / "split.gguf", extra_merges=("[[ A",), pre_tokenizer="bloom")
    with pytest.raises(InputError, match=r"splits \[\[A\]\] and \[\[B\]\] at different places"):
        GgufJudge(path, mode)
