"""Phase "generate": K thoughts and responses per instruction, sampled from M_t (the paper's thought prompts)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("generate")

from tpo_lite.errors import TpoError
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import (
    ENOUGH,
    held_out_figures,
    output_figures,
    own_share,
    shown,
    validation_figures,
)
from tpo_lite.phases.summaries import GenerateSummary, ValidationFigures
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, Policy, policy, sampling_key
from tpo_lite.sampling.to_file import sample_held_out, sample_into
from tpo_lite.settled import SettledRecipe

PROBE_PROMPTS = 4
"""Prompts on which the adapter is shown to be live."""


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> GenerateSummary:
    """Write samples.jsonl and, in the first iteration, M_0's answers to the held-out slices.

    Raises `TpoError` if M_0 comes from a warm start and does not follow the thought prompt.
    """
    current = policy(folder, recipe, arm, iteration)
    loaded = LoadedPolicy(recipe, current, device)
    label = f"{arm} {iteration + 1} generate"
    instructions = list(read_jsonl(folder.instructions(f"iteration-{iteration}"), Instruction))
    probe = None
    if current.adapter is not None:
        probe = loaded.probe([loaded.prompt_ids(x, recipe.style(arm)) for x in instructions[:PROBE_PROMPTS]])
    base = validation_figures(_base(folder, loaded, arm, "validation")) if iteration == 0 else None
    if base is not None and arm == "thinking" and folder.warm_adapter(arm) is not None:
        check_warm_start(base)
    tested = iteration == 0 and recipe.instructions.test > 0
    base_test = held_out_figures(_base(folder, loaded, arm, "test")) if tested else None
    path = folder.iteration(arm, iteration) / "samples.jsonl"
    key = sampling_key(recipe, arm, iteration, "train")
    sampled = sample_into(path, loaded, instructions, arm, key, recipe.sampling.k, 0, label)
    shift = _shift(loaded, current, device, sampled, label) if loaded.engine == "gguf" else None
    outputs = output_figures([sample for prompt in sampled for sample in prompt.samples])
    return GenerateSummary(
        engine=loaded.engine,
        probe=probe,
        base=base,
        base_test=base_test,
        shift=shift,
        prompts=len(sampled),
        parse=outputs.parse,
        thought_tokens=outputs.thought_tokens,
        response_tokens=outputs.response_tokens,
    )


def _base(folder: RunFolder, loaded: LoadedPolicy, arm: Arm, held_out: HeldOut) -> list[PromptSamples]:
    path = folder.base_answers(arm, held_out)
    return sample_held_out(path, loaded, folder, arm, 0, held_out, f"{arm} M_0 {held_out}")


def check_warm_start(figures: ValidationFigures) -> None:
    """Raise `TpoError` if too few of M_0's outputs are well-formed after a warm start."""
    if own_share(figures.parse) < ENOUGH:
        raise TpoError(
            f"after the warm start M_0 is still below {ENOUGH:.0%}: {shown(figures.parse)}. Without more the loop has "
            "next to no pairs. There are three ways on, each with --new, which keeps this run beside the new one: more "
            "or shorter examples (warm_start.prompts, samples, examples, epochs; thought_tokens, response_tokens); "
            "examples of your own (warm_start.kind=file) or another thought.style; another model. If outputs are "
            "truncated, a larger sampling.max_new_tokens may be all that is missing."
        )


def _shift(loaded: LoadedPolicy, current: Policy, device: Device, samples: list[PromptSamples], label: str) -> float:
    """Measure how far the policy that samples is from the one that trains, and print it."""
    from tpo_lite.sampling.engines.gguf import GgufSampler
    from tpo_lite.sampling.shift import sampling_shift

    assert isinstance(loaded.sampler, GgufSampler)
    shift = sampling_shift(loaded.sampler, current, device, loaded.recipe.precision(device), samples)
    print(f"{label}: sampler and trainer are KL {shift:.4f} nats per token apart", flush=True)
    return shift
