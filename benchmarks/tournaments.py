"""Tournaments against the round robin on the same judge. CPU only.

    python benchmarks/tournaments.py --data ../shared/data      # results/tournaments.md
    python benchmarks/tournaments.py RUN...                     # results/tournaments-recorded.md

--data is a folder with AlpacaEval 2's annotations (GPT-4 Turbo on ten models' answers to each of 805 instructions, one
comparison with a common baseline each) and recorded judgements in both orders by two judges. It has no full table of
K x K comparisons; so tables are drawn from a judge fitted to it: P(first wins) = sigma(a (e_first - e_second) + b), where e
is the annotation's log-odds and a and b give a real judge's flip rate and first-slot rate. A judge drawn twice shows the
round robin's own noise.

RUN are folders of runs with `tournament.kind: round-robin`: their recorded answers are asked for again, one by one, so
that every tournament meets the very judge that the round robin met.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import numpy as np

from tpo_lite import __version__
from tpo_lite.calibration.report import report
from tpo_lite.calibration.result_files import read_outputs
from tpo_lite.checking import is_right
from tpo_lite.intervals import flip_rate
from tpo_lite.judges.protocol import JudgeRequest, Verdict
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.pairs import score_prompt
from tpo_lite.preferences.tournament import (
    MARGIN,
    Adaptive,
    RoundRobin,
    Single,
    Tournament,
    distinct_responses,
    round_robin,
    saved_calls,
    uncertainty,
)
from tpo_lite.records import Instruction, PromptJudgements, PromptSamples, Sample, read_jsonl

RESULTS = Path(__file__).parent / "results"
PRIOR = 0.1
K = 8
PROMPTS = 400
CONFIDENCES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.9
"""The recipes' default."""
MARGINS = (0.0, 0.25, 0.5, 1.0)
AGREEMENT = 0.95
"""The share of prompts in which the tuned tournament is to find the round robin's best, and its worst."""

LEGEND = """
The bar: `adaptive` finds the round robin's best and worst in 95 % of prompts, or differs from it in true rating by no
more than the round robin's own noise, for at most half of its calls.

- Calls, decoded: shares of the round robin's over distinct responses (identical ones cost no call in either). Decoded is
  what verdict mode pays: a response shown first is decoded once a round, one shown second once a comparison.
- Same best, same worst: the chosen and the rejected response are the round robin's.
- Close ratings: where they are not, their ratings in the round robin differ by less than the standard error of that
  difference (both sides counted). This is the noise as the tournament's own model has it, and it stops by it.
- True gap: the true rating of the chosen response less that of the rejected one, in
  {unit}.
- Lost: by how much that is less than the round robin's, a mean over prompts with its 95 % interval, paired.
- Within noise: the share of prompts where it differs from the round robin's by no more than the round robin's own noise:
  the root mean square of that difference between two round robins of the same judge. It needs no model of the noise; the
  row of the round robin asked anew says how often the round robin itself stays within.
"""

SHOWN = """
What it shows. With GPT-4's noise on LLMBar and soft wins both sides are above 95 % in both halves of the data. With the
noise of GPT-4 Turbo on Arena-Hard, or with hard wins, they are not: to find that judge's best and worst in 95 % takes more
than half of the calls (the first rows of its held-out table). There the bar is met by its other clause: nearly all choices
are ones that the round robin could not tell apart, and the mean loss is far below its own noise; prompt by prompt
less than 95 % are within that noise, though more than of a round robin asked anew. The mean loss is small but real: its
interval mostly excludes 0, where a round robin asked anew loses nothing in expectation. AlpacaEval's annotations are
saturated, so that in 30 % of prompts the two worst responses have the very same true rating: which of them is rejected is
then chance, and round robins agree less on the worst than on the best.
"""

WEAKEST = """
The weakest case: at the default confidence the embedded recipe asks for more than four fifths of the round robin's calls,
which misses the bar's half by far. There are few distinct responses, and the fewer, the larger the share of a round robin
that the first round alone is; and most comparisons are of two wrong answers, about which this judge was taught to toss a
coin (the flip rate), so that nothing settles. In verdict mode its rounds even cost more than they save (decoded is above
100 %), as each decodes the shared prefixes anew: `tournament.kind: round-robin` is the cheaper one there.
"""
Answers = dict[JudgeRequest, Verdict]


@dataclass
class RecordedJudge:
    """Answers from a table, and notes what it cost."""

    answers: Answers
    pointwise: bool = False
    rounds: int = 0
    decoded: int = 0
    """Responses that go through the model in verdict mode: each shown first once a round, as a prefix that the
    comparisons share, and each shown second once a comparison."""

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Looks the answers up."""
        self.rounds += 1
        self.decoded += len({(request.instruction, request.response_a) for request in requests}) + len(requests)
        return [self.answers[request] for request in requests]


@dataclass
class Case:
    """Prompts, a judge's answers about all their pairs, and what is known of the truth."""

    name: str
    prompts: list[PromptSamples]
    answers: Answers
    soft: bool
    rho: float
    true_rating: Callable[[PromptSamples, int], float]
    """Of the response of sample k, on a scale where the round robin's own choice is better than a random one."""
    anew: Answers | None = None
    """The same judge asked once more."""


@dataclass
class Outcome:
    """What a tournament came to, a figure a prompt."""

    calls: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)


def play(case: Case, tournament: Tournament, answers: Answers) -> Outcome:
    """The tournament on each prompt, and the ks of the chosen and the rejected sample as `tpo_lite.preferences.pairs` has them."""
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
    """Whether two samples' ratings, less what they owe to length, differ by at most the standard error of that
    difference in the round robin."""
    (judgements,) = judge_prompts(RecordedJudge(case.answers), [prompt], RoundRobin())
    score = score_prompt(prompt, judgements, soft=case.soft, prior=PRIOR, rho=case.rho)
    ratings = np.array(score.ratings)
    # Controlled scores are in units of the ratings' standard deviation.
    scores = dict(zip(score.ks, np.array(score.controlled) * ratings.std(), strict=True))
    texts = {sample.k: sample.response for sample in prompt.samples}
    ks = distinct_responses(prompt)
    copies = np.array([sum(texts[other] == texts[k] for other in score.ks) for k in ks])
    n = len(ks)
    strengths = ratings[[score.ks.index(k) for k in ks]]
    noise = uncertainty(strengths, 2.0 * (1 - np.eye(n)), np.zeros((n, n)), copies, PRIOR)[2]
    row = {text: index for index, text in enumerate(texts[k] for k in ks)}

    def close(one: int, other: int) -> bool:
        return bool(abs(scores[one] - scores[other]) <= math.sqrt(noise[row[texts[one]], row[texts[other]]]) + 1e-9)

    return close


def true_gaps(case: Case, outcome: Outcome) -> np.ndarray:
    """The true rating of the chosen response less that of the rejected one, a figure a prompt."""
    true = case.true_rating
    chosen = zip(case.prompts, outcome.best, outcome.worst, strict=True)
    return np.array([true(prompt, best) - true(prompt, worst) for prompt, best, worst in chosen])


def agreement(case: Case, outcome: Outcome, reference: Outcome) -> tuple[list[bool], list[bool]]:
    """Whether the chosen and the rejected response are the reference's, a list each."""
    texts = [{sample.k: sample.response for sample in prompt.samples} for prompt in case.prompts]
    best = [t[a] == t[b] for t, a, b in zip(texts, outcome.best, reference.best, strict=True)]
    return best, [t[a] == t[b] for t, a, b in zip(texts, outcome.worst, reference.worst, strict=True)]


@dataclass
class RoundRobinOutcome:
    """What every tournament of a case is measured against."""

    outcome: Outcome
    gaps: np.ndarray
    close: list[Callable[[int, int], bool]]
    """`close_in_round_robin`, a function a prompt."""
    anew: Outcome | None
    noise: float | None
    """The root mean square of the difference in true gap to the round robin asked anew."""

    @classmethod
    def of(cls, case: Case) -> RoundRobinOutcome:
        """The round robin, and once more where the judge can be asked anew."""
        outcome = play(case, RoundRobin(), case.answers)
        gaps = true_gaps(case, outcome)
        anew = None if case.anew is None else play(case, RoundRobin(), case.anew)
        noise = None if anew is None else float(np.sqrt(np.mean((true_gaps(case, anew) - gaps) ** 2)))
        return cls(outcome, gaps, [close_in_round_robin(case, prompt) for prompt in case.prompts], anew, noise)


def row(case: Case, name: str, outcome: Outcome, reference: RoundRobinOutcome) -> str:
    """One line of a table: cost and agreement with the round robin."""
    full = reference.outcome
    best, worst = agreement(case, outcome, full)
    pairs = ((outcome.best, full.best), (outcome.worst, full.worst))
    close = [near(a, b) for ours, theirs in pairs for near, a, b in zip(reference.close, ours, theirs, strict=True)]
    gaps = true_gaps(case, outcome)
    lost = reference.gaps - gaps
    within = "-" if reference.noise is None else percent(fmean(np.abs(lost) <= reference.noise))
    cells = [
        name,
        percent(sum(outcome.calls) / sum(full.calls)),
        percent(sum(outcome.decoded) / sum(full.decoded)),
        f"{fmean(outcome.rounds):.1f}",
        *(percent(fmean(values)) for values in (best, worst, np.logical_and(best, worst), close)),
        f"{fmean(gaps):.3f}",
        f"{fmean(lost):.3f} ± {1.96 * np.std(lost) / math.sqrt(len(lost)):.3f}",
        within,
    ]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "tournament", "calls", "decoded", "rounds", "same best", "same worst", "both", "close ratings", "true gap", "lost",
    "within noise",
)  # fmt: skip


def heading() -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(COLUMNS)} |", f"|---|{'--:|' * (len(COLUMNS) - 1)}"]


def table(case: Case) -> list[str]:
    """All tournaments on one case."""
    reference = RoundRobinOutcome.of(case)
    calls = sum(reference.outcome.calls)
    everything = calls + sum(saved_calls(p, c) for p, c in zip(case.prompts, reference.outcome.calls, strict=True))
    noise = "" if reference.noise is None else f" Its own noise: {reference.noise:.3f}."
    lines = [
        f"### {case.name}",
        "",
        f"{len(case.prompts)} prompts, {fmean(len(distinct_responses(p)) for p in case.prompts):.1f} distinct responses each, "
        f"{calls} calls in the round robin ({percent(calls / everything)} of one over all well-formed samples).{noise}",
        "",
        *heading(),
        row(case, "round-robin", reference.outcome, reference),
    ]
    if reference.anew is not None:
        lines.append(row(case, "round-robin, judge asked anew", reference.anew, reference))
    lines.append(row(case, "single", play(case, Single(0), case.answers), reference))
    for confidence in CONFIDENCES:
        adaptive = Adaptive(0, confidence, case.soft, PRIOR, case.rho)
        lines.append(row(case, f"adaptive, confidence {confidence}", play(case, adaptive, case.answers), reference))
    return [*lines, ""]


def recorded(root: Path, iteration: int) -> tuple[list[PromptSamples], Answers]:
    """One iteration of a run: prompts with at least two distinct responses, of all arms, and the answers."""
    prompts, answers = [], {}
    for folder in sorted(root.glob(f"*/iteration-{iteration}")):
        judged = {record.id: record for record in read_jsonl(folder / "judgements.jsonl", PromptJudgements)}
        for prompt in read_jsonl(folder / "samples.jsonl", PromptSamples):
            comparisons = judged[prompt.instruction.id].comparisons
            if len(comparisons) < len(round_robin(prompt)):
                raise SystemExit(f"{folder} holds no round robin: run it with --set tournament.kind=round-robin.")
            if not comparisons:
                continue
            prompts.append(prompt)
            for c in comparisons:
                responses = prompt.samples[c.first].response, prompt.samples[c.second].response
                answers[JudgeRequest(prompt.instruction.text, *responses)] = Verdict(c.p_first, c.verdict)
    return prompts, answers


def replays(roots: list[Path]) -> list[str]:
    """The tables of recorded runs: all first iterations together, and all later ones."""
    lines = []
    for name, iterations in (("first iterations", [0]), ("later iterations", [1, 2])):
        prompts, answers = [], {}
        for root in roots:
            for iteration in iterations:
                found, said = recorded(root, iteration)
                prompts += found
                answers |= said
        if not prompts:
            continue  # runs of one iteration
        rate = flip_rate(round_robin_records(prompts, answers)).value
        case = Case(
            f"Recorded: {len(roots)} runs, {name} (flip rate {percent(rate or 0.0)})", prompts, answers, True, 0.0,
            lambda prompt, k: float(is_right(prompt.samples[k].response, prompt.instruction.answer or "")),
        )  # fmt: skip
        lines += table(case)
    return lines


def round_robin_records(prompts: list[PromptSamples], answers: Answers) -> list[list]:
    """All comparisons of each prompt."""
    return [next(judge_prompts(RecordedJudge(answers), [prompt], RoundRobin())).comparisons for prompt in prompts]


def annotations(data: Path) -> tuple[dict[int, list[float]], dict[int, list[int]]]:
    """AlpacaEval 2 by instruction: log-odds against the baseline, and lengths in characters, of the ten models.

    Preferences are in [1, 2], 2 where the model wins for certain; 0 stands for a draw.
    """
    log_odds: dict[int, list[float]] = {}
    lengths: dict[int, list[int]] = {}
    for path in sorted((data / "alpaca_eval2" / "annotations_dev").glob("*.csv")):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                preference = float(line["preference"]) or 1.5
                p = min(max(preference - 1, 1e-6), 1 - 1e-6)
                log_odds.setdefault(int(line["index"]), []).append(math.log(p / (1 - p)))
                lengths.setdefault(int(line["index"]), []).append(int(line["len_2"]))
    models = max(map(len, log_odds.values()))
    whole = [index for index, values in log_odds.items() if len(values) == models]
    return {index: log_odds[index] for index in whole}, {index: lengths[index] for index in whole}


def fitted(differences: np.ndarray, flips: float, first: float) -> tuple[float, float]:
    """a and b for which a judge on pairs with these differences has this flip rate and first-slot rate."""

    def rates(a: float, b: float) -> tuple[float, float]:
        ahead, behind = _sigmoid(a * differences + b), _sigmoid(-a * differences + b)
        return float((ahead * behind + (1 - ahead) * (1 - behind)).mean()), float((ahead + behind).mean() / 2)

    def scale(b: float) -> float:
        return _bisect(lambda a: flips - rates(a, b)[0], 0.0, 100.0)

    b = _bisect(lambda b: rates(scale(b), b)[1] - first, 0.0, 5.0)
    return scale(b), b


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def simulated(data: Path, judge: Path, soft: bool, rho: float, count: int = PROMPTS, skip: int = 0) -> Case:
    """K of the ten models' answers to each instruction, before a judge with the bias and the noise of a real one.

    `count` instructions in an order drawn once, after the first `skip`.

    Its noise is logistic, drawn once for each ordered pair. Soft answers are as sure as GPT-4 Turbo's: as many
    have P below 0.1 or above 0.9.
    """
    figures = report(read_outputs(judge).pairs)
    log_odds, lengths = annotations(data)
    numbers = np.random.default_rng(0)
    drawn = numbers.permutation(list(log_odds))[skip : skip + count]
    models = {index: numbers.permutation(len(log_odds[index]))[:K] for index in drawn}
    strengths = {index: np.array(log_odds[index])[chosen] for index, chosen in models.items()}
    first, second = np.triu_indices(K, 1)
    differences = np.concatenate([e[first] - e[second] for e in strengths.values()])
    a, b = fitted(differences, figures.flip_rate.value or 0.0, figures.first_slot_rate.value or 0.5)
    sure = fmean(abs(value) > math.log(9) for values in log_odds.values() for value in values if value != 0)

    def draw() -> dict[int, np.ndarray]:
        return {
            index: a * (e[:, None] - e[None, :]) + b + numbers.logistic(size=(K, K)) for index, e in strengths.items()
        }

    tables = draw()
    every = np.abs(np.concatenate([margins.ravel() for margins in tables.values()]))
    sharpness = math.log(9) / float(np.quantile(every, 1 - sure))

    def answers(tables: dict[int, np.ndarray]) -> Answers:
        said = {}
        for index, margins in tables.items():
            p = _sigmoid(sharpness * margins)
            for i, j in np.argwhere(~np.eye(K, dtype=bool)):
                label = "A" if margins[i, j] > 0 else "B"
                said[JudgeRequest(str(index), f"response {i}", f"response {j}")] = Verdict(float(p[i, j]), label)
        return said

    prompts = [
        PromptSamples(
            Instruction(str(index), str(index), "AlpacaEval 2"),
            [0],
            [
                Sample(k, [k], "", "ok", "", f"response {k}", 0, lengths[index][model])
                for k, model in enumerate(models[index])
            ],
        )
        for index in models
    ]
    name = (
        f"AlpacaEval 2, a judge as noisy as {judge.stem} (flip rate {percent(figures.flip_rate.value or 0.0)}, first slot "
        f"{percent(figures.first_slot_rate.value or 0.0)}), {'soft' if soft else 'hard'} wins, rho {rho}"
    )
    return Case(
        name, prompts, answers(tables), soft, rho,
        lambda prompt, k: float(a * strengths[int(prompt.instruction.id)][k]), answers(draw()),
    )  # fmt: skip


def held_out(data: Path, judges: Sequence[Path]) -> list[str]:
    """The margin and confidence that would be chosen on half of the instructions, and those that are shipped, on both
    halves."""
    lines = [
        "## Held out",
        "",
        f"MARGIN ({MARGIN}) and the default confidence ({CONFIDENCE}) were chosen with the tables above in view, which is to",
        f"say on the first {PROMPTS} instructions. Here the margin ({', '.join(map(str, MARGINS))}) and the confidence "
        f"({', '.join(map(str, CONFIDENCES))}) are",
        f"chosen anew on these {PROMPTS}: the fewest calls that find the best and the worst in {percent(AGREEMENT)} of prompts each. "
        "They and the",
        f"shipped ones are then shown on {PROMPTS} instructions that no choice has seen. Soft wins, rho 0.",
        "",
    ]
    for judge in judges:
        cases = {
            "first half": simulated(data, judge, True, 0.0),
            "other half": simulated(data, judge, True, 0.0, skip=PROMPTS),
        }
        references = {half: RoundRobinOutcome.of(case) for half, case in cases.items()}

        def played(half: str, setting: tuple[float, float]) -> Outcome:
            with patch("tpo_lite.preferences.tournament.MARGIN", setting[0]):
                return play(cases[half], Adaptive(0, setting[1], True, PRIOR, 0.0), cases[half].answers)

        def fits(outcome: Outcome) -> bool:
            sides = agreement(cases["first half"], outcome, references["first half"].outcome)
            return min(map(fmean, sides)) >= AGREEMENT

        tried = {setting: played("first half", setting) for setting in itertools.product(MARGINS, CONFIDENCES)}
        fitting = [setting for setting in tried if fits(tried[setting])]
        tuned = min(fitting, key=lambda setting: sum(tried[setting].calls))
        lines += [f"### A judge as noisy as {judge.stem}", "", *heading()]
        for name, setting in (("chosen", tuned), ("shipped", (MARGIN, CONFIDENCE))):
            for half, case in cases.items():
                label = f"{name} ({setting[0]}, {setting[1]}), {half}"
                lines.append(row(case, label, played(half, setting), references[half]))
        for half, case in cases.items():
            anew = references[half].anew
            lines.append(row(case, f"round-robin, judge asked anew, {half}", anew, references[half]))
        lines.append("")
    return lines


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


def write(name: str, title: str, command: str, unit: str, *parts: list[str]) -> None:
    """A results file, with what it takes to read and repeat it."""
    head = [
        f"# {title}",
        "",
        f"Date: {date.today()}. Machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU; "
        f"Python {platform.python_version()}, tpo_lite {__version__}. {time.process_time():.0f} s of CPU.",
        f"Command: `python benchmarks/tournaments.py {command}`",
        "",
        *__doc__.split("\n\n")[2 if name == "tournaments" else 3].strip().split("\n"),
        "",
        *LEGEND.format(unit=unit).strip().split("\n"),
        "",
    ]
    text = "\n".join(head + [line for part in parts for line in part]).rstrip("\n") + "\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def main() -> None:
    """Draws or replays, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a full round robin")
    parser.add_argument("--data", type=Path, help="folder with alpaca_eval2, llmbar and arena_hard")
    arguments = parser.parse_args()
    if arguments.data is not None:
        gpt4 = arguments.data / "llmbar" / "judge_outputs" / "GPT-4_CoT.jsonl"
        turbo = arguments.data / "arena_hard" / "judgments_gpt4turbo_llama31_8b_82q.jsonl"
        cases = ((gpt4, True, 0.0), (gpt4, False, 0.0), (turbo, True, 0.0), (turbo, False, 0.0), (turbo, True, 0.2))
        tables = [table(simulated(arguments.data, judge, soft, rho)) for judge, soft, rho in cases]
        shown = [*SHOWN.strip().split("\n"), ""]
        held = held_out(arguments.data, (gpt4, turbo))
        unit = "the fitted judge's nats, length control left out"
        write("tournaments", "Tournaments against the round robin", "--data DATA", unit, shown, *tables, held)
    if arguments.runs:
        weakest = [*WEAKEST.strip().split("\n"), ""]
        unit = "right answers (1) and wrong ones (0)"
        title = "Tournaments against the round robin, on recorded runs"
        command = " ".join(["RUN"] * len(arguments.runs))
        write("tournaments-recorded", title, command, unit, weakest, replays(arguments.runs))


if __name__ == "__main__":
    main()
