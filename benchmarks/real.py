"""TPO on a model that nobody here made, on a CPU: `make real`, or `python -m benchmarks.real [--seeds N]`.

SmolLM2-135M-Instruct goes through the recipe smollm2-135m-cpu: a warm start, then three iterations of both arms, judged
by Qwen2.5-Coder-1.5B-Instruct. Both come from `make models`. Everything is told as it came out: how many outputs are
well-formed before and after each stage, win rates on the test slice with intervals, and three whole examples that a
seed chose. With --pairs, the judge's own accuracy is measured on labelled pairs, such as LLMBar's. A run that was
stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.models import FOLDER, MODELS
from benchmarks.tables import RESULTS, heading, table, write
from tpo_lite.files import read_json
from tpo_lite.intervals import percent
from tpo_lite.loop.results import read_results
from tpo_lite.loop.results_schema import ArmResults, Results
from tpo_lite.phases.summaries import HeldOutFigures, ShareFigures
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder

RECIPE = "smollm2-135m-cpu"
EXAMPLES = 3
"""Whole examples that are shown."""


def train(out: Path, seed: int, model: Path, judge: Path, overrides: list[str]) -> None:
    """Run the recipe once; go on where an earlier call stopped."""
    keys = [f"model={model}", f"judge.model={judge}", *overrides]
    command = [sys.executable, "-m", "tpo_lite.cli", "train", "--recipe", RECIPE, "--cpu", "--seed", str(seed)]
    subprocess.run([*command, "--out", str(out), *(part for key in keys for part in ("--set", key))], check=True)


def judge_accuracy(pairs: Path, judge: Path, out: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return `tpo-lite judge stats` of the run's judge on labelled pairs, which are judged once."""
    output = out / f"{pairs.stem}.jsonl"
    settings = [f"{key}={recipe['judge'][key]}" for key in ("prompt", "sequences", "batch")]
    command = [sys.executable, "-m", "tpo_lite.cli", "judge"]
    judging = ["--judge", str(judge), "--mode", recipe["judge"]["mode"], "--out", str(output)]
    subprocess.run(
        [*command, "run", str(pairs), *judging, *(part for key in settings for part in ("--set", key))], check=True
    )
    stats = subprocess.run(
        [*command, "stats", str(output), "--gold", str(pairs), "--json"], check=True, capture_output=True, text=True
    )
    return dict(json.loads(stats.stdout))


def report(runs: list[Path], accuracy: dict[str, Any] | None, command: str) -> str:
    """Return the text of the results file."""
    found = [read_results(RunFolder(run)) for run in runs]
    lines = heading("TPO on SmolLM2-135M-Instruct, on a CPU", "cpu", command)
    lines += [_what_ran(found[0]), ""]
    for run, results in zip(runs, found, strict=True):
        lines += [f"## Seed {results.recipe['seed']}", "", *_stages(results), "", *_matches(results), ""]
        lines += [*_training(results), "", _cost(results), ""]
        lines += _examples(run, results) if run == runs[0] else []
    if accuracy is not None:
        lines += ["## The judge", "", *_judge(accuracy), ""]
    return "\n".join(lines)


def _what_ran(results: Results) -> str:
    recipe = results.recipe
    instructions, sampling = recipe["instructions"], recipe["sampling"]
    return (
        f"{recipe['iterations']} iterations of {instructions['per_iteration']} prompts from "
        f"{instructions['source']}, K = {sampling['k']}, at most {sampling['max_new_tokens']} tokens; "
        f"{instructions['validation']} prompts choose checkpoints, {instructions['test']} others report. "
        f"Judge: {Path(recipe['judge']['model']).name}, mode {recipe['judge']['mode']}. "
        "Shares have 95 % Wilson intervals, lengths 95 % t intervals; lengths are of well-formed outputs, in tokens."
    )


def _held_out(arm: ArmResults) -> Iterator[tuple[str, HeldOutFigures]]:
    """Yield every model of an arm, from the base, and what it answered on the test slice."""
    if arm.warm_start is not None and arm.warm_start.samples.before is not None:
        yield "M_base", arm.warm_start.samples.before
    if arm.base_test is not None:
        yield "M_0", arm.base_test
    for number, iteration in enumerate(arm.iterations, 1):
        if iteration.test is not None:
            yield f"M_{number}", iteration.test


def _stages(results: Results) -> list[str]:
    """Return the table of what every model answers on the test slice."""
    rows = [
        [
            arm,
            model,
            share(figures.parse_ok),
            ", ".join(f"{count} {outcome}" for outcome, count in figures.parse.items() if count),
            share(figures.accuracy),
            length(figures.thought_tokens),
            length(figures.response_tokens),
        ]
        for arm, data in results.arms.items()
        for model, figures in _held_out(data)
    ]
    return table("arm: | model: | well-formed: | outcomes: | right: | thought: | response:", rows)


def _matches(results: Results) -> list[str]:
    """Return the table of win rates on the test slice."""
    rows = []
    for arm, data in results.arms.items():
        for number, iteration in enumerate(data.iterations, 1):
            if iteration.test is None:
                continue
            base = iteration.test.win_rate_base
            rows.append([arm, f"M_{number}", share(base) if base else "-", share(iteration.test.win_rate)])
    lines = table("arm: | model: | against M_base: | against M_0:", rows)
    if results.thinking_vs_direct:
        met = enumerate(results.thinking_vs_direct)
        lines += ["", *table("model: | thinking against direct:", [[f"M_{t}", share(rate)] for t, rate in met])]
    return lines


def _training(results: Results) -> list[str]:
    """Return the table of what the iterations trained on, and how training went."""
    rows = [
        [
            arm,
            number,
            percent(data.judge.flip_rate),
            percent(data.judge.first_slot_rate),
            data.pairs.pairs,
            f"{data.rho:.2f}",
            f"{data.dpo.first_loss:.3f}, {data.dpo.last_loss:.3f}",
            f"{data.dpo.last_margin:+.3f}",
            data.validation.chosen,
            percent(data.merge.update_norm),
        ]
        for arm, each in results.arms.items()
        for number, data in enumerate(each.iterations, 1)
    ]
    titles = "arm: | iteration | flips | first slot | pairs | rho | first, last loss | last margin | chosen: | update"
    return table(titles, rows)


def _cost(results: Results) -> str:
    seconds, peaks = 0.0, []
    for arm in results.arms.values():
        for part in [arm.warm_start, *arm.iterations]:
            if part is not None:
                seconds += sum(part.seconds.values())
                peaks += [peak["host"] for peak in part.peak_bytes.values()]
    return f"All phases took {seconds / 60:.1f} minutes. Peak memory of any phase: {max(peaks) / 1e9:.2f} GB."


def _examples(run: Path, results: Results) -> list[str]:
    """Return whole test answers of the last thinking model to prompts that the run's seed chooses."""
    folder = RunFolder(run)
    arm = next(iter(results.arms))
    models = len(results.arms[arm].iterations)
    answers = list(read_jsonl(folder.test_of(arm, models), PromptSamples))
    lines = [f"### {EXAMPLES} answers of M_{models}, chosen by seed", ""]
    for answer in random.Random(results.recipe["seed"]).sample(answers, EXAMPLES):
        sample = answer.samples[-1]
        lines += [f"**{answer.instruction.text}** ({sample.outcome})", ""]
        lines += ["".join(f"    {line}".rstrip() + "\n" for line in sample.text.splitlines())]
    return lines


def _judge(accuracy: dict[str, Any]) -> list[str]:
    rows = [[name, value] for name, value in accuracy.items() if isinstance(value, int | float | str)]
    return table("figure: | value:", rows)


def share(rate: ShareFigures) -> str:
    """Return a share with its interval and n, such as "62.0 % (51.1 to 71.9, n 80)"."""
    if rate.value is None:
        return "-"
    return f"{percent(rate.value)} ({100 * rate.low:.1f} to {100 * rate.high:.1f}, n {rate.n})"


def length(mean: Any) -> str:
    """Return a mean length with its interval."""
    if mean.value is None:
        return "-"
    return f"{mean.value:.1f}" + ("" if mean.half_width is None else f" ± {mean.half_width:.1f}")


def main() -> None:
    """Run the recipe with every seed and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", type=Path, default=FOLDER / MODELS[0].file)
    parser.add_argument("--judge", type=Path, default=FOLDER / MODELS[1].file)
    parser.add_argument("--pairs", type=Path, help="labelled pairs, such as LLMBar's Natural, to measure the judge on")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to tpo-lite train")
    parser.add_argument("--results", type=Path, default=RESULTS / "real.md")
    options = parser.parse_args()
    runs = [options.out / f"seed-{seed}" for seed in range(options.seeds)]
    for seed, run in enumerate(runs):
        train(run, seed, options.model, options.judge, options.overrides)
    recipe = read_json(runs[0] / "results.json")["recipe"]
    accuracy = judge_accuracy(options.pairs, options.judge, options.out, recipe) if options.pairs else None
    command = " ".join(["python -m benchmarks.real", *sys.argv[1:]])
    write(options.results, report(runs, accuracy, command))


if __name__ == "__main__":
    main()
