"""One iteration of Thought Preference Optimization by hand, on the embedded world.

`tpo-lite train` does the same with every step resumable and in its own process. Run this one with

    python docs/loop_by_hand.py OUT

It takes about a minute on two CPU cores and downloads nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tpo_lite as tpo

SMALLER = ["iterations=1", "instructions.per_iteration=48", "instructions.test=32", "train.epochs=2"]


def accuracy(policy: tpo.LoadedPolicy, instructions: list[tpo.Instruction]) -> float:
    """Return the share of instructions that the policy answers correctly, by a string checker that trains nothing."""
    style = policy.recipe.style("thinking")
    answers = policy.draw(instructions, style, key="held out", k=1)
    return sum(tpo.is_right(x.samples[0].response, x.instruction.answer or "") for x in answers) / len(instructions)


def main(out: Path) -> None:
    """Sample, judge, rate, pair and train once, and print what each step made."""
    recipe = tpo.settle(tpo.load_recipe("embedded", SMALLER))
    instructions = tpo.load_instructions(recipe, out)
    base = tpo.base_policy(recipe, out)

    # K thoughts and responses per instruction, from M_0.
    policy = tpo.open_policy(recipe, base)
    samples = list(policy.draw(instructions.iterations[0], recipe.style("thinking"), "train", recipe.sampling.k))
    shown = next((prompt, output) for prompt in samples for output in prompt.samples if output.well_formed)
    print(f"{shown[0].instruction.text}\n  thought: {shown[1].thought}\n  response: {shown[1].response}")

    # The judge sees responses only, every pair in both orders.
    judge = tpo.open_judge(recipe.judge)
    judgements = {record.id: record for record in tpo.judge_prompts(judge, samples, tpo.RoundRobin())}
    print(f"{sum(record.calls for record in judgements.values())} comparisons")

    # Ratings, length control, best and worst.
    rating = {"soft": recipe.rating.wins == "soft", "prior": recipe.rating.prior}
    longest, share = recipe.pairs.max_tokens, recipe.pairs.malformed_share
    scored = tpo.score_prompts(samples, judgements, rho=None, max_tokens=longest, **rating)
    made = tpo.make_pairs(samples, scored.scores, malformed_share=share, max_tokens=longest, seed=recipe.seed)
    print(f"{len(made.pairs)} pairs, rho {scored.rho:.2f}")

    # DPO from M_0 against M_0.
    trained = tpo.train_on_pairs(base, made.pairs, recipe, out / "train")
    improved = tpo.open_policy(recipe, tpo.Policy(base.model, trained.checkpoint, out, base.gguf))
    for name, model in (("M_0", policy), ("M_1", improved)):
        print(f"{name}: {accuracy(model, instructions.test):.0%} of {len(instructions.test)} right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
