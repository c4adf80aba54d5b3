"""Three ways to use a repository, as code that runs when it is pasted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpo_lite.share.contents import OLLAMA_TAG

if TYPE_CHECKING:
    from tpo_lite.share.card import Facts

QUESTION = "Why is the sky blue?"
TOKENS = 1024
"""Tokens of an answer, thought included."""

Snippet = tuple[str, str, str]
"""A sentence before it, the language, and the code."""


def snippets(facts: Facts) -> list[Snippet]:
    """Return three snippets for a repository. Those in Python go on where the one before ended."""
    if facts.kind == "gguf":
        return _gguf(facts)
    return [("Ask it:", "python", _ask(facts)), _apart(facts), _alone(facts)]


def _message(facts: Facts) -> str:
    """Return the code that writes a user's message."""
    lines = [f"question = {QUESTION!r}"]
    if not facts.thinking_template:
        lines += [f"prompt = {facts.style.prompt!r}", 'question = prompt.replace("{instruction}", question)']
    return "\n".join([*lines, 'messages = [{"role": "user", "content": question}]'])


def _ask(facts: Facts) -> str:
    library, name = ("peft", "AutoPeftModelForCausalLM") if facts.kind == "adapter" else ("transformers", "")
    imports = [f"from {library} import {name}", "from transformers import AutoTokenizer"]
    if facts.kind != "adapter":
        name, imports = "AutoModelForCausalLM", ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    tokenizer = facts.repo_id if facts.own_tokenizer else facts.base
    return "\n".join(
        [
            *imports,
            "",
            f'model = {name}.from_pretrained("{facts.repo_id}", device_map="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
            _message(facts),
            'options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}',
            "inputs = tokenizer.apply_chat_template(messages, **options).to(model.device)",
            f"output = model.generate(**inputs, max_new_tokens={TOKENS})",
            'text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)',
            "print(text)",
        ]
    )


def _apart(facts: Facts) -> Snippet:
    """Return how to take the thought off; for a model without thoughts, how to see the text while it is written."""
    if facts.style.response_marker is None:
        code = "from transformers import TextStreamer\n\n"
        code += f"model.generate(**inputs, max_new_tokens={TOKENS}, streamer=TextStreamer(tokenizer))"
        return "See the answer while it is written:", "python", code
    code = f"thought, _, response = text.partition({facts.style.response_marker!r})\nprint(response.strip())"
    return "Leave the thought out (a text without the marker has no response):", "python", code


def _alone(facts: Facts) -> Snippet:
    if facts.kind == "adapter":
        code = 'model.merge_and_unload().save_pretrained("merged")\ntokenizer.save_pretrained("merged")'
        return "Merge it into its base, for programs that take no adapters:", "python", code
    code = "from transformers import pipeline\n\n"
    code += f'chat = pipeline("text-generation", model="{facts.repo_id}", device_map="auto")\n'
    code += f'print(chat(messages, max_new_tokens={TOKENS})[0]["generated_text"][-1]["content"])'
    return "Or in a pipeline:", "python", code


def _gguf(facts: Facts) -> list[Snippet]:
    python = "\n".join(
        [
            "from llama_cpp import Llama",
            "",
            f'llm = Llama.from_pretrained(repo_id="{facts.repo_id}", filename="*{OLLAMA_TAG}.gguf", n_ctx=8192)',
            _message(facts),
            f"answer = llm.create_chat_completion(messages, max_tokens={TOKENS})",
            'print(answer["choices"][0]["message"]["content"])',
        ]
    )
    return [
        ("With Ollama:", "sh", f"ollama run hf.co/{facts.repo_id}:{OLLAMA_TAG}"),
        ("With llama.cpp, as a server:", "sh", f"llama-server -hf {facts.repo_id}:{OLLAMA_TAG}"),
        ("With llama-cpp-python:", "python", python),
    ]
