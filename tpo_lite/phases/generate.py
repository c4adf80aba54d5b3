"""Phase "generate": K thoughts and responses an instruction, sampled from M_t (the paper's thought prompts)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("generate")

from pathlib import Path
from typing import Any

from tpo_lite.phases.summaries import sample_summary, validation_summary
from tpo_lite.progress import progress
from tpo_lite.records import Instruction, JsonlAppender, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.thoughts import thought_prompt

PROBE_PROMPTS = 4


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes samples.jsonl and, once, the base model's validation samples; returns the parse outcomes."""
    recipe = run.recipe
    style = recipe.style(arm)
    on = policy(run, recipe, arm, iteration)
    loaded = LoadedPolicy(recipe, on)
    instructions = list(read_jsonl(run.instructions(f"iteration-{iteration}"), Instruction))
    summary: dict[str, Any] = {"engine": loaded.engine}
    if on.adapter is not None:
        prompts = [loaded.chat.prompt_ids(thought_prompt(style, x.text)) for x in instructions[:PROBE_PROMPTS]]
        summary["probe"] = loaded.probe(prompts)
    if iteration == 0:
        held_out = list(read_jsonl(run.instructions("validation"), Instruction))
        sample_into(
            run.validation_of(arm, 0), loaded, held_out, arm, sampling_key(recipe, arm, 0, "validation"), 1,
            recipe.evaluation.retries, f"{arm} M_0 validation",
        )  # fmt: skip
        summary["base"] = validation_summary(list(read_jsonl(run.validation_of(arm, 0), PromptSamples)))
    path = run.iteration(arm, iteration) / "samples.jsonl"
    key = sampling_key(recipe, arm, iteration, "train")
    sample_into(path, loaded, instructions, arm, key, recipe.sampling.k, 0, f"{arm} {iteration + 1} generate")
    samples = list(read_jsonl(path, PromptSamples))
    if loaded.engine == "gguf":
        from tpo_lite.sampling.shift import sampling_shift

        summary["shift"] = sampling_shift(loaded.sampler, on, loaded.device, samples)
        apart = f"sampler and trainer are KL {summary['shift']:.4f} nats a token apart"
        print(f"{arm} {iteration + 1} generate: {apart}", flush=True)
    return summary | sample_summary(samples)


def sample_into(
    path: Path,
    loaded: LoadedPolicy,
    instructions: list[Instruction],
    arm: str,
    key: str,
    k: int,
    retries: int,
    label: str,
) -> None:
    """Samples what `path` does not hold yet; each prompt is on disk as soon as it is sampled."""
    finished = frozenset(record.instruction.id for record in read_jsonl(path, PromptSamples))
    with (
        JsonlAppender(path) as out,
        progress(label, len(instructions), "prompts", len(finished)) as advance,
    ):
        for prompt in loaded.draw(instructions, loaded.recipe.style(arm), key, k, retries, finished):
            out.append(prompt)
            advance(1)
