"""The embedded recipe over several seeds, measured on held-out instructions, written to results/embedded.md.

    python benchmarks/embedded.py --seeds 3

Each seed is one `tpo-lite train --recipe embedded --seed N`: other slices, other samples, other training order.
Every model M_0 ... M_3 of both arms then answers instructions that no slice of that run holds, sampled once at
the recipe's temperature, malformed outputs counted as wrong. The judge is measured on (right, wrong) pairs.
Accuracy is measured by the checker, which neither trains nor judges. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import tpo_lite.phases.process  # noqa: F401  keeps the libraries quiet, as in a phase
from tpo_lite import __version__
from tpo_lite.files import read_json, write_json
from tpo_lite.intervals import mean
from tpo_lite.run import RunFolder

HELD_OUT = 1000
RESULTS = Path(__file__).parent / "results" / "embedded.md"


def run_recipe(out: Path, seed: int, overrides: list[str]) -> None:
    """One run of the recipe; goes on where an earlier call stopped."""
    command = [sys.executable, "-m", "tpo_lite.cli", "train", "--recipe", "embedded", "--cpu"]
    command += ["--out", str(out), "--seed", str(seed)]
    subprocess.run([*command, *(part for key in overrides for part in ("--set", key))], check=True)


def held_out(root: Path, count: int = HELD_OUT) -> dict[str, Any]:
    """What `measure_run` measures, kept in the run's folder."""
    path = root / f"held-out-{count}.json"
    if not path.exists():
        write_json(path, measure_run(root, count))
    return read_json(path)


def measure_run(root: Path, count: int) -> dict[str, Any]:
    """Accuracy and parse failures of every model of every arm on `count` instructions outside the run's slices."""
    os.environ["TPO_LITE_DEVICE"] = "cpu"
    from tpo_lite.embedded.world import instructions
    from tpo_lite.phases.figures import validation_figures
    from tpo_lite.records import Instruction, read_jsonl
    from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key

    run = RunFolder(root)
    recipe = run.recipe
    used = {x.id for path in (root / "instructions").glob("*.jsonl") for x in read_jsonl(path, Instruction)}
    fresh = [x for x in instructions(count + len(used), seed=10_000 + recipe.seed) if x.id not in used][:count]
    figures: dict[str, Any] = {}
    for arm in recipe.arms:
        figures[arm] = []
        for model in range(recipe.iterations + 1):
            loaded = LoadedPolicy(recipe, policy(run, recipe, arm, model))
            key = sampling_key(recipe, arm, model, "benchmark")
            drawn = list(loaded.draw(fresh, recipe.style(arm), key, k=1))
            answered = validation_figures(drawn)
            parse = answered.parse
            figures[arm].append(
                {
                    "accuracy": answered.accuracy,
                    "parse_failures": 1 - parse["ok"] / sum(parse.values()),
                    "thought_tokens": answered.thought_tokens,
                    "response_tokens": answered.response_tokens,
                }
            )
    return figures


def measure_judge(seeds: range) -> dict[str, list[float]]:
    """The judge's figures, one value a seed."""
    from tpo_lite.embedded import measure
    from tpo_lite.hub import ASSETS

    rows = [measure.measure_judge(ASSETS / "judge.gguf", 20_000 + seed) for seed in seeds]
    return {name: [row[name] for row in rows] for name in rows[0]}


def seconds(root: Path) -> float:
    """Wall time of all phases of a finished run."""
    arms = read_json(root / "results.json")["arms"].values()
    return sum(sum(iteration["seconds"].values()) for arm in arms for iteration in arm["iterations"])


def cell(values: list[float]) -> str:
    """Mean and 95 % interval over seeds, in percent."""
    average = mean(values)
    spread = "" if average.half_width is None else f" ± {100 * average.half_width:.1f}"
    return f"{100 * average.value:.1f}{spread}"


def report(runs: list[Path], judge: dict[str, list[float]], command: str) -> str:
    """The results file."""
    measured = [held_out(run) for run in runs]
    results = [read_json(run / "results.json") for run in runs]
    models = range(len(measured[0]["thinking"]))

    def over_seeds(arm: str, model: int, name: str) -> list[float]:
        return [figures[arm][model][name] for figures in measured]

    def gain(arm: str) -> list[float]:
        return [figures[arm][-1]["accuracy"] - figures[arm][0]["accuracy"] for figures in measured]

    ahead = [figures["thinking"][-1]["accuracy"] - figures["direct"][-1]["accuracy"] for figures in measured]
    behind = [figures["thinking"][0]["accuracy"] - figures["direct"][0]["accuracy"] for figures in measured]
    peak = max(
        phase["host"]
        for r in results
        for arm in r["arms"].values()
        for it in arm["iterations"]
        for phase in it["peak_bytes"].values()
    )
    rows = [
        f"| M_{model} | {cell(over_seeds('thinking', model, 'accuracy'))} | {cell(over_seeds('direct', model, 'accuracy'))} "
        f"| {cell(over_seeds('thinking', model, 'parse_failures'))} "
        f"| {mean(over_seeds('thinking', model, 'thought_tokens')).value:.1f} |"
        for model in models
    ]
    return "\n".join(
        [
            "# The embedded recipe",
            "",
            f"Date: {date.today()}. Machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU; "
            f"Python {platform.python_version()}, tpo_lite {__version__}.",
            f"Command: `{command}`",
            "",
            f"Mean over {len(runs)} seeds with the 95 % t interval, in percent. Each model answers {HELD_OUT} held-out instructions "
            "once at T = 0.8, top-p 0.95, in NF4; a malformed output is wrong.",
            "",
            "| model | thinking accuracy | direct accuracy | thinking parse failures | thought tokens |",
            "|---|--:|--:|--:|--:|",
            *rows,
            "",
            "| figure | per seed | mean |",
            "|---|---|--:|",
            figure("thinking, start less direct, start", behind),
            figure("thinking, end less its own start", gain("thinking")),
            figure("direct, end less its own start", gain("direct")),
            figure("thinking, end less direct, end", ahead),
            *(
                figure(f"judge: {name}", judge[name])
                for name in ("right", "right in both orders", "flip rate", "unparsed")
            ),
            "",
            f"Wall time of a run, both arms, three iterations: {', '.join(f'{seconds(run) / 60:.1f}' for run in runs)} minutes. "
            f"Peak memory of any phase: {peak / 1e9:.2f} GB.",
            "",
        ]
    )


def figure(name: str, values: list[float]) -> str:
    """One row: the value of every seed, and their mean."""
    return f"| {name} | {each(values)} | {cell(values)} |"


def each(values: list[float]) -> str:
    """The value of every seed, in percent."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def main() -> None:
    """Runs, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded-benchmark"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to tpo-lite train")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = range(options.seeds)
    runs = [options.out / f"seed-{seed}" for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        start = time.monotonic()
        run_recipe(run, seed, options.overrides)
        print(f"seed {seed}: {json.dumps(held_out(run))} in {time.monotonic() - start:.0f} s", flush=True)
    command = " ".join(["python", "benchmarks/embedded.py", *sys.argv[1:]])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(report(runs, measure_judge(seeds), command))
    print(options.results.read_text())


if __name__ == "__main__":
    main()
