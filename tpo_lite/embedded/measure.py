"""How good the embedded models are as a run uses them: the policy in NF4, the judge as a GGUF in llama.cpp.

`python -m tpo_lite.embedded.measure FOLDER` measures a folder that `build` wrote, on held-out puzzles.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from tpo_lite.base_weights import load_base
from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.checking import is_right
from tpo_lite.embedded import examples, world
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.sampling.huggingface import GenerateSampler
from tpo_lite.sampling.sampler import batches
from tpo_lite.settled import SettledSampling
from tpo_lite.thoughts import DIRECT, GENERIC, WELL_FORMED, parse, thought_prompt

MEASURE_SEED = "measure"


def measure_policy(folder: Path, seed: int, count: int = 300, k: int = 2) -> dict[str, float]:
    """Return shares between 0 and 1: right answers by style and task, well-formed outputs, useful work in thoughts.

    Samples `k` outputs for each of `count` held-out puzzles from the policy in NF4, at temperature 0.8 and top-p 0.95.
    A thought is useful work if it writes out the right steps.
    """
    tokenizer = load_tokenizer(str(folder))
    chat = Chat(tokenizer)
    settings = SettledSampling(max_new_tokens=112)
    sampler = GenerateSampler(
        load_base(str(folder), "cpu", "nf4").eval(), stop_ids(str(folder), tokenizer), tokenizer.pad_token_id, settings
    )
    puzzles = [puzzle for puzzle in world.puzzles(count, seed) for _ in range(k)]
    figures: dict[str, float] = {}
    for style in (DIRECT, GENERIC):
        prompts = [chat.prompt_ids(thought_prompt(style, puzzle.text)) for puzzle in puzzles]
        ok, right, works, work_right, opened = [], [], [], [], []
        for rows in batches(prompts, 256):
            outputs = sampler.sample([prompts[row] for row in rows], [f"{MEASURE_SEED} {seed} {row}" for row in rows])
            for row, ids in zip(rows, outputs, strict=True):
                ended = ids[-1] in sampler.stops
                parsed = parse(style, chat.text(ids[:-1] if ended else ids), truncated=not ended)
                puzzle = puzzles[row]
                ok.append(parsed.outcome in WELL_FORMED)
                right.append((puzzle.task, is_right(parsed.response, puzzle.answer)))
                if "Start at" in parsed.thought:
                    works.append(puzzle.work in parsed.thought)
                    work_right.append(right[-1][1])
                opened.append("Start at" in parsed.thought)
        figures[f"{style.name} parse ok"] = _mean(ok)
        figures[f"{style.name} right"] = _mean([value for _, value in right])
        for task in world.TASKS:
            figures[f"{style.name} right: {task}"] = _mean([value for name, value in right if name == task])
        if style is GENERIC:
            figures["generic thoughts that work"] = _mean(opened)
            figures["generic works without a slip"] = _mean(works)
            figures["generic right after work"] = _mean(work_right)
    return figures


def measure_judge(path: Path, seed: int, count: int = 200) -> dict[str, float]:
    """Return shares between 0 and 1 over `count` held-out (right, wrong) pairs, asked in both orders (explain mode).

    Responses are phrased as the policy phrases them. "preference among equals" is for two right answers that are
    phrased differently: the mean distance from 0.5 of P(A), averaged over both orders. 0 means that the judge sees no
    difference.
    """
    judge = GgufJudge(path, "explain", examples.JUDGE_PROMPT, explain_tokens=128, n_ctx=16384)
    rng, puzzles = random.Random(f"judge {seed}"), world.puzzles(count, seed)
    pairs = [
        (puzzle.text, world.response(rng, puzzle.answer), world.response(rng, world.wrong_answer(rng, puzzle)))
        for puzzle in puzzles
    ]
    pairs += [(puzzle.text, f"The answer is {puzzle.answer}.", f"It is {puzzle.answer}.") for puzzle in puzzles]
    requests = [JudgeRequest(text, *order) for text, one, two in pairs for order in ((one, two), (two, one))]
    verdicts = judge.compare(requests)
    p_first = np.array([verdict.p_a for verdict in verdicts]).reshape(-1, 2)
    differ, alike = p_first[:count], p_first[count:]
    correct = np.stack([differ[:, 0] > 0.5, differ[:, 1] < 0.5], axis=1)
    figures = {
        "right": float(correct.mean()),
        "right in both orders": float(correct.all(axis=1).mean()),
        "flip rate": float((correct[:, 0] != correct[:, 1]).mean()),
        "first slot rate": float((differ > 0.5).mean()),
        "unparsed": float(np.mean([verdict.forced for verdict in verdicts])),
        "explanation tokens": float(np.mean([len(judge.decoder.tokenize(v.explanation, False)) for v in verdicts])),
        "preference among equals": float(np.abs((alike[:, 0] + 1 - alike[:, 1]) / 2 - 0.5).mean()),
    }
    for task in world.TASKS:
        figures[f"right: {task}"] = float(correct[[puzzle.task == task for puzzle in puzzles]].mean())
    return figures


def as_table(figures: dict[str, float]) -> str:
    """Return the figures as text, one per line."""
    return "\n".join(f"    {name:<32} {value:8.3f}" for name, value in figures.items())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--seed", default=1, show_default=True, help="Decides the puzzles and the samples.")
def main(folder: Path, seed: int) -> None:
    """Measure the policy and the judge in FOLDER."""
    print(as_table(measure_policy(folder / "policy", seed)))
    print(as_table(measure_judge(folder / "judge.gguf", seed)))


if __name__ == "__main__":
    main()
