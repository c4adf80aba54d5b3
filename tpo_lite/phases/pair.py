"""Phase "pair": ratings, length control, best and worst (the paper's judges and length control). Imports no torch."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("pair")

from collections.abc import Mapping

from tpo_lite.errors import TpoError
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import pair_figures
from tpo_lite.phases.summaries import PairSummary
from tpo_lite.preferences.pairs import make_pairs, score_prompts, trained_on
from tpo_lite.records import PairCount, PromptJudgements, PromptSamples, read_jsonl, write_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> PairSummary:
    """Write scores.jsonl and pairs.jsonl. Raises `TpoError` if no prompt has a pair."""
    here = folder.iteration(arm, iteration)
    samples = trained_on(read_jsonl(here / "samples.jsonl", PromptSamples), recipe.pairs.budget_forced)
    judgements = {record.id: record for record in read_jsonl(here / "judgements.jsonl", PromptJudgements)}
    rho = recipe.length_control.rho
    scored = score_prompts(
        samples,
        judgements,
        soft=recipe.rating.wins == "soft",
        prior=recipe.rating.prior,
        rho=None if rho == "auto" else rho,
        max_tokens=recipe.pairs.max_tokens,
    )
    made = make_pairs(
        samples,
        scored.scores,
        malformed_share=recipe.pairs.malformed_share,
        max_tokens=recipe.pairs.max_tokens,
        seed=recipe.seed,
    )
    write_jsonl(here / "scores.jsonl", scored.scores.values())
    write_jsonl(here / "pairs.jsonl", made.pairs)
    if not made.pairs:
        raise TpoError(
            f"{arm}, iteration {iteration + 1}: no prompt has a pair ({_reasons(made.counts)}), so there is nothing to "
            f"train on. {_remedy(made.counts)}"
        )
    figures = pair_figures(made)
    return PairSummary(
        rho=scored.rho,
        rho_reached=scored.reached,
        pairs=figures.pairs,
        counts=figures.counts,
        chosen_tokens=figures.chosen_tokens,
        rejected_tokens=figures.rejected_tokens,
    )


def _reasons(counts: Mapping[PairCount, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def _remedy(counts: Mapping[PairCount, int]) -> str:
    if counts["no_well_formed"] * 2 > counts["prompts"]:
        return (
            "The model does not follow the thought prompt: look at samples.jsonl, raise sampling.max_new_tokens if "
            "outputs are truncated or thought.budget if they are budget_forced, or use another thought.style."
        )
    if counts["not_judged"] * 2 > counts["prompts"]:
        return "The responses are too long for the judge: raise judge.context, or set judge.overlong: truncate."
    return "Use more instructions (instructions.per_iteration), more samples (sampling.k) or a higher temperature."
