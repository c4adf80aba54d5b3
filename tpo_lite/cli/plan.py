"""`tpo-lite plan`, and what `train` shows before it starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from tpo_lite.machine.cards import Card
    from tpo_lite.recipe import Recipe
    from tpo_lite.run import RunFolder


DEFAULT = "llama-3.1-8b-24gb"
"""The recipe that `train --gpu` takes."""


class DoesNotFit(InputError):
    """A recipe needs more memory than the card has."""


@click.command()
@click.option("--recipe", help="A recipe's name or file. [default: llama-3.1-8b-24gb, or embedded with --cpu]")
@click.option("--gpu", type=click.IntRange(min=0), default=0, show_default=True, help="Plan for this GPU.")
@click.option("--card-gb", type=click.FloatRange(min=0, min_open=True), help="Plan for a card of so many GiB instead.")
@click.option("--cpu", is_flag=True, help="Plan for this machine without a GPU.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="A run: its recipe and its own times.")
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override any key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def plan(
    recipe: str | None,
    gpu: int,
    card_gb: float | None,
    cpu: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    debug: bool,
) -> None:
    """Predicts memory, disk and hours of a recipe, phase by phase, without weights and without a GPU.

    Ends with exit code 2, and the smallest change that would do, if a phase does not fit.
    """
    from tpo_lite.machine.cards import choose_card
    from tpo_lite.machine.cards import cpu as this_cpu
    from tpo_lite.recipe import load_recipe
    from tpo_lite.run import RunFolder

    if card_gb is not None and not math.isfinite(card_gb):
        raise InputError("--card-gb takes a number of GiB, such as 24.")
    if cpu and card_gb is not None:
        raise InputError("--card-gb and --cpu exclude each other; give one.")
    if out is not None and (recipe or overrides):
        raise InputError("--out shows a run with the recipe it was started with; leave out --recipe and --set.")
    run = RunFolder(out) if out is not None else None
    loaded = run.recipe if run else load_recipe(recipe or ("embedded" if cpu else DEFAULT), list(overrides))
    show_plan(loaded, this_cpu() if cpu else choose_card(card_gb, gpu), run, as_json)


def show_plan(recipe: Recipe, card: Card, run: RunFolder | None = None, as_json: bool = False) -> Recipe:
    """Prints the plan and returns the recipe with every `auto` that memory depends on settled.

    A run folder that was started keeps its picks, and the times of its finished phases are its own. Raises
    `DoesNotFit` that names each phase that does not, with the smallest change that would do; a run that was started
    finds that out by itself, and backs off.
    """
    from rich.console import Console

    from tpo_lite.machine.cards import cpu, free_disk
    from tpo_lite.plan.rates import seconds_of
    from tpo_lite.plan.report import as_data, make_plan, print_plan, short_of

    recorded = recorded_in(run)
    plan = make_plan(recipe, card, recorded, seconds_of(run) if recorded else None)
    if as_json:
        click.echo(json.dumps(as_data(plan), indent=2))
    else:
        print_plan(plan, Console())
        if not recorded:  # of a run that was started some is there already
            for short in short_of(plan, free_disk(run.root if run else Path.cwd()), cpu().memory):
                click.echo(f"warning: {short}")
    refusal = plan.refusal()
    if refusal and not recorded:
        raise DoesNotFit(f"plan: {refusal}")
    return plan.recipe


def plan_first(recipe: Recipe, gpu: int | None, run: RunFolder | None) -> Recipe:
    """What `train` prints before it starts or goes on with `run`; the recipe with every `auto` settled.

    A model whose shape cannot be read is none to plan for, and its phases will say what is wrong with it. But
    `auto` in what memory depends on needs a plan. Raises `InputError` for that, and `DoesNotFit`.
    """
    from tpo_lite.machine.cards import CARDS, choose_card, cpu
    from tpo_lite.plan.choices import open_keys
    from tpo_lite.plan.report import engine_of

    card = cpu() if gpu is None else CARDS[0]  # for the engine any stands in for a GPU that cannot be asked
    try:
        card = card if gpu is None else choose_card(None, gpu)
        return show_plan(recipe, card, run)
    except InputError as error:
        if isinstance(error, DoesNotFit) or open_keys(recipe):
            raise
        click.echo(f"no plan: {error}")
    engine, why = engine_of(recipe, card, recorded_in(run), lambda engine: True)
    click.echo(f"engine: {engine} ({why})")
    return recipe.model_copy(update={"engine": engine})


def recorded_in(run: RunFolder | None) -> Recipe | None:
    """The recipe of a run that was started, whose choices stay; None where nothing has been computed yet."""
    return run.started_with if run is not None and run.is_done("prepare", None, 0) else None
