"""Samples of many instructions, written to a file prompt by prompt; a stopped run goes on with what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.progress import progress
from tpo_lite.records import Instruction, JsonlAppender, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, sampling_key


def sample_into(
    path: Path,
    loaded: LoadedPolicy,
    instructions: Sequence[Instruction],
    arm: Arm,
    key: str,
    k: int,
    retries: int,
    label: str,
) -> list[PromptSamples]:
    """Sample what `path` does not hold yet; each prompt is on disk as soon as it is sampled.

    `key`, `k` and `retries` are those of `LoadedPolicy.draw`; the rest is as for `write_samples`.
    """

    def draw(finished: frozenset[str]) -> Iterator[PromptSamples]:
        return loaded.draw(instructions, loaded.recipe.style(arm), key, k, retries, finished)

    return write_samples(path, len(instructions), label, draw)


def write_samples(
    path: Path, prompts: int, label: str, draw: Callable[[frozenset[str]], Iterator[PromptSamples]]
) -> list[PromptSamples]:
    """Append what `draw` yields to `path`, prompt by prompt, and return all that `path` holds at the end.

    `draw` takes the ids of the instructions that `path` holds already. `label` names the progress bar of all `prompts`.
    """
    finished = frozenset(record.instruction.id for record in read_jsonl(path, PromptSamples))
    with JsonlAppender(path) as out, progress(label, prompts, "prompts", len(finished)) as advance:
        for prompt in draw(finished):
            out.append(prompt)
            advance(1)
    return list(read_jsonl(path, PromptSamples))


def sample_held_out(
    path: Path, loaded: LoadedPolicy, folder: RunFolder, arm: Arm, model: int, held_out: HeldOut, label: str
) -> list[PromptSamples]:
    """Let a candidate for M_`model` answer a held-out slice, one output per instruction, as `sample_into` does.

    All candidates for one model draw the same random numbers, so only the models make them differ.
    """
    recipe = loaded.recipe
    instructions = list(read_jsonl(folder.instructions(held_out), Instruction))
    key = sampling_key(recipe, arm, model, held_out)
    return sample_into(path, loaded, instructions, arm, key, 1, recipe.evaluation.retries, label)
