"""The tables of a run's figures, for a terminal.

"parse ok" is the share of well-formed outputs, those with a response. Beside it stand the counts of all outcomes but
"ok", which means that nothing is unusual about an output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tpo_lite.intervals import percent
from tpo_lite.kinds import Arm
from tpo_lite.loop.results_schema import ArmResults, IterationResults, Results, ValidationResults
from tpo_lite.phases.summaries import (
    HeldOutFigures,
    MeanFigures,
    ShareFigures,
    ValidationFigures,
    well_formed_share,
)
from tpo_lite.run import KEPT


def print_iteration(results: Results, iteration: int, console: Console) -> None:
    """Print one iteration's figures, one column per arm."""
    columns = {
        arm: _rows(data.iterations[iteration]) for arm, data in results.arms.items() if len(data.iterations) > iteration
    }
    title = f"Iteration {iteration + 1}: M_{iteration} to M_{iteration + 1}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for arm in columns:
        table.add_column(arm, justify="right")
    for name in next(iter(columns.values()), {}):
        table.add_row(name, *(column[name] for column in columns.values()))
    console.print(table)
    for arm in columns:
        for line in _partings(results, results.arms[arm].iterations[iteration]):
            console.print(f"judge hacking?: {arm}: {line}", style="bold", highlight=False, soft_wrap=True)


def _partings(results: Results, data: IterationResults) -> Iterator[str]:
    """Yield a line for each model that the training judge prefers and the second one does not."""
    if data.crosscheck is None:
        return
    second = Path(results.recipe["select"]["judge"]["model"]).name
    for parting in data.crosscheck.partings:
        preferred = f"prefers {parting.model} to {parting.against} ({percent(parting.training)})"
        yield f"the training judge {preferred}, {second} does not ({percent(parting.second)})"


def _rows(data: IterationResults) -> dict[str, str]:
    judge, pairs, dpo, validation, merge = data.judge, data.pairs, data.dpo, data.validation, data.merge
    samples = sum(data.parse.values())
    unusual = ", ".join(f"{count} {outcome}" for outcome, count in data.parse.items() if count and outcome != "ok")
    left_out = ", ".join(
        f"{count} {kind}" for kind, count in pairs.counts.items() if kind not in ("prompts", "best-worst") and count
    )
    overlong = f", {judge.overlong} overlong" if judge.overlong else ""
    rates = f"{percent(judge.flip_rate)} / {percent(judge.first_slot_rate)} / {judge.unparsed}"
    against_m_t = "M_t kept" if validation.chosen == KEPT else percent(validation.win_rate["M_t"].value)
    return {
        "prompts x samples": f"{data.prompts} x {samples // max(1, data.prompts)}",
        "parse ok": percent(well_formed_share(data.parse)) + (f" ({unusual})" if unusual else ""),
        "thought / response tokens": f"{number(data.thought_tokens)} / {number(data.response_tokens)}",
        "judge calls (saved)": f"{judge.calls} ({judge.saved}){overlong}",
        "flip / first-slot / unparsed": rates,
        "pairs": f"{pairs.pairs}" + (f" ({left_out})" if left_out else ""),
        "chosen / rejected tokens": f"{number(pairs.chosen_tokens)} / {number(pairs.rejected_tokens)}",
        "rho": f"{data.rho:.2f}" + ("" if data.rho_reached is not False else " (chosen still longer)"),
        "loss first / last": f"{dpo.first_loss:.4f} / {dpo.last_loss:.4f}",
        "margin last": f"{dpo.last_margin:+.3f}",
        "update norm, KL of merge": f"{percent(merge.update_norm)}, {merge.kl:.1e}",
        "win rate vs M_t / M_0": f"{against_m_t} / {percent(validation.win_rate['M_0'].value)}",
        "validation parse ok": _parse_ok(validation),
        "accuracy (validation)": percent(data.accuracy),
        **_tested_rows(data),
        **{f"{phase}: s, peak GB": _cost(data, phase) for phase in data.peak_bytes},
    }


def _tested_rows(data: IterationResults) -> dict[str, str]:
    if data.test is None:
        return {}
    base = data.test.win_rate_base
    return {
        "win rate vs M_0 (test)": whole(data.test.win_rate),
        **({"win rate vs M_base (test)": whole(base)} if base else {}),
        "accuracy (test)": whole(data.test.accuracy),
    }


def _cost(data: IterationResults, phase: str) -> str:
    peak = data.peak_bytes[phase]
    gpu = f" + {peak['gpu'] / 1e9:.1f} GPU" if peak.get("gpu") else ""
    return f"{data.seconds.get(phase, 0.0):.0f} s, {peak['host'] / 1e9:.2f}{gpu}"


def _parse_ok(shown: ValidationFigures | ValidationResults) -> str:
    return percent(well_formed_share(shown.parse))


BASE = -1
"""The number of M_base, before the warm start that made M_0 of it."""


def print_final(results: Results, console: Console) -> None:
    """Print every model to the last: on the test slice, or on the validation slice in a run without one.

    Where a warm start made M_0, the first is M_base, which had one attempt per instruction.
    """
    tested = [arm.base_test for arm in results.arms.values() if arm.base_test is not None]
    console.print(_test_table(results, tested[0]) if tested else _validation_table(results))
    for key, value in results.limits.items():
        console.print(f"{key} was reduced to {value} because memory ran out", highlight=False)


def _test_table(results: Results, base: HeldOutFigures) -> Table:
    """Return one row per model and arm; every share is of the same instructions, every length of well-formed outputs.

    Without decimals, which a few hundred instructions do not support, it fits eighty columns.
    """
    checked = f", {base.accuracy.n} with a known answer" if base.accuracy.n else ""
    title = f"On the test slice: {base.prompts} instructions{checked}\nper cent and tokens, with 95 % intervals"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", no_wrap=True)
    headings = ["accuracy", "beats M_0", "beats\ndirect", "parse ok", "thought\ntokens", "response\ntokens"]
    shown = [name for name in headings if "direct" not in name or len(results.arms) > 1]
    shown = [name for name in shown if "thought" not in name or "thinking" in results.arms]
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for model in range(BASE, 1 + max(len(arm.iterations) for arm in results.arms.values())):
        for name, arm in results.arms.items():
            if (cells := _tested_cells(results, name, arm, model)) is not None:
                row = "M_base" if model == BASE else f"M_{model}"
                table.add_row(f"{row} {name}", *(cells[heading] for heading in shown))
    return table


def _tested_cells(results: Results, name: Arm, arm: ArmResults, model: int) -> dict[str, str] | None:
    """Return the cells of one model by heading; None if it has not been tested yet."""
    tested = arm.iterations[model - 1].test if 0 < model <= len(arm.iterations) else None
    answered = {BASE: _before(arm), 0: arm.base_test}.get(model, tested)
    if answered is None:
        return None
    against = results.thinking_vs_direct
    return {
        "accuracy": whole(answered.accuracy),
        "beats M_0": whole(tested.win_rate) if tested else "-",
        "beats\ndirect": whole(against[model]) if name == "thinking" and 0 <= model < len(against) else "-",
        "parse ok": whole(answered.parse_ok),
        "thought\ntokens": length(answered.thought_tokens) if name == "thinking" else "-",
        "response\ntokens": length(answered.response_tokens),
    }


def whole(share: ShareFigures) -> str:
    """Return a share in whole per cent with its interval, as in "62 (53-70)", or "-" where there is none."""
    return "-" if share.value is None else f"{100 * share.value:.0f} ({100 * share.low:.0f}-{100 * share.high:.0f})"


def length(mean: MeanFigures) -> str:
    """Return a mean length with its interval, as in "31 ±2", or "-" where there is none."""
    return number(mean.value) if mean.half_width is None else f"{mean.value:.0f} ±{mean.half_width:.0f}"


def _validation_table(results: Results) -> Table:
    """Return one row per model, with each figure of all arms side by side."""
    arms = results.arms
    title = "On the validation slice, which also chose the checkpoints\n(this run has no test slice)"
    # Eighty columns hold two arms only with one blank between figures.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", "beat M_0", "parse ok"):
        for name in arms:
            table.add_column(f"{heading}\n{name}", justify="right", no_wrap=True)
    if "thinking" in arms:
        table.add_column("thought\ntokens", justify="right", no_wrap=True)
    if any(_before(arm) for arm in arms.values()):
        before = [_before_cells(_before(arm)) for arm in arms.values()]
        row = [figure for figures in zip(*before, strict=True) for figure in figures]
        table.add_row("M_base", *row[: len(table.columns) - 1])
    for model in range(1 + max(len(arm.iterations) for arm in arms.values())):
        cells = [_model_cells(arm, model) for arm in arms.values()]
        row = [figure for figures in zip(*cells, strict=True) for figure in figures]
        table.add_row(f"M_{model}", *row[: len(table.columns) - 1])
    return table


def _model_cells(arm: ArmResults, model: int) -> tuple[str, str, str, str]:
    """Return accuracy, win rate against M_0, parse ok and thought tokens of one model."""
    if model > len(arm.iterations) or arm.base is None:
        return "-", "-", "-", "-"
    if model == 0:
        return percent(arm.base.accuracy), "-", _parse_ok(arm.base), number(arm.base.thought_tokens)
    data = arm.iterations[model - 1]
    win = percent(data.validation.win_rate["M_0"].value)
    return percent(data.accuracy), win, _parse_ok(data.validation), number(data.validation.thought_tokens)


def _before_cells(figures: HeldOutFigures | None) -> tuple[str, str, str, str]:
    """Return the same of the base before a warm start."""
    if figures is None:
        return "-", "-", "-", "-"
    return percent(figures.accuracy.value), "-", percent(figures.parse_ok.value), number(figures.thought_tokens.value)


def _before(arm: ArmResults) -> HeldOutFigures | None:
    """Return what the base answered before a warm start; None without one."""
    return arm.warm_start.samples.before if arm.warm_start else None


def number(value: float | None) -> str:
    """Return a mean length as text, or "-" where there is none."""
    return "-" if value is None else f"{value:.1f}"
