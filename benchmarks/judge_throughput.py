"""How much faster than `llama_cpp.Llama` is the batched GGUF judge?

    python -m benchmarks.judge_throughput                      # small random model, and the embedded judge; CPU
    python -m benchmarks.judge_throughput --gguf judge.gguf --gpu-layers -1 --prompts 20

Judges all pairs of real answers to each of a few instructions, in both orders, three ways:

  fresh    (a) `llama_cpp.Llama`, one comparison after the other, each from an empty cache (not with explanations)
  ordered  (b) the same, sorted so that its automatic prefix reuse finds the longest prefixes
  batched  (c) `tpo_lite.judges.gguf.GgufJudge`

Instructions and answers are AlpacaEval's, by eight systems, and OpenAssistant's, five samples of one model. The
ways take turns, a few instructions at a time, on the same token sequences. The default model has random
weights on Llama-3's vocabulary; the embedded judge then judges its own kind of instructions. Reads `../shared/data`
beside the repository and writes results/judge_throughput.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import llama_cpp
import numpy as np

from tests.helpers.shared import SHARED
from tests.helpers.tiny_gguf import CHAT_TEMPLATE, write_gguf_on_vocabulary
from tpo_lite.embedded import world
from tpo_lite.hub import EMBEDDED_JUDGE_PROMPT, judge_path
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.llamacpp.convert import quantize
from tpo_lite.llamacpp.leaves import Leaf
from tpo_lite.recipe import load_recipe

ALPACA_EVAL = SHARED / "data/alpaca_eval2"
RESULTS = Path(__file__).parent / "results" / "judge_throughput.md"
GPU_COMMAND = (
    "python -m benchmarks.judge_throughput --gguf MODEL/model-Q4_K_M.gguf --gpu-layers -1 --sequences 32 --prompts 20"
)


@dataclass
class Measured:
    """What one way did, over all instructions."""

    seconds: float = 0.0
    tokens: int = 0
    margins: list[float] = field(default_factory=list)
    """logit(A) - logit(B) of each comparison."""
    explanations: list[list[int]] = field(default_factory=list)

    def add(self, decode: Callable[[list[Leaf]], tuple[int, list]], leaves: list[Leaf]) -> None:
        start = time.perf_counter()
        tokens, answers = decode(leaves)
        self.seconds += time.perf_counter() - start
        self.tokens += tokens
        self.margins += [float(logits[0] - logits[1]) for _, logits in answers]
        self.explanations += [explanation for explanation, _ in answers]


def rows(path: Path) -> list[dict]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples_of_one_model(n: int) -> list[tuple[str, list[str]]]:
    """The first n OpenAssistant prompts with five different samples of a 30B model."""
    cases = []
    for row in rows(SHARED / "data/prompts/oasst_rlhf2_llama30b_K_samples.jsonl"):
        said = list(dict.fromkeys(text.strip() for result in row["results"] for text in result["outputs"]))
        if len(said) == 5:
            cases.append((row["prompt"], said))
    return cases[:n]


def answers_of_eight_systems(n: int) -> list[tuple[str, list[str]]]:
    """The first n AlpacaEval instructions with the answers of eight systems."""
    files = sorted((ALPACA_EVAL / "model_outputs").glob("*.jsonl"))
    files.append(ALPACA_EVAL / "reference_gpt4_1106_preview.jsonl")
    answers = [{row["index"]: row["output"] for row in rows(path)} for path in files]
    return [
        (row["instruction"], [by_index[row["index"]] for by_index in answers])
        for row in rows(ALPACA_EVAL / "instructions.jsonl")[:n]
    ]


def puzzles_with_answers(n: int) -> list[tuple[str, list[str]]]:
    """n instructions of the embedded world with eight different responses each, right and wrong ones."""
    rng, cases = random.Random("judge throughput"), []
    for puzzle in world.puzzles(n, seed=5):
        said: dict[str, None] = {}
        while len(said) < 8:
            said[rng.choice((world.response(rng, rng.choice(puzzle.choices)), world.evasion(rng)))] = None
        cases.append((puzzle.text, list(said)))
    return cases


class OneAtATime:
    """`llama_cpp.Llama`, doing what the judge does."""

    def __init__(self, judge: GgufJudge, options: argparse.Namespace, fresh: bool):
        self.fresh, self.judge = fresh, judge
        self.llama = llama_cpp.Llama(
            str(judge.decoder.path),
            n_ctx=4096,
            n_batch=options.batch,
            n_gpu_layers=options.gpu_layers,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            flash_attn=options.gpu_layers != 0,
            verbose=False,
        )
        self.evaluated = 0
        self._eval = self.llama.eval
        self.llama.eval = self._counting_eval

    def _counting_eval(self, tokens: list[int]) -> None:
        self.evaluated += len(tokens)
        self._eval(tokens)

    def decode(self, leaves: list[Leaf]) -> tuple[int, list]:
        """Tokens evaluated, and each leaf's explanation and two logits, in the order of the leaves."""
        before = self.evaluated
        order = range(len(leaves))
        if not self.fresh:
            order = sorted(order, key=lambda i: tuple(leaves[i].tokens))
        answers = {i: self._answer(leaves[i]) for i in order}
        return self.evaluated - before, [answers[i] for i in range(len(leaves))]

    def _answer(self, leaf: Leaf) -> tuple[list[int], np.ndarray]:
        if self.fresh:
            self.llama.reset()
        stream = self.llama.generate(leaf.tokens, temp=0.0, repeat_penalty=1.0)
        if leaf.continuation is None:
            next(stream)
            return [], self._logits(leaf.logits_of)
        plan, said, text = leaf.continuation, [], b""
        for token in stream:
            if token in plan.decision.among and text.endswith(plan.decision.after):
                return said, self._logits(plan.decision.among)
            said.append(token)
            if token in plan.stop_tokens:
                self.llama.eval(list(plan.decision.force))
                break
            text += self.judge.decoder.token_bytes(token)
            if len(said) == plan.max_tokens:
                self.llama.eval([token, *plan.decision.force])
                break
        return said, self._logits(plan.decision.among)

    def _logits(self, tokens: tuple[int, ...]) -> np.ndarray:
        row = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.array([row[token] for token in tokens])


def measure(
    judge: GgufJudge, cases: list[tuple[str, list[str]]], options: argparse.Namespace, with_fresh: bool
) -> dict[str, Measured]:
    """All ways over all instructions, in turns, a few instructions each as the judge phase does; who begins changes."""

    def batched(leaves: list[Leaf]) -> tuple[int, list]:
        before = judge.decoder.tokens_decoded
        decoded = judge.decoder.decode(leaves)
        return judge.decoder.tokens_decoded - before, [(d.tokens, d.logits) for d in decoded]

    ways = {"ordered": OneAtATime(judge, options, fresh=False).decode, "batched": batched}
    if with_fresh:
        ways = {"fresh": OneAtATime(judge, options, fresh=True).decode} | ways
    measured = {name: Measured() for name in ways}
    for turn, first in enumerate(range(0, len(cases), options.together)):
        leaves = [
            question.leaves[0]
            for instruction, answers in cases[first : first + options.together]
            for a, b in itertools.permutations(dict.fromkeys(answers), 2)
            if (question := judge.question(JudgeRequest(instruction, a, b)))
        ]
        names = list(ways)
        turn %= len(names)
        for name in names[turn:] + names[:turn]:
            measured[name].add(ways[name], leaves)
    return measured


def report(title: str, measured: dict[str, Measured]) -> str:
    """The ways side by side, and how far their verdicts agree."""
    batched = measured["batched"]
    lines = [
        f"## {title}",
        "",
        f"{len(batched.margins)} comparisons.",
        "",
        "| way | tokens evaluated | tokens/s | calls/s | batched is |",
        "|---|--:|--:|--:|--:|",
    ]
    letters = {"fresh": "a", "ordered": "b", "batched": "c"}
    for name, way in measured.items():
        lines.append(
            f"| ({letters[name]}) {name} | {way.tokens:,} | {way.tokens / way.seconds:.0f} | "
            f"{len(way.margins) / way.seconds:.2f} | {way.seconds / batched.seconds:.2f}x |"
        )
    lines.append("")
    for name in list(measured)[:-1]:
        # Greedy paths of random weights part at near ties; only equal explanations have comparable verdicts.
        same = [i for i, said in enumerate(measured[name].explanations) if said == batched.explanations[i]]
        lines.append(f"- against {name}: explanations equal {len(same) / len(batched.margins):.1%}")
        if same:
            ours, theirs = (np.array(way.margins)[same] for way in (batched, measured[name]))
            lines[-1] += (
                f"; of these, same sign {np.mean(np.sign(ours) == np.sign(theirs)):.1%}, largest difference of "
                f"logit(A) - logit(B) {np.abs(ours - theirs).max():.3f} at a spread of {theirs.std():.3f}"
            )
    return "\n".join([*lines, ""])


def random_model(folder: Path, options: argparse.Namespace) -> Path:
    """A GGUF of random weights on Llama-3's vocabulary, of the size and type asked for."""
    path = write_gguf_on_vocabulary(
        folder / "random-F16.gguf",
        SHARED / "data/tokenizer/llama_cpp/ggml-vocab-llama-bpe.gguf",
        CHAT_TEMPLATE,
        n_layer=options.layers,
        n_embd=options.embedding,
        n_head=options.embedding // 64,
    )
    if options.type == "F16":
        return path
    quantize(path, smaller := folder / f"random-{options.type}.gguf", options.type)
    return smaller


def main() -> None:
    """Runs, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="a model to judge with; default: random weights")
    parser.add_argument("--layers", type=int, default=4, help="of the random model")
    parser.add_argument("--embedding", type=int, default=512, help="64 for each head; a multiple of 256")
    parser.add_argument("--type", choices=["F16", "Q8_0", "Q4_K_M"], default="Q4_K_M")
    parser.add_argument("--modes", nargs="*", default=["verdict", "explain"])
    parser.add_argument("--prompts", type=int, default=4, help="instructions of each source")
    parser.add_argument("--together", type=int, default=2, help="instructions judged together")
    parser.add_argument("--explain-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=98_304)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=48)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--embedded-prompts", type=int, default=12, help="instructions for the embedded judge")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    gpu = "with a GPU" if options.gpu_layers else "no GPU"
    sections = [
        "# Throughput of the GGUF judge",
        "",
        f"Date: {date.today()}. Machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}, {gpu}; "
        f"{options.threads} threads, llama-cpp-python {llama_cpp.__version__}.",
        f"Command: `python -m benchmarks.judge_throughput {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        "",
    ]
    if not options.gpu_layers:
        sections[-1:] = [
            "",
            f"Not measured on a GPU yet: `{GPU_COMMAND}`, with a model of `benchmarks.make_model`.",
            "",
        ]
    with tempfile.TemporaryDirectory() as folder:
        path = options.gguf or (random_model(Path(folder), options) if options.modes else None)
        shape = (
            f"{options.layers} layers of {options.embedding}, {options.type}, random weights on Llama-3's vocabulary"
        )
        model = options.gguf.name if options.gguf else shape
        for mode in options.modes:
            judge = GgufJudge(
                path,
                mode,
                explain_tokens=options.explain_tokens,
                n_ctx=options.context,
                n_batch=options.batch,
                n_seq_max=options.sequences,
                n_gpu_layers=options.gpu_layers,
                n_threads=options.threads,
            )
            sources = {
                "AlpacaEval, eight systems": answers_of_eight_systems(options.prompts),
                "OpenAssistant, samples of one model": samples_of_one_model(options.prompts),
            }
            for source, cases in sources.items():
                measured = measure(judge, cases, options, with_fresh=mode == "verdict")
                sections.append(report(f"{mode}: {source}; {model}", measured))
                print(sections[-1], flush=True)
    if options.embedded_prompts:
        settings = load_recipe("embedded").judge
        judge = GgufJudge(
            judge_path("embedded"),
            "explain",
            EMBEDDED_JUDGE_PROMPT.read_text().rstrip("\n"),
            explain_tokens=settings.explain_tokens,
            n_ctx=settings.context,
            n_batch=settings.batch,
            n_seq_max=settings.sequences,
        )
        # This small, two threads cost more than they gain, in either way.
        options.threads = 1
        measured = measure(judge, puzzles_with_answers(options.embedded_prompts), options, with_fresh=True)
        sections.append(report("explain: the embedded judge on its own kind of instructions; one thread", measured))
        print(sections[-1], flush=True)
    options.results.write_text("\n".join(sections))


if __name__ == "__main__":
    main()
