"""`tpo-lite eval best-of`, `majority`, `swap-thoughts`: what else could explain that thinking wins."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.cli.judge import judge_of_run, judge_with, run_judge_options
from tpo_lite.cli.versus import pin
from tpo_lite.kinds import JudgeMode

if TYPE_CHECKING:
    from tpo_lite.calibration.judged_pair import JudgedPair
    from tpo_lite.evaluation.arms import Arms
    from tpo_lite.evaluation.controls import Control, Entrant
    from tpo_lite.settled import SettledJudge


def control(command: Callable[..., None]) -> Callable[..., None]:
    """Add what every control takes: a run, --at, --out and --json."""
    options = (
        click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False)),
        click.option("--at", type=click.IntRange(min=0), help="t of both arms' M_t. [default: the last]"),
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder for results.json, table.txt and judgements. [default: RUN/evaluation/M_<t>/<control>]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


N = click.option(
    "--n",
    type=click.IntRange(min=1),
    help="Answers of the direct model. [default: as many tokens as one thought takes]",
)


@click.command("best-of")
@control
@N
@run_judge_options
@reporting
def best_of(
    run_dir: Path,
    at: int | None,
    n: int | None,
    model: str | None,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Compare thinking with the best of N direct answers, which the run's training judge picks.

    --judge scores the picked answers: another judge than the one that picked. After a stop, run the same command again
    to go on.
    """
    from tpo_lite.evaluation.arms import open_arms

    arms = open_arms(run_dir, at)
    settings, name = judge_of_run(arms.folder, model, mode, context, overrides)
    gpu = pin(arms.folder, gpu)
    from tpo_lite.evaluation.best_of import best_of as entrants_of
    from tpo_lite.evaluation.controls import tabulate

    with _working(arms, as_json):
        entrants = entrants_of(arms, n, "cpu" if gpu is None else "cuda")
        path = (out or arms.out / "best-of") / f"judgements-{entrants[-1].key}.jsonl"
        judged, calls = _judged(path, entrants, settings, name, gpu)
    notes = []
    if settings == arms.recipe.judge:
        notes = ["The judge that picks also scores, which favours the best of N. Give --judge another."]
    title = f"Best of N on {len(arms.instructions)} instructions; the training judge picks"
    _show(tabulate(title, entrants, judged, name, calls, notes), out or arms.out / "best-of", as_json)


@click.command()
@control
@N
@click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts. [default: the run's device]")
@reporting
def majority(
    run_dir: Path, at: int | None, n: int | None, gpu: int | None, out: Path | None, as_json: bool, debug: bool
) -> None:
    """Compare thinking with the most common of N final answers: of the direct model, and of M_0 with thoughts.

    Only instructions with a known answer count, and no judge is asked. After a stop, run the same command again to go
    on.
    """
    from tpo_lite.evaluation.arms import open_arms

    arms = open_arms(run_dir, at)
    gpu = pin(arms.folder, gpu)
    from tpo_lite.evaluation.controls import tabulate
    from tpo_lite.evaluation.majority import majority as entrants_of

    with _working(arms, as_json):
        entrants = entrants_of(arms, n, "cpu" if gpu is None else "cuda")
    title = f"Majority of N on {len(arms.instructions)} instructions"
    _show(tabulate(title, entrants, None, None, 0), out or arms.out / "majority", as_json)


@click.command("swap-thoughts")
@control
@run_judge_options
@reporting
def swap_thoughts(
    run_dir: Path,
    at: int | None,
    model: str | None,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Force responses after the model's own thought, another prompt's thought, and empty talk, and compare them.

    If only the presence of a thought mattered, all three would do equally well. After a stop, run the same command
    again to go on.
    """
    from tpo_lite.evaluation.arms import open_arms

    arms = open_arms(run_dir, at)
    settings, name = judge_of_run(arms.folder, model, mode, context, overrides)
    gpu = pin(arms.folder, gpu)
    from tpo_lite.evaluation.controls import tabulate
    from tpo_lite.evaluation.swap_thoughts import swap_thoughts as swapped

    out = out or arms.out / "swap-thoughts"
    with _working(arms, as_json):
        found = swapped(arms, "cpu" if gpu is None else "cuda")
        judged, calls = _judged(out / "judgements.jsonl", found.entrants, settings, name, gpu)
    title = f"Swapped thoughts on {len(found.entrants[0].tokens)} instructions; the response is forced after each"
    _show(tabulate(title, found.entrants, judged, name, calls, found.notes()), out, as_json)


@contextmanager
def _working(arms: Arms, as_json: bool) -> Iterator[None]:
    """Keep others from evaluating the run at the same time; progress goes to stderr where stdout is for JSON."""
    with arms.folder.lock("evaluation"), redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield


def _judged(
    path: Path, entrants: Sequence[Entrant], settings: SettledJudge, name: str, gpu: int | None
) -> tuple[list[JudgedPair], int]:
    """Return the judge's answers about the pairs of a control's table, and how many questions they took."""
    from tpo_lite.calibration.ask import count_calls
    from tpo_lite.evaluation.controls import pairs_of

    pairs = pairs_of(entrants)
    if not pairs:
        return [], 0
    judged, _, notes = judge_with(path, pairs, settings, name, gpu, quiet=False)
    for note in notes:
        click.echo(note, err=True)
    by_id = {pair.id: pair for pair in judged}
    return judged, count_calls(pairs, [by_id[pair.id] for pair in pairs], settings.mode in ("score", "reward-model"))


def _show(found: Control, out: Path, as_json: bool) -> None:
    """Print a control's table, and keep it in a folder: the last one as text, and all of them as lines of JSON."""
    from tpo_lite.evaluation.arms import RESULTS, TABLE
    from tpo_lite.evaluation.controls import as_text
    from tpo_lite.evaluation.history import append
    from tpo_lite.files import write_atomically

    append(out / RESULTS, found.to_dict())
    write_atomically(out / TABLE, as_text(found) + "\n")
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else as_text(found))
