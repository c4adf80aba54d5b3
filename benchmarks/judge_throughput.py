"""How much faster than `llama_cpp.Llama` is the batched GGUF judge? Writes results/judge_throughput.md.

    python -m benchmarks.judge_throughput                      # small random model, and the embedded judge; CPU
    python -m benchmarks.judge_throughput --gguf judge.gguf --gpu-layers -1 --prompts 20
    python -m benchmarks.judge_throughput --data DATA          # real answers

Judges all pairs of answers to each of a few instructions, in both orders, in three ways:

  fresh    (a) `llama_cpp.Llama`, one comparison after the other, each from an empty cache (not with explanations)
  ordered  (b) the same, sorted so that its automatic prefix reuse finds the longest prefixes
  batched  (c) `tpo_lite.judges.gguf.GgufJudge`

The ways take turns, a few instructions at a time, on the same token sequences. DATA is a folder with AlpacaEval 2's
instructions and the answers of eight systems (`alpaca_eval2`), and OpenAssistant's prompts with five samples of one
model (`prompts`). Without it, instructions and answers are passages of README.md. The default model has random weights
on a vocabulary of Llama-3's size. The embedded judge then judges its own kind of instructions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.make_model import make_gguf, make_model
from benchmarks.shapes import TINY, llama_config
from benchmarks.tables import RESULTS, heading, table, write
from benchmarks.texts import Case, passages, puzzles_with_answers
from tpo_lite.hub import EMBEDDED_JUDGE_PROMPT, judge_path
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.llamacpp.leaves import Leaf
from tpo_lite.recipe import load_recipe

GPU_COMMAND = (
    "python -m benchmarks.judge_throughput --gguf MODEL/model-Q4_K_M.gguf --gpu-layers -1 --sequences 32 --prompts 20"
)


Answer = tuple[list[int], np.ndarray]
"""The tokens of an explanation, and the logits of A and of B."""
Decode = Callable[[list[Leaf]], tuple[int, list[Answer]]]
"""From token sequences to the number of tokens evaluated, and their answers."""


@dataclass
class Measured:
    """What one way did over all instructions."""

    seconds: float = 0.0
    tokens: int = 0
    margins: list[float] = field(default_factory=list)
    """logit(A) - logit(B) of each comparison."""
    explanations: list[list[int]] = field(default_factory=list)

    def add(self, decode: Decode, leaves: list[Leaf]) -> None:
        """Time `decode` on some more comparisons."""
        start = time.perf_counter()
        tokens, answers = decode(leaves)
        self.seconds += time.perf_counter() - start
        self.tokens += tokens
        self.margins += [float(logits[0] - logits[1]) for _, logits in answers]
        self.explanations += [explanation for explanation, _ in answers]


def rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def samples_of_one_model(data: Path, count: int) -> list[Case]:
    """Return the first `count` OpenAssistant prompts with five different samples of a 30B model."""
    cases = []
    for row in rows(data / "prompts/oasst_rlhf2_llama30b_K_samples.jsonl"):
        said = list(dict.fromkeys(text.strip() for result in row["results"] for text in result["outputs"]))
        if len(said) == 5:
            cases.append((row["prompt"], said))
    return cases[:count]


def answers_of_eight_systems(data: Path, count: int) -> list[Case]:
    """Return the first `count` AlpacaEval instructions with the answers of eight systems."""
    folder = data / "alpaca_eval2"
    files = sorted((folder / "model_outputs").glob("*.jsonl"))
    files.append(folder / "reference_gpt4_1106_preview.jsonl")
    answers = [{row["index"]: row["output"] for row in rows(path)} for path in files]
    return [
        (row["instruction"], [by_index[row["index"]] for by_index in answers])
        for row in rows(folder / "instructions.jsonl")[:count]
    ]


class OneAtATime:
    """`llama_cpp.Llama`, doing what the judge does."""

    def __init__(self, judge: GgufJudge, options: argparse.Namespace, fresh: bool) -> None:
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

    def decode(self, leaves: list[Leaf]) -> tuple[int, list[Answer]]:
        """Return the number of tokens evaluated, and each leaf's answer."""
        before = self.evaluated
        order = range(len(leaves))
        if not self.fresh:
            order = sorted(order, key=lambda i: tuple(leaves[i].tokens))
        answers = {i: self._answer(leaves[i]) for i in order}
        return self.evaluated - before, [answers[i] for i in range(len(leaves))]

    def _answer(self, leaf: Leaf) -> Answer:
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


def measure(judge: GgufJudge, cases: list[Case], options: argparse.Namespace, with_fresh: bool) -> dict[str, Measured]:
    """Measure all ways on all instructions: in turns, a few instructions each, as the judge phase does.

    Each turn begins with another way.
    """

    def batched(leaves: list[Leaf]) -> tuple[int, list[Answer]]:
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
    """Return a section that shows the ways side by side, and how far their verdicts agree."""
    batched = measured["batched"]
    letters = {"fresh": "a", "ordered": "b", "batched": "c"}
    speeds = [
        [
            f"({letters[name]}) {name}",
            f"{way.tokens:,}",
            f"{way.tokens / way.seconds:.0f}",
            f"{len(way.margins) / way.seconds:.2f}",
            f"{way.seconds / batched.seconds:.2f}x",
        ]
        for name, way in measured.items()
    ]
    columns = "way: | tokens evaluated | tokens/s | calls/s | batched is"
    lines = [f"## {title}", "", f"{len(batched.margins)} comparisons.", "", *table(columns, speeds), ""]
    for name in list(measured)[:-1]:
        # Random weights give near ties, where greedy paths part. Only equal explanations have comparable verdicts.
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
    """Write a GGUF of random weights on a vocabulary of Llama-3's size, with the layers and the type asked for."""
    sizes = {"hidden_size": options.embedding, "intermediate_size": 2 * options.embedding}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), options.embedding // 64)
    others = {"num_hidden_layers": options.layers, "tie_word_embeddings": False}
    make_model(llama_config(TINY | sizes | heads | others, rope_factor=8.0), folder)
    (path,) = make_gguf(folder, [options.type])
    return path


def judged(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Measure every mode on every source of texts; yield a section for each."""
    path = options.gguf or random_model(folder, options)
    shape = f"{options.layers} layers of {options.embedding}, {options.type}"
    model = options.gguf.name if options.gguf else f"{shape}, random weights on a vocabulary of Llama-3's size"
    if options.data:
        sources = {
            "AlpacaEval, eight systems": answers_of_eight_systems(options.data, options.prompts),
            "OpenAssistant, samples of one model": samples_of_one_model(options.data, options.prompts),
        }
    else:
        sources = {"passages of README.md": passages(options.prompts)}
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
        for source, cases in sources.items():
            yield report(f"{mode}: {source}; {model}", measure(judge, cases, options, with_fresh=mode == "verdict"))


def judged_by_embedded(options: argparse.Namespace) -> str:
    """Measure the embedded judge on its own kind of instructions, and return a section."""
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
    # For so small a model, a second thread costs more than it gains, in either way.
    one_thread = argparse.Namespace(**vars(options) | {"threads": 1})
    measured = measure(judge, puzzles_with_answers(options.embedded_prompts), one_thread, with_fresh=True)
    return report("explain: the embedded judge on its own kind of instructions; one thread", measured)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--gguf", type=Path, help="a model to judge with; default: random weights")
    made.add_argument("--data", type=Path, help="folder of real answers; default: passages of README.md")
    made.add_argument("--layers", type=int, default=4, help="of the random model")
    made.add_argument("--embedding", type=int, default=512, help="of the random model, 64 per head; a multiple of 256")
    made.add_argument("--type", choices=["F16", "Q8_0", "Q4_K_M"], default="Q4_K_M", help="of the random model")
    made.add_argument("--modes", nargs="*", default=["verdict", "explain"])
    made.add_argument("--prompts", type=int, default=4, help="instructions of each source")
    made.add_argument("--together", type=int, default=2, help="instructions judged together")
    made.add_argument("--explain-tokens", type=int, default=64)
    made.add_argument("--context", type=int, default=98_304)
    made.add_argument("--batch", type=int, default=512)
    made.add_argument("--sequences", type=int, default=48)
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--gpu-layers", type=int, default=0)
    made.add_argument("--embedded-prompts", type=int, default=12, help="instructions for the embedded judge")
    made.add_argument("--results", type=Path, default=RESULTS / "judge_throughput.md")
    return made


def main() -> None:
    """Measure, and write the results."""
    options = parser().parse_args()
    device = "cuda" if options.gpu_layers else "cpu"
    command = " ".join(["python -m benchmarks.judge_throughput", *sys.argv[1:]])
    versions = f", llama-cpp-python {llama_cpp.__version__}; {options.threads} threads"
    sections = ["\n".join(heading("Throughput of the GGUF judge", device, command, versions))]
    if not options.gpu_layers:
        note = f"Not measured on a GPU yet: `{GPU_COMMAND}`, with a model that `benchmarks.make_model` writes."
        sections.append(f"{note}\n")
    with tempfile.TemporaryDirectory() as folder:
        for section in judged(options, Path(folder)) if options.modes else ():
            sections.append(section)
            print(section, flush=True)
    if options.embedded_prompts:
        sections.append(judged_by_embedded(options))
    write(options.results, "\n".join(sections))


if __name__ == "__main__":
    main()
