"""`tpo-lite prepare`, `generate`, ...: the phases of `train`, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.phases.options import phase_options

SUMMARIES = {
    "prepare": "Read instructions and cut them into slices.",
    "warm_sample": "Sample what a warm start trains on.",
    "warm_start": "Train the model to follow the thought prompt.",
    "generate": "Sample K thoughts and responses per instruction.",
    "pair": "Rate responses, control length, make pairs.",
    "dpo": "Train on the pairs.",
    "validate": "Sample every checkpoint on the validation slice.",
    "select": "Let the judge choose the checkpoint.",
    "crosscheck": "Let the training judge play the matches by which select.judge chose.",
    "fold": "Make the checkpoint M_{t+1}.",
    "test": "Sample M_{t+1} on the test slice.",
    "match": "Let the judge compare M_{t+1} with M_0, and the arms, on the test slice.",
}


def commands() -> Iterator[click.Command]:
    """Yield one command per phase, apart from the judge's."""
    for name, summary in SUMMARIES.items():
        yield _command(name, name.replace("_", "-"), summary)


def judge_phase(shown: str) -> click.Command:
    """Return the judge phase as a command with the name `shown`; `tpo-lite judge` alone does more."""
    return _command("judge", shown, "Compare the responses of each instruction.")


def _command(name: str, shown: str, summary: str) -> click.Command:
    @click.command(shown, help=f"{summary} A phase of `train`, by hand.")
    @phase_options
    @reporting
    def command(run_dir: Path, arm: str | None, iteration: int, debug: bool) -> None:
        from tpo_lite.phases.process import start_phase

        start_phase(name, run_dir, arm, iteration)

    return command
