"""Phase "prepare": instructions in, disjoint slices out (the paper's data and sampling). Imports no torch.

The judge is checked too, so that a file that is no judge shows before hours of sampling and not after.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("prepare")

from tpo_lite.chat import Chat, load_tokenizer
from tpo_lite.instructions.load import load
from tpo_lite.instructions.slices import Slices, prepare, slices
from tpo_lite.judges.open import check_judge
from tpo_lite.machine.device import Device
from tpo_lite.phase_order import warm_phases
from tpo_lite.phases.summaries import PrepareSummary
from tpo_lite.recipe import Recipe
from tpo_lite.records import Instruction, write_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.base import base_model
from tpo_lite.settled import SettledRecipe


def read_source(recipe: Recipe) -> tuple[list[Instruction], int]:
    """Return all instructions of the recipe's source, and how many malformed lines were left out."""
    settings = recipe.instructions
    if settings.source == "embedded":
        from tpo_lite.embedded.world import instructions

        # More than are needed, as near duplicates and long ones may be dropped.
        needed = recipe.iterations * settings.per_iteration + settings.validation
        return instructions(needed + max(needed // 4, settings.test) + 50, recipe.seed), 0
    loaded = load(settings.source, skip_bad=settings.skip_bad, turn=settings.turn)
    return loaded.instructions, loaded.bad


def cut(recipe: Recipe, model: str) -> tuple[Slices, PrepareSummary]:
    """Read, clean and slice the recipe's instructions; `model` has the tokenizer that counts.

    Raises `InputError` for a source with too few instructions, and if the model's chat template has no place for a
    context.
    """
    settings = recipe.instructions
    found, bad = read_source(recipe)
    chat = Chat(load_tokenizer(model))
    prepared = prepare(
        found, token_count=chat.count, max_tokens=settings.max_tokens, allow_leakage=settings.allow_leakage
    )
    parts = slices(
        prepared.kept,
        seed=recipe.seed,
        iterations=recipe.iterations,
        per_iteration=settings.per_iteration,
        validation=settings.validation,
        test=settings.test,
        warm_start=recipe.warm_start.prompts if warm_phases(recipe) else 0,
    )
    # A chat template may refuse a system prompt or a history: better now than in a later phase.
    used = [x for part in (parts.validation, parts.test, *parts.iterations, parts.warm_start) for x in part]
    for turns in {tuple(turn["role"] for turn in x.context): x.context for x in used if x.context}.values():
        chat.prompt_ids("", turns)
    return parts, PrepareSummary(bad=bad, **prepared.counts)


def run(folder: RunFolder, recipe: SettledRecipe, device: Device) -> PrepareSummary:
    """Write instructions/validation.jsonl, instructions/test.jsonl and instructions/iteration-<t>.jsonl."""
    parts, summary = cut(recipe, base_model(recipe.model, folder.root).model)
    for judge in filter(None, (recipe.judge, recipe.select.judge)):
        check_judge(judge, device)
    write_jsonl(folder.instructions("validation"), parts.validation)
    if parts.test:
        write_jsonl(folder.instructions("test"), parts.test)
    if warm_phases(recipe):
        write_jsonl(folder.instructions("warm_start"), parts.warm_start)
    for t, part in enumerate(parts.iterations):
        write_jsonl(folder.instructions(f"iteration-{t}"), part)
    print(f"instructions: {summary.kept} kept of {summary.read}{_reasons(summary)}", flush=True)
    return summary


def _reasons(summary: PrepareSummary) -> str:
    counts = summary.to_dict().items()
    reasons = [f"{count} {reason}" for reason, count in counts if count and reason not in ("read", "kept")]
    return f" ({', '.join(reasons)})" if reasons else ""
