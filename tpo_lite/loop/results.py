"""The figures of a run: results.json and the tables made from it.

Schema, version 1. `null` stands where there was nothing to measure.

    schema_version   1
    tpo_lite         version of the package
    recipe           the whole recipe
    limits           {key: value} of the recipe that memory had room for, where the recipe's own ran out of it
    instructions     read, kept, and how many were dropped or left out by reason
    arms.<thinking|direct>
      base           M_0 on the validation slice: prompts, parse, thought_tokens, response_tokens, accuracy, checked
      iterations[i]  from M_i to M_{i+1}
        prompts          instructions sampled
        engine           what sampled
        probe            largest change in log-probability by the live adapter (null for M_0)
        shift            mean KL(sampler || trainer) in nats a token, where engine gguf samples (null otherwise)
        parse            {outcome: samples}, outcomes as in tpo_lite.thoughts.OUTCOMES
        thought_tokens   mean length of well-formed thoughts, tokens
        response_tokens  mean length of well-formed responses, tokens
        judge            calls, saved, unparsed, overlong, flip_rate, first_slot_rate
        pairs            pairs, counts {kind or reason: prompts}, chosen_tokens, rejected_tokens
        rho, rho_reached weight of the length; whether an automatic one kept chosen responses from being longer
        dpo              pairs, rank, reference, steps, first_loss, last_loss, last_margin, last_accuracy
        merge            merge, rank, update_norm (relative), kl (nats a token)
        validation       chosen (a checkpoint, or "M_t" kept), checkpoints {name: win rate},
                         win_rate {M_t, M_0: {value, low, high}}, and
                         M_{i+1} on the validation slice: prompts, parse, thought_tokens, response_tokens, checked
        accuracy         of M_{i+1} on the validation slice, where instructions have a checker
        seconds          {phase: wall seconds}
        peak_bytes       {phase: {host, gpu?, gpu_reserved?, gpu_allocated?}}, see tpo_lite.machine.memory
"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tpo_lite import __version__
from tpo_lite.files import write_json
from tpo_lite.run import KEPT, PHASES, RunFolder

SCHEMA_VERSION = 1


def write_results(run: RunFolder) -> None:
    """Writes results.json from what is finished."""
    write_json(run.root / "results.json", collect(run))


def collect(run: RunFolder) -> dict[str, Any]:
    """The content of results.json: every iteration of which all phases are finished."""
    recipe = run.recipe
    arms = {}
    for arm in recipe.arms:
        finished = [t for t in range(recipe.iterations) if run.is_done(PHASES[-1], arm, t)]
        base = run.done("generate", arm, 0)["summary"]["base"] if run.is_done("generate", arm, 0) else None
        arms[arm] = {"base": base, "iterations": [_iteration(run, arm, t) for t in finished]}
    prepared = run.done("prepare", None, 0)["summary"] if run.is_done("prepare", None, 0) else None
    return {
        "schema_version": SCHEMA_VERSION,
        "tpo_lite": __version__,
        "recipe": run.started_with.model_dump(),
        "limits": run.limits,
        "instructions": prepared,
        "arms": arms,
    }


def _iteration(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    done = {phase: run.done(phase, arm, iteration) for phase in PHASES}
    summary = {phase: done[phase]["summary"] for phase in PHASES}
    generated, paired, selected = summary["generate"], dict(summary["pair"]), dict(summary["select"])
    merged = dict(summary["fold"])
    validated = dict(merged.pop("validation", None) or summary["validate"][selected["chosen"]])
    return {
        "prompts": generated["prompts"],
        "engine": generated["engine"],
        "probe": generated.get("probe"),
        "shift": generated.get("shift"),
        "parse": generated["parse"],
        "thought_tokens": generated["thought_tokens"],
        "response_tokens": generated["response_tokens"],
        "judge": summary["judge"],
        "rho": paired.pop("rho"),
        "rho_reached": paired.pop("rho_reached"),
        "pairs": paired,
        "dpo": summary["dpo"],
        "merge": merged,
        "accuracy": validated.pop("accuracy"),
        "validation": selected | validated,
        "seconds": run.seconds(arm, iteration),
        "peak_bytes": {phase: done[phase]["peak_bytes"] for phase in PHASES},
    }


def print_iteration(results: dict[str, Any], iteration: int, console: Console) -> None:
    """One iteration's figures, a column an arm."""
    arms = {
        arm: data["iterations"][iteration]
        for arm, data in results["arms"].items()
        if len(data["iterations"]) > iteration
    }
    columns = {arm: _rows(data) for arm, data in arms.items()}
    title = f"Iteration {iteration + 1}: M_{iteration} to M_{iteration + 1}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for arm in columns:
        table.add_column(arm, justify="right")
    for name in next(iter(columns.values()), {}):
        table.add_row(name, *(column[name] for column in columns.values()))
    console.print(table)


def _rows(data: dict[str, Any]) -> dict[str, str]:
    judge, pairs, dpo, validation = data["judge"], data["pairs"], data["dpo"], data["validation"]
    samples = sum(data["parse"].values())
    bad = ", ".join(f"{count} {outcome}" for outcome, count in data["parse"].items() if count and outcome != "ok")
    left_out = {kind: n for kind, n in pairs["counts"].items() if kind not in ("prompts", "best-worst") and n}
    merge = data["merge"]
    return {
        "prompts x samples": f"{data['prompts']} x {samples // max(1, data['prompts'])}",
        "parse ok": f"{percent(data['parse']['ok'] / max(1, samples))}" + (f" ({bad})" if bad else ""),
        "thought / response tokens": f"{number(data['thought_tokens'])} / {number(data['response_tokens'])}",
        "judge calls (saved)": f"{judge['calls']} ({judge['saved']})"
        + (f", {judge['overlong']} overlong" if judge["overlong"] else ""),
        "flip / first-slot / unparsed": f"{percent(judge['flip_rate'])} / {percent(judge['first_slot_rate'])} / {judge['unparsed']}",
        "pairs": f"{pairs['pairs']}"
        + (f" ({', '.join(f'{n} {kind}' for kind, n in left_out.items())})" if left_out else ""),
        "chosen / rejected tokens": f"{number(pairs['chosen_tokens'])} / {number(pairs['rejected_tokens'])}",
        "rho": f"{data['rho']:.2f}" + ("" if data["rho_reached"] is not False else " (chosen still longer)"),
        "loss first / last": f"{dpo['first_loss']:.4f} / {dpo['last_loss']:.4f}",
        "margin last": f"{dpo['last_margin']:+.3f}",
        "update norm, KL of merge": f"{percent(merge['update_norm'])}, {merge['kl']:.1e}",
        "win rate vs M_t / M_0": f"{'M_t kept' if validation['chosen'] == KEPT else _win(validation, 'M_t')} / {_win(validation, 'M_0')}",
        "validation parse ok": percent(validation["parse"]["ok"] / max(1, validation["prompts"])),
        "accuracy (validation)": percent(data["accuracy"]),
        **{f"{phase}: s, peak GB": _cost(data, phase) for phase in PHASES},
    }


def _cost(data: dict[str, Any], phase: str) -> str:
    peak = data["peak_bytes"][phase]
    gpu = f" + {peak['gpu'] / 1e9:.1f} GPU" if peak.get("gpu") else ""
    return f"{data['seconds'].get(phase, 0.0):.0f} s, {peak['host'] / 1e9:.2f}{gpu}"


def _win(validation: dict[str, Any], against: str) -> str:
    return percent(validation["win_rate"][against]["value"])


def print_final(results: dict[str, Any], console: Console) -> None:
    """A row a model, M_0 to the last; each figure of all arms side by side."""
    arms = results["arms"]
    # Eighty columns hold two arms only with one blank between figures.
    table = Table(title="On the validation slice", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for heading in ("accuracy", "beat M_0", "parse ok"):
        for name in arms:
            table.add_column(f"{heading}\n{name}", justify="right", no_wrap=True)
    if "thinking" in arms:
        table.add_column("thought\ntokens", justify="right", no_wrap=True)
    for model in range(1 + max(len(arm["iterations"]) for arm in arms.values())):
        cells = [_model_cells(arm, model) for arm in arms.values()]
        row = [figure for figures in zip(*cells, strict=True) for figure in figures]
        table.add_row(f"M_{model}", *row[: len(table.columns) - 1])
    console.print(table)
    for key, value in results["limits"].items():
        console.print(f"{key}: {value}, as memory ran out with more", highlight=False)


def _model_cells(arm: dict[str, Any], model: int) -> tuple[str, str, str, str]:
    """Accuracy, win rate against M_0, parse ok and thought tokens of one model."""
    if model > len(arm["iterations"]) or arm["base"] is None:
        return "-", "-", "-", "-"
    if model == 0:
        shown, accuracy, win = arm["base"], arm["base"]["accuracy"], "-"
    else:
        data = arm["iterations"][model - 1]
        shown, accuracy, win = data["validation"], data["accuracy"], _win(data["validation"], "M_0")
    parse_ok = percent(shown["parse"]["ok"] / max(1, shown["prompts"]))
    return percent(accuracy), win, parse_ok, number(shown["thought_tokens"])


def percent(value: float | None) -> str:
    """A share as a percentage, or "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A mean length, or "-" where there is none."""
    return "-" if value is None else f"{value:.1f}"
