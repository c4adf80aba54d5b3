"""The generated parts of the docs: the file map from docstrings, the commands from click. Run by `make docs`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

PACKAGE = Path(__file__).parents[1] / "tpo_lite"
ROOMS = ["instructions", "sampling", "llamacpp", "judges", "preferences", "training", "phases", "loop"]
ROOMS += ["calibration", "evaluation", "plan", "machine", "people", "share", "serving", "cli", "embedded"]
"""In the order in which data moves."""


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", first)[0].removesuffix(".")


def modules(folder: Path) -> list[Path]:
    """Return the modules of a folder by name, without those whose names begin with an underscore."""
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def room_map() -> str:
    """Return a table of the root's modules and the rooms, one line each."""
    lines = ["| where | what |", "|---|---|"]
    lines += [f"| `{path.name}` | {summary(path)} |" for path in modules(PACKAGE)]
    lines += [f"| `{room}/` | {summary(PACKAGE / room / '__init__.py')} |" for room in ROOMS]
    return "\n".join(lines)


def file_map() -> str:
    """Return a table of every module, room by room."""
    parts = []
    for room in ROOMS:
        parts.append(f"\n**`{room}/`**: {summary(PACKAGE / room / '__init__.py')}\n\n| file | what |\n|---|---|")
        for path in [path for folder in (room, f"{room}/engines") for path in modules(PACKAGE / folder)]:
            parts.append(f"| `{path.relative_to(PACKAGE / room)}` | {summary(path)} |")
    return "\n".join(parts)


def commands() -> Iterator[tuple[click.Context, click.Command]]:
    """Yield every command of `tpo-lite` with its context, groups before what is in them."""
    from tpo_lite.cli import main

    def walk(context: click.Context, command: click.Command) -> Iterator[tuple[click.Context, click.Command]]:
        yield context, command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None:
                    yield from walk(click.Context(child, info_name=name, parent=context), child)

    # click wraps help to the terminal, and the docs must not depend on it.
    settings = main.context_settings | {"terminal_width": 100, "max_content_width": 100}
    root = click.Context(main, info_name="tpo-lite", **settings)
    yield from walk(root, main)


def command_table() -> str:
    """Return a table of the commands, one line each."""
    lines = ["| command | what it does |", "|---|---|"]
    for context, command in commands():
        if not isinstance(command, click.Group):
            lines.append(f"| `{context.command_path}` | {command.get_short_help_str(200).removesuffix('.')} |")
    return "\n".join(lines)


def command_reference() -> str:
    """Return the help of every command."""
    parts = []
    for context, command in commands():
        parts.append(f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
