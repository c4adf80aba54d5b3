"""`tpo-lite eval`: scores of models, from annotations, battles and outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.cli.judge import judge_into, judge_of_run, judge_options, judge_with, run_judge_options
from tpo_lite.cli.versus import contestants
from tpo_lite.errors import InputError
from tpo_lite.kinds import JudgeMode

if TYPE_CHECKING:
    from tpo_lite.calibration.judged_pair import JudgedPair

PATH = click.Path(path_type=Path, exists=True)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("eval")
def evaluation() -> None:
    """Score models: numbers that mean what the leaderboards' mean, with intervals."""


@evaluation.command()
@click.option(
    "--annotations",
    required=True,
    type=FILE,
    help="The official annotations.json, or a CSV file with the columns row, index, len_1, len_2 and preference.",
)
@click.option("--difficulty", type=FILE, help="The leaderboard's instruction_difficulty.csv.")
@click.option("--gamed", type=FILE, help="The leaderboard's df_gamed.csv.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def alpaca(annotations: Path, difficulty: Path | None, gamed: Path | None, as_json: bool, debug: bool) -> None:
    """Score a model's annotations of AlpacaEval 2.

    The length-controlled win rate is computed by the package alpaca-eval (extra: eval) and needs --difficulty and
    --gamed. Its interval comes from fits to resamples of the instructions.
    """
    from tpo_lite.evaluation.alpaca import as_text, score
    from tpo_lite.evaluation.alpaca_annotations import read_annotations

    if (difficulty is None) != (gamed is None):
        raise InputError("--difficulty and --gamed are needed together. Give both, or neither.")
    found = score(read_annotations(annotations), difficulty, gamed)
    if found.missing:
        click.echo(f"{annotations} lacks instructions {', '.join(map(str, found.missing))}, counted from 0.", err=True)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else as_text(found))


@evaluation.command()
@click.argument("outputs", type=FILE)
@click.argument("reference", type=FILE)
@judge_options
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for judgements.jsonl and annotations.json.",
)
@reporting
def annotate(
    outputs: Path,
    reference: Path,
    model: str,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    out: Path,
    debug: bool,
) -> None:
    """Judge AlpacaEval's prompts with a judge of your own, and write annotations for `eval alpaca`.

    OUTPUTS and REFERENCE have an instruction and an output in each row: the model's, and those of the baseline. Each
    pair is judged in both orders. After a stop, run the same command again to go on.
    """
    from tpo_lite.evaluation.alpaca_judging import check_instructions, official_rows
    from tpo_lite.evaluation.outputs import read_outputs
    from tpo_lite.evaluation.versus import pairs_to_judge
    from tpo_lite.files import write_json

    found, baseline = read_outputs(outputs), read_outputs(reference)
    ids = check_instructions(found, baseline)
    pairs = pairs_to_judge(baseline, found, ids)
    judged, name, notes = judge_into(out / "judgements.jsonl", pairs, model, mode, context, gpu, overrides)
    rows = official_rows(found, baseline, ids, judged, name)
    write_json(out / "annotations.json", rows)
    for note in notes:
        click.echo(note)
    click.echo(f"{out / 'annotations.json'}: {len(rows)} annotations of {found.model} against {baseline.model}")


@evaluation.command()
@click.option(
    "--battles",
    required=True,
    multiple=True,
    type=PATH,
    help="Battles (question_id, model_a, model_b, winner) or official judgements (games): a file, or a folder of "
    "JSONL files. May be repeated.",
)
@click.option("--baseline", help="The model that scores are against. [default: the official one, or the common one]")
@click.option(
    "--answers",
    multiple=True,
    type=PATH,
    help="Official model_answer files, or their folder: for average tokens and style control. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def arena(
    battles: tuple[Path, ...], baseline: str | None, answers: tuple[Path, ...], as_json: bool, debug: bool
) -> None:
    """Score models from battles of Arena-Hard.

    A score is the probability to win against the baseline (Bradley-Terry); strong verdicts count three times. With the
    answers of all models, scores with equal style are given too.
    """
    from tpo_lite.evaluation.arena import as_data, as_text, scores
    from tpo_lite.evaluation.arena_files import files_in, read_answers, read_battles

    found = read_battles(list(files_in(battles)), baseline)
    models = scores(found, baseline, [read_answers(path) for path in files_in(answers)])
    click.echo(json.dumps(as_data(found, models), indent=2) if as_json else as_text(found, models))


@evaluation.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--questions", required=True, type=FILE, help="The instructions: any file that a recipe's source may be.")
@click.option("--suffix", default="", help='Text after each instruction, such as " Output only the number answer."')
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write.")
@click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts. [default: the run's device]")
@reporting
def answer(model: Path, questions: Path, suffix: str, out: Path, gpu: int | None, debug: bool) -> None:
    """Let a run's model answer a file of instructions.

    MODEL is RUN/thinking for the arm's last model, or RUN/thinking/iteration-0 for M_1. OUT/model_outputs.json has the
    responses without thoughts, as `alpaca_eval --model_outputs` takes them, and is what the other commands read. An
    output that is malformed is sampled again, as in the run. After a stop, run the same command again to go on.
    """
    from tpo_lite.evaluation.outputs import find_model
    from tpo_lite.machine.device import place_of

    place = find_model(model)[0].load_place() if gpu is None else place_of(gpu)
    place.pin(os.environ)
    from tpo_lite.evaluation.answer import answer as answer_all

    found = answer_all(model, questions, out, place.device, suffix)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
    click.echo(f"{found.outputs}: {found.n} outputs of {found.model}; first attempts: {outcomes}")
    if found.malformed:
        click.echo(f"{found.malformed} outputs stayed malformed; their response is empty, and loses.")


@evaluation.command()
@click.argument("outputs", type=PATH)
@click.option("--questions", type=FILE, help="Questions with their answers, such as GSM8K's. [default: in OUTPUTS]")
@click.option("--regex", help="What an answer looks like; its first group counts, if it has one. [default: a number]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def exact(outputs: Path, questions: Path | None, regex: str | None, as_json: bool, debug: bool) -> None:
    """Count right answers: the last number of each response, or what --regex finds last.

    OUTPUTS has an instruction and an output in each row, as AlpacaEval's model_outputs.json, or is the folder of a
    run's arm.
    """
    from tpo_lite.evaluation.exact import as_text, score
    from tpo_lite.evaluation.outputs import read_outputs

    found = score(read_outputs(outputs), questions, regex)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else as_text(found))


@evaluation.command()
@click.argument("outputs", type=FILE)
@click.option("--prompts", required=True, type=FILE, help="IFEval's input data.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def ifeval(outputs: Path, prompts: Path, as_json: bool, debug: bool) -> None:
    """Check whether responses follow IFEval's instructions, with the checkers that lm-eval ships (extra: eval).

    OUTPUTS has a prompt and a response in each row.
    """
    from tpo_lite.evaluation.ifeval import as_text, score
    from tpo_lite.evaluation.outputs import read_outputs

    found = score(read_outputs(outputs), prompts)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else as_text(found))


@evaluation.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option("--at", type=click.IntRange(min=0), help="With a run: t of both arms' M_t. [default: the last]")
@run_judge_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for judgements.jsonl and results.json. [default, with a run: RUN/evaluation/M_<t>/versus]",
)
@click.option("--categories", type=FILE, help="What `tpo-lite classify` wrote: win rates for each of its categories.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reporting
def versus(
    a: Path,
    b: Path | None,
    at: int | None,
    model: str | None,
    mode: JudgeMode,
    context: int,
    gpu: int | None,
    overrides: tuple[str, ...],
    out: Path | None,
    categories: Path | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Let a judge decide between two models' responses to the same instructions.

    A alone is a run with both arms: thinking against direct on its test slice, with the run's own judge, and the
    controls that have been made (`eval best-of`, `majority`, `swap-thoughts`) beside it. A and B are files with an
    instruction and an output in each row, or folders of a run: RUN/thinking for the arm's last model,
    RUN/thinking/iteration-0 for M_1. After a stop, run the same command again to go on.
    """
    from tpo_lite.evaluation.arms import beside, latest
    from tpo_lite.evaluation.versus import as_text, head_to_head, pairs_to_judge
    from tpo_lite.files import write_json

    both = contestants(a, b, at, model, out)
    first, second = (both.first, both.second) if categories is None else both.in_categories(categories)
    pairs = pairs_to_judge(first, second, both.ids)
    judged: list[JudgedPair] = []
    notes: list[str] = []
    name = "none: no pair differs"
    if pairs:
        settings, name = judge_of_run(both.folder, model, mode, context, overrides)
        place = both.device(gpu)
        judged, name, notes = judge_with(both.out / "judgements.jsonl", pairs, settings, name, place, as_json)
    found = head_to_head(first, second, both.ids, judged, name)
    figures = found.to_dict()
    if both.arms is not None:
        figures["controls"] = latest(both.arms)
    write_json(both.out / "results.json", figures | {"files": [str(a), *([str(b)] if b else [])]})
    for note in notes:
        click.echo(note, err=True)
    click.echo(json.dumps(figures, indent=2) if as_json else as_text(found))
    if not as_json and both.arms is not None:
        click.echo(f"\n{beside(both.arms)}")
