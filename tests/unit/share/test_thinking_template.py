"""The chat template with the thought prompt in it, and its Go form."""

import re

import pytest
from transformers import AutoTokenizer

from tpo_lite.chat import Chat
from tpo_lite.share.go_template import go_template
from tpo_lite.share.serving import llama_cpp_splits
from tpo_lite.share.thinking_template import around_thought, thinking_template
from tpo_lite.share.tokenizer_files import template_ids
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK, custom_style, parse, thought_prompt

CUSTOM = custom_style("It's {instruction}\\n?\nFirst [T], then [/T] 'é'.", "[/T]", "[T]")
STYLES = [GENERIC, SPECIFIC, THINK, CUSTOM]
CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""As Qwen's: it does not strip texts."""


@pytest.fixture
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text} | more


def rendered(tokenizer, style, turns, template=None):
    template = template or tokenizer.chat_template
    tokenizer.chat_template = thinking_template(template, style)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokenizer.chat_template = template
    return text


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("style", [*STYLES, DIRECT])
def test_plain_messages_give_the_tokens_of_a_run(style, template, tokenizer):
    original = tokenizer.chat_template = template or tokenizer.chat_template
    context = [{"role": "system", "content": "Be kind."}, user("Hello."), assistant("Hi.")]
    for turns in ([user(" Why {{ x }}?\n")], [*context, user("Why?")]):
        tokenizer.chat_template = original
        expected = Chat(tokenizer).prompt_ids(thought_prompt(style, turns[-1]["content"]), turns[:-1])
        tokenizer.chat_template = thinking_template(original, style)
        if style is DIRECT and template:  # as it is: it strips nothing
            turns = [*turns[:-1], user(turns[-1]["content"].strip())]
        assert template_ids(tokenizer, turns, {}) == expected


@pytest.mark.parametrize("style", STYLES)
def test_thoughts_of_older_answers_are_dropped(style, tokenizer):
    left, right = around_thought(style)
    old = f"{left}Hmm.{right}Yes, {style.response_marker} is one."
    clean = assistant(f"Yes, {style.response_marker} is one.")
    question = user("And now?")
    expected = rendered(tokenizer, DIRECT, [user("A?"), clean, user(thought_prompt(style, "And now?"))])
    assert rendered(tokenizer, style, [user("A?"), assistant(old), question]) == expected
    assert "Hmm" not in rendered(tokenizer, style, [user("A?"), assistant("Yes.", reasoning_content="Hmm."), question])


@pytest.mark.parametrize("style", STYLES)
def test_a_thought_of_the_last_answer_is_rendered_and_parsed_again(style, tokenizer):
    text = rendered(tokenizer, style, [user("A?"), assistant("Yes.", reasoning_content="Hmm.")])
    output = text.rpartition("<|start_header_id|>assistant<|end_header_id|>\n\n")[0].rpartition(
        "<|end_header_id|>\n\n"
    )[2]
    found = parse(style, output.removesuffix("<|eot_id|>"), truncated=False)
    assert (found.outcome, found.thought, found.response) == ("ok", "Hmm.", "Yes.")


def test_messages_in_parts_and_calls_of_tools(tokenizer):
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    assert rendered(tokenizer, GENERIC, [user(parts)]) == rendered(tokenizer, GENERIC, [user("Why?")])
    call = assistant("Calling.", tool_calls=[{"name": "f"}])
    text = rendered(tokenizer, GENERIC, [user("Why?"), call, {"role": "tool", "content": "42"}])
    assert "Calling." in text
    assert "42" in text
    assert text.count("User query: Why?") == 1


def test_vllm_granite_reads_the_generic_markers():
    """The expressions of vLLM's granite parser."""
    start, end = r"(?:Here's|Here is) my thought process:", r"(?:Here's|Here is) my response:"
    left, right = around_thought(GENERIC)
    found = re.search(rf"{start}(.*?){end}(.*)", f"{left}Hmm.{right}Yes.", re.DOTALL)
    assert [part.strip() for part in found.groups()] == ["Hmm.", "Yes."]


def test_llama_cpp_needs_brackets():
    assert [llama_cpp_splits(style) for style in STYLES] == [False, True, True, True]


def test_a_go_template(tokenizer):
    """Rendered by hand: texts are strings of Go, and what is around a thought is plain text, which Ollama looks for."""
    found = go_template(tokenizer, THINK, None)
    assert "<think>\n{{ .Thinking }}\n</think>" in found
    assert '{{ if eq $i $last }}{{ "Respond to the following' in found
    assert "begin_of_text" not in found  # Ollama puts it there
    assert found.count("{{") == found.count("}}")
    assert ".Thinking" not in go_template(tokenizer, DIRECT, None)
    tokenizer.chat_template = CHATML
    assert '{{ "<|im_start|>user\\n" }}' in go_template(tokenizer, GENERIC, None)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.role + m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ 1 / 0 }}{% endif %}{{ m.content }}{% endfor %}",
    ],
)
def test_templates_without_a_go_form(template, tokenizer):
    tokenizer.chat_template = template
    assert go_template(tokenizer, GENERIC, None) is None
