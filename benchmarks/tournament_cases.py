"""What tournaments are compared on: prompts, a judge's answers about all their pairs, and what is known of the truth.

Answers are recorded in runs, or drawn from a judge that is fitted to AlpacaEval 2's annotations.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from tpo_lite.calibration.report import report
from tpo_lite.calibration.result_files import read_outputs
from tpo_lite.checking import is_right
from tpo_lite.intervals import flip_rate
from tpo_lite.judges.protocol import JudgeRequest, Verdict
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.tournament import RoundRobin, round_robin
from tpo_lite.records import Comparison, Instruction, PromptJudgements, PromptSamples, Sample, read_jsonl

K = 8
PROMPTS = 200

Answers = dict[JudgeRequest, Verdict]


@dataclass
class RecordedJudge:
    """A judge that looks its answers up in a table and counts what they would have cost."""

    answers: Answers
    pointwise: bool = False
    rounds: int = 0
    decoded: int = 0
    """Responses that go through the model in verdict mode.

    A response shown first is decoded once per round, as a prefix that comparisons share. One shown second is decoded
    once per comparison."""

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Look the answers up."""
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
    """From a prompt and k to the true rating of sample k's response."""
    again: Answers | None = None
    """The answers of a second judge with the same noise, drawn again."""


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f} %"


def recorded(root: Path, iteration: int) -> tuple[list[PromptSamples], Answers]:
    """Read one iteration of a run: all arms' prompts with at least two distinct responses, and the judge's answers."""
    prompts: list[PromptSamples] = []
    answers: Answers = {}
    for folder in sorted(root.glob(f"*/iteration-{iteration}")):
        judged = {record.id: record for record in read_jsonl(folder / "judgements.jsonl", PromptJudgements)}
        for prompt in read_jsonl(folder / "samples.jsonl", PromptSamples):
            comparisons = judged[prompt.instruction.id].comparisons
            if len(comparisons) < len(round_robin(prompt)):
                raise SystemExit(
                    f"error: {folder} holds no round robin. Run it with --set tournament.kind=round-robin."
                )
            if not comparisons:
                continue
            prompts.append(prompt)
            for c in comparisons:
                responses = prompt.samples[c.first].response, prompt.samples[c.second].response
                answers[JudgeRequest(prompt.instruction.text, *responses)] = Verdict(c.p_first, c.verdict)
    return prompts, answers


def recorded_cases(roots: list[Path]) -> list[Case]:
    """Return what runs have recorded: their first iterations together, and all later ones."""
    cases = []
    for name, iterations in (("first iterations", [0]), ("later iterations", [1, 2])):
        prompts: list[PromptSamples] = []
        answers: Answers = {}
        for root in roots:
            for iteration in iterations:
                found, said = recorded(root, iteration)
                prompts += found
                answers |= said
        if not prompts:
            continue  # runs of one iteration
        rate = flip_rate(round_robin_records(prompts, answers)).value
        title = f"Recorded: {len(roots)} runs, {name} (flip rate {percent(rate or 0.0)})"
        cases.append(Case(title, prompts, answers, soft=True, rho=0.0, true_rating=is_right_answer))
    return cases


def is_right_answer(prompt: PromptSamples, k: int) -> float:
    """Return 1 if sample k answers the instruction right, else 0."""
    return float(is_right(prompt.samples[k].response, prompt.instruction.answer or ""))


def round_robin_records(prompts: list[PromptSamples], answers: Answers) -> list[list[Comparison]]:
    """Return all comparisons of each prompt."""
    return [next(judge_prompts(RecordedJudge(answers), [prompt], RoundRobin())).comparisons for prompt in prompts]


def read_annotations(data: Path) -> tuple[dict[int, list[float]], dict[int, list[int]]]:
    """Read AlpacaEval 2: for each instruction, ten models' log-odds against the baseline, and lengths in characters.

    Preferences are in [1, 2], and 2 where the model wins for certain; 0 means a draw.
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
    """Return the a and b for which a judge of pairs with these differences has this flip rate and first-slot rate."""

    def rates(a: float, b: float) -> tuple[float, float]:
        ahead, behind = _sigmoid(a * differences + b), _sigmoid(-a * differences + b)
        return float((ahead * behind + (1 - ahead) * (1 - behind)).mean()), float((ahead + behind).mean() / 2)

    def scale(b: float) -> float:
        return _bisect(lambda a: flips - rates(a, b)[0], 0.0, 100.0)

    b = _bisect(lambda b: rates(scale(b), b)[1] - first, 0.0, 5.0)
    return scale(b), b


def _bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function crosses zero."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))


def simulated(data: Path, judge: Path, soft: bool, rho: float, count: int = PROMPTS, skip: int = 0) -> Case:
    """Return K of the ten models' answers to each instruction, and a judge with the bias and noise of a real one.

    There are `count` instructions, in an order drawn once, after the first `skip`. The judge's noise is logistic, drawn
    once for each ordered pair. Soft answers are as sure as GPT-4 Turbo's: the same share has P below 0.1 or above 0.9.
    """
    figures = report(read_outputs(judge).pairs)
    log_odds, lengths = read_annotations(data)
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
        said: Answers = {}
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
    flips, first_slot = (percent(rate.value or 0.0) for rate in (figures.flip_rate, figures.first_slot_rate))
    wins = "soft" if soft else "hard"
    name = f"AlpacaEval 2, a judge as noisy as {judge.stem} (flip rate {flips}, first slot {first_slot})"
    return Case(
        f"{name}, {wins} wins, rho {rho}",
        prompts,
        answers(tables),
        soft,
        rho,
        true_rating=lambda prompt, k: float(a * strengths[int(prompt.instruction.id)][k]),
        again=answers(draw()),
    )
