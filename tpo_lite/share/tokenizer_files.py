"""The tokenizer of an export, with its chat template, and the defaults for sampling from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from tpo_lite.chat import Chat, clock, load_tokenizer, special_token_ids, stop_ids
from tpo_lite.errors import InputError, first_line
from tpo_lite.files import read_json, write_atomically, write_json
from tpo_lite.hub import local_folder
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.share.chosen import Chosen
from tpo_lite.share.thinking_template import thinking_template
from tpo_lite.thoughts import thought_prompt

TEMPLATE = "chat_template.jinja"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def write_tokenizer(chosen: Chosen, out: Path) -> int:
    """Write the tokenizer, chat template and generation config of `chosen` to the folder `out`.

    Returns the number of the run's prompts that the exported template was compared on (`check_template`, which says
    what is raised).
    """
    model = chosen.policy.model
    tokenizer = load_tokenizer(model)
    template = _only_template(tokenizer.chat_template)
    source = local_folder(model)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    thinking = thinking_template(template, chosen.style)
    write_atomically(out / TEMPLATE, thinking)
    config = read_json(out / "tokenizer_config.json")
    # Older programs look for the template here, and transformers prefers the file.
    write_json(out / "tokenizer_config.json", config | {"chat_template": thinking})
    compared = check_template(chosen, tokenizer, out)
    given = source / "generation_config.json"
    sampling = chosen.recipe.sampling
    generation: dict[str, Any] = read_json(given) if given.is_file() else {}
    generation |= {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "eos_token_id": stop_ids(model, tokenizer),
    }
    generation.pop("top_k", None)  # the run samples without it
    write_json(out / "generation_config.json", generation)
    return compared


def check_template(chosen: Chosen, tokenizer: Any, out: Path) -> int:
    """Render the exported template for the run's held-out instructions, and compare with the prompts of the run.

    Returns the number of prompts compared. Those with a special token spelled in their text are left out: a run
    encodes it as text, and other programs as the token. Raises `InputError` if a prompt differs.
    """
    exported = load_tokenizer(str(out))
    chat, style = Chat(tokenizer, chosen.policy.day), chosen.style
    specials = special_token_ids(tokenizer)
    asked = [
        record.instruction
        for record in read_jsonl(chosen.folder.validation_of(chosen.arm, chosen.model), PromptSamples)
    ]
    compared = 0
    for instruction in [Instruction("", "Why is the sky blue?", "here"), *asked]:
        turns = [*(instruction.context or ()), {"role": "user", "content": instruction.text}]
        if any(special in turn["content"] for turn in turns for special in specials):
            continue
        expected = chat.prompt_ids(thought_prompt(style, instruction.text), instruction.context or ())
        reason = "it gives other tokens"
        try:
            ids = template_ids(exported, turns, clock(chosen.policy.day))
        except Exception as error:  # a template is a program, and may raise anything
            if instruction.context:  # such as a system prompt, for which `Chat` knows another way
                continue
            ids, reason = [], first_line(error)
        if ids != expected:
            raise InputError(
                f"the chat template of {chosen.recipe.model} cannot be extended with the thought prompt ({reason} for "
                f"{instruction.text[:60]!r}). Nothing was written. Use a base with a plainer template."
            )
        compared += 1
    return compared


def template_ids(tokenizer: Any, turns: list[dict[str, str]], clock: dict[str, Any]) -> list[int]:
    """Return the token ids of a conversation as any program gets them: by the chat template alone."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **clock)
    return cast("list[int]", tokenizer.encode(text, add_special_tokens=False))


def _only_template(template: Any) -> str:
    """Return the template that chats use, of a tokenizer that may have several by name."""
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise InputError("the base has several chat templates and none is the default. Use a base with one.")
    return template
