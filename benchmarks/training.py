"""DPO on pairs of one length: memory and speed by trainer, optimizer and rank, written to results/training.md.

    python -m benchmarks.training --model MODEL --device cuda --tokens 2048      # all settings, in turns
    python -m benchmarks.training --model MODEL --device cpu --path trl --rank 32 --tokens 512    # one of them, as JSON

    ours       `tpo_lite.training.dpo`: NF4, float32 adapters, log-probabilities without the logits of a whole batch
    trl        NF4, TRL's `DPOTrainer` as it is
    unsloth    NF4 and adapters by unsloth, TRL's `DPOTrainer` as unsloth patches it, with its fused preference loss

MODEL is a folder, such as one that `benchmarks.make_model` writes. Pairs are random token ids: each side has exactly
--tokens, a quarter of them in the prompt. The adapter is random. All three compute the reference before training. An
optimizer step follows each micro-batch. Loading, the reference and the first step are not timed, but count for memory.
Without --path, each setting runs in a process of its own, `--rounds` times in turns. Settings differ from the first row
in one thing each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks.measuring import cap_memory, visible_gpu
from benchmarks.tables import RESULTS, heading, peaks, table, write
from tpo_lite.machine.memory import PeakMemory
from tpo_lite.phases.process import keep_libraries_quiet
from tpo_lite.recipe_keys import Train

PATHS = ("ours", "trl", "unsloth")
OPTIMIZERS = get_args(Train.model_fields["optimizer"].annotation)
RANKS = (16, 32, 64)
SETTING = ("path", "optimizer", "rank", "pairs", "tokens", "micro_batch", "gradient_checkpointing", "device", "cap_gb")
PROMPT = 1 / 4
"""The prompt's share of a side's tokens."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one setting in this process; return its figures and what it was measured with."""
    keep_libraries_quiet()
    peak = PeakMemory(visible_gpu(options.device))  # before there is a context, which counts
    cap_memory(options.device, options.cap_gb)
    options.model = str(Path(options.model).resolve())
    # unsloth writes compiled code to the working directory.
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        times = train(options, Path(work))
    seconds = times[-1] - times[0]
    return {name: getattr(options, name) for name in SETTING} | {
        "seconds": seconds,
        "pairs_per_second": options.pairs / seconds,
        "tokens_per_second": 2 * options.pairs * options.tokens / seconds,
        "peak": peak.bytes(),
    }


def train(options: argparse.Namespace, work: Path) -> list[float]:
    """Train, and return the time at which each step ended."""
    if options.path == "unsloth":
        load_unsloth()
    import torch
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from tpo_lite.chat import load_tokenizer
    from tpo_lite.training.dpo import arguments, rows, trainer

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    class OnIds(DPOTrainer):
        """TRL's trainer, given token ids instead of text."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    times: list[float] = []
    settings = Train(
        schedule="constant",
        warmup=0.0,
        epochs=1,
        batch=options.micro_batch,
        micro_batch=options.micro_batch,
        optimizer=options.optimizer,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    tokenizer = load_tokenizer(options.model)
    model = adapted(options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    pairs = random_pairs(options.pairs + options.micro_batch, options.tokens, model.config.vocab_size)
    if options.path == "ours":
        tuner = trainer(model, tokenizer, pairs, settings, 0, work, options.device, lambda *_: None)
    else:
        config = DPOConfig(**arguments(settings, 0, work, options.device), precompute_ref_log_probs=True)
        tuner = OnIds(model, args=config, train_dataset=rows(pairs), processing_class=tokenizer)
    tuner.add_callback(Clock())
    tuner.train()
    return times


def load_unsloth() -> None:
    """Import unsloth before what it patches, from the folder that `make test` installs it to if there is one."""
    os.environ["UNSLOTH_FUSED_PREFERENCE_LOSS"] = "1"
    folder = Path(sys.prefix) / "unsloth"
    if folder.is_dir():
        sys.path.insert(0, str(folder))
    import unsloth  # noqa: F401


def adapted(options: argparse.Namespace) -> Any:
    """Return the 4-bit model with a trainable adapter."""
    from tpo_lite.base_weights import compute_dtype, load_base

    if options.path != "unsloth":
        from tpo_lite.training.dpo import trainable

        return trainable(load_base(options.model, options.device, "nf4"), options.rank, 1.0)
    from unsloth import FastLanguageModel

    base, _ = FastLanguageModel.from_pretrained(
        options.model, max_seq_length=options.tokens, load_in_4bit=True, dtype=compute_dtype(options.device)
    )
    return FastLanguageModel.get_peft_model(
        base,
        r=options.rank,
        lora_alpha=options.rank,
        lora_dropout=0,
        use_gradient_checkpointing="unsloth" if options.gradient_checkpointing else False,
    )


def random_pairs(count: int, tokens: int, vocabulary: int) -> list[Any]:
    """Return pairs of random token ids, the same in every process."""
    import numpy as np

    from tpo_lite.records import Pair

    generator = np.random.default_rng(0)
    prompt = max(1, int(PROMPT * tokens))

    def draw(length: int) -> list[int]:
        return generator.integers(vocabulary, size=length).tolist()

    return [
        Pair(str(number), "best-worst", draw(prompt), draw(tokens - prompt), draw(tokens - prompt), 0, 1, 1.0, 0.0)
        for number in range(count)
    ]


def grid() -> list[list[str]]:
    """Return the flags of each setting; every other one differs from the first in one thing."""
    paths = [["--path", path] for path in PATHS]
    optimizers = [["--path", "ours", "--optimizer", optimizer] for optimizer in OPTIMIZERS[1:]]
    ranks = [["--path", "ours", "--rank", str(rank)] for rank in RANKS[1:]]
    others = [["--path", "ours", "--no-gradient-checkpointing"], ["--path", "ours", "--micro-batch", "2"]]
    return [*paths, *optimizers, *ranks, *others]


def report(measured: list[list[dict[str, Any]]], command: str, options: argparse.Namespace) -> str:
    """Return the text of results/training.md; a setting that failed has its last words instead of figures."""
    trl = measured[PATHS.index("trl")]
    rows = []
    for runs in measured:
        first, speed = runs[0], median_speed(runs)
        what = [first["path"], first["optimizer"], first["rank"], first["micro_batch"]]
        what.append("yes" if first["gradient_checkpointing"] else "no")
        if speed is None:
            figures = [next(run["error"] for run in runs if "error" in run), "-", "-", "-", "-"]
        else:
            times = "-" if median_speed(trl) is None else f"{ratio(runs, trl):.2f}"
            rounds = ", ".join(f"{run['tokens_per_second']:.1f}" for run in runs)
            figures = [rounds, f"{speed:.1f}", times, *peaks(runs)]
        rows.append([*what, *figures])
    columns = (
        "path: | optimizer: | rank | micro-batch | checkpointing: | tokens/s, each round: | median | x trl "
        "| peak RAM, GB | peak GPU, GB"
    )
    return "\n".join(
        [
            *heading("DPO", options.device, command),
            f"Model: {Path(options.model).name}. {options.pairs} pairs of {options.tokens} tokens a side; tokens of "
            "both sides are counted. A setting that failed shows its last words. Peaks are the whole process's, from "
            "loading on.",
            "",
            *table(columns, rows),
            "",
        ]
    )


def median_speed(runs: list[dict[str, Any]]) -> float | None:
    """Return a setting's tokens per second; None if one of its rounds failed."""
    if any("error" in run for run in runs):
        return None
    return statistics.median(run["tokens_per_second"] for run in runs)


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """Return how many times as fast a setting is as another.

    The median over rounds, since the machine may be slower in one of them.
    """
    speeds = [[run["tokens_per_second"] for run in of] for of in (runs, others)]
    return statistics.median(one / other for one, other in zip(*speeds, strict=True))


def run_alone(flags: list[str]) -> dict[str, Any]:
    """Measure one setting in a process of its own; return its figures, or its last words as `error`."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *flags], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    words = done.stderr.strip().splitlines()
    return {"error": words[-1] if words else f"ended with {done.returncode}"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", required=True)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--path", choices=PATHS)
    made.add_argument("--rank", type=int, default=RANKS[0])
    made.add_argument("--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0])
    made.add_argument("--pairs", type=int, default=4)
    made.add_argument("--tokens", type=int, default=512, help="of each side, its prompt included")
    made.add_argument("--micro-batch", type=int, default=1, help="pairs")
    made.add_argument("--no-gradient-checkpointing", dest="gradient_checkpointing", action="store_false")
    made.add_argument("--cap-gb", type=float, help="GiB that torch may take of the GPU")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--results", type=Path, default=RESULTS / "training.md")
    return made


def main() -> None:
    """Measure one setting, or all in turns."""
    options = parser().parse_args()
    if options.pairs % options.micro_batch:
        parser().error(f"--pairs {options.pairs} is not a multiple of --micro-batch {options.micro_batch}")
    if options.path:
        print(json.dumps(measure(options)))
        return
    measured: list[list[dict[str, Any]]] = [[] for _ in grid()]
    for number in range(options.rounds):
        for runs, flags in zip(measured, grid(), strict=True):
            asked = vars(parser().parse_args([*sys.argv[1:], *flags]))
            runs.append(asked | run_alone([*sys.argv[1:], *flags]))
            print(f"round {number + 1}, {' '.join(flags)}: {runs[-1]}", flush=True)
    command = " ".join(["python -m benchmarks.training", *sys.argv[1:]])
    write(options.results, report(measured, command, options))


if __name__ == "__main__":
    main()
