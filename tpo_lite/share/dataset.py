"""A dataset of a run: the samples and the pairs of every iteration, and its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpo_lite.people.report import Evidence
from tpo_lite.people.words import short_name
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.share.card import PAPER, recipe_block
from tpo_lite.share.contents import File
from tpo_lite.share.private import without_folders

KINDS = ("samples", "pairs")
KNOWN_SOURCES = {"everyday": "cc0-1.0", "embedded": "apache-2.0"}
"""Licences of the instructions that come with the package."""


def files(folder: RunFolder, staged: Path) -> list[File]:
    """Return the samples and pairs of all iterations. Samples are written to `staged` without folders of this machine.

    Raises `InputError` for a damaged file.
    """
    found = []
    recipe = folder.load_started()
    for arm in recipe.arms:
        for iteration in range(recipe.iterations):
            here = folder.iteration(arm, iteration)
            name = f"{arm}/iteration-{iteration}"
            copy = staged / f"{arm}-{iteration}.jsonl"
            with copy.open("w", encoding="utf-8") as file:
                for prompt in read_jsonl(here / "samples.jsonl", PromptSamples):
                    shown = replace(prompt, instruction=replace(prompt.instruction, source=_source(prompt)))
                    file.write(json.dumps(shown.to_dict(), ensure_ascii=False) + "\n")
            found.append(File(f"{name}/samples.jsonl", copy))
            found.append(File(f"{name}/pairs.jsonl", here / "pairs.jsonl"))
    return found


def _source(prompt: PromptSamples) -> str:
    """Return where an instruction is from, without the folders of a local file: "FILE:LINE"."""
    source, colon, place = prompt.instruction.source.rpartition(":")
    return f"{without_folders(source)}{colon}{place}"


def dataset_card(repo_id: str, licence: dict[str, str], base: str, base_licence: str, evidence: Evidence) -> str:
    """Return the card as Markdown with YAML metadata. `licence` is that of the instructions."""
    from huggingface_hub import DatasetCardData

    recipe = evidence.recipe
    extra: dict[str, Any] = {key: value for key, value in licence.items() if key != "license"}
    data = DatasetCardData(
        license=licence["license"],
        tags=["tpo", "thought-preference-optimization", "preference"],
        task_categories=["text-generation"],
        configs=[{"config_name": kind, "data_files": f"*/iteration-*/{kind}.jsonl"} for kind in KINDS],
        **extra,
    )
    source = short_name(str(without_folders(recipe.instructions.source)))
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo_id.partition('/')[2]}",
        f"Samples and preference pairs of a run of Thought Preference Optimization ({PAPER}) by `tpo-lite`.",
        f"The instructions are from `{source}`, under the licence `{licence.get('license_name', licence['license'])}`. "
        f"The outputs were written by `{base}` as it was trained further. Its licence, `{base_licence}`, may set terms "
        "for what is done with them.",
        "```python\nfrom datasets import load_dataset\n\n"
        f'samples = load_dataset("{repo_id}", "samples")\npairs = load_dataset("{repo_id}", "pairs")\n```',
        f"- `samples`: one instruction in each line with its {recipe.sampling.k} outputs, each split into thought and "
        "response.\n- `pairs`: the token ids that DPO trained on: prompt, chosen and rejected output; `id` and the "
        "numbers `chosen_k` and `rejected_k` find their texts in `samples`.",
        "## Limits",
        "The judge that chose the pairs is a model, and it errs. Nothing was read or filtered by a person: outputs may "
        "be wrong or offensive, and instructions may hold what their source holds.",
        "## Recipe",
        recipe_block(evidence),
    ]
    return "\n\n".join(parts) + "\n"
