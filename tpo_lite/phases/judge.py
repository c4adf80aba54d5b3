"""Phase "judge": the responses of one prompt against each other, responses only (the paper's judges)."""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("judge")

from collections.abc import Iterator
from dataclasses import dataclass

from tpo_lite.groups import in_groups
from tpo_lite.judges.open import open_judge, too_long
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import judge_figures
from tpo_lite.phases.summaries import JudgeSummary
from tpo_lite.preferences.length_control import auto_rho
from tpo_lite.preferences.pairs import score_prompt, trained_on
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.tournament import Adaptive, RoundRobin, Single, Tournament, round_robin, saved_calls
from tpo_lite.progress import progress
from tpo_lite.recipe import Recipe
from tpo_lite.records import PromptJudgements, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe

Rated = list[tuple[list[float], list[int]]]
"""Ratings and lengths of the responses of some prompts, as `auto_rho` takes them."""


def run(folder: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, device: Device) -> JudgeSummary:
    """Write judgements.jsonl, and name the prompts with comparisons that are too long for the judge."""
    here = folder.iteration(arm, iteration)
    sampled = trained_on(read_jsonl(here / "samples.jsonl", PromptSamples), recipe.pairs.budget_forced)
    prompts = {prompt.instruction.id: prompt for prompt in sampled}
    path = here / "judgements.jsonl"
    finished = {record.id: record for record in read_jsonl(path, PromptJudgements)}
    judge = open_judge(recipe.judge, device, folder.root / "judge-calls", folder.load_day())
    tally = Tally()
    for record in finished.values():
        tally.add(prompts[record.id], record)
    # Only an adaptive tournament with an automatic rho needs the ratings of the prompts before.
    adaptive = recipe.tournament.kind == "adaptive" and not judge.pointwise
    rates = adaptive and recipe.length_control.rho == "auto"
    rated: Rated = []
    with progress(f"{arm} {iteration + 1} judge", len(prompts), "prompts", len(finished)) as advance:

        def answer(group: list[PromptSamples]) -> Iterator[PromptJudgements]:
            return judge_prompts(judge, group, _tournament(recipe, rated))

        def count(record: PromptJudgements) -> None:
            tally.add(prompts[record.id], record)
            advance(1, str(tally))

        for group in in_groups(path, prompts, finished, recipe.judge.prompts_at_once, answer, count):
            if rates:
                rated += [_rated(recipe, prompts[record.id], record) for record in group]
    if tally.dropped:
        ids = [record.id for record in finished.values() if record.overlong()]
        kind = "responses" if judge.pointwise else "comparisons"
        what = f"left out {tally.dropped} {kind} in {len(ids)} of {len(prompts)} prompts"
        print(too_long(what, ids, recipe.judge, judge, "judge.context"), flush=True)
    return judge_figures(list(finished.values()))


def _rated(recipe: Recipe, prompt: PromptSamples, judgements: PromptJudgements) -> tuple[list[float], list[int]]:
    score = score_prompt(prompt, judgements, soft=recipe.rating.wins == "soft", prior=recipe.rating.prior, rho=0.0)
    return score.ratings, score.lengths


def _tournament(recipe: Recipe, rated: Rated) -> Tournament:
    """Return the recipe's tournament; an automatic rho is that of the prompts `rated` in the groups before."""
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
    """How many calls were made so far, and what saved the others.

    The others are those of a full round robin or, with a pointwise judge, of scoring every sample.
    """

    calls: int = 0
    """Questions put to the judge."""
    dropped: int = 0
    """Comparisons, or responses, that are too long for the judge: neither calls nor saved."""
    saved: int = 0
    """Questions that were not needed."""
    identical: int = 0
    """Saved questions about identical responses."""

    def add(self, prompt: PromptSamples, record: PromptJudgements) -> None:
        """Count one prompt."""
        self.calls += record.calls
        self.dropped += record.overlong()
        self.saved += record.saved
        pointwise = record.scores is not None
        self.identical += record.saved if pointwise else saved_calls(prompt, len(round_robin(prompt)))

    def __str__(self) -> str:
        dropped = f", {self.dropped} too long" if self.dropped else ""
        saved = f"(saved: identical {self.identical}, tournament {self.saved - self.identical})"
        return f"{self.calls} calls{dropped} {saved}"
