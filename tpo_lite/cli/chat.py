"""`tpo-lite chat`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.cli.serve import find, model_options
from tpo_lite.errors import TpoError
from tpo_lite.kinds import ThoughtPrompt

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tpo_lite.serving.loaded import LoadedModel
    from tpo_lite.serving.source import Source
    from tpo_lite.serving.talk import Answer, Talk

PROMPT = "> "


@click.command()
@model_options
@click.option("--history", type=click.Path(path_type=Path, dir_okay=False), help="JSONL file to add the exchanges to.")
@reporting
def chat(
    model: str,
    thought: ThoughtPrompt | None,
    gpu: int | None,
    cpu: bool,
    context: int,
    history: Path | None,
    debug: bool,
) -> None:
    """Talk to a model in the terminal, or through a pipe with one question in each line.

    MODEL is a run (RUN, RUN/thinking or RUN/thinking/iteration-0 for M_1), an adapter's folder, a GGUF, or a model's
    folder or hub id. Thoughts are hidden; /thoughts shows them, and /help lists the other commands.
    """
    from rich.console import Console

    source, on_gpu = find(model, thought, gpu, cpu)
    from tpo_lite.serving.loaded import LoadedModel
    from tpo_lite.serving.talk import Talk

    def open_model(source: Source) -> LoadedModel:
        return LoadedModel(source, gpu=on_gpu, context=context)

    console = Console(highlight=False)
    talk = Talk(source, open_model, history)
    try:
        if console.is_terminal:
            click.echo(f"Talking to {source.name}. /help lists the commands.")
        for line in _lines():
            if not _obey(talk, line, console):
                break
    finally:
        talk.close()


def _lines() -> Iterator[str]:
    """Yield what the user writes, line by line; with line editing in a terminal, and no prompt in a pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  input() uses it once it is imported

    while True:
        try:
            yield input(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


def _obey(talk: Talk, line: str, console: Console) -> bool:
    """Answer a line; return whether the conversation goes on. What goes wrong is said, and harms nothing."""
    try:
        if line.startswith("/"):
            said = talk.command(line)
            if said is not None:
                click.echo(said)
            return said is not None
        if line:
            show = _beside if talk.beside else _alone
            show(talk, line, console)
    except TpoError as error:
        click.echo(f"error: {error}", err=True)
    except KeyboardInterrupt:
        click.echo("\n(broken off)")
    return True


def _alone(talk: Talk, line: str, console: Console) -> None:
    """Show one model's reply as it comes, with a spinner for the thought unless thoughts are shown."""
    from rich.live import Live
    from rich.text import Text

    from tpo_lite.people.words import visible

    thinking = Live(_Thinking(), console=console, transient=True, refresh_per_second=10)
    responding = False
    if console.is_terminal and not talk.show_thoughts:
        thinking.start(refresh=True)
    try:
        for _, event in talk.ask(line):
            parts = event if isinstance(event, tuple) else None
            if parts and parts.thought and talk.show_thoughts:
                console.print(Text(visible(parts.thought), style="dim"), end="", soft_wrap=True)
            if parts and parts.response:
                if not responding:
                    thinking.stop()
                    if talk.show_thoughts and talk.answers[0].thought:
                        console.print("\n")
                responding = True
                console.print(Text(visible(parts.response)), end="", soft_wrap=True)
    finally:
        thinking.stop()
    console.print()
    if note := _note(talk.answers[0]):
        click.echo(note, err=True)


def _beside(talk: Talk, line: str, console: Console) -> None:
    """Show the model's reply and the base's in two columns, or one after the other without a terminal."""
    from rich.live import Live

    if not console.is_terminal:
        for _ in talk.ask(line):
            pass
        for name, answer in zip(talk.names, talk.answers, strict=True):
            click.echo(f"{name}: {_whole(talk, answer)}")
        return
    started = time.monotonic()
    with Live(console=console, refresh_per_second=10, get_renderable=lambda: _columns(talk, started)) as live:
        for _ in talk.ask(line):
            pass
        live.refresh()


def _columns(talk: Talk, started: float) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for name in talk.names:
        table.add_column(name, ratio=1)
    cells: list[RenderableType] = []
    for answer in talk.answers:
        going = answer.end is None and not answer.response
        cells.append(_Thinking(started) if going else Text(_whole(talk, answer)))
    if cells:
        table.add_row(*cells)
    return table


def _whole(talk: Talk, answer: Answer) -> str:
    """Return an answer as it is shown: with its thought, if that is wanted, and what to note about it."""
    from tpo_lite.people.words import visible

    thought = f"({answer.thought})\n\n" if talk.show_thoughts and answer.thought else ""
    note = _note(answer) if answer.end else ""
    return visible(thought + answer.response) + (f"\n{note}" if note else "")


def _note(answer: Answer) -> str:
    """Say why an answer is not whole."""
    if answer.end is not None and answer.end.reason == "length":
        return f"(cut off after {answer.end.tokens} tokens)"
    return "" if answer.response else "(no response)"


class _Thinking:
    """A spinner with the time since it was made."""

    def __init__(self, started: float | None = None):
        from rich.spinner import Spinner

        self._started = time.monotonic() if started is None else started
        self._spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        self._spinner.update(text=f"thinking, {time.monotonic() - self._started:.1f} s")
        return self._spinner
