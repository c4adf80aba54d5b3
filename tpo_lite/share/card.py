"""The card of a repository (README.md): its metadata, what the run found, how to use it, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from tpo_lite.errors import InputError
from tpo_lite.people import tables
from tpo_lite.people.headline import headline
from tpo_lite.people.report import Evidence
from tpo_lite.people.words import visible
from tpo_lite.share.contents import Kind
from tpo_lite.share.private import shared_recipe
from tpo_lite.share.snippets import snippets
from tpo_lite.thoughts import ThoughtStyle

PAPER = "[Thinking LLMs: General Instruction Following with Thought Generation](https://arxiv.org/abs/2410.10630)"
KINDS: dict[Kind, str] = {"adapter": "a LoRA adapter for", "merged": "a fine-tuned", "gguf": "a GGUF of a fine-tuned"}
LIBRARIES: dict[Kind, str | None] = {"adapter": "peft", "merged": "transformers", "gguf": None}
RELATIONS: dict[Kind, str] = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Facts:
    """What a card says beside the run's figures."""

    repo_id: str
    kind: Kind
    base: str
    """The base's hub id."""
    licence: dict[str, str]
    """`license` and, where it is "other", `license_name` and `license_link`."""
    thinking_template: bool
    """Whether the chat template in the repository holds the thought prompt."""
    own_tokenizer: bool
    """Whether the repository has a tokenizer."""
    style: ThoughtStyle


def licence_of(facts: dict[str, Any], given: str | None, whose: str) -> dict[str, str]:
    """Return a licence as a card names it: `given`, or that of another card's metadata.

    Raises `InputError` if neither says one. `whose` says in the message of what it is.
    """
    if given is not None:
        return {"license": given}
    found = {key: str(facts[key]) for key in LICENCE_KEYS if facts.get(key)}
    if "license" not in found:
        raise InputError(
            f"push: the hub does not say the licence of {whose}. Look it up, and give its id on the hub as --license, "
            "such as apache-2.0."
        )
    return found


def model_card(facts: Facts, evidence: Evidence) -> str:
    """Return the card of a model as Markdown with YAML metadata."""
    from huggingface_hub import ModelCardData

    source = evidence.recipe.instructions.source
    extra: dict[str, Any] = {"base_model_relation": RELATIONS[facts.kind]}
    extra |= {key: value for key, value in facts.licence.items() if key != "license"}
    data = ModelCardData(
        base_model=facts.base,
        datasets=[source.split(":")[1]] if source.startswith("hub:") else None,
        library_name=LIBRARIES[facts.kind],
        license=facts.licence["license"],
        pipeline_tag="text-generation",
        tags=["tpo", "thought-preference-optimization", "dpo", *(["gguf"] if facts.kind == "gguf" else [])],
        **extra,
    )
    found = headline(evidence.courses, evidence.recipe, evidence.arms, evidence.finished)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {facts.repo_id.partition('/')[2]}",
        f"This is {KINDS[facts.kind]} [{facts.base}](https://huggingface.co/{facts.base}), trained with Thought "
        f"Preference Optimization ({PAPER}) by `tpo-lite`. {_thoughts(facts.style)}",
        visible(found.sentence),
        "## Use",
        *(f"{lead}\n\n```{language}\n{code}\n```" for lead, language, code in snippets(facts)),
        "## Scores",
        _table(evidence),
        "The win rates are those of the run's judge, with 95 % intervals in percent. They are not scores of a public "
        "benchmark.",
        "## Limits",
        "\n".join(f"- {visible(line)}" for line in [*found.caveats, *_limits(facts)]),
        "## Recipe",
        recipe_block(evidence),
    ]
    return "\n\n".join(parts) + "\n"


def recipe_block(evidence: Evidence) -> str:
    """Return the recipe as a block of YAML, which is recipe.yaml too."""
    return f"````yaml\n{recipe_yaml(evidence).strip()}\n````"


def recipe_yaml(evidence: Evidence) -> str:
    """Return the recipe that the run was settled to, without folders of this machine."""
    return str(yaml.safe_dump(shared_recipe(evidence.recipe), sort_keys=False, allow_unicode=True))


def _thoughts(style: ThoughtStyle) -> str:
    if style.response_marker is None:
        return "It answers directly, without thoughts."
    return f"It writes a thought first. Its response comes after `{style.response_marker}`."


def _table(evidence: Evidence) -> str:
    table = tables.models(evidence.courses)
    if table is None:
        return "There are no figures."
    lines = ["| " + " | ".join(table.columns) + " |", "|---" + "|--:" * (len(table.columns) - 1) + "|"]
    for name, *cells in table.rows:
        written = [f"{value} ({interval})" if interval else value for value, interval in cells]
        lines.append("| " + " | ".join([name, *written]) + " |")
    return "\n".join(lines)


def _limits(facts: Facts) -> list[str]:
    lines = [
        "Thoughts are no explanation of how the model came to its response, and they were never judged.",
        "It was not checked for safety. What holds for the base holds here too, its licence included.",
    ]
    if not facts.thinking_template:
        lines.append(
            "The chat template does not hold the thought prompt: write it yourself, as above. It thinks only so."
        )
    return lines if facts.style.response_marker is not None else lines[1:2]
