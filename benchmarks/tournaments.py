"""Tournaments against the round robin on the same judge. CPU only.

    python -m benchmarks.tournaments --data DATA      # results/tournaments.md
    python -m benchmarks.tournaments RUN...           # results/tournaments-recorded.md

DATA is a folder with AlpacaEval 2's annotations (`alpaca_eval2`) and two judges' recorded judgements in both orders
(`llmbar`, `arena_hard`). RUN are folders of runs with `tournament.kind: round-robin`.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.made_up_judges import JUDGES, PRIOR, promise
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

CONFIDENCES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.9
"""The recipes' default."""
AGAIN = "round-robin, noise drawn again"
IN_VIEW = 400
"""The first instructions, which were in view when the constants of the tournament were chosen."""

DRAWN = """
DATA holds AlpacaEval 2's annotations (GPT-4 Turbo on ten models' answers to each of 805 instructions, each compared
once with a common baseline) and two judges' recorded judgements in both orders. It has no full table of K x K
comparisons. So tables are drawn from a judge fitted to it: P(first wins) = sigma(a (e_first - e_second) + b), where e
is the annotation's log-odds, and a and b give a real judge's flip rate and first-slot rate. A second judge with the
same noise, drawn again, shows the round robin's own noise. (One deterministic judge would answer the same again.)
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
  error that Bradley-Terry gives that difference (both sides counted).
- True gap: the true rating of the chosen response less that of the rejected one, in
  {unit}.
- Lost: by how much that is less than the round robin's, paired; a mean over prompts with its 95 % interval.
- Within noise: the share of prompts where it differs from the round robin's by no more than the round robin's own
  noise. That is the root mean square of the difference between two round robins whose noise is drawn apart, and needs
  no model of the noise. The second round robin's row says how often a round robin itself stays within it.
"""

SHOWN = """
## Noise of real judges

What it shows. With GPT-4's noise on LLMBar and soft wins, both sides are above 95 % for 40 % of the calls, on the
instructions that were in view; on others they are 96.5 % and 93 % (the last tables). With hard wins, or with the
noise of GPT-4 Turbo on Arena-Hard, they are below 95 %. There the bar's second clause counts: nearly all choices are
ones that the round robin could not tell apart, and the mean loss is far below its own noise. With GPT-4 Turbo's noise
and soft wins it takes 50 to 52 % of the calls, so that the bar's half is missed. Prompt by prompt, 90 to 95 % are
within the noise there, and 75 to 80 % of a second round robin. AlpacaEval's annotations are saturated: in 30 % of
prompts the two worst responses have the very same true rating. Which of them is rejected is then chance, and round
robins agree less on the worst than on the best.
"""

HELD_OUT = f"""
## Held out

MARGIN ({MARGIN}), the default confidence ({CONFIDENCE}) and the constants of the forecast were chosen with the first
{IN_VIEW} instructions and the judges made up in view. Here the tournament is shown on some of them and on instructions
that no choice has seen. Soft wins, rho 0.
"""

PROMISE = """
## The promise

The unfavourable table, before the favourable ones: eight responses to each of {prompts} prompts, and judges made up
to be hard for a tournament (`benchmarks/made_up_judges.py`), at confidence 0.9. The promise is broken if the round
robin before the same judge puts another response ahead by more than half of the standard error that Bradley-Terry
gives their difference. That may happen in 10 % of prompts on each side; a share near 10 % has a 95 % interval of ± 4
points. Same best, same worst: without that allowance.
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
    again: Outcome | None
    """Of a round robin with its noise drawn again."""
    noise: float | None
    """The root mean square of how far the true gap changes when the noise is drawn again."""

    @classmethod
    def of(cls, case: Case) -> RoundRobinOutcome:
        """Play the round robin, and a second one if its noise can be drawn again."""
        outcome = play(case, RoundRobin(), case.answers)
        gaps = true_gaps(case, outcome)
        again = None if case.again is None else play(case, RoundRobin(), case.again)
        noise = None if again is None else float(np.sqrt(np.mean((true_gaps(case, again) - gaps) ** 2)))
        return cls(outcome, gaps, [close_in_round_robin(case, prompt) for prompt in case.prompts], again, noise)


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
    if reference.again is not None:
        rows.append(row(case, AGAIN, reference.again, reference))
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


def simulated_section(data: Path, judge: Path, soft: bool, rho: float) -> list[str]:
    """Return the table of all tournaments before a judge as noisy as `judge`."""
    return section(simulated(data, judge, soft, rho))


def held_out(data: Path, judge: Path) -> list[str]:
    """Show the shipped tournament on instructions that choices were made with, and on others."""
    rows = []
    for which, skip in (("in view", 0), ("not in view", IN_VIEW)):
        case = simulated(data, judge, True, 0.0, skip=skip)
        reference = RoundRobinOutcome.of(case)
        ours = play(case, Adaptive(0, CONFIDENCE, True, PRIOR, 0.0), case.answers)
        rows.append(row(case, f"adaptive, {which}", ours, reference))
        assert reference.again is not None
        rows.append(row(case, f"{AGAIN}, {which}", reference.again, reference))
    return [f"### A judge as noisy as {judge.stem}", "", *table(COLUMNS, rows), ""]


def promise_row(name: str) -> list[str]:
    """Count how often the promise is broken before one of the judges made up."""
    kept = promise(JUDGES[name], PROMPTS, seed=0, confidence=CONFIDENCE)
    shares = (kept.calls, kept.broken_best, kept.broken_worst, kept.same_best, kept.same_worst)
    return [name, *(percent(fmean(values)) for values in shares)]


def drawn_parts(data: Path) -> list[list[str]]:
    """Return all tables of judges that are drawn, one process for each core."""
    gpt4 = data / "llmbar" / "judge_outputs" / "GPT-4_CoT.jsonl"
    turbo = data / "arena_hard" / "judgments_gpt4turbo_llama31_8b_82q.jsonl"
    cases = ((gpt4, True, 0.0), (gpt4, False, 0.0), (turbo, True, 0.0), (turbo, False, 0.0), (turbo, True, 0.2))
    with ProcessPoolExecutor() as pool:
        sections = [pool.submit(simulated_section, data, *case) for case in cases]
        unseen = [pool.submit(held_out, data, judge) for judge in (gpt4, turbo)]
        promises = list(pool.map(promise_row, JUDGES))
        columns = "judge: | calls | broken, best | broken, worst | same best | same worst"
        return [
            [*PROMISE.format(prompts=PROMPTS).strip().split("\n"), "", *table(columns, promises), ""],
            [*SHOWN.strip().split("\n"), ""],
            *(each.result() for each in sections),
            [*HELD_OUT.strip().split("\n"), ""],
            *(each.result() for each in unseen),
        ]


def results_text(title: str, command: str, about: str, unit: str, parts: list[list[str]]) -> str:
    """Return a results file, with what it takes to read and repeat it."""
    head = [
        *heading(title, "cpu", f"python -m benchmarks.tournaments {command}", f"; {_cpu_seconds():.0f} s of CPU"),
        *about.strip().split("\n"),
        "",
        *LEGEND.format(unit=unit).strip().split("\n"),
        "",
    ]
    return "\n".join(head + [line for part in parts for line in part]).rstrip("\n") + "\n"


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers that have ended."""
    return time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def main() -> None:
    """Draw or replay judgements, play all tournaments, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a full round robin")
    parser.add_argument("--data", type=Path, help="folder with alpaca_eval2, llmbar and arena_hard")
    arguments = parser.parse_args()
    if arguments.data is not None:
        parts = drawn_parts(arguments.data)
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
