"""Run folders written by hand, without any model, so that what reads a run can be tested on texts of one's choice."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from tests.helpers.tiny_run import start
from tpo_lite.files import write_json
from tpo_lite.intervals import share
from tpo_lite.kinds import Arm
from tpo_lite.loop.results import write_results
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.figures import (
    held_out_figures,
    judge_figures,
    output_figures,
    pair_figures,
    share_figures,
    validation_figures,
)
from tpo_lite.phases.judges_summaries import MatchSummary
from tpo_lite.phases.summaries import (
    AnswerSummary,
    DpoSummary,
    FoldSummary,
    GenerateSummary,
    PairSummary,
    PhaseSummary,
    PrepareSummary,
    SelectSummary,
    ValidateSummary,
    WinRate,
)
from tpo_lite.preferences.pairs import make_pairs, score_prompts
from tpo_lite.recipe import Recipe
from tpo_lite.records import (
    Comparison,
    Instruction,
    MatchResult,
    PromptJudgements,
    PromptSamples,
    Sample,
    write_jsonl,
)
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe, as_settled

K = 4
"""Samples of each prompt; the last is malformed."""
CHECKPOINT = "checkpoint-2"


@dataclass(frozen=True)
class Texts:
    """What a written run is made of. Every list may have any length; texts are used in turn."""

    instructions: list[str]
    outputs: list[str]
    """Thoughts, responses, explanations and malformed outputs alike."""
    category: str = "Rivers"
    prompts: int = 3
    """Prompts of each slice."""

    def output(self, number: int) -> str:
        """Return an output."""
        return self.outputs[number % len(self.outputs)]


PLAIN = Texts([f"Name river {number}." for number in range(1, 4)], ["The Rhine.", "The Rhône.", "The Po.", "A lake."])


def written_run(
    root: Path, texts: Texts = PLAIN, iterations: int = 2, baseline: bool = False, test: bool = False
) -> RunFolder:
    """Write a finished run of the thinking arm, of the direct one with `baseline`, and with a test slice if `test`."""
    keys = {"iterations": iterations, "baseline": baseline, "engine": "gguf", "quantize": "nf4", "sampling": {"k": K}}
    keys |= {"instructions": {"test": texts.prompts if test else 0}, "warm_start": {"kind": "none"}}
    recipe = as_settled(Recipe.model_validate(keys))
    run = RunFolder(root)
    start(run, recipe)
    _done(run, None, 0, PrepareSummary(**{field.name: 0 for field in fields(PrepareSummary)}))
    for iteration in range(iterations):
        for arm in recipe.arms:
            _iteration(run, recipe, arm, iteration, texts)
    write_results(run)
    return run


def _instructions(texts: Texts, part: str) -> list[Instruction]:
    return [
        Instruction(
            id=f"{part}-{number}",
            text=texts.instructions[number % len(texts.instructions)],
            source="prompts.jsonl:1",
            category=texts.category if number else "Lakes",
            answer="the rhine" if number else None,
        )
        for number in range(texts.prompts)
    ]


def _sample(k: int, number: int, texts: Texts, arm: Arm) -> Sample:
    thought, response = texts.output(number) if arm == "thinking" else "", texts.output(number + k)
    ids = list(range(3 + k))
    if k == K - 1:
        return Sample(k, ids, response, "no_marker", "", "", 0, 0)
    return Sample(k, ids, f"{thought}{response}", "ok", thought, response, 2, 3 + k)


def _prompts(texts: Texts, arm: Arm, part: str, samples: int) -> list[PromptSamples]:
    return [
        PromptSamples(instruction, [1, 2], [_sample(k, number, texts, arm) for k in range(samples)])
        for number, instruction in enumerate(_instructions(texts, part))
    ]


def _comparisons(prompt: PromptSamples, number: int, texts: Texts) -> PromptJudgements:
    """The lower k is better, but for one pair whose winner changes with the order."""
    ks = [sample.k for sample in prompt.samples if sample.well_formed]
    comparisons = [
        Comparison(a, b, p, "A" if p > 0.5 else "B", texts.output(number))
        for a in ks
        for b in ks
        if a != b
        for p in [0.75 if a < b or (a, b) == (2, 1) else 0.25]
    ]
    return PromptJudgements(prompt.instruction.id, comparisons, len(comparisons), 0)


def _iteration(run: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, texts: Texts) -> None:
    here = run.iteration(arm, iteration)
    samples = _prompts(texts, arm, f"train-{iteration}", K)
    judged = [_comparisons(prompt, number, texts) for number, prompt in enumerate(samples)]
    scored = score_prompts(
        samples, {each.id: each for each in judged}, soft=True, prior=0.1, rho=0.1, max_tokens=recipe.pairs.max_tokens
    )
    made = make_pairs(samples, scored.scores, malformed_share=0.5, max_tokens=recipe.pairs.max_tokens, seed=0)
    validation = _prompts(texts, arm, "validation", 1)
    write_jsonl(run.instructions("validation"), [prompt.instruction for prompt in validation])
    write_jsonl(run.root / arm / "base-validation.jsonl", validation)
    write_jsonl(here / "samples.jsonl", samples)
    write_jsonl(here / "judgements.jsonl", judged)
    write_jsonl(here / "scores.jsonl", scored.scores.values())
    write_jsonl(here / "pairs.jsonl", made.pairs)
    log = [{"loss": 0.7 - step / 50, "rewards/margins": step / 20, "step": step} for step in range(6)]
    write_json(here / "train" / "log.json", log)
    write_jsonl(here / "validation" / f"{CHECKPOINT}.jsonl", validation)
    for number in {0, iteration}:
        matches = [MatchResult(prompt.instruction.id, 0.75) for prompt in validation]
        write_jsonl(here / "validation" / f"{CHECKPOINT}-vs-M_{number}.jsonl", matches)
    figures, outputs = validation_figures(validation), output_figures([s for p in samples for s in p.samples])
    rate = share(0.75 * len(validation), len(validation))
    wins = WinRate(value=rate.value, low=rate.low, high=rate.high)
    selected = SelectSummary(chosen=CHECKPOINT, checkpoints={CHECKPOINT: 0.75}, win_rate={"M_t": wins, "M_0": wins})
    write_json(here / "validation.json", selected.to_dict())
    paired = pair_figures(made)
    base_test = held_out_figures(_prompts(texts, arm, "test", 1)) if recipe.instructions.test else None
    summaries: list[PhaseSummary] = [
        GenerateSummary(
            engine="gguf",
            base=figures if iteration == 0 else None,
            base_test=base_test if iteration == 0 else None,
            prompts=len(samples),
            parse=outputs.parse,
            thought_tokens=outputs.thought_tokens,
            response_tokens=outputs.response_tokens,
        ),
        judge_figures(judged),
        PairSummary(rho=0.1, rho_reached=True, **paired.to_dict()),
        DpoSummary(
            first_loss=0.693,
            last_loss=0.6,
            last_margin=0.25,
            last_accuracy=0.75,
            steps=6,
            pairs=paired.pairs,
            rank=16,
            reference=f"M_{iteration}",
        ),
        ValidateSummary(models={"M_t": figures, CHECKPOINT: replace(figures)}),
        selected,
        FoldSummary(merge="fold", rank=16, update_norm=0.01, kl=1e-9),
    ]
    if recipe.instructions.test:
        summaries += _test(run, recipe, arm, iteration, texts)
    for summary in summaries:
        _done(run, arm, iteration, summary)


def _test(run: RunFolder, recipe: SettledRecipe, arm: Arm, iteration: int, texts: Texts) -> list[PhaseSummary]:
    answers = _prompts(texts, arm, "test", 1)
    write_jsonl(run.base_answers(arm, "test"), answers)
    write_jsonl(run.test_of(arm, iteration + 1), answers)
    matches = [MatchResult(prompt.instruction.id, 1.0) for prompt in answers]
    write_jsonl(run.match_with(arm, iteration + 1, "M_0"), matches)
    won, meet = share_figures(len(answers), len(answers)), arm == recipe.arms[-1] and len(recipe.arms) > 1
    return [
        AnswerSummary(**vars(held_out_figures(answers))),
        MatchSummary(
            win_rate=won,
            overlong=0,
            base_thinking_vs_direct=won if meet and iteration == 0 else None,
            thinking_vs_direct=won if meet else None,
        ),
    ]


def _done(run: RunFolder, arm: Arm | None, iteration: int, summary: PhaseSummary) -> None:
    assert summary.phase in ("prepare", *PHASES)
    run.mark_done(summary.phase, arm, iteration, summary.to_dict(), {"host": 100 << 20})
    run.record_seconds(summary.phase, arm, iteration, 30.0)
