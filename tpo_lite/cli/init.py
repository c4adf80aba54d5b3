"""`tpo-lite init`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from tpo_lite.machine.cards import Card


@click.command()
@click.option("--card-gb", type=click.FloatRange(min=0, min_open=True), help="For a card with this many GiB.")
@click.option("--cpu", is_flag=True, help="For this machine without a GPU.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="The most hours that the run may take.")
@click.option("--data", help="Instructions: a file, hub:name[:split[:column]], or everyday (600 that come along).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("recipe.yaml"),
    show_default=True,
    help="File to write.",
)
@reporting
def init(card_gb: float | None, cpu: bool, hours: float | None, data: str | None, out: Path, debug: bool) -> None:
    """Write a commented recipe for your card, hours and data.

    What no option says is asked: three questions at most. The recipe is a shipped one whose model fits the card, with
    as many instructions as fit the hours. An answer of - keeps the recipe's own.
    """
    from tpo_lite.files import write_atomically
    from tpo_lite.plan.fitted import as_text, fit
    from tpo_lite.plan.report import duration

    if cpu and card_gb is not None:
        raise InputError("--card-gb and --cpu exclude each other; give one.")
    if out.exists():
        raise InputError(f"{out} exists, and init overwrites nothing. Give another --out.")
    card = _card(card_gb, cpu)
    if hours is None:
        hours = _number(_ask("Hours that the run may take (- for as long as the recipe takes)", "-"), "hours")
    elif not math.isfinite(hours):
        raise InputError("--hours takes a number, such as 8.")
    if data is None:
        data = _ask("Instructions: a file, hub:name, everyday, or - for the recipe's own", "-")
    if not card.cuda:
        click.echo("Measuring this CPU ...", err=True)
    fitted = fit(card, hours, None if data == "-" else data)
    write_atomically(out, as_text(fitted, str(out)))
    settings = fitted.recipe.instructions
    click.echo(
        f"{out}: {fitted.recipe.model}, {fitted.recipe.iterations} x {settings.per_iteration} instructions from "
        f"{settings.source}, about {duration(fitted.plan.seconds)}."
    )
    click.echo(f"Next: tpo-lite train --recipe {out} {'--gpu 0' if card.cuda else '--cpu'}")


def _card(gib: float | None, cpu: bool) -> Card:
    """Return the card that the options name, or else the answer to a question."""
    from tpo_lite.machine import cards

    if gib is None and not cpu:
        here = _card_here()
        default = "cpu" if here is None else f"{here.memory / cards.GIB:.1f}"
        answer = _ask("GiB of your card's memory (cpu for none)", default)
        if here is not None and answer == default:
            return here
        cpu = answer.lower() == "cpu"
        gib = None if cpu else _number(answer, "card-gb")
    if gib is not None and not math.isfinite(gib):
        raise InputError("--card-gb takes a number of GiB, such as 24.")
    return cards.cpu() if cpu else cards.choose_card(gib)


def _card_here() -> Card | None:
    """Return the first GPU of this machine; None where nvidia-smi finds none."""
    from tpo_lite.machine.cards import choose_card

    try:
        return choose_card(None)
    except InputError:
        return None


def _number(answer: str, option: str) -> float | None:
    """Return an answer as a number above 0; None for -. Raises `InputError` with the option to give instead."""
    if answer == "-":
        return None
    try:
        number = float(answer)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{answer!r} is not a number above 0. Answer with one, or give --{option}.")
    return number


def _ask(question: str, default: str) -> str:
    """Return the answer to a question. Raises `InputError` where nobody answers."""
    try:
        return str(click.prompt(question, default=default)).strip()
    except click.Abort as error:
        raise InputError(
            "init needs answers. Give --card-gb or --cpu, --hours and --data to be asked nothing."
        ) from error
