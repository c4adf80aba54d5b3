"""What programs that serve an export have to know: how its prompts look, and where a thought begins and ends.

Jinja templates travel in the tokenizer and in GGUF files. Ollama has a template of its own kind (Go), LM Studio a
`model.yaml`, and vLLM and llama.cpp take flags.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tpo_lite.chat import load_tokenizer, stop_ids
from tpo_lite.files import write_atomically, write_json
from tpo_lite.share.chosen import Chosen
from tpo_lite.share.go_template import go_template
from tpo_lite.thoughts import ThoughtStyle


@dataclass(frozen=True)
class Files:
    """What an export consists of, as the files beside it name it."""

    model: str
    """The model, or the base of an adapter: a name, or a path that begins with a dot."""
    adapter: str | None = None
    """The adapter's file or folder, if it is one."""
    gguf: str | None = None
    """The GGUF file of a whole model, if it is one."""


def write_serving(chosen: Chosen, folder: Path, files: Files) -> None:
    """Write `template`, `params` and `Modelfile` (Ollama), `model.yaml` (LM Studio) and SERVING.md to `folder`.

    A chat template that has no Go form is left out of Ollama's files, and SERVING.md says so.
    """
    tokenizer = load_tokenizer(chosen.policy.model)
    stops = [str(tokenizer.convert_ids_to_tokens(id)) for id in stop_ids(chosen.policy.model, tokenizer)]
    sampling = chosen.recipe.sampling
    params = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "stop": stops}
    write_json(folder / "params", params)
    template = go_template(tokenizer, chosen.style, chosen.policy.day)
    modelfile = f"FROM {files.model}\n" + (f"ADAPTER {files.adapter}\n" if files.adapter else "")
    if template is not None:
        write_atomically(folder / "template", template)
        modelfile += f'TEMPLATE """{template}"""\n'
    for key, value in params.items():
        for each in value if isinstance(value, list) else [value]:
            modelfile += f"PARAMETER {key} {json.dumps(each, ensure_ascii=False)}\n"
    write_atomically(folder / "Modelfile", modelfile)
    write_atomically(folder / "model.yaml", yaml.safe_dump(_model_yaml(chosen), sort_keys=False))
    write_atomically(folder / "SERVING.md", _serving(chosen, files, template is not None))


def _model_yaml(chosen: Chosen) -> dict[str, Any]:
    """Return LM Studio's description of the model. Its owner and repository are to be filled in."""
    style, sampling = chosen.style, chosen.recipe.sampling
    fields: list[dict[str, Any]] = [
        {"key": "llm.prediction.temperature", "value": sampling.temperature},
        {"key": "llm.prediction.topPSampling", "value": {"checked": True, "value": sampling.top_p}},
    ]
    if style.thought_marker is not None:
        parsing = {"enabled": True, "startString": style.thought_marker, "endString": style.response_marker}
        fields.append({"key": "llm.prediction.reasoning.parsing", "value": parsing})
    source = {"type": "huggingface", "user": "OWNER", "repo": "NAME"}
    return {
        "model": "OWNER/NAME",
        "base": [{"key": "OWNER/NAME", "sources": [source]}],
        "metadataOverrides": {"domain": "llm", "reasoning": style.response_marker is not None},
        "config": {"operation": {"fields": fields}},
    }


def vllm_flags(style: ThoughtStyle) -> str | None:
    """Return the flags with which vLLM splits thoughts off, or None where none of its parsers can.

    >>> from tpo_lite.thoughts import GENERIC, SPECIFIC, THINK
    >>> vllm_flags(GENERIC), vllm_flags(THINK), vllm_flags(SPECIFIC)
    ('--reasoning-parser granite', '--reasoning-parser olmo3', None)
    """
    parsers = {
        ("Here is my thought process:", "Here is my response:"): "granite",
        ("<think>", "</think>"): "olmo3",
    }
    parser = parsers.get((style.thought_marker or "", style.response_marker or ""))
    return f"--reasoning-parser {parser}" if parser else None


def llama_cpp_splits(style: ThoughtStyle) -> bool:
    """Return whether llama.cpp finds the markers by itself: those in angle or square brackets.

    It renders the chat template with and without `reasoning_content`, and looks at what is around it.
    """
    markers = [marker for marker in (style.thought_marker, style.response_marker) if marker is not None]
    return bool(markers) and all(marker[0] + marker[-1] in ("<>", "[]") for marker in markers)


def _serving(chosen: Chosen, files: Files, has_go: bool) -> str:
    """Return SERVING.md."""
    style = chosen.style
    thinks = style.response_marker is not None
    unsplit = [f"It cannot split thoughts off by itself: the response begins after {style.response_marker!r}.", ""]
    lines = [f"# Serving {chosen.base_name}, {chosen.name}", ""]
    if thinks:
        lines += ["The chat template asks for thoughts: give plain user messages, without a thought prompt.", ""]
    if files.adapter in (None, ".") and files.gguf is None:
        flags = vllm_flags(style)
        lora = (
            f"{files.model} --enable-lora --max-lora-rank RANK --lora-modules tpo=." if files.adapter else files.model
        )
        command = f"    vllm serve {lora} --chat-template chat_template.jinja {flags or ''}"
        lines += ["## vLLM", "", command.rstrip(), ""]
        if files.adapter:
            lines += ["RANK: at least `r` in adapter_config.json, and one of 8, 16, 32, 64, 128, 256, 320, 512.", ""]
        lines += unsplit if thinks and flags is None else []
    if files.gguf or files.adapter not in (None, "."):
        model = f"-m {files.gguf}" if files.gguf else f"-m BASE.gguf --lora {files.adapter}"
        split = "--reasoning-format deepseek" if llama_cpp_splits(style) else "--reasoning-format none"
        command = f"    llama-server {model} --jinja --chat-template-file chat_template.jinja {split}"
        lines += ["## llama.cpp", "", command, ""]
        lines += unsplit if thinks and not llama_cpp_splits(style) else []
    lines += ["## Ollama", "", "    ollama create NAME -f Modelfile", ""]
    if files.adapter:
        lines += [f"Its line `FROM {files.model}` has to name the same base in Ollama.", ""]
    if not has_go:
        lines += ["This chat template has no Go form, so the Modelfile has no TEMPLATE: the model would not think.", ""]
    elif thinks and style.thought_marker is None:
        lines += unsplit
    lines += ["## LM Studio", "", "Put your owner and name into model.yaml.", ""]
    return "\n".join(lines)
