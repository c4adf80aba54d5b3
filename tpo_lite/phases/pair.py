"""Phase "pair": ratings, length control, best and worst (the paper's judges and length control). Imports no torch."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("pair")

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_lite.errors import TpoError
from tpo_lite.files import write_atomically
from tpo_lite.phases.summaries import pair_summary
from tpo_lite.preferences.pairs import make_pairs, score_prompts
from tpo_lite.records import PromptJudgements, PromptSamples, Record, read_jsonl
from tpo_lite.run import RunFolder


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes scores.jsonl and pairs.jsonl; returns rho, counts and lengths. Raises `TpoError` without a pair."""
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    samples = list(read_jsonl(folder / "samples.jsonl", PromptSamples))
    judgements = {record.id: record for record in read_jsonl(folder / "judgements.jsonl", PromptJudgements)}
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
    _write(folder / "scores.jsonl", list(scored.scores.values()))
    _write(folder / "pairs.jsonl", made.pairs)
    summary = {"rho": scored.rho, "rho_reached": scored.reached} | pair_summary(made)
    if not made.pairs:
        raise TpoError(
            f"{arm}, iteration {iteration + 1}: no prompt has a pair ({_reasons(made.counts)}), so there is nothing to "
            f"train on. {_remedy(made.counts)}"
        )
    return summary


def _write(path: Path, records: Sequence[Record]) -> None:
    write_atomically(path, "".join(record.to_json() + "\n" for record in records))


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def _remedy(counts: dict[str, int]) -> str:
    if counts["no_well_formed"] * 2 > counts["prompts"]:
        return (
            "The model does not follow the thought prompt: look at samples.jsonl, raise sampling.max_new_tokens if "
            "outputs are truncated, or use another thought.style."
        )
    if counts["not_judged"] * 2 > counts["prompts"]:
        return "The responses are too long for the judge: raise judge.context, or set judge.overlong: truncate."
    return "Use more instructions (instructions.per_iteration), more samples (sampling.k) or a higher temperature."
