"""`tpo-lite recipes`."""

from __future__ import annotations

import click

from tpo_lite.cli.errors import reporting


@click.group()
def recipes() -> None:
    """The recipes that come with the package."""


@recipes.command("list")
def list_recipes() -> None:
    """List recipes by name."""
    from tpo_lite.recipe import shipped

    for path in shipped():
        click.echo(f"{path.stem:<28} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@recipes.command("show")
@click.argument("name")
@reporting
def show_recipe(name: str, debug: bool) -> None:
    """Print a recipe."""
    from tpo_lite.recipe import recipe_path

    click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)
