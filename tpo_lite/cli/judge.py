"""`tpo-lite judge`: judge pairs of responses, and see how far a judge can be trusted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError
from tpo_lite.kinds import JudgeMode

if TYPE_CHECKING:
    from tpo_lite.calibration.gold_pairs import ResponsePair
    from tpo_lite.calibration.judged_pair import JudgedPair
    from tpo_lite.judges.protocol import Judge
    from tpo_lite.run import RunFolder
    from tpo_lite.settled import SettledJudge


class JudgeGroup(click.Group):
    """A group that runs the phase if its first argument is not one of its commands: `judge RUN_DIR`."""

    phase = "phase"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the phase's name before arguments that do not begin with a command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.phase, *args]
        return super().parse_args(ctx, args)


@click.group(cls=JudgeGroup)
def judge() -> None:
    """Judge pairs of responses, and show how far a judge can be trusted.

    `tpo-lite judge RUN_DIR` is short for `tpo-lite judge phase RUN_DIR`.

    PAIRS is a JSONL file with instruction, response_1, response_2 and, if known, label (1 or 2: the better one) and id
    in each line; or a file of LLMBar or JudgeBench as it is.
    """


FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _mode(context: click.Context, parameter: click.Parameter, mode: JudgeMode | None) -> JudgeMode:
    return mode or ("explain" if context.params["model"] == "embedded" else "verdict")


def judging(command: Callable[..., None]) -> Callable[..., None]:
    """Add the pairs and the options that choose a judge."""
    return click.argument("pairs", type=FILE)(judge_options(command))


def judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose a judge: model, mode, context, gpu, overrides."""
    return _judge_options(command, required=True, default="")


def run_judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the same options where a run has a judge of its own: model may be None."""
    return _judge_options(command, required=False, default=" [default: the one that judges the run's test slice]")


def _judge_options(command: Callable[..., None], required: bool, default: str) -> Callable[..., None]:
    options = (
        click.option(
            "--judge",
            "model",
            required=required,
            is_eager=True,  # the mode's default depends on it
            help="A GGUF file, hub:owner/repo/file.gguf, or embedded; for a reward model its folder or hub id; "
            f"for an openai judge the server's name for it.{default}",
        ),
        click.option(
            "--mode",
            type=click.Choice(get_args(JudgeMode)),
            callback=_mode,
            help="verdict: a GGUF answers at once; explain: it explains first; score: it rates each response; "
            "reward-model: a reward model scores each response; openai: an OpenAI-compatible server answers, with the "
            "key in OPENAI_API_KEY. "
            "[default: verdict; for the embedded judge explain]",
        ),
        click.option(
            "--context",
            type=click.IntRange(min=1),
            default=8192,
            show_default=True,
            help="Tokens that all comparisons decoded together may hold.",
        ),
        click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts. [default: none]"),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any other key of a recipe's judge section, such as prompt, base_url or quantize. May be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@judge.command()
@click.argument("outputs", type=FILE)
@click.option(
    "--gold",
    multiple=True,
    type=FILE,
    help="File of labelled pairs. Only pairs in it are counted. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a reliability plot (SVG).")
@reporting
def stats(outputs: Path, gold: tuple[Path, ...], as_json: bool, plot: Path | None, debug: bool) -> None:
    """Show accuracy and biases of recorded judge outputs.

    OUTPUTS is a result file of LLMBar, JudgeBench or Arena-Hard as it is, or of `tpo-lite judge run`. --gold
    adds labels and the lengths of the responses.
    """
    from tpo_lite.calibration.gold_pairs import read_pairs
    from tpo_lite.calibration.judged_pair import with_gold
    from tpo_lite.calibration.result_files import read_outputs

    found = read_outputs(outputs)
    judged = with_gold(found.pairs, [pair for path in gold for pair in read_pairs(path)]) if gold else found.pairs
    facts: dict[str, Any] = {"outputs": str(outputs), "recorded": found.recorded, "differing": found.differing}
    said = [f"{outputs.name}: {len(judged)} pairs, both orders"]
    if found.recorded:
        differing = f"; they differ in {', '.join(found.differing[:5])}" if found.differing else ""
        said.append(
            f"{found.recorded} verdicts parsed from text, and compared with the recorded ones: "
            f"{len(found.differing)} pairs differ{differing}"
        )
    _show(judged, facts, said, as_json, plot)


@judge.command()
@judging
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a reliability plot (SVG).")
@reporting
def calibrate(
    pairs: Path,
    model: str,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
    plot: Path | None,
    debug: bool,
) -> None:
    """Show accuracy and biases of a judge on gold-labelled pairs.

    Nothing is kept. For hours of judging use `tpo-lite judge run`, which can be stopped and continued;
    `tpo-lite judge stats` shows the same figures of its output.
    """
    from tpo_lite.calibration.ask import ask
    from tpo_lite.calibration.gold_pairs import read_pairs
    from tpo_lite.progress import progress

    gold = read_pairs(pairs)
    if all(pair.label is None for pair in gold):
        raise InputError(f"{pairs} has no labels to compare a judge with. Give labelled pairs, or use `judge run`.")
    name = _name(model, mode, overrides)
    settings = _settings(model, mode, context, overrides)
    opened = _open_judge(settings, gpu)
    try:
        # Progress goes to stdout, where --json wants only JSON.
        with nullcontext(_silent) if as_json else progress("judge", len(gold), "pairs") as advance:
            answers = ask(opened, gold, name, advance)
    except KeyboardInterrupt:
        click.echo("interrupted; `judge calibrate` keeps nothing. Use `judge run` if you need to stop.", err=True)
        sys.exit(130)
    speed = answers.speed()
    said = [
        f"{name} on {pairs.name}: {len(answers.judged)} pairs, both orders",
        f"{answers.calls} calls in {answers.seconds:.1f} s: {speed['calls_per_second']:.1f} calls/s, "
        f"{speed['tokens_per_second']:.0f} tokens/s (shared prefixes counted once)",
    ]
    facts = {"pairs": str(pairs), "judge": name} | speed
    _show(answers.judged, facts, said + _overlong(answers.judged, settings, opened), as_json, plot)


@judge.command()
@judging
@click.option("--out", "output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write.")
@reporting
def run(
    pairs: Path,
    model: str,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    output: Path,
    debug: bool,
) -> None:
    """Judge pairs in both orders and write what the judge says.

    The output has one line per pair, a JudgedPair of tpo_lite/calibration/judged_pair.py. After a stop, run the same
    command again to go on; lines that are there are kept. Files beside the output record the judge and the pairs
    (.inputs), and for an openai judge the number of requests (.calls) and its answers (.replies.jsonl).
    """
    from tpo_lite.calibration.gold_pairs import read_pairs

    judged, name, notes = judge_into(output, read_pairs(pairs), model, mode, context, gpu, overrides)
    click.echo(f"{output}: {len(judged)} pairs, both orders, by {name}")
    for line in notes:
        click.echo(line)


def judge_into(
    output: Path,
    given: Sequence[ResponsePair],
    model: str,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: Sequence[str],
    quiet: bool = False,
) -> tuple[list[JudgedPair], str, list[str]]:
    """Judge the pairs that `output` does not hold yet; return all judgements, the judge's name, and lines to show.

    The options are those of `judge_options`. With `quiet` no progress is shown.
    """
    settings = _settings(model, mode, context, overrides)
    return judge_with(output, given, settings, _name(model, mode, overrides), gpu, quiet)


def judge_of_run(
    folder: RunFolder | None, model: str | None, mode: JudgeMode, context: int, overrides: Sequence[str]
) -> tuple[SettledJudge, str]:
    """Return a judge's settings and name: of the options or, with no `model`, of the judge of the run's test slice.

    Raises `InputError` where there is neither a judge nor a run, and for other options of a judge that is not given.
    """
    from tpo_lite.phase_order import as_asked

    if model is not None:
        return _settings(model, mode, context, overrides), _name(model, mode, overrides)
    if folder is None:
        raise InputError("Two models need a judge: give --judge, or one run that has both arms.")
    if overrides:
        raise InputError("--set belongs to a judge. Give --judge too, or leave it out.")
    settings = as_asked(folder.load_settled(), "match").judge
    return settings, _name(settings.model, settings.mode, ())


def judge_with(
    output: Path, given: Sequence[ResponsePair], settings: SettledJudge, name: str, gpu: int | None, quiet: bool
) -> tuple[list[JudgedPair], str, list[str]]:
    """Do what `judge_into` does, with a judge of these settings that records call `name`."""
    from tpo_lite.calibration.ask import ask_into
    from tpo_lite.calibration.judged_pair import JudgedPair
    from tpo_lite.calibration.output_file import beside, finished_pairs, held, identity
    from tpo_lite.files import write_json
    from tpo_lite.progress import progress
    from tpo_lite.records import read_jsonl

    inputs = {"judge": identity(settings), "pairs": {pair.id: pair.digest for pair in given}}
    opened = None
    with held(output):
        finished = finished_pairs(output, inputs, name)
        if len(finished) < len(given):
            opened = _open_judge(settings, gpu, beside(output, "calls"))
            write_json(beside(output, "inputs"), inputs)
            with nullcontext(_silent) if quiet else progress("judge", len(given), "pairs", len(finished)) as advance:
                ask_into(output, opened, given, finished, name, advance)
        judged = list(read_jsonl(output, JudgedPair))
    return judged, name, _overlong(judged, settings, opened)


def _silent(units: int, note: str = "") -> None:
    """Show no progress."""


def _name(model: str, mode: JudgeMode, overrides: Sequence[str]) -> str:
    """Return what records call the judge. A limit on how often it may be asked does not make it another judge."""
    return " ".join([Path(model).name, mode, *(each for each in overrides if not each.startswith("max_calls="))])


def _settings(model: str, mode: JudgeMode, context: int, overrides: Sequence[str]) -> SettledJudge:
    """Return the judge section of a recipe. Raises `InputError` for keys and values that do not fit."""
    import yaml

    from tpo_lite.recipe import parse_as
    from tpo_lite.settled import SettledRecipe

    section: dict[str, Any] = {"model": model, "mode": mode, "context": context}
    for override in overrides:
        key, equals, text = override.partition("=")
        try:
            section[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise InputError(f"--set {override!r} is not key=value with a YAML value, such as --set max_calls=1000.")
    for key in ("context", "kv_type"):
        if section.get(key) == "auto":
            raise InputError(f"--set {key}=auto: only a run works out what fits. Give a value.")
    return parse_as(SettledRecipe, {"judge": section}, "of --judge and --set").judge


def _open_judge(settings: SettledJudge, gpu: int | None, calls: Path | None = None) -> Judge:
    """Load the judge; the file `calls` counts an openai judge's requests."""
    from tpo_lite.judges.open import open_judge
    from tpo_lite.machine.device import place_of

    place = place_of(gpu)
    place.pin(os.environ)
    return open_judge(settings, place.device, calls)


def _overlong(judged: Sequence[JudgedPair], settings: SettledJudge, judge: Judge | None) -> list[str]:
    """Return a line on the pairs that did not fit, with the limit; None is a judge that was not opened this time."""
    ids = [pair.id for pair in judged if pair.overlong]
    if not ids:
        return []
    from tpo_lite.judges.open import too_long

    return [too_long(f"{len(ids)} of {len(judged)} pairs", ids, settings, judge, "--context")]


def _show(
    judged: Sequence[JudgedPair], facts: dict[str, Any], said: list[str], as_json: bool, plot: Path | None
) -> None:
    """Print the report on all pairs and on each group of them, and write the plot."""
    from tpo_lite.calibration.report import grouped_reports, report
    from tpo_lite.calibration.views import as_data, as_text, reliability_svg

    whole, groups = report(judged), grouped_reports(judged)
    click.echo(json.dumps(facts | as_data(whole, groups), indent=2) if as_json else as_text(said, whole, groups))
    # Last, so that the figures are shown even if the plot cannot be written.
    if plot is not None:
        if whole.reliability is None:
            raise InputError("--plot needs probabilities and labels. Leave it out, or give --gold.")
        try:
            plot.write_text(reliability_svg(whole.reliability, said[0]), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--plot {plot} cannot be written: {error.strerror}. Give another file.") from error
