"""Figures of the embedded models as a run uses them: the policy in NF4, the judge as a GGUF in llama.cpp.

`python -m tpo_lite.embedded.measure FOLDER` measures a folder that `build` wrote, on held-out puzzles.
"""

from __future__ import annotations

import random
from pathlib import Path

import click
import numpy as np

from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.checking import is_right
from tpo_lite.embedded import examples, world
from tpo_lite.engines.transformers import load_base
from tpo_lite.llamacpp import Continuation, Decision, Leaf, LlamaCpp
from tpo_lite.recipe import Sampling
from tpo_lite.sampling import GenerateSampler, batches
from tpo_lite.thoughts import DIRECT, GENERIC, parse, thought_prompt

MEASURE_SEED = "measure"


def measure_policy(folder: Path, seed: int, count: int = 300, k: int = 2) -> dict[str, float]:
    """Shares between 0 and 1: answers right per style and task, well-formed outputs, and useful work among thoughts.

    Samples `k` outputs for each of `count` held-out puzzles at temperature 0.8 and top-p 0.95 from the policy in NF4.
    A thought is useful work if it writes out the right steps.
    """
    tokenizer = load_tokenizer(str(folder))
    chat = Chat(tokenizer)
    settings = Sampling(max_new_tokens=112)
    sampler = GenerateSampler(
        load_base(str(folder), "cpu").eval(), stop_ids(str(folder), tokenizer), tokenizer.pad_token_id, settings
    )
    puzzles = [puzzle for puzzle in world.puzzles(count, seed) for _ in range(k)]
    figures: dict[str, float] = {}
    for style in (DIRECT, GENERIC):
        prompts = [chat.prompt_ids(thought_prompt(style, puzzle.text)) for puzzle in puzzles]
        ok, right, works, work_right, opened = [], [], [], [], []
        for rows in batches(prompts, 256):
            outputs = sampler.sample([prompts[row] for row in rows], [f"{MEASURE_SEED} {seed} {row}" for row in rows])
            for row, ids in zip(rows, outputs):
                ended = ids[-1] in sampler.stops
                parsed = parse(style, chat.text(ids[:-1] if ended else ids), truncated=not ended)
                puzzle = puzzles[row]
                ok.append(parsed.outcome == "ok")
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
    """Shares between 0 and 1 over `count` held-out (right, wrong) pairs, each asked in both orders.

    Responses are phrased as the policy phrases them. A verdict is unparsed where the explanation ends without `[[`.
    Also the mean distance of P(A) from 0.5 averaged over both orders of two right answers phrased differently.
    """
    engine, rng = LlamaCpp(path, n_ctx=16384, n_batch=512, n_seq_max=64), random.Random(f"judge {seed}")
    a, b = (engine.tokenize(letter, special=False)[0] for letter in "AB")
    mark = tuple(engine.tokenize(" [[", special=False))
    plan = Continuation(128, stop_tokens=engine.end_tokens(), decision=Decision(b"[[", (a, b), mark))
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    before, after = "<|begin_of_text|>" + header.format("user"), "<|eot_id|>" + header.format("assistant")
    leaves, tasks = [], []
    for puzzle in world.puzzles(count, seed):
        right, wrong = world.response(rng, puzzle.answer), world.response(rng, world.wrong_answer(rng, puzzle))
        tasks.append(puzzle.task)
        for first, second in ((right, wrong), (wrong, right)):
            text = examples.JUDGE_PROMPT.format(instruction=puzzle.text, response_a=first, response_b=second)
            leaves.append(Leaf(engine.tokenize(before + text + after, special=True), plan))
    decoded = engine.decode(leaves)
    p_first = np.array([1 / (1 + np.exp(result.logits[1] - result.logits[0])) for result in decoded]).reshape(-1, 2)
    correct = np.stack([p_first[:, 0] > 0.5, p_first[:, 1] < 0.5], axis=1)
    figures = {
        "right": float(correct.mean()),
        "right in both orders": float(correct.all(axis=1).mean()),
        "flip rate": float((correct[:, 0] != correct[:, 1]).mean()),
        "first slot rate": float((p_first > 0.5).mean()),
        "unparsed": _mean([result.ended != "decision" for result in decoded]),
        "explanation tokens": _mean([len(result.tokens) for result in decoded]),
    }
    for task in world.TASKS:
        figures[f"right: {task}"] = float(correct[[name == task for name in tasks]].mean())
    return figures


def as_table(figures: dict[str, float]) -> str:
    """The figures, one a line."""
    return "\n".join(f"    {name:<32} {value:8.3f}" for name, value in figures.items())


def _mean(values: list[float]) -> float:
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
