"""Runs side by side: every M_t of every arm on the slice that it reports on, and the same recipe over several seeds.

All figures are counted anew from the records, and each has its interval and its n. Shares have Wilson's interval over
instructions, lengths Student's over answers, and figures over seeds Student's over runs, which is the only one that
says how another training run would turn out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.evaluation.arms import answers_in, finished
from tpo_lite.evaluation.controls import sampled_tokens
from tpo_lite.evaluation.layout import aligned
from tpo_lite.intervals import mean
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.loop.tables import length, whole
from tpo_lite.phase_order import WARM_PHASES
from tpo_lite.phases.figures import held_out_figures, mean_figures, share_figures
from tpo_lite.phases.summaries import HeldOutFigures, MeanFigures, ShareFigures
from tpo_lite.records import Instruction, MatchResult, read_jsonl
from tpo_lite.run import RunFolder


@dataclass(frozen=True)
class Row:
    """One model of one run."""

    run: str
    """The run folder, as it was given."""
    seed: int
    arm: Arm
    model: int
    """t of M_t."""
    held_out: HeldOut
    """The slice: "test", or "validation" in a run without one."""
    answered: HeldOutFigures
    """What it answered: accuracy, parse outcomes, lengths."""
    tokens: MeanFigures
    """Tokens sampled for an answer, all attempts together."""
    win_rate: ShareFigures | None
    """Against M_0; None for M_0 itself, and until the judge has compared them."""
    versus_direct: ShareFigures | None
    """Of the thinking M_t against the direct one, on the test slice; None where they have not met."""
    hours: float
    """Wall time of all phases up to this model, in hours."""


@dataclass(frozen=True)
class Seeds:
    """The runs of one recipe that differ in the seed, at one arm and M_t: means over runs with their t intervals."""

    runs: list[str]
    arm: Arm
    model: int
    win_rate: MeanFigures
    versus_direct: MeanFigures
    accuracy: MeanFigures
    tokens: MeanFigures
    hours: MeanFigures


@dataclass(frozen=True)
class Comparison:
    """What `tpo-lite compare` shows."""

    rows: list[Row]
    seeds: list[Seeds]
    """Empty where no two runs have the same recipe."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return asdict(self)


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare runs. Raises `InputError` for a run given twice, and for one that has no finished model or is damaged."""
    rows: list[Row] = []
    recipes: dict[str, list[str]] = {}
    seen: dict[Path, Path] = {}
    for path in runs:
        if path.resolve() in seen:
            raise InputError(f"{path} is {seen[path.resolve()]} again. Give each run once.")
        seen[path.resolve()] = path
        folder = RunFolder(path)
        recipe = folder.load_started()
        settings = recipe.model_dump(mode="json")
        settings.pop("seed")
        recipes.setdefault(json.dumps(settings, sort_keys=True), []).append(str(path))
        last = {arm: finished(folder, arm) for arm in recipe.arms}
        if not any(last.values()):
            raise InputError(f"{path} has no finished iteration yet. Go on with it: tpo-lite train --out {path}")
        rows += [_row(folder, str(path), arm, model) for arm in recipe.arms for model in range(last[arm] + 1)]
    return Comparison(rows, [each for names in recipes.values() if len(names) > 1 for each in _over_seeds(rows, names)])


def _row(folder: RunFolder, name: str, arm: Arm, model: int) -> Row:
    recipe = folder.load_started()
    held_out: HeldOut = "test" if recipe.instructions.test else "validation"
    slice_ = list(read_jsonl(folder.instructions(held_out), Instruction))
    path = folder.test_of(arm, model) if held_out == "test" else folder.validation_of(arm, model)
    answers = answers_in(path, slice_)
    matches = _against_start(folder, arm, model, held_out)
    arms = folder.match_of_arms(model) if held_out == "test" and arm == "thinking" and len(recipe.arms) > 1 else None
    seconds = sum(folder.seconds(arm, 0, WARM_PHASES[0]).values())
    seconds += sum(sum(folder.seconds(arm, iteration).values()) for iteration in range(model))
    return Row(
        name,
        recipe.seed,
        arm,
        model,
        held_out,
        held_out_figures(list(answers.values())),
        mean_figures(list(sampled_tokens(answers).values())),
        _rate(matches, slice_),
        _rate(arms, slice_),
        seconds / 3600,
    )


def _against_start(folder: RunFolder, arm: Arm, model: int, held_out: HeldOut) -> Path | None:
    """Return the file of the verdicts on M_model against M_0; None for M_0 itself."""
    if model == 0:
        return None
    if held_out == "test":
        return folder.match_with(arm, model, "M_0")
    made = folder.trained(arm, model)
    return (
        folder.iteration(arm, made - 1) / "validation" / f"{folder.chosen(arm, made - 1)}-vs-M_0.jsonl"
        if made
        else None
    )


def _rate(path: Path | None, instructions: Sequence[Instruction]) -> ShareFigures | None:
    """Return the share of wins in a file of verdicts; None where it is not there, or not whole yet.

    Raises `InputError`, with the row, for a verdict on another instruction or a second one on the same, and for a win
    that is not between 0 and 1.
    """
    if path is None or not path.exists():
        return None
    asked = {each.id for each in instructions}
    wins: dict[str, float] = {}
    for row, match in enumerate(read_jsonl(path, MatchResult), 1):
        if match.id not in asked:
            raise InputError(f"{path}:{row}: {match.id!r} is not an instruction of the slice. Remove that line.")
        if match.id in wins:
            raise InputError(f"{path}:{row} judges {match.id!r} again. Remove one of the lines.")
        if not isinstance(match.win, int | float) or not math.isfinite(match.win) or not 0 <= match.win <= 1:
            raise InputError(f"{path}:{row}: win {match.win!r} is not between 0 and 1. Remove that line.")
        wins[match.id] = match.win
    return share_figures(sum(wins.values()), len(wins)) if len(wins) == len(asked) else None


def _over_seeds(rows: Sequence[Row], names: Sequence[str]) -> list[Seeds]:
    """Return the means over runs, for each arm and M_t that all of them have."""
    groups: dict[tuple[Arm, int], list[Row]] = {}
    for row in rows:
        if row.run in names:
            groups.setdefault((row.arm, row.model), []).append(row)

    def over(group: Sequence[Row], figure: Callable[[Row], float | None]) -> MeanFigures:
        values = [value for row in group if (value := figure(row)) is not None]
        return MeanFigures(**asdict(mean(values))) if values else mean_figures([])

    return [
        Seeds(
            [row.run for row in group],
            arm,
            model,
            over(group, lambda row: row.win_rate.value if row.win_rate else None),
            over(group, lambda row: row.versus_direct.value if row.versus_direct else None),
            over(group, lambda row: row.answered.accuracy.value),
            over(group, lambda row: row.tokens.value),
            over(group, lambda row: row.hours),
        )
        for (arm, model), group in groups.items()
        if len(group) == len(names)
    ]


def as_text(found: Comparison) -> str:
    """Return the comparison as lines for a terminal."""
    heading = ["", "n", "beats M_0", "beats direct", "right", "parse ok", "tokens", "thought", "response", "hours"]
    rows = [heading]
    for row in found.rows:
        answered = row.answered
        checked = answered.accuracy.n
        rows.append(
            [
                _name(row),
                str(answered.prompts),
                whole(row.win_rate) if row.win_rate else "-",
                whole(row.versus_direct) if row.versus_direct else "-",
                whole(answered.accuracy) + (f" of {checked}" if 0 < checked < answered.prompts else ""),
                whole(answered.parse_ok),
                length(row.tokens),
                length(answered.thought_tokens) if row.arm == "thinking" else "-",
                length(answered.response_tokens),
                f"{row.hours:.2f}",
            ]
        )
    lines = ["per cent and tokens an answer, with 95 % intervals over instructions", aligned(rows)]
    unusual = {_name(row): _unusual(row) for row in found.rows}
    lines += [f"{name}: {said}" for name, said in unusual.items() if said]
    if found.seeds:
        rows = [["", "beats M_0", "beats direct", "right", "tokens", "hours", "runs"]]
        for each in found.seeds:
            shares = [_percent(share) for share in (each.win_rate, each.versus_direct, each.accuracy)]
            hours = _mean(each.hours, 1, 2)
            rows.append([f"{each.arm} M_{each.model}", *shares, _mean(each.tokens, 1, 1), hours, str(len(each.runs))])
        lines += ["", "means over runs that differ in the seed only, with 95 % intervals over runs", aligned(rows)]
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"{row.run} {row.arm} M_{row.model}" + (" (validation)" if row.held_out == "validation" else "")


def _unusual(row: Row) -> str:
    counts = Counter(row.answered.parse)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count and outcome != "ok")


def _percent(found: MeanFigures) -> str:
    return _mean(found, 100, 1)


def _mean(found: MeanFigures, factor: float, decimals: int) -> str:
    if found.value is None:
        return "-"
    value = f"{factor * found.value:.{decimals}f}"
    return value if found.half_width is None else f"{value} ±{factor * found.half_width:.{decimals}f}"
