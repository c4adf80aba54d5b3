"""`tpo-lite train`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.cli.plan import DEFAULT, plan_first, record_plan
from tpo_lite.cli.report import report_at_end
from tpo_lite.errors import InputError
from tpo_lite.kinds import MergeBase

if TYPE_CHECKING:
    from tpo_lite.run import RunFolder


@click.command()
@click.option("--recipe", help=f"A recipe's name or file. [default: embedded without a GPU, {DEFAULT} with --gpu]")
@click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts.")
@click.option("--cpu", is_flag=True, help="Use no GPU.")
@click.option("--prompts", help="Instructions: a JSONL, JSON, CSV, Parquet or text file, or hub:name[:split[:column]].")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder. [default: runs/RECIPE]")
@click.option("--iterations", type=click.IntRange(min=1), help="Number of iterations.")
@click.option("--seed", type=int, help="Decides slices, samples and training order.")
@click.option(
    "--merge-base", type=click.Choice(get_args(MergeBase)), help="With merge: requantize, what to merge into."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override any key of the recipe.")
@click.option("--skip-bad", is_flag=True, help="Count malformed lines of the instruction file instead of stopping.")
@click.option("--allow-leakage", is_flag=True, help="Keep instructions that are in AlpacaEval or Arena-Hard.")
@click.option("--new", is_flag=True, help="Move an existing run folder aside and start afresh.")
@click.option("--plan-only", is_flag=True, help="Print the plan of memory, disk and hours, and stop.")
@reporting
def train(
    recipe: str | None,
    gpu: int | None,
    cpu: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    new: bool,
    plan_only: bool,
    debug: bool,
    **named: Any,
) -> None:
    """Run Thought Preference Optimization, or go on with a run that was stopped.

    Without a GPU and without a recipe it runs the embedded one: a small model, judge and world that come
    with the package, on the CPU.
    """
    from tpo_lite.machine.device import place_of
    from tpo_lite.recipe import load_recipe, recipe_path
    from tpo_lite.run import RunFolder

    if cpu and gpu is not None:
        raise InputError("--gpu and --cpu exclude each other; give one.")
    place = place_of(gpu)
    name = recipe or ("embedded" if gpu is None else DEFAULT)
    # The named options come after --set: where both give a key, the named option wins.
    loaded = load_recipe(name, [*overrides, *_overrides(**named)])
    folder = RunFolder(out or Path("runs") / recipe_path(name).stem)
    if recipe is None and gpu is None:
        click.echo("No recipe and no --gpu: running the embedded recipe, a small world on the CPU.")
    if not new:
        loaded = folder.as_begun(loaded)
    settled = plan_first(loaded, gpu, None if new else folder)
    if plan_only:
        return
    folder.start(loaded, settled, place, new=new)
    record_plan(folder, gpu)
    click.echo(f"run folder: {folder.root}")
    run_phases(folder, debug=debug)


def _overrides(
    prompts: str | None,
    iterations: int | None,
    seed: int | None,
    merge_base: str | None,
    skip_bad: bool,
    allow_leakage: bool,
) -> list[str]:
    """Return the options that stand for a recipe's key as `key.path=value`."""
    values = {
        "instructions.source": prompts,
        "iterations": iterations,
        "seed": seed,
        "merge_base": merge_base,
        "instructions.skip_bad": skip_bad or None,
        "instructions.allow_leakage": allow_leakage or None,
    }
    return [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]


def run_phases(folder: RunFolder, *, debug: bool) -> None:
    """Run all phases that are not finished, showing each iteration's figures, then those of the run; write a report."""
    from rich.console import Console

    from tpo_lite.loop import orchestrator, results, tables

    console = Console()

    def show(iteration: int) -> None:
        tables.print_iteration(results.read_results(folder), iteration, console)

    try:
        orchestrator.train(folder, show, debug=debug)
    except orchestrator.PhaseFailed as failed:  # the phase has said why
        sys.exit(failed.exit_code)
    tables.print_final(results.read_results(folder), console)
    report_at_end(folder)
    recipe = folder.load_started()
    for arm in recipe.arms:
        model = folder.trained(arm, recipe.iterations)
        made = str(folder.iteration(arm, model - 1) / ("model" if recipe.merge == "requantize" else "adapter"))
        if model == 0:
            warm = folder.warm_adapter(arm)
            made = "M_0 itself; the judge preferred no checkpoint" + (
                f". M_0 is the warm start, {warm}" if warm else ""
            )
        click.echo(f"{arm} M_{recipe.iterations}: {made}")
