"""How much faster than `llama_cpp.Llama` is the batched GGUF judge?

    python -m benchmarks.judge_throughput                      # small random model, CPU
    python -m benchmarks.judge_throughput --gguf judge.gguf --gpu-layers -1 --prompts 20

Judges all pairs of K = 8 real answers to each of a few AlpacaEval instructions, in both orders, three ways:

  fresh    (a) `llama_cpp.Llama`, one comparison after the other, each from an empty cache
  ordered  (b) the same, sorted so that its automatic prefix reuse finds the longest prefixes
  batched  (c) `tpo_lite.judges.gguf.GgufJudge`

The ways take turns, instruction by instruction, on the same token sequences. The default model has random
weights on Llama-3's vocabulary. Reads `../shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import numpy as np

from tests.shared import SHARED
from tests.tiny_gguf import CHAT_TEMPLATE, write_gguf_on_vocabulary
from tpo_lite.judges import JudgeRequest
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.prefix_tree import Leaf

ALPACA_EVAL = SHARED / "data/alpaca_eval2"


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


def instructions_with_answers(n: int) -> list[tuple[str, list[str]]]:
    """The first n AlpacaEval instructions with the answers of eight systems."""

    def rows(path: Path) -> list[dict]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    files = sorted((ALPACA_EVAL / "model_outputs").glob("*.jsonl"))
    files.append(ALPACA_EVAL / "reference_gpt4_1106_preview.jsonl")
    answers = [{row["index"]: row["output"] for row in rows(path)} for path in files]
    return [
        (row["instruction"], [by_index[row["index"]] for by_index in answers])
        for row in rows(ALPACA_EVAL / "instructions.jsonl")[:n]
    ]


class OneAtATime:
    """`llama_cpp.Llama`, doing what the judge does."""

    def __init__(self, judge: GgufJudge, options: argparse.Namespace, fresh: bool):
        self.fresh, self.judge = fresh, judge
        self.llama = llama_cpp.Llama(
            str(judge.engine.path),
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
            text += self.judge.engine.token_bytes(token)
            if len(said) == plan.max_tokens:
                self.llama.eval([token, *plan.decision.force])
                break
        return said, self._logits(plan.decision.among)

    def _logits(self, tokens: tuple[int, ...]) -> np.ndarray:
        row = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.array([row[token] for token in tokens])


def measure(path: Path, mode: str, options: argparse.Namespace) -> dict[str, Measured]:
    """All three ways over all instructions, in turns."""
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

    def batched(leaves: list[Leaf]) -> tuple[int, list]:
        before = judge.engine.tokens_decoded
        decoded = judge.engine.decode(leaves)
        return judge.engine.tokens_decoded - before, [(d.tokens, d.logits) for d in decoded]

    ways = {
        "fresh": OneAtATime(judge, options, fresh=True).decode,
        "ordered": OneAtATime(judge, options, fresh=False).decode,
        "batched": batched,
    }
    measured = {name: Measured() for name in ways}
    for instruction, answers in instructions_with_answers(options.prompts):
        pairs = itertools.permutations(dict.fromkeys(answers), 2)
        leaves = [leaf for a, b in pairs if (leaf := judge._leaf(JudgeRequest(instruction, a, b)))]
        for name, decode in ways.items():
            measured[name].add(decode, leaves)
    return measured


def report(mode: str, measured: dict[str, Measured]) -> None:
    """Prints the three ways side by side, and how far their verdicts agree."""
    batched = measured["batched"]
    print(f"\n{mode}: {len(batched.margins)} comparisons")
    print(f"{'':10}{'tokens':>10}{'tokens/s':>10}{'calls/s':>9}{'batched is':>12}")
    for name, way in measured.items():
        tokens_a_second, calls_a_second = way.tokens / way.seconds, len(way.margins) / way.seconds
        ratio = way.seconds / batched.seconds
        print(f"{name:10}{way.tokens:>10}{tokens_a_second:>10.0f}{calls_a_second:>9.2f}{ratio:>11.2f}x")
    for name in ("fresh", "ordered"):
        # Greedy paths of random weights part at near ties; only equal explanations have comparable verdicts.
        same = [i for i, said in enumerate(measured[name].explanations) if said == batched.explanations[i]]
        ours, theirs = (np.array(way.margins)[same] for way in (batched, measured[name]))
        print(
            f"against {name}: explanations equal {len(same) / len(batched.margins):.1%}; of these, same sign "
            f"{np.mean(np.sign(ours) == np.sign(theirs)):.1%}, largest difference of logit(A) - logit(B) "
            f"{np.abs(ours - theirs).max():.3f} at a spread of {theirs.std():.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="a model to judge with; default: random weights")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--embedding", type=int, default=384, help="64 for each head")
    parser.add_argument("--modes", nargs="+", default=["verdict", "explain"])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--explain-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpu-layers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.gguf or write_gguf_on_vocabulary(
            Path(folder) / "random.gguf",
            SHARED / "data/tokenizer/llama_cpp/ggml-vocab-llama-bpe.gguf",
            CHAT_TEMPLATE,
            n_layer=options.layers,
            n_embd=options.embedding,
            n_head=options.embedding // 64,
        )
        print(f"{platform.processor() or platform.machine()}, {options.threads} threads; {vars(options)}")
        for mode in options.modes:
            report(mode, measure(path, mode, options))


if __name__ == "__main__":
    main()
