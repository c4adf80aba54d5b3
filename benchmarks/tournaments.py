"""Tournaments against the round robin on the same judge. CPU only.

    python -m benchmarks.tournaments --data DATA      # results/tournaments.md
    python -m benchmarks.tournaments RUN...           # results/tournaments-recorded.md

DATA is a folder with AlpacaEval 2's annotations (`alpaca_eval2`) and two judges' recorded judgements in both orders
(`llmbar`, `arena_hard`). RUN are folders of runs with `tournament.kind: round-robin`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import numpy as np

from benchmarks.tables import RESULTS, heading, table, write
from benchmarks.tournament_cases import PROMPTS, Answers, Case, RecordedJudge, percent, recorded_cases, simulated
from tpo_lite.preferences.pairs import score_prompt
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.tournament import (
    MARGIN,
    Adaptive,
    RoundRobin,
    Single,
    Tournament,
    distinct_responses,
    round_robin_noise,
    saved_calls,
)
from tpo_lite.records import PromptSamples

PRIOR = 0.1
CONFIDENCES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.9
"""The recipes' default."""
MARGINS = (0.0, 0.25, 0.5, 1.0)
AGREEMENT = 0.95
"""The tuned tournament has to find the round robin's best in this share of prompts, and its worst."""

DRAWN = """
DATA holds AlpacaEval 2's annotations (GPT-4 Turbo on ten models' answers to each of 805 instructions, each compared
once with a common baseline) and two judges' recorded judgements in both orders. It has no full table of K x K
comparisons. So tables are drawn from a judge fitted to it: P(first wins) = sigma(a (e_first - e_second) + b), where e
is the annotation's log-odds, and a and b give a real judge's flip rate and first-slot rate. A judge drawn twice shows
the round robin's own noise.
"""

REPLAYED = """
RUN are folders of runs with `tournament.kind: round-robin`. Their recorded answers are asked for again, one by one,
so every tournament meets the same judge as the round robin.
"""

LEGEND = """
The bar: for at most half of the round robin's calls, `adaptive` finds its best and its worst in 95 % of prompts, or
differs from it in true rating by no more than the round robin's own noise.

- Calls, decoded: shares of the round robin's over distinct responses (identical ones cost no call in either). Decoded
  is what verdict mode pays: a response shown first is decoded once per round, one shown second once per comparison.
- Same best, same worst: the chosen and the rejected response are the round robin's.
- Close ratings: they are the round robin's, or their ratings in the round robin differ by less than the standard
  error of that difference (both sides counted). This is the noise in the tournament's own model, by which it also
  stops.
- True gap: the true rating of the chosen response less that of the rejected one, in
  {unit}.
- Lost: by how much that is less than the round robin's, paired; a mean over prompts with its 95 % interval.
- Within noise: the share of prompts where it differs from the round robin's by no more than the round robin's own
  noise. That is the root mean square of the difference between two round robins of the same judge, and needs no model
  of the noise. The row of the round robin asked anew says how often the round robin itself stays within it.
"""

SHOWN = """
What it shows. With GPT-4's noise on LLMBar and soft wins, both sides are above 95 % in both halves of the data. With
the noise of GPT-4 Turbo on Arena-Hard, or with hard wins, they are not: finding that judge's best and worst in 95 %
takes more than half of the calls (the first rows of its held-out table). There the bar is met by its second clause.
Nearly all choices are ones that the round robin could not tell apart, and the mean loss is far below its own noise.
Prompt by prompt, less than 95 % are within that noise, though more than of a round robin asked anew. The mean loss is
small but real: its interval mostly excludes 0, where a round robin asked anew loses nothing in expectation.
AlpacaEval's annotations are saturated: in 30 % of prompts the two worst responses have the very same true rating.
Which of them is rejected is then chance, and round robins agree less on the worst than on the best.
"""

WEAKEST = """
The weakest case: at the default confidence, the embedded recipe asks for more than four fifths of the round robin's
calls, which misses the bar's half by far. There are few distinct responses, and the fewer there are, the larger is
the first round's share of a round robin. And most comparisons are of two wrong answers, where this judge was trained
to toss a coin (the flip rate), so nothing settles. In verdict mode its rounds even cost more than they save (decoded
is above 100 %), since each decodes the shared prefixes anew. There `tournament.kind: round-robin` is cheaper.
"""


@dataclass
class Outcome:
    """What a tournament cost and chose, one figure per prompt."""

    calls: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)


def play(case: Case, tournament: Tournament, answers: Answers) -> Outcome:
    """Play the tournament on each prompt; choose and reject samples as `tpo_lite.preferences.pairs` does."""
    outcome = Outcome()
    for prompt in case.prompts:
        judge = RecordedJudge(answers)
        (judgements,) = judge_prompts(judge, [prompt], tournament)
        score = score_prompt(prompt, judgements, soft=case.soft, prior=PRIOR, rho=case.rho)
        outcome.calls.append(judgements.calls)
        outcome.rounds.append(judge.rounds)
        outcome.decoded.append(judge.decoded)
        outcome.best.append(score.ks[int(np.argmax(score.controlled))])
        outcome.worst.append(score.ks[int(np.argmin(score.controlled))])
    return outcome


def close_in_round_robin(case: Case, prompt: PromptSamples) -> Callable[[int, int], bool]:
    """Return whether two samples' length-controlled ratings are close, as a function of their ks.

    They are if they differ by at most the standard error of that difference in the round robin.
    """
    (judgements,) = judge_prompts(RecordedJudge(case.answers), [prompt], RoundRobin())
    score = score_prompt(prompt, judgements, soft=case.soft, prior=PRIOR, rho=case.rho)
    ratings = np.array(score.ratings)
    # Controlled scores are in units of the ratings' standard deviation.
    scores = dict(zip(score.ks, np.array(score.controlled) * ratings.std(), strict=True))
    texts = {sample.k: sample.response for sample in prompt.samples}
    ks = distinct_responses(prompt)
    copies = np.array([sum(texts[other] == texts[k] for other in score.ks) for k in ks])
    strengths = ratings[[score.ks.index(k) for k in ks]]
    noise = round_robin_noise(strengths, copies, PRIOR)
    row = {text: index for index, text in enumerate(texts[k] for k in ks)}

    def close(one: int, other: int) -> bool:
        return bool(abs(scores[one] - scores[other]) <= math.sqrt(noise[row[texts[one]], row[texts[other]]]) + 1e-9)

    return close


def true_gaps(case: Case, outcome: Outcome) -> np.ndarray:
    """Return the true rating of the chosen response less that of the rejected one, one figure per prompt."""
    true = case.true_rating
    chosen = zip(case.prompts, outcome.best, outcome.worst, strict=True)
    return np.array([true(prompt, best) - true(prompt, worst) for prompt, best, worst in chosen])


def agreement(case: Case, outcome: Outcome, reference: Outcome) -> tuple[list[bool], list[bool]]:
    """Return whether the chosen and the rejected response are the reference's: a list for each of the two."""
    texts = [{sample.k: sample.response for sample in prompt.samples} for prompt in case.prompts]
    best = [t[a] == t[b] for t, a, b in zip(texts, outcome.best, reference.best, strict=True)]
    return best, [t[a] == t[b] for t, a, b in zip(texts, outcome.worst, reference.worst, strict=True)]


@dataclass
class RoundRobinOutcome:
    """What every tournament of a case is measured against."""

    outcome: Outcome
    gaps: np.ndarray
    close: list[Callable[[int, int], bool]]
    """`close_in_round_robin` of each prompt."""
    anew: Outcome | None
    noise: float | None
    """The root mean square of how far the true gap changes when the round robin is asked anew."""

    @classmethod
    def of(cls, case: Case) -> RoundRobinOutcome:
        """Play the round robin, and a second one if the judge can be asked anew."""
        outcome = play(case, RoundRobin(), case.answers)
        gaps = true_gaps(case, outcome)
        anew = None if case.anew is None else play(case, RoundRobin(), case.anew)
        noise = None if anew is None else float(np.sqrt(np.mean((true_gaps(case, anew) - gaps) ** 2)))
        return cls(outcome, gaps, [close_in_round_robin(case, prompt) for prompt in case.prompts], anew, noise)


def row(case: Case, name: str, outcome: Outcome, reference: RoundRobinOutcome) -> list[str]:
    """Return the cells of one tournament: its cost and its agreement with the round robin."""
    full = reference.outcome
    best, worst = agreement(case, outcome, full)
    pairs = ((outcome.best, full.best), (outcome.worst, full.worst))
    close = [near(a, b) for ours, theirs in pairs for near, a, b in zip(reference.close, ours, theirs, strict=True)]
    gaps = true_gaps(case, outcome)
    lost = reference.gaps - gaps
    within = "-" if reference.noise is None else percent(fmean(np.abs(lost) <= reference.noise))
    return [
        name,
        percent(sum(outcome.calls) / sum(full.calls)),
        percent(sum(outcome.decoded) / sum(full.decoded)),
        f"{fmean(outcome.rounds):.1f}",
        *(percent(fmean(values)) for values in (best, worst, np.logical_and(best, worst), close)),
        f"{fmean(gaps):.3f}",
        f"{fmean(lost):.3f} ± {1.96 * np.std(lost) / math.sqrt(len(lost)):.3f}",
        within,
    ]


COLUMNS = (
    "tournament: | calls | decoded | rounds | same best | same worst | both | close ratings | true gap | lost "
    "| within noise"
)


def section(case: Case) -> list[str]:
    """Return the table of all tournaments on one case."""
    reference = RoundRobinOutcome.of(case)
    rows = [row(case, "round-robin", reference.outcome, reference)]
    if reference.anew is not None:
        rows.append(row(case, "round-robin, judge asked anew", reference.anew, reference))
    rows.append(row(case, "single", play(case, Single(0), case.answers), reference))
    for confidence in CONFIDENCES:
        adaptive = Adaptive(0, confidence, case.soft, PRIOR, case.rho)
        rows.append(row(case, f"adaptive, confidence {confidence}", play(case, adaptive, case.answers), reference))
    distinct = fmean(len(distinct_responses(prompt)) for prompt in case.prompts)
    calls = sum(reference.outcome.calls)
    everything = calls + sum(saved_calls(p, c) for p, c in zip(case.prompts, reference.outcome.calls, strict=True))
    noise = "" if reference.noise is None else f" Its own noise: {reference.noise:.3f}."
    return [
        f"### {case.name}",
        "",
        f"{len(case.prompts)} prompts, {distinct:.1f} distinct responses each, {calls} calls in the round robin "
        f"({percent(calls / everything)} of one over all well-formed samples).{noise}",
        "",
        *table(COLUMNS, rows),
        "",
    ]


Setting = tuple[float, float]
"""A margin and a confidence."""


def held_out(data: Path, judges: Sequence[Path]) -> list[str]:
    """Choose margin and confidence on half of the instructions; show these and the shipped ones on both halves."""
    margins, confidences = (", ".join(map(str, values)) for values in (MARGINS, CONFIDENCES))
    lines = [
        "## Held out",
        "",
        f"MARGIN ({MARGIN}) and the default confidence ({CONFIDENCE}) were chosen with the tables above in view, so on "
        f"the first {PROMPTS} instructions. Here the margin ({margins}) and the confidence ({confidences}) are chosen "
        f"anew on these {PROMPTS}: the fewest calls that find the best and the worst in {percent(AGREEMENT)} of "
        f"prompts each. They and the shipped ones are then shown on {PROMPTS} instructions that no choice has seen. "
        "Soft wins, rho 0.",
        "",
    ]
    for judge in judges:
        first, other = (simulated(data, judge, True, 0.0, skip=skip) for skip in (0, PROMPTS))
        references = [RoundRobinOutcome.of(case) for case in (first, other)]
        settings = {"chosen": tuned(first, references[0]), "shipped": (MARGIN, CONFIDENCE)}
        halves = [("first half", first, references[0]), ("other half", other, references[1])]
        rows = [
            row(case, f"{name} ({setting[0]}, {setting[1]}), {half}", play_with(case, setting), reference)
            for name, setting in settings.items()
            for half, case, reference in halves
        ]
        for half, case, reference in halves:
            assert reference.anew is not None
            rows.append(row(case, f"round-robin, judge asked anew, {half}", reference.anew, reference))
        lines += [f"### A judge as noisy as {judge.stem}", "", *table(COLUMNS, rows), ""]
    return lines


def play_with(case: Case, setting: Setting) -> Outcome:
    """Play the adaptive tournament with another margin and confidence."""
    margin, confidence = setting
    with patch("tpo_lite.preferences.tournament.MARGIN", margin):
        return play(case, Adaptive(0, confidence, True, PRIOR, 0.0), case.answers)


def tuned(case: Case, reference: RoundRobinOutcome) -> Setting:
    """Return the setting that agrees with the round robin often enough for the fewest calls."""
    tried = {setting: play_with(case, setting) for setting in itertools.product(MARGINS, CONFIDENCES)}
    agreeing = [
        setting
        for setting, outcome in tried.items()
        if min(map(fmean, agreement(case, outcome, reference.outcome))) >= AGREEMENT
    ]
    return min(agreeing, key=lambda setting: sum(tried[setting].calls))


def results_text(title: str, command: str, about: str, unit: str, parts: list[list[str]]) -> str:
    """Return a results file, with what it takes to read and repeat it."""
    head = [
        *heading(title, "cpu", f"python -m benchmarks.tournaments {command}", f"; {time.process_time():.0f} s of CPU"),
        *about.strip().split("\n"),
        "",
        *LEGEND.format(unit=unit).strip().split("\n"),
        "",
    ]
    return "\n".join(head + [line for part in parts for line in part]).rstrip("\n") + "\n"


def main() -> None:
    """Draw or replay judgements, play all tournaments, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a full round robin")
    parser.add_argument("--data", type=Path, help="folder with alpaca_eval2, llmbar and arena_hard")
    arguments = parser.parse_args()
    if arguments.data is not None:
        gpt4 = arguments.data / "llmbar" / "judge_outputs" / "GPT-4_CoT.jsonl"
        turbo = arguments.data / "arena_hard" / "judgments_gpt4turbo_llama31_8b_82q.jsonl"
        cases = ((gpt4, True, 0.0), (gpt4, False, 0.0), (turbo, True, 0.0), (turbo, False, 0.0), (turbo, True, 0.2))
        sections = [section(simulated(arguments.data, judge, soft, rho)) for judge, soft, rho in cases]
        parts = [[*SHOWN.strip().split("\n"), ""], *sections, held_out(arguments.data, (gpt4, turbo))]
        unit = "the fitted judge's nats, length control left out"
        text = results_text("Tournaments against the round robin", "--data DATA", DRAWN, unit, parts)
        write(RESULTS / "tournaments.md", text)
    if arguments.runs:
        parts = [[*WEAKEST.strip().split("\n"), ""], *map(section, recorded_cases(arguments.runs))]
        unit = "right answers (1) and wrong ones (0)"
        title = "Tournaments against the round robin, on recorded runs"
        command = " ".join(["RUN"] * len(arguments.runs))
        write(RESULTS / "tournaments-recorded.md", results_text(title, command, REPLAYED, unit, parts))


if __name__ == "__main__":
    main()
