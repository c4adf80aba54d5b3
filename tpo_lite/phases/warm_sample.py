"""Phase "warm_sample": whether the base needs a warm start, and what it then trains on, sampled from itself or read."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("warm_sample")

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from tpo_lite.errors import TpoError
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import ENOUGH, held_out_figures, output_figures, own_share, shown
from tpo_lite.phases.summaries import read_summary
from tpo_lite.phases.warm_summaries import WarmSampleSummary
from tpo_lite.records import Example, Instruction, PromptSamples, read_jsonl, write_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.marked import cut_to_sentences, draw_marked
from tpo_lite.sampling.policy import LoadedPolicy, bare_base, sampling_key
from tpo_lite.sampling.room import PROBE_PROMPTS
from tpo_lite.sampling.to_file import sample_into, write_samples
from tpo_lite.settled import SettledRecipe
from tpo_lite.thoughts import Outcome
from tpo_lite.training.examples import choose_examples, read_examples


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> WarmSampleSummary:
    """Write warm_start/probe.jsonl, before.jsonl, samples.jsonl and examples.jsonl, as far as each is needed.

    The direct arm does what the thinking arm does, on direct answers that it samples itself. Raises `TpoError` if too
    few outputs can be trained on.
    """
    first = recipe.arms[0]
    if arm != first and not read_summary(WarmSampleSummary, folder, first, 0).needed:
        return _none(None)
    loaded = LoadedPolicy(recipe, bare_base(folder, recipe), device)
    probe = None
    if arm == first and recipe.warm_start.kind == "auto":
        probe = output_figures([x.samples[0] for x in _answers(folder, loaded, arm, "probe")]).parse
        if own_share(probe) >= ENOUGH:
            print(f"{arm} warm start: the probe: {shown(probe)}, no warm start needed", flush=True)
            return _none(probe)
        print(f"{arm} warm start: the probe: {shown(probe)}; first it learns the form of the outputs", flush=True)
    from_file = recipe.warm_start.kind == "file" and arm != "direct"
    examples = _from_file(folder, loaded, recipe, arm) if from_file else []
    before = held_out_figures(_answers(folder, loaded, arm, "before"))
    sampled, cut = None, list[Example]()
    if not from_file:
        outputs = _marked(folder, loaded, recipe, arm)
        sampled = output_figures([sample for prompt in outputs for sample in prompt.samples]).parse
        most = (
            recipe.warm_start.examples if arm == first else read_summary(WarmSampleSummary, folder, first, 0).examples
        )
        examples = choose_examples(outputs, most)
        shorter = [cut_to_sentences(loaded, recipe.style(arm), prompt) for prompt in outputs]
        cut = choose_examples(shorter, most - len(examples))
    examples += cut
    if len(examples) < recipe.warm_start.batch:
        raise TpoError(_too_few(arm, len(examples), sampled))
    write_jsonl(folder.warm_start(arm) / "examples.jsonl", examples)
    counts = {"examples": len(examples), "cut": len(cut)}
    return WarmSampleSummary(needed=True, probe=probe, before=before, sampled=sampled, **counts)


def _none(probe: dict[Outcome, int] | None) -> WarmSampleSummary:
    return WarmSampleSummary(needed=False, probe=probe, before=None, sampled=None, examples=0, cut=0)


def _answers(
    folder: RunFolder, loaded: LoadedPolicy, arm: Arm, name: Literal["probe", "before"]
) -> list[PromptSamples]:
    """Let the base answer held-out instructions once each, into warm_start/NAME.jsonl.

    The probe's are the first of the validation slice; "before" are those of the slice on which models are reported.
    """
    tested = name == "before" and loaded.recipe.instructions.test > 0
    held_out: HeldOut = "test" if tested else "validation"
    instructions = list(read_jsonl(folder.instructions(held_out), Instruction))
    if name == "probe":
        instructions = instructions[:PROBE_PROMPTS]
    key = sampling_key(loaded.recipe, arm, 0, held_out)
    path = folder.warm_start(arm) / f"{name}.jsonl"
    return sample_into(path, loaded, instructions, arm, key, 1, 0, f"{arm} warm start {name}")


def _marked(folder: RunFolder, loaded: LoadedPolicy, recipe: SettledRecipe, arm: Arm) -> list[PromptSamples]:
    """Sample outputs with markers put in, into warm_start/samples.jsonl."""
    path, warm = folder.warm_start(arm) / "samples.jsonl", recipe.warm_start
    instructions = list(read_jsonl(folder.instructions("warm_start"), Instruction))
    key = sampling_key(recipe, arm, 0, "warm_start")

    def draw(finished: frozenset[str]) -> Iterator[PromptSamples]:
        limits = (warm.samples, warm.thought_tokens, warm.response_tokens)
        return draw_marked(loaded, instructions, recipe.style(arm), key, *limits, finished)

    return write_samples(path, len(instructions), f"{arm} warm start samples", draw)


def _from_file(folder: RunFolder, loaded: LoadedPolicy, recipe: SettledRecipe, arm: Arm) -> list[Example]:
    """Return the examples of `warm_start.file`, without the instructions of a held-out slice."""
    assert recipe.warm_start.file is not None  # checked with the recipe
    slices = [folder.instructions(name) for name in ("validation", "test")]
    held_out = frozenset(x.id for path in slices for x in read_jsonl(path, Instruction))
    found = read_examples(Path(recipe.warm_start.file), loaded.chat, recipe.style(arm), held_out)
    return found[: recipe.warm_start.examples]


def _too_few(arm: Arm, found: int, sampled: Mapping[Outcome, int] | None) -> str:
    """Return the message of a warm start with next to nothing to train on."""
    if sampled is None:
        return (
            f"warm_start.file holds {found} examples that can be used, fewer than one optimizer step takes "
            "(warm_start.batch). Add examples to it."
        )
    return (
        f"{arm} warm start: {shown(sampled)}, fewer than one optimizer step takes (warm_start.batch). Sample from "
        "more instructions (warm_start.prompts; instructions.per_iteration leaves them), allow longer responses "
        "(warm_start.response_tokens), or give examples of your own (warm_start.kind=file), with --new."
    )
