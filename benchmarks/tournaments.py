"""Tournaments against the round robin on the same judge, written to results/tournaments.md. CPU only.

    python benchmarks/tournaments.py --data ../shared/data RUN...

RUN are folders of runs with `tournament.kind: round-robin`: their recorded answers are asked for again, one by one,
so that every tournament meets the very judge that the round robin met. --data is a folder with AlpacaEval 2's
annotations (GPT-4 Turbo on ten models' answers to each of 805 instructions, one comparison with a common baseline
each) and recorded judgements in both orders by two judges. It has no full table of K x K comparisons; so tables are
drawn from a judge fitted to it: P(first wins) = sigma(a (e_first - e_second) + b), where e is the annotation's log-odds and
a and b give a real judge's flip rate and first-slot rate. A judge drawn twice shows the round robin's own noise.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import fmean

import numpy as np

from tpo_lite import __version__
from tpo_lite.calibration import report
from tpo_lite.checking import is_right
from tpo_lite.judge_outputs import read_outputs
from tpo_lite.judges import JudgeRequest, Verdict
from tpo_lite.judging import judge_prompts
from tpo_lite.pairs import score_prompt
from tpo_lite.records import Instruction, PromptJudgements, PromptSamples, Sample, read_jsonl
from tpo_lite.statistics import flip_rate
from tpo_lite.tournament import (
    Adaptive,
    RoundRobin,
    Single,
    Tournament,
    distinct_responses,
    round_robin,
    saved_calls,
    uncertainty,
)

RESULTS = Path(__file__).parent / "results" / "tournaments.md"
PRIOR = 0.1
K = 8
PROMPTS = 400
CONFIDENCES = (0.8, 0.9, 0.95)
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
    """The tournament on each prompt, and the ks of the chosen and the rejected sample as `tpo_lite.pairs` has them."""
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


def row(case: Case, name: str, outcome: Outcome, reference: Outcome, close: list[Callable[[int, int], bool]]) -> str:
    """One line of a table: cost and agreement with the reference, the round robin; `close` is a function a prompt."""
    prompts = case.prompts
    text = [{sample.k: sample.response for sample in prompt.samples} for prompt in prompts]
    same = {
        "best": [t[a] == t[b] for t, a, b in zip(text, outcome.best, reference.best, strict=True)],
        "worst": [t[a] == t[b] for t, a, b in zip(text, outcome.worst, reference.worst, strict=True)],
    }
    pairs = ((outcome.best, reference.best), (outcome.worst, reference.worst))
    within = [is_close(a, b) for ours, theirs in pairs for is_close, a, b in zip(close, ours, theirs, strict=True)]
    calls = sum(outcome.calls) / sum(reference.calls)
    chosen = zip(prompts, outcome.best, outcome.worst, strict=True)
    gaps = [case.true_rating(prompt, best) - case.true_rating(prompt, worst) for prompt, best, worst in chosen]
    both = [a and b for a, b in zip(same["best"], same["worst"], strict=True)]
    cells = [
        name,
        percent(calls),
        percent(sum(outcome.decoded) / sum(reference.decoded)),
        f"{fmean(outcome.rounds):.1f}",
        *(percent(fmean(values)) for values in (same["best"], same["worst"], both, within)),
        f"{fmean(gaps):.3f} ± {1.96 * np.std(gaps) / math.sqrt(len(gaps)):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(case: Case) -> list[str]:
    """All tournaments on one case."""
    reference = play(case, RoundRobin(), case.answers)
    close = [close_in_round_robin(case, prompt) for prompt in case.prompts]
    calls = sum(reference.calls)
    everything = calls + sum(saved_calls(p, c) for p, c in zip(case.prompts, reference.calls, strict=True))
    lines = [
        f"### {case.name}",
        "",
        f"{len(case.prompts)} prompts, {fmean(len(distinct_responses(p)) for p in case.prompts):.1f} distinct responses each, "
        f"{calls} calls in the round robin ({percent(calls / everything)} of one over all well-formed samples).",
        "",
        "| tournament | calls | decoded | rounds | same best | same worst | both | within noise | true rating, best - worst |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        row(case, "round-robin", reference, reference, close),
    ]
    if case.anew is not None:
        lines.append(row(case, "round-robin, judge asked anew", play(case, RoundRobin(), case.anew), reference, close))
    lines.append(row(case, "single", play(case, Single(0), case.answers), reference, close))
    for confidence in CONFIDENCES:
        adaptive = Adaptive(0, confidence, case.soft, PRIOR, case.rho)
        lines.append(row(case, f"adaptive, confidence {confidence}", play(case, adaptive, case.answers), reference, close))
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


def simulated(data: Path, judge: Path, soft: bool, rho: float, count: int = PROMPTS) -> Case:
    """K of the ten models' answers to each instruction, before a judge with the bias and the noise of a real one.

    Its noise is logistic, drawn once for each ordered pair. Soft answers are as sure as GPT-4 Turbo's: as many
    have P below 0.1 or above 0.9.
    """
    figures = report(read_outputs(judge).pairs)
    log_odds, lengths = annotations(data)
    numbers = np.random.default_rng(0)
    drawn = numbers.permutation(list(log_odds))[:count]
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


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


def main() -> None:
    """Replays, draws, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs with a full round robin")
    parser.add_argument("--data", type=Path, required=True, help="folder with alpaca_eval2, llmbar and arena_hard")
    arguments = parser.parse_args()
    start = time.perf_counter()
    gpt4 = arguments.data / "llmbar" / "judge_outputs" / "GPT-4_CoT.jsonl"
    turbo = arguments.data / "arena_hard" / "judgments_gpt4turbo_llama31_8b_82q.jsonl"
    lines: list[str] = []
    cases = ((gpt4, True, 0.0), (gpt4, False, 0.0), (turbo, True, 0.0), (turbo, False, 0.0), (turbo, True, 0.2))
    for judge, soft, rho in cases:
        lines += table(simulated(arguments.data, judge, soft, rho))
    if arguments.runs:
        lines += replays(arguments.runs)
    seconds = time.perf_counter() - start
    head = [
        "# Tournaments against the round robin",
        "",
        f"Date: {date.today()}. Machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU; "
        f"Python {platform.python_version()}, tpo_lite {__version__}. {seconds:.0f} s.",
        f"Command: `python benchmarks/tournaments.py --data DATA{' RUN' * len(arguments.runs)}`",
        "",
        __doc__.split("\n\n", 2)[2].strip(),
        "",
        "Calls and decoded responses are shares of the round robin's over distinct responses (identical ones cost no call in",
        "either). Decoded is what verdict mode pays: a response shown first is decoded once a round, one shown second once a",
        "comparison. Same best, same worst: the chosen and the rejected response are the round robin's. Within noise: where",
        "they are not, their ratings in the round robin differ by less than the standard error of that difference (both sides",
        "counted). True rating: in the fitted judge's nats; in recorded runs 1 for a right answer and 0 for a wrong one. ± is",
        "a 95 % interval over prompts.",
        "",
    ]
    RESULTS.write_text("\n".join(head + lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
