"""Phase "judge": the responses of one prompt against each other, responses only (the paper's judges)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("judge")

from dataclasses import dataclass
from typing import Any

from tpo_lite.judges.open import open_judge, too_long
from tpo_lite.judges.protocol import Judge
from tpo_lite.phases.summaries import judge_summary
from tpo_lite.preferences.judging import judge_prompts
from tpo_lite.preferences.length_control import auto_rho
from tpo_lite.preferences.pairs import score_prompt
from tpo_lite.preferences.tournament import Adaptive, RoundRobin, Single, Tournament, round_robin, saved_calls
from tpo_lite.progress import progress
from tpo_lite.recipe import Recipe
from tpo_lite.records import JsonlAppender, PromptJudgements, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes judgements.jsonl; returns calls, calls saved, flip rate and first-slot rate.

    Names the prompts with comparisons that are too long for the judge.
    """
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    prompts = list(read_jsonl(folder / "samples.jsonl", PromptSamples))
    path = folder / "judgements.jsonl"
    finished = {record.id: record for record in read_jsonl(path, PromptJudgements)}
    at_once = recipe.judge.prompts_at_once
    groups = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
    judge: Judge = open_judge(recipe.judge, run.root / "judge-calls")
    by_id = {prompt.instruction.id: prompt for prompt in prompts}
    tally = Tally()
    for record in finished.values():
        tally.add(by_id[record.id], record)
    # Only an adaptive tournament with an automatic rho asks what the prompts before came to.
    adaptive = recipe.tournament.kind == "adaptive" and not judge.pointwise
    rates = adaptive and recipe.length_control.rho == "auto"
    rated: list[tuple[list[float], list[int]]] = []
    with (
        JsonlAppender(path) as out,
        progress(f"{arm} {iteration + 1} judge", len(prompts), "prompts", len(finished)) as advance,
    ):
        # A group is judged whole even where a kill left half of it: what shares a batch decides the last
        # bits of the logits, and a resumed run must end with the same bytes.
        for group in groups:
            missing = {prompt.instruction.id for prompt in group} - finished.keys()
            if missing:
                tournament = _tournament(recipe, rated)
                for record in judge_prompts(judge, group, tournament):
                    if record.id in missing:
                        out.append(record)
                        finished[record.id] = record
                        tally.add(by_id[record.id], record)
                        advance(1, str(tally))
            if rates:
                rated += [_rated(recipe, prompt, finished[prompt.instruction.id]) for prompt in group]
    if tally.dropped:
        ids = [record.id for record in finished.values() if _dropped(record)]
        what = f"{tally.dropped} comparisons in {len(ids)} of {len(prompts)} prompts, left out"
        print(too_long(what, ids, recipe.judge, judge, "judge.context"), flush=True)
    return judge_summary(list(finished.values()))


def _dropped(record: PromptJudgements) -> int:
    """Comparisons that did not fit the judge's context."""
    return sum(comparison.verdict == "overlong" for comparison in record.comparisons)


def _rated(recipe: Recipe, prompt: PromptSamples, judgements: PromptJudgements) -> tuple[list[float], list[int]]:
    """Ratings and lengths, as `auto_rho` takes them."""
    score = score_prompt(prompt, judgements, soft=recipe.rating.wins == "soft", prior=recipe.rating.prior, rho=0.0)
    return score.ratings, score.lengths


def _tournament(recipe: Recipe, rated: list[tuple[list[float], list[int]]]) -> Tournament:
    """The recipe's tournament; an automatic rho is that of the prompts `rated` in the groups before."""
    kind, rho = recipe.tournament.kind, recipe.length_control.rho
    if kind == "round-robin":
        return RoundRobin()
    if kind == "single":
        return Single(recipe.seed)
    return Adaptive(
        seed=recipe.seed,
        confidence=recipe.tournament.confidence,
        soft=recipe.rating.wins == "soft",
        prior=recipe.rating.prior,
        rho=auto_rho(rated).rho if rho == "auto" else rho,
    )


@dataclass
class Tally:
    """How many calls were made so far, and what saved the others of a full round robin."""

    calls: int = 0
    dropped: int = 0
    """Comparisons that are too long for the judge: no calls, and none saved."""
    saved: int = 0
    identical: int = 0
    """Of the saved ones, those between identical responses."""

    def add(self, prompt: PromptSamples, record: PromptJudgements) -> None:
        """Counts one prompt."""
        self.calls += record.calls
        self.dropped += _dropped(record)
        self.saved += record.saved
        self.identical += saved_calls(prompt, len(round_robin(prompt)))

    def __str__(self) -> str:
        dropped = f", {self.dropped} too long" if self.dropped else ""
        saved = f"(saved: identical {self.identical}, tournament {self.saved - self.identical})"
        return f"{self.calls} calls{dropped} {saved}"
