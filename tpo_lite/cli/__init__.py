"""The command line. Thin: every command reads its options and calls one function."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from tpo_lite import __version__
from tpo_lite.cli import doctor, judge, merge, plan
from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError
from tpo_lite.machine.device import use_device


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tpo-lite")
def main() -> None:
    """Thought Preference Optimization on one consumer GPU.

    `tpo-lite train` runs the whole loop: sample thoughts and responses, judge the responses, pair best and
    worst, train with DPO, fold the adapter, and again.
    """


@main.command()
@click.option(
    "--recipe", help="A recipe's name or file. [default: embedded without a GPU, llama-3.1-8b-24gb with --gpu]"
)
@click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts.")
@click.option("--cpu", is_flag=True, help="Use no GPU.")
@click.option("--prompts", help="Instructions: a JSONL, CSV, Parquet or text file, or hub:name[:split[:column]].")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder. [default: runs/RECIPE]")
@click.option("--iterations", type=click.IntRange(min=1), help="How many rounds.")
@click.option("--seed", type=int, help="Decides slices, samples and training order.")
@click.option("--merge-base", type=click.Choice(["w16", "nf4"]), help="With merge: requantize, what to merge into.")
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
    prompts: str | None,
    out: Path | None,
    iterations: int | None,
    seed: int | None,
    merge_base: str | None,
    overrides: tuple[str, ...],
    skip_bad: bool,
    allow_leakage: bool,
    new: bool,
    plan_only: bool,
    debug: bool,
) -> None:
    """Runs Thought Preference Optimization, or goes on with a run that was stopped.

    Without a GPU and without a recipe it runs the embedded one: a small model, judge and world that come
    with the package, on the CPU.
    """
    from rich.console import Console

    from tpo_lite.loop import orchestrator, results, tables
    from tpo_lite.recipe import load_recipe, recipe_path
    from tpo_lite.run import RunFolder

    if cpu and gpu is not None:
        raise InputError("--gpu and --cpu exclude each other; give one.")
    use_device(gpu)
    name = recipe or ("embedded" if gpu is None else "llama-3.1-8b-24gb")
    # The named options come after --set: they say the same as a key, and the shorter way wins.
    shorter = {
        "instructions.source": prompts,
        "iterations": iterations,
        "seed": seed,
        "merge_base": merge_base,
        "instructions.skip_bad": skip_bad or None,
        "instructions.allow_leakage": allow_leakage or None,
    }
    named = [f"{key}={json.dumps(value)}" for key, value in shorter.items() if value is not None]
    loaded = load_recipe(name, [*overrides, *named])
    run = RunFolder(out or Path("runs") / recipe_path(name).stem)
    if recipe is None and gpu is None:
        click.echo("No recipe and no --gpu: running the embedded recipe, a small world on the CPU.")
    loaded = plan.plan_first(loaded, gpu, None if new else run)
    if plan_only:
        return
    run.start(loaded, new)
    click.echo(f"run folder: {run.root}")
    console = Console()

    def show(iteration: int) -> None:
        tables.print_iteration(results.read_results(run), iteration, console)

    try:
        orchestrator.train(run, debug, show)
    except orchestrator.PhaseFailed as failed:  # the phase has said why
        sys.exit(failed.exit_code)
    tables.print_final(results.read_results(run), console)
    for arm in loaded.arms:
        model = run.trained(arm, loaded.iterations)
        made = run.iteration(arm, model - 1) / ("model" if loaded.merge == "requantize" else "adapter")
        click.echo(f"{arm} M_{loaded.iterations}: {made if model else 'M_0 itself; the judge preferred no checkpoint'}")


@main.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print what results.json holds, and the phase to come.")
@reporting
def status(run_dir: Path, as_json: bool, debug: bool) -> None:
    """Shows how far a run is and its figures."""
    from rich.console import Console

    from tpo_lite.loop import results, tables
    from tpo_lite.run import RunFolder

    run = RunFolder(run_dir)
    collected = results.collect(run)
    coming = next_phase(run)
    if as_json:
        click.echo(json.dumps(collected.to_dict() | {"next": coming}, indent=2))
        return
    console = Console()
    for iteration in range(max(len(arm.iterations) for arm in collected.arms.values())):
        tables.print_iteration(collected, iteration, console)
    tables.print_final(collected, console)
    if coming is None:
        click.echo("finished")
    else:
        where = f"{coming['arm']}, iteration {coming['iteration'] + 1}, " if coming["arm"] else ""
        click.echo(f"next: {where}{coming['phase']}")


def next_phase(run: Any) -> dict[str, Any] | None:
    """The first phase that is not finished, or None."""
    from tpo_lite.loop.orchestrator import steps

    for phase, arm, iteration in steps(run.recipe):
        if not run.is_done(phase, arm, iteration):
            return {"phase": phase, "arm": arm, "iteration": iteration}
    return None


@main.group()
def recipes() -> None:
    """The recipes that come with the package."""


@recipes.command("list")
def list_recipes() -> None:
    """Lists recipes by name."""
    from tpo_lite.recipe import shipped

    for path in shipped():
        click.echo(f"{path.stem:<28} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@recipes.command("show")
@click.argument("name")
@reporting
def show_recipe(name: str, debug: bool) -> None:
    """Prints a recipe."""
    from tpo_lite.recipe import recipe_path

    click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


main.add_command(judge.judge)
main.add_command(doctor.doctor)
main.add_command(merge.merge_report)
main.add_command(plan.plan)


def _add_phase(name: str, summary: str, per_arm: bool) -> None:
    # `judge` does more than the phase, which is `judge RUN_DIR`.
    group, shown = (judge.judge, judge.judge.phase) if name == "judge" else (main, name)

    @group.command(shown, help=f"{summary} A phase of `train`, by hand.")
    @click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option("--arm", default=None, help="thinking or direct; default: the run's first.")
    @click.option(
        "--iteration", type=click.IntRange(min=0), default=0, show_default=True, help="t: from M_t to M_{t+1}."
    )
    @reporting
    def command(run_dir: Path, arm: str | None, iteration: int, debug: bool) -> None:
        from tpo_lite.phases.process import run_phase
        from tpo_lite.run import RunFolder

        run_phase(name, run_dir, (arm or RunFolder(run_dir).recipe.arms[0]) if per_arm else None, iteration)


for _name, _summary in (
    ("prepare", "Reads instructions and cuts them into slices."),
    ("generate", "Samples K thoughts and responses an instruction."),
    ("judge", "Compares the responses of each instruction."),
    ("pair", "Rates responses, controls length, makes pairs."),
    ("dpo", "Trains on the pairs."),
    ("validate", "Samples every checkpoint on the validation slice."),
    ("select", "Lets the judge choose the checkpoint."),
    ("fold", "Makes the checkpoint M_{t+1}."),
):
    _add_phase(_name, _summary, per_arm=_name != "prepare")
