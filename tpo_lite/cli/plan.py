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
    from tpo_lite.settled import SettledRecipe

DEFAULT = "llama-3.1-8b-24gb"
"""The recipe that `train --gpu` takes."""


class DoesNotFit(InputError):
    """A recipe needs more memory than the card has."""


@click.command()
@click.option("--recipe", help="A recipe's name or file. [default: llama-3.1-8b-24gb, or embedded with --cpu]")
@click.option("--gpu", type=click.IntRange(min=0), default=0, show_default=True, help="Plan for this GPU.")
@click.option(
    "--card-gb",
    type=click.FloatRange(min=0, min_open=True),
    help="Plan for a card with this many GiB instead of --gpu.",
)
@click.option("--cpu", is_flag=True, help="Plan for this machine without a GPU.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Plan an existing run, with its recipe and measured times.",
)
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
    """Predict memory, disk and hours of a recipe, phase by phase, without weights and without a GPU.

    If a phase does not fit, the exit code is 2 and the message names the smallest change that makes it fit.
    """
    from tpo_lite.machine import cards
    from tpo_lite.recipe import load_recipe
    from tpo_lite.run import RunFolder

    if card_gb is not None and not math.isfinite(card_gb):
        raise InputError("--card-gb takes a number of GiB, such as 24.")
    if cpu and card_gb is not None:
        raise InputError("--card-gb and --cpu exclude each other; give one.")
    if out is not None and (recipe or overrides):
        raise InputError("--out shows a run with the recipe it was started with; leave out --recipe and --set.")
    run = RunFolder(out) if out is not None else None
    name = recipe or ("embedded" if cpu else DEFAULT)
    loaded = load_recipe(name, overrides) if run is None else run.load_settled()
    show_plan(loaded, cards.cpu() if cpu else cards.choose_card(card_gb, gpu), run, as_json)


def show_plan(recipe: Recipe, card: Card, run: RunFolder | None = None, as_json: bool = False) -> SettledRecipe:
    """Print the plan and return the recipe as it was settled for the card.

    A run that goes on keeps its values, and its finished phases have times of their own. Raises `DoesNotFit` with each
    phase that does not fit and the smallest change that makes it fit; a run that goes on finds that out by itself, and
    backs off.
    """
    from rich.console import Console

    from tpo_lite.machine.cards import cpu, free_disk
    from tpo_lite.plan.rates import seconds_of
    from tpo_lite.plan.report import as_data, make_plan, print_plan, short_of

    recorded = run.load_recorded() if run else None
    plan = make_plan(recipe, card, recorded, seconds_of(run) if run and recorded else None)
    if as_json:
        click.echo(json.dumps(as_data(plan), indent=2))
    else:
        print_plan(plan, Console())
        if not recorded:  # a run that goes on has some of its files on the disk already
            for short in short_of(plan, free_disk(run.root if run else Path.cwd()), cpu().memory):
                click.echo(f"warning: {short}")
    refusal = plan.refusal()
    if refusal and not recorded:
        raise DoesNotFit(f"plan: {refusal}")
    return plan.recipe


def plan_first(recipe: Recipe, gpu: int | None, run: RunFolder | None) -> SettledRecipe:
    """Print what `train` shows before it starts or goes on with `run`, and return the settled recipe.

    There is no plan for a model whose shape cannot be read; its phases will say what is wrong with it. But an `auto`
    that depends on memory needs a plan. Raises `InputError` if there is none for it, and `DoesNotFit`.
    """
    from tpo_lite.machine.cards import CARDS, choose_card, cpu
    from tpo_lite.plan.rates import choose_engine
    from tpo_lite.plan.report import go_on
    from tpo_lite.recipe import with_keys
    from tpo_lite.settled import as_settled, open_keys

    card = cpu() if gpu is None else CARDS[0]  # where a GPU cannot be asked, any will do to choose an engine
    recorded = run.load_recorded() if run else None
    try:
        card = card if gpu is None else choose_card(None, gpu)
        return show_plan(recipe, card, run)
    except InputError as error:
        if isinstance(error, DoesNotFit) or (recorded is None and set(open_keys(recipe)) - {"engine", "quantize"}):
            raise
        click.echo(f"no plan: {error}")
    if recorded is not None:
        settled, why = go_on(recipe, recorded)
    else:
        engine, why = choose_engine(recipe, card, lambda engine: True)
        quantize = "nf4" if recipe.quantize == "auto" else recipe.quantize
        settled = as_settled(with_keys(recipe, {"engine": engine, "quantize": quantize}))
    click.echo(f"engine: {settled.engine} ({why})")
    click.echo(f"quantize: {settled.quantize}")
    return settled


def record_plan(folder: RunFolder, gpu: int | None) -> None:
    """Write RUN/plan.json, which reports compare a run with, unless it is there or there is no plan.

    The plan is the one that was shown before the run started, not one that knows the run's own times.
    """
    from tpo_lite.files import write_json
    from tpo_lite.machine.cards import choose_card, cpu
    from tpo_lite.people.costs import PLAN
    from tpo_lite.plan.report import as_data, make_plan

    if (folder.root / PLAN).exists():
        return
    settled = folder.load_started()
    try:
        plan = make_plan(settled, cpu() if gpu is None else choose_card(None, gpu), settled)
    except InputError:  # `plan_first` has said why
        return
    write_json(folder.root / PLAN, as_data(plan))
