"""What each merge between iterations does to accuracy, and what fold's rank costs in memory and speed.

    python -m benchmarks.merging --seeds 3 --jobs 2                     # the embedded recipe under every merge
    python -m benchmarks.merging --ranks --model MODEL --device cuda --tokens 2048

The first runs the thinking arm of the embedded recipe for every merge and seed, measures M_0 ... M_3 as
benchmarks/embedded.py does, and writes results/merging.md. Up to its first merge a run is the same whatever the merge:
that part is computed once per seed, by `fold`, and the other runs start with a copy of it. A seed draws the same
samples under every merge, so differences to `fold` are taken seed by seed. Finished runs are not run again.

The second trains adapters of the ranks that `fold` reaches, with the options of benchmarks/training.py, and writes
results/merging-ranks.md. MODEL is a folder, such as one that `benchmarks.make_model` writes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.embedded import HELD_OUT, cell, each, held_out, run_recipe, seconds
from benchmarks.measuring import bytes_of, write_adapter_to
from benchmarks.tables import RESULTS, heading, peaks, table, write
from benchmarks.training import median_speed, run_alone
from benchmarks.training import parser as training_parser
from tpo_lite.intervals import mean
from tpo_lite.loop import merge_report
from tpo_lite.phase_order import phases_of
from tpo_lite.phases.process import keep_libraries_quiet
from tpo_lite.run import KEPT, RunFolder

ARM = "thinking"
REFERENCE = "fold"
MERGES = {
    "fold": {"merge": "fold"},
    "continue": {"merge": "continue"},
    "requantize w16": {"merge": "requantize", "merge_base": "w16"},
    "requantize nf4": {"merge": "requantize", "merge_base": "nf4"},
}
"""The recipe's keys for each merge, by the name that `tpo-lite merge-report` gives it."""
RANKS = (16, 32, 48, 64)


def folder(out: Path, merge: str, seed: int) -> Path:
    """Return the run folder of a merge and a seed."""
    return out / f"{merge.replace(' ', '-')}-seed-{seed}"


def run_merge(out: Path, merge: str, seed: int, overrides: list[str], count: int) -> None:
    """Train, measure M_0 ... M_3 and the merges themselves; go on where an earlier call stopped."""
    keep_libraries_quiet()
    root = folder(out, merge, seed)
    if merge != REFERENCE and not root.exists():
        copy_up_to_merge(folder(out, REFERENCE, seed), root, MERGES[merge])
    keys = ["baseline=false", *overrides, *(f"{key}={value}" for key, value in MERGES[merge].items())]
    run_recipe(root, seed, keys)
    held_out(root, count)
    merge_report.measure(RunFolder(root), debug=False)


def copy_up_to_merge(source: Path, out: Path, merge: dict[str, str]) -> None:
    """Start the run `out` with everything that the run `source` did before its first merge.

    The two differ only in their merge. `tpo-lite train` goes on from there, as after a kill.
    """
    run = RunFolder(source)
    recipe = run.load_started().model_copy(update=merge)
    copy = RunFolder(out.with_name(f"{out.name}.tmp"))
    shutil.rmtree(copy.root, ignore_errors=True)
    copy.start(recipe, recipe, run.load_place(), new=False)
    shutil.copytree(source / "instructions", copy.root / "instructions")
    phases = phases_of(recipe)
    later = phases[phases.index("fold") :]
    made_later = ["adapter", "model", "test", "seconds.json", *(f"{phase}.json" for phase in [*later, "merge_report"])]
    for arm in recipe.arms:
        ignored = shutil.ignore_patterns(*made_later)
        shutil.copytree(run.iteration(arm, 0), copy.iteration(arm, 0), ignore=ignored)
        for answers in (source / arm).glob("base-*.jsonl"):
            shutil.copy2(answers, copy.root / arm)
        for phase, spent in run.seconds(arm, 0).items():
            if phase not in later:
                copy.record_seconds(phase, arm, 0, spent)
    copy.root.rename(out)  # never half a copy


def run_all(options: argparse.Namespace) -> None:
    """Run every merge and seed, `--jobs` at a time; `fold` first, since the others begin with a copy of its runs."""
    # Every run gets the same number of threads. Sums in another order would make runs differ by more than their merge.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    spawn = get_context("spawn")
    for merges in ([REFERENCE], [merge for merge in MERGES if merge != REFERENCE]):
        # One process per run: a model that was measured gives its memory back only when its process ends.
        with ProcessPoolExecutor(options.jobs, spawn, max_tasks_per_child=1) as pool:
            running: dict[str, Future[None]] = {}
            for seed in range(options.seeds):
                for merge in merges:
                    root = str(folder(options.out, merge, seed))
                    asked = options.out, merge, seed, options.overrides, options.held_out
                    running[root] = pool.submit(run_merge, *asked)
            for root, run in running.items():
                run.result()
                print(f"finished: {root}", flush=True)


def report(runs: dict[str, list[Path]], count: int, command: str) -> str:
    """Return the text of results/merging.md, from the finished runs of each merge in the order of their seeds."""
    accuracy = {merge: [accuracies(root, count) for root in roots] for merge, roots in runs.items()}
    models = range(len(accuracy[REFERENCE][0]))
    names = [f"M_{model}" for model in models]
    n_seeds, last = len(runs[REFERENCE]), names[-1]
    final = {merge: differences(accuracy, merge, models[-1]) for merge in MERGES if merge != REFERENCE}
    rows = [
        [
            merge,
            *(cell([of[model] for of in accuracy[merge]]) for model in models),
            each([of[-1] for of in accuracy[merge]]),
            f"{kept(roots)} of {n_seeds * models[-1]}",
            f"{mean([seconds(root) / 60 for root in roots]).value:.1f}",
            f"{mean([disk(root) / 1e6 for root in roots]).value:.1f}",
        ]
        for merge, roots in runs.items()
    ]
    against = [
        [merge, *(cell(differences(accuracy, merge, model)) for model in models[1:]), each(values)]
        for merge, values in final.items()
    ]
    divergences = [cells for merge, roots in runs.items() for cells in divergence_rows(merge, roots, models[-1])]
    return "\n".join(
        [
            *heading("Merging between iterations", "cpu", command),
            f"The thinking arm of the embedded recipe; mean over {n_seeds} seeds with the 95 % t interval, in percent. "
            f"Each model answers {count} held-out instructions once at T = 0.8, top-p 0.95, in NF4; a malformed output "
            "is wrong. Minutes are a run's wall time; the part before the first merge is what fold's run took. "
            "Disk is what the last model takes beside its base.",
            "",
            *table(f"merge: | {' | '.join(names)} | {last}, each seed: | M_t kept | minutes | disk, MB", rows),
            "",
            f"Accuracy less that of {REFERENCE} with the same seed, in points:",
            "",
            *table(f"merge: | {' | '.join(names[1:])} | {last}, each seed:", against),
            "",
            f"{last} with an interval that excludes 0: better than {REFERENCE}: {clear(final, 1)}; worse: "
            f"{clear(final, -1)}.",
            "",
            "What each merge makes of the updates of each run (`tpo-lite merge-report`): the norm of the iteration's "
            "update relative to the weights, and KL(base + adapter || merged) in nats a token; `none` loses the "
            "update. Means over the seeds whose iteration chose a checkpoint. In runs with fold or continue, "
            "requantize merges the updates of all iterations so far into the original base.",
            "",
            *table(f"run: | made: | update, % | none | {' | '.join(MERGES)}", divergences),
            "",
        ]
    )


def accuracies(root: Path, count: int) -> list[float]:
    """Return the held-out accuracy of M_0, M_1, ... of a run."""
    return [figures["accuracy"] for figures in held_out(root, count)[ARM]]


def differences(accuracy: dict[str, list[list[float]]], merge: str, model: int) -> list[float]:
    """Return M_model's accuracy less that of the reference, seed by seed."""
    return [ours[model] - theirs[model] for ours, theirs in zip(accuracy[merge], accuracy[REFERENCE], strict=True)]


def clear(final: dict[str, list[float]], sign: int) -> str:
    """Return the merges whose interval lies on one side of 0: above it for `sign` 1, below it for -1."""
    found = []
    for merge, values in final.items():
        average = mean(values)
        if average.half_width is not None and sign * average.value > average.half_width:
            found.append(merge)
    return ", ".join(found) or "none"


def kept(roots: list[Path]) -> int:
    """Return the number of iterations in which the judge preferred none of the checkpoints."""
    runs = [RunFolder(root) for root in roots]
    return sum(run.chosen(ARM, iteration) == KEPT for run in runs for iteration in range(run.load_started().iterations))


def disk(root: Path) -> int:
    """Return the bytes that a run's last model takes beside its base: an adapter or a whole model; 0 for M_0."""
    run = RunFolder(root)
    model = run.trained(ARM, run.load_started().iterations)
    if model == 0:
        return 0
    made = run.iteration(ARM, model - 1)
    return bytes_of((made / ("model" if run.load_started().merge == "requantize" else "adapter")).iterdir())


def divergence_rows(merge: str, roots: list[Path], iterations: int) -> list[list[str]]:
    """Return the merge report of a merge's runs, one row per iteration."""
    reports = [merge_report.measure(RunFolder(root), debug=False) for root in roots]
    rows = []
    for iteration in range(iterations):
        entries = [report[iteration].summary for report in reports if report[iteration].summary.strategies]
        if entries:
            norm = statistics.fmean(entry.update_norm for entry in entries)
            kls = [statistics.fmean(entry.strategies[name].kl for entry in entries) for name in ("none", *MERGES)]
            rows.append([merge, f"M_{iteration + 1}", f"{100 * norm:.1f}", *(f"{kl:.1e}" for kl in kls)])
    return rows


def measure_ranks(flags: list[str], options: argparse.Namespace) -> dict[int, list[dict[str, Any]]]:
    """Measure `ours` of benchmarks/training.py at each rank, ranks in turns, and the size of its adapter."""
    measured: dict[int, list[dict[str, Any]]] = {rank: [] for rank in RANKS}
    for number in range(options.rounds):
        for rank, runs in measured.items():
            found = run_alone([*flags, "--path", "ours", "--rank", str(rank)])
            runs.append(found | {"adapter": adapter_bytes(options.model, rank)})
            print(f"round {number + 1}, rank {rank}: {runs[-1]}", flush=True)
    return measured


def adapter_bytes(model: str, rank: int) -> int:
    """Return the bytes of an adapter's folder, as `fold` writes it."""
    with tempfile.TemporaryDirectory() as work:
        write_adapter_to(Path(work), model, rank)
        return bytes_of((Path(work) / "adapter").iterdir())


def rank_report(measured: dict[int, list[dict[str, Any]]], command: str, options: argparse.Namespace) -> str:
    """Return the text of results/merging-ranks.md; `options` are those of benchmarks/training.py."""
    rows = [rank_row(rank, runs, measured[RANKS[0]]) for rank, runs in measured.items()]
    return "\n".join(
        [
            *heading("What fold's rank costs", options.device, command),
            f"Model: {Path(options.model).name}, in NF4. With `lora.rank: {RANKS[0]}`, iteration t trains an adapter "
            f"of rank {RANKS[0]} x t, at the same cost if older blocks are frozen: their gradients are computed and "
            "dropped. "
            f"{options.pairs} pairs of {options.tokens} tokens a side, {options.micro_batch} at a time, "
            f"{'with' if options.gradient_checkpointing else 'without'} gradient checkpointing, {options.optimizer}; "
            "tokens of both sides counted. Peaks are the whole process's, from loading on.",
            "",
            *table(
                f"rank | adapter, MB | tokens/s, each round: | median | x rank {RANKS[0]} | pairs/s | peak RAM, GB "
                "| peak GPU, GB",
                rows,
            ),
            "",
        ]
    )


def rank_row(rank: int, runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> list[str]:
    """Return a rank's figures, compared with the first rank's; if it failed, its last words instead."""
    cells = [str(rank), f"{runs[0]['adapter'] / 1e6:.1f}"]
    speed, unit = median_speed(runs), median_speed(first)
    if speed is None:
        cells += [next(run["error"] for run in runs if "error" in run), *["-"] * 5]
    else:
        cells += [", ".join(f"{run['tokens_per_second']:.1f}" for run in runs), f"{speed:.1f}"]
        cells.append(f"{speed / unit:.2f}" if unit else "-")
        cells.append(f"{statistics.median(run['pairs_per_second'] for run in runs):.3f}")
        cells += peaks(runs)
    return cells


def main() -> None:
    """Run what is asked for, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--out", type=Path, default=Path("runs/merging"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="passed on to tpo-lite train")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="instructions that a model is measured on")
    parser.add_argument("--ranks", action="store_true", help="measure fold's ranks; options of benchmarks.training")
    parser.add_argument("--results", type=Path)
    options, flags = parser.parse_known_args()
    command = " ".join(["python -m benchmarks.merging", *sys.argv[1:]])
    if options.ranks:
        of_training = training_parser().parse_args(flags)
        path, text = RESULTS / "merging-ranks.md", rank_report(measure_ranks(flags, of_training), command, of_training)
    else:
        if flags:
            parser.error(f"unknown: {' '.join(flags)}")
        run_all(options)
        runs = {merge: [folder(options.out, merge, seed) for seed in range(options.seeds)] for merge in MERGES}
        path, text = RESULTS / "merging.md", report(runs, options.held_out, command)
    write(options.results or path, text)


if __name__ == "__main__":
    main()
