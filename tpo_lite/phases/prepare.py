"""Phase "prepare": instructions in, disjoint slices out (the paper's data and sampling). Imports no torch.

The judge is checked too, so that a file that is none comes to light before hours of sampling, not after.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("prepare", per_arm=False)

from typing import Any

from tpo_lite.chat import Chat, load_tokenizer
from tpo_lite.files import write_atomically
from tpo_lite.hub import model_path
from tpo_lite.instructions.load import load
from tpo_lite.instructions.slices import prepare, slices
from tpo_lite.judges.open import check_judge
from tpo_lite.recipe import Recipe
from tpo_lite.records import Instruction
from tpo_lite.run import RunFolder


def read_source(recipe: Recipe) -> tuple[list[Instruction], int]:
    """All instructions of the recipe's source, and how many malformed lines were left out."""
    settings = recipe.instructions
    if settings.source == "embedded":
        from tpo_lite.embedded.world import instructions

        # Near duplicates and overlong ones may fall out: make more than are needed.
        needed = recipe.iterations * settings.per_iteration + settings.validation
        return instructions(needed + needed // 4 + 50, recipe.seed), 0
    loaded = load(settings.source, skip_bad=settings.skip_bad)
    return loaded.instructions, loaded.bad


def run(run: RunFolder) -> dict[str, Any]:
    """Writes instructions/validation.jsonl and instructions/iteration-<t>.jsonl; returns the counts."""
    recipe = run.recipe
    settings = recipe.instructions
    found, bad = read_source(recipe)
    chat = Chat(load_tokenizer(model_path(recipe.model)))
    prepared = prepare(
        found, token_count=chat.count, max_tokens=settings.max_tokens, allow_leakage=settings.allow_leakage
    )
    parts = slices(
        prepared.kept,
        seed=recipe.seed,
        iterations=recipe.iterations,
        per_iteration=settings.per_iteration,
        validation=settings.validation,
    )
    check_judge(recipe.judge)
    named = {"validation": parts.validation}
    named |= {f"iteration-{t}": part for t, part in enumerate(parts.iterations)}
    for name, part in named.items():
        write_atomically(run.instructions(name), "".join(record.to_json() + "\n" for record in part))
    counts = {"bad": bad} | prepared.counts
    said = ", ".join(
        f"{count} {reason}" for reason, count in counts.items() if count and reason not in ("read", "kept")
    )
    print(f"instructions: {counts['kept']} kept of {counts['read']}" + (f" ({said})" if said else ""), flush=True)
    return counts
