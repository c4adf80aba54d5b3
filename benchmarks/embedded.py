"""The embedded recipe over several seeds, measured on held-out instructions, written to results/embedded.md.

    python -m benchmarks.embedded --seeds 3

Each seed is one `tpo-lite train --recipe embedded --seed N`: other slices, other samples, another training order.
Every model M_0 ... M_3 of both arms then answers instructions that no slice of that run holds, once each, at the
recipe's temperature. A malformed output counts as wrong. The judge is measured on (right, wrong) pairs. Accuracy is the
checker's, which neither trains nor judges. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, heading, table, write
from tpo_lite.files import read_json, write_json
from tpo_lite.intervals import mean
from tpo_lite.phases.process import keep_libraries_quiet
from tpo_lite.run import RunFolder

HELD_OUT = 1000


def run_recipe(out: Path, seed: int, overrides: list[str]) -> None:
    """Run the recipe once; go on where an earlier call stopped."""
    command = [sys.executable, "-m", "tpo_lite.cli", "train", "--recipe", "embedded", "--cpu"]
    command += ["--out", str(out), "--seed", str(seed)]
    subprocess.run([*command, *(part for key in overrides for part in ("--set", key))], check=True)


def held_out(root: Path, count: int = HELD_OUT) -> dict[str, Any]:
    """Return what `measure_run` measures, once: it is kept in the run's folder."""
    path = root / f"held-out-{count}.json"
    if not path.exists():
        write_json(path, measure_run(root, count))
    return read_json(path)


def measure_run(root: Path, count: int) -> dict[str, Any]:
    """Measure every model of every arm on `count` instructions outside the run's slices."""
    keep_libraries_quiet()
    from tpo_lite.embedded.world import instructions
    from tpo_lite.phases.figures import validation_figures
    from tpo_lite.phases.summaries import well_formed_share
    from tpo_lite.records import Instruction, read_jsonl
    from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key

    run = RunFolder(root)
    recipe = run.load_settled()
    used = {x.id for path in (root / "instructions").glob("*.jsonl") for x in read_jsonl(path, Instruction)}
    fresh = [x for x in instructions(count + len(used), seed=10_000 + recipe.seed) if x.id not in used][:count]
    figures: dict[str, Any] = {}
    for arm in recipe.arms:
        figures[arm] = []
        for model in range(recipe.iterations + 1):
            loaded = LoadedPolicy(recipe, policy(run, recipe, arm, model), "cpu")
            key = sampling_key(recipe, arm, model, "benchmark")
            drawn = list(loaded.draw(fresh, recipe.style(arm), key, k=1))
            answered = validation_figures(drawn)
            figures[arm].append(
                {
                    "accuracy": answered.accuracy,
                    "parse_failures": 1 - well_formed_share(answered.parse),
                    "thought_tokens": answered.thought_tokens,
                    "response_tokens": answered.response_tokens,
                }
            )
    return figures


def measure_judge(seeds: range) -> dict[str, list[float]]:
    """Measure the judge; each figure has one value per seed."""
    from tpo_lite.embedded import measure
    from tpo_lite.hub import ASSETS

    rows = [measure.measure_judge(ASSETS / "judge.gguf", 20_000 + seed) for seed in seeds]
    return {name: [row[name] for row in rows] for name in rows[0]}


def seconds(root: Path) -> float:
    """Return the wall time of all phases of a finished run."""
    arms = read_json(root / "results.json")["arms"].values()
    return sum(sum(iteration["seconds"].values()) for arm in arms for iteration in arm["iterations"])


def cell(values: list[float]) -> str:
    """Return the mean and its 95 % interval over seeds, in percent."""
    average = mean(values)
    spread = "" if average.half_width is None else f" ± {100 * average.half_width:.1f}"
    return f"{100 * average.value:.1f}{spread}"


def report(runs: list[Path], judge: dict[str, list[float]], command: str) -> str:
    """Return the text of results/embedded.md."""
    measured = [held_out(run) for run in runs]

    def over_seeds(arm: str, model: int, name: str) -> list[float]:
        return [figures[arm][model][name] for figures in measured]

    rows = [
        [
            f"M_{model}",
            cell(over_seeds("thinking", model, "accuracy")),
            cell(over_seeds("direct", model, "accuracy")),
            cell(over_seeds("thinking", model, "parse_failures")),
            f"{mean(over_seeds('thinking', model, 'thought_tokens')).value:.1f}",
        ]
        for model in range(len(measured[0]["thinking"]))
    ]
    judged = {f"judge: {name}": judge[name] for name in ("right", "right in both orders", "flip rate", "unparsed")}
    figures = [[name, each(values), cell(values)] for name, values in (differences(measured) | judged).items()]
    minutes = ", ".join(f"{seconds(run) / 60:.1f}" for run in runs)
    return "\n".join(
        [
            *heading("The embedded recipe", "cpu", command),
            f"Mean over {len(runs)} seeds with the 95 % t interval, in percent. Each model answers {HELD_OUT} held-out "
            "instructions once at T = 0.8, top-p 0.95, in NF4; a malformed output is wrong.",
            "",
            *table("model: | thinking accuracy | direct accuracy | thinking parse failures | thought tokens", rows),
            "",
            *table("figure: | per seed: | mean", figures),
            "",
            f"Wall time of a run, both arms, three iterations: {minutes} minutes. "
            f"Peak memory of any phase: {peak(runs) / 1e9:.2f} GB.",
            "",
        ]
    )


def differences(measured: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return how far one model's accuracy is ahead of another's, by what is compared; one value per seed."""
    compared = {
        "thinking, start less direct, start": (("thinking", 0), ("direct", 0)),
        "thinking, end less its own start": (("thinking", -1), ("thinking", 0)),
        "direct, end less its own start": (("direct", -1), ("direct", 0)),
        "thinking, end less direct, end": (("thinking", -1), ("direct", -1)),
    }
    return {
        name: [figures[a][i]["accuracy"] - figures[b][j]["accuracy"] for figures in measured]
        for name, ((a, i), (b, j)) in compared.items()
    }


def peak(runs: list[Path]) -> int:
    """Return the most bytes of RAM that any phase of these runs held."""
    arms = [arm for run in runs for arm in read_json(run / "results.json")["arms"].values()]
    phases = [phase for arm in arms for iteration in arm["iterations"] for phase in iteration["peak_bytes"].values()]
    return max(phase["host"] for phase in phases)


def each(values: list[float]) -> str:
    """Return the value of every seed, in percent."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def main() -> None:
    """Run the recipe with every seed, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded-benchmark"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to tpo-lite train")
    parser.add_argument("--results", type=Path, default=RESULTS / "embedded.md")
    options = parser.parse_args()
    seeds = range(options.seeds)
    runs = [options.out / f"seed-{seed}" for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        start = time.monotonic()
        run_recipe(run, seed, options.overrides)
        print(f"seed {seed}: {json.dumps(held_out(run))} in {time.monotonic() - start:.0f} s", flush=True)
    command = " ".join(["python -m benchmarks.embedded", *sys.argv[1:]])
    write(options.results, report(runs, measure_judge(seeds), command))


if __name__ == "__main__":
    main()
