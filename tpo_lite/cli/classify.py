"""`tpo-lite classify`: the categories of instructions."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click

from tpo_lite.cli.errors import reporting


@click.command()
@click.argument("source")
@click.option("--model", required=True, help="A GGUF file of an instruct model, or hub:owner/repo/file.gguf.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write; it is the cache too."
)
@click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts. [default: none]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def classify(source: str, model: str, out: Path, gpu: int | None, as_json: bool, debug: bool) -> None:
    """Sort instructions into the paper's 20 categories and Miscellaneous.

    SOURCE is a run folder, which stands for all its slices, or what a recipe's source may be: a file, hub:name or
    everyday. Where it names categories itself, the agreement with them is shown. `eval versus --categories OUT` gives
    win rates for each category. After a stop, run the same command again to go on.
    """
    import dataclasses

    from tpo_lite.evaluation.classify import as_text, instructions_in, tally
    from tpo_lite.evaluation.classify import classify as classify_all
    from tpo_lite.machine.device import place_of

    place_of(gpu).pin(os.environ)
    instructions = instructions_in(source)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        classified = classify_all(instructions, model, out, 0 if gpu is None else -1)
    found = tally(instructions, classified)
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else as_text(found))
