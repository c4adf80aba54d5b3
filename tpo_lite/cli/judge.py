"""`tpo-lite judge`: judge pairs of responses, and see how far a judge can be trusted."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError

if TYPE_CHECKING:
    from tpo_lite.calibration.gold_pairs import ResponsePair
    from tpo_lite.calibration.judge_outputs import JudgedPair
    from tpo_lite.judges.protocol import Judge
    from tpo_lite.recipe import JudgeSettings

PAIRS_AT_ONCE = 32
"""Pairs judged as one unit of work: what a kill can cost."""


class JudgeGroup(click.Group):
    """A group whose first argument, where it is none of its commands, belongs to the phase: `judge RUN_DIR`."""

    phase = "phase"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the phase's name before arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.phase, *args]
        return super().parse_args(ctx, args)


@click.group(cls=JudgeGroup)
def judge() -> None:
    """Judges pairs of responses, and tells how far a judge can be trusted.

    `tpo-lite judge RUN_DIR` is short for `tpo-lite judge phase RUN_DIR`.

    PAIRS are JSONL lines of instruction, response_1, response_2 and, if known, label (1 or 2: the better
    one) and id; or a file of LLMBar or JudgeBench as it is.
    """


FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _mode(context: click.Context, parameter: click.Parameter, mode: str | None) -> str:
    return mode or ("explain" if context.params["model"] == "embedded" else "verdict")


def judging(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the pairs and the options that choose a judge."""
    options = (
        click.argument("pairs", type=FILE),
        click.option(
            "--judge",
            "model",
            required=True,
            is_eager=True,  # the mode's default depends on it
            help="A GGUF file, hub:owner/repo/file.gguf, or embedded; of a reward model the folder or hub id; "
            "of an openai judge the server's name for it.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["verdict", "explain", "score", "reward-model", "openai"]),
            callback=_mode,
            help="A GGUF that says its verdict at once, explains itself first, or rates each response; a reward "
            "model; an OpenAI-compatible server, with the key in OPENAI_API_KEY. "
            "[default: verdict; of the embedded judge explain]",
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
            help="Any other key of a recipe's judge section, such as base_url, max_calls or quantize. May be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@judge.command()
@click.argument("outputs", type=FILE)
@click.option("--gold", multiple=True, type=FILE, help="Pairs that were judged; only they count. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a reliability plot (SVG).")
@reporting
def stats(outputs: Path, gold: tuple[Path, ...], as_json: bool, plot: Path | None, debug: bool) -> None:
    """Shows accuracy and biases of recorded judge outputs.

    OUTPUTS is a result file of LLMBar, JudgeBench or Arena-Hard as it is, or of `tpo-lite judge run`. --gold
    adds labels and the lengths of the responses.
    """
    from tpo_lite.calibration.gold_pairs import read_pairs
    from tpo_lite.calibration.judge_outputs import read_outputs, with_gold

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
    mode: str,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
    plot: Path | None,
    debug: bool,
) -> None:
    """Shows accuracy and biases of a judge on gold-labelled pairs.

    Nothing is kept. For hours of judging, `tpo-lite judge run` can be stopped and gone on with, and
    `tpo-lite judge stats` shows the same figures of its output.
    """
    from tpo_lite.calibration.gold_pairs import read_pairs
    from tpo_lite.calibration.judge_outputs import judge_both_orders
    from tpo_lite.progress import progress

    gold = read_pairs(pairs)
    if all(pair.label is None for pair in gold):
        raise InputError(f"{pairs} has no labels to compare a judge with. Give labelled pairs, or use `judge run`.")
    name = _name(model, mode, overrides)
    settings = _settings(model, mode, context, overrides)
    opened = _open_judge(settings, gpu)
    judged: list[JudgedPair] = []
    calls = 0
    began = time.perf_counter()
    try:
        # Progress is written to stdout, where --json wants nothing but JSON.
        with nullcontext(lambda units: None) if as_json else progress("judge", len(gold), "pairs") as advance:
            for group in _groups(gold):
                said_of = judge_both_orders(opened, group, name)
                judged += said_of
                calls += _calls(group, said_of, opened.pointwise)
                advance(len(group))
    except KeyboardInterrupt:
        click.echo("interrupted; `judge calibrate` keeps nothing. What can be stopped is `judge run`.", err=True)
        sys.exit(130)
    seconds, tokens = time.perf_counter() - began, opened.tokens_decoded
    speed = {"calls_per_second": calls / seconds, "tokens_per_second": tokens / seconds}
    facts = {"pairs": str(pairs), "judge": name, "calls": calls, "tokens": tokens, "seconds": seconds} | speed
    said = [
        f"{name} on {pairs.name}: {len(judged)} pairs, both orders",
        f"{calls} calls in {seconds:.1f} s: {calls / seconds:.1f} calls/s, {tokens / seconds:.0f} tokens/s "
        "(shared prefixes counted once)",
    ]
    _show(judged, facts, said + _overlong(judged, settings, opened), as_json, plot)


@judge.command()
@judging
@click.option("--out", "output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSONL to write.")
@reporting
def run(
    pairs: Path,
    model: str,
    mode: str,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    output: Path,
    debug: bool,
) -> None:
    """Judges pairs in both orders and writes what the judge says.

    A line a pair, as in tpo_lite/calibration/judge_outputs.py (JudgedPair). Run the same command again to go on after a
    stop; lines that are there are kept. Files beside it say what judges and what was judged (.inputs), and for
    an openai judge how much it was asked (.calls) and what it answered (.replies.jsonl).
    """
    from tpo_lite.calibration.gold_pairs import read_pairs
    from tpo_lite.calibration.judge_outputs import JudgedPair, judge_both_orders
    from tpo_lite.calibration.judged_file import beside, finished_pairs, held, identity
    from tpo_lite.files import write_json
    from tpo_lite.progress import progress
    from tpo_lite.records import JsonlAppender, read_jsonl

    given = read_pairs(pairs)
    name = _name(model, mode, overrides)
    settings = _settings(model, mode, context, overrides)
    inputs = {"judge": identity(settings), "pairs": {pair.id: pair.digest for pair in given}}
    opened = None
    with held(output):
        finished = finished_pairs(output, inputs, name)
        if len(finished) < len(given):
            opened = _open_judge(settings, gpu, beside(output, "calls"))
            write_json(beside(output, "inputs"), inputs)
            with JsonlAppender(output) as out, progress("judge", len(given), "pairs", len(finished)) as advance:
                # A group is judged whole even where a kill left half of it: what shares a batch decides the last
                # bits of the logits, and a resumed file must end with the same bytes.
                for group in _groups(given):
                    if all(pair.id in finished for pair in group):
                        continue
                    judged = [pair for pair in judge_both_orders(opened, group, name) if pair.id not in finished]
                    out.append(*judged)
                    advance(len(judged))
        judged = list(read_jsonl(output, JudgedPair))
    click.echo(f"{output}: {len(judged)} pairs, both orders, by {name}")
    for line in _overlong(judged, settings, opened):
        click.echo(line)


def _calls(pairs: Sequence[ResponsePair], judged: Sequence[JudgedPair], pointwise: bool) -> int:
    """What the judge was asked: comparisons that fit its context; pointwise, one a distinct response of such pairs."""
    if not pointwise:
        return sum(comparison.verdict != "overlong" for pair in judged for comparison in pair.comparisons)
    fit = [given for given, pair in zip(pairs, judged, strict=True) if pair.comparisons[0].verdict != "overlong"]
    return len({(pair.instruction, text) for pair in fit for text in (pair.response_1, pair.response_2)})


def _groups(pairs: Sequence[ResponsePair]) -> list[Sequence[ResponsePair]]:
    return [pairs[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE)]


def _name(model: str, mode: str, overrides: Sequence[str]) -> str:
    """What records call the judge; how much it may be asked makes no other judge of it."""
    return " ".join([Path(model).name, mode, *(each for each in overrides if not each.startswith("max_calls="))])


def _settings(model: str, mode: str, context: int, overrides: Sequence[str]) -> JudgeSettings:
    """The judge section of a recipe; raises `InputError` for keys and values that do not fit."""
    import yaml

    from tpo_lite.recipe import parse_recipe

    section: dict[str, Any] = {"model": model, "mode": mode, "context": context}
    for override in overrides:
        key, equals, text = override.partition("=")
        try:
            section[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise InputError(f"--set {override!r} is not key=value with a YAML value, such as --set max_calls=1000.")
    settings = parse_recipe({"judge": section}, "of --judge and --set").judge
    for key in ("context", "kv_type"):
        if getattr(settings, key) == "auto":
            raise InputError(f"--set {key}=auto: what fits is worked out for a run alone. Give a value.")
    return settings


def _open_judge(settings: JudgeSettings, gpu: int | None, calls: Path | None = None) -> Judge:
    """The judge, loaded; `calls` counts an openai judge's requests."""
    from tpo_lite.judges.open import open_judge
    from tpo_lite.machine.device import use_device

    use_device(gpu)
    return open_judge(settings, calls)


def _overlong(judged: Sequence[JudgedPair], settings: JudgeSettings, judge: Judge | None) -> list[str]:
    """A line on the pairs that did not fit, with the limit; None for a judge that was not opened this time."""
    ids = [pair.id for pair in judged if any(c.verdict == "overlong" for c in pair.comparisons)]
    if not ids:
        return []
    from tpo_lite.judges.open import too_long

    return [too_long(f"{len(ids)} of {len(judged)} pairs", ids, settings, judge, "--context")]


def _show(
    judged: Sequence[JudgedPair], facts: dict[str, Any], said: list[str], as_json: bool, plot: Path | None
) -> None:
    """Prints the report on all pairs and on each group of them, and writes the plot."""
    from tpo_lite.calibration import views as views
    from tpo_lite.calibration.report import report

    whole = report(judged)
    names = dict.fromkeys(pair.group for pair in judged)
    groups = {name: report([pair for pair in judged if pair.group == name]) for name in names}
    if as_json:
        reports = {"report": dataclasses.asdict(whole), "groups": {n: dataclasses.asdict(g) for n, g in groups.items()}}
        click.echo(json.dumps(facts | reports, indent=2))
    else:
        sections = [said, views.report_lines(whole)]
        if len(groups) > 1:
            sections.append(views.group_lines(groups))
        if whole.reliability is not None:
            sections.append(views.reliability_lines(whole.reliability))
        click.echo("\n\n".join("\n".join(section) for section in sections))
    # Last, so that a plot that cannot be written costs no figures.
    if plot is not None:
        if whole.reliability is None:
            raise InputError("--plot needs probabilities and labels. Leave it out, or give --gold.")
        try:
            plot.write_text(views.reliability_svg(whole.reliability, said[0]), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--plot {plot} cannot be written: {error.strerror}. Give another file.") from error
