"""The tables of `benchmarks.gpu`, from its steps' files alone. A step without one is "not measured"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_hours import (
    ESTIMATED,
    PHASES,
    RECIPES,
    Seconds,
    recipe_as_measured,
    seconds_elsewhere,
    seconds_measured,
)
from benchmarks.gpu_results import (
    NOT_MEASURED,
    Benchmark,
    against,
    benchmark,
    best_sampling,
    dpo_step,
    is_mapped,
    judged,
    plain_step,
    plan_error,
    rate,
    speeds,
    trained,
)
from benchmarks.gpu_steps import MAKES, RANK, SHAPES, Step, sizes_of
from benchmarks.sampling import K
from benchmarks.tables import RESULTS, table
from tpo_lite.machine.cards import CARDS, GIB

PHASE_BAR = 22 * GIB
SAMPLING_BAR, UNSLOTH_BAR, TRL_BAR = 2.0, 1.0, 1.5
OVER, UNDER = 0.10, 0.03
"""How far a plan may be from what was measured, as shares of it."""
PHASE = {"sampling": "generate", "judging": "judge", "training": "dpo", "fold": "fold"}
"""The phase that does what a step of a kind does."""


def results_path(shape: str, device: str) -> Path:
    """Return the results file: gpu.md for Llama-3.1-8B on a card, and a name of its own for any other."""
    name = f"gpu-cpu-{shape}" if device == "cpu" else "gpu" if shape == SHAPES[0] else f"gpu-{shape}"
    return RESULTS / f"{name}.md"


def report(shape: str, device: str, results: dict[str, dict[str, Any]]) -> str:
    """Return the text of the results file."""
    of = benchmark(shape, device, results)
    parts = [head(of), bars(of), memory(of), sampling(of), judging(of), training(of), merging(of), iteration(of)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def figure(value: float | None, form: str = "{:.1f}") -> str:
    """Return a figure as a cell."""
    return NOT_MEASURED if value is None else form.format(value)


def head(of: Benchmark) -> list[str]:
    """Return machine, date, command, and how far the benchmark is."""
    command = f"bash benchmarks/gpu.sh --shape {of.shape}" + (" --cpu" if of.device == "cpu" else "")
    asked = [step.name for step in of.steps if step.kind not in MAKES]
    measured = [name for name in asked if of.measured(name)]
    still = [name for name in asked if name not in of.results]
    failed = [f"{name} ({of.results[name]['failed']})" for name in asked if "failed" in of.results.get(name, {})]
    title = f"{of.shape} on one NVIDIA card"
    if of.device == "cpu":
        title = f"No GPU was used: the steps of the GPU benchmark on a CPU, {of.shape}"
    lines, machine = [f"# {title}", ""], of.machine
    if machine is None:
        what = "Nothing has been measured on a CPU yet" if of.device == "cpu" else "No GPU has been measured yet"
        return [*lines, f"{what}: every figure below is the plan's or missing. Command: `{command}`."]
    dates = sorted({result["date"] for result in of.results.values()})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    lines += [
        f"Machine: {machine['name']}, {machine['memory'] / GIB:.1f} GiB{driver}. Date: {when}.",
        f"Command: `{command}`, as often as it says. {len(measured)} of {len(asked)} steps measured"
        + (f"; still open: {', '.join(still)}." if still else "."),
    ]
    if failed:
        lines.append(f"Failed: {'; '.join(failed)}.")
    if rates := of.measured("floor"):
        lines += [
            f"With {rates['versions']}. Measured here: {rates['copy'] / 1e9:.1f} GB/s copied (read and written), "
            f"{rates['matmul'] / 1e12:.3g} TFLOP/s of matrix products, {rates['disk'] / 1e9:.2f} GB/s written to disk.",
        ]
    lines += [
        f"Random weights on a vocabulary of Llama-3's size; 4-bit base and adapter of rank {RANK} unless a table says "
        "otherwise. Every step is a process of its own" + (IN_RAM if of.device == "cpu" else ", held to 24 GiB."),
    ]
    return lines


IN_RAM = (
    ", and its RAM is measured instead of GPU memory. Only memory that the kernel cannot take back is counted. A "
    "GGUF's weights are not, as far as llama.cpp uses them from the mapped file (it copies most into its own order). "
    "The plan counts all of them, so it cannot be compared with what is measured there."
)


def bars(of: Benchmark) -> list[str]:
    """Return the bars, what was found, and whether they are met."""
    if of.device == "cpu" or of.shape != SHAPES[0]:
        why = f"{NOT_MEASURED}: the bar is {SHAPES[0]}'s on a card"
        rows = [[name, found, why] for name, found, _ in _bars(of)]
    else:
        words = {None: NOT_MEASURED, True: "met", False: "not met"}
        rows = [[name, found, words[met]] for name, found, met in _bars(of)]
    return ["## Bars", "", *table("bar: | here: | is:", rows)]


def _bars(of: Benchmark) -> Iterator[tuple[str, str, bool | None]]:
    """Yield each bar's name, what was found, and whether that is enough; None if a figure is missing."""
    # `generate`, trl and unsloth are only compared with: no phase runs them.
    held = [step for step in of.steps if step.kind in PHASE and step.setting.get("engine") != "generate"]
    held = [step for step in held if step.setting.get("path", "ours") == "ours"]
    peaks = {step.name: peak for step in held if (peak := of.peak(step)) is not None}
    most = max(peaks, key=peaks.get, default=None)
    whole = len(peaks) == len(held)
    met = False if most and peaks[most] > PHASE_BAR else True if whole else None
    yield "every phase <= 22 GiB", f"{peaks[most] / GIB:.1f} GiB at most ({most})" if most else NOT_MEASURED, met

    found = best_sampling(of)
    text = f"{found[1]:.2f}x ({found[0].name})" if found else NOT_MEASURED
    yield f"sampling >= {SAMPLING_BAR:g}x generate at the same memory", text, found and found[1] >= SAMPLING_BAR

    for path, bar in (("unsloth", UNSLOTH_BAR), ("trl", TRL_BAR)):
        times = against(of, path)
        yield f"DPO >= {bar:.1f}x {path}'s tokens/s", figure(times, "{:.2f}x"), times and times >= bar

    errors = [error for step in held if (error := plan_error(of, step)) is not None]
    expected = [step for step in held if step.recipe is not None]
    text = f"{100 * min(errors):+.1f} to {100 * max(errors):+.1f} %" if errors else NOT_MEASURED
    inside = all(-UNDER <= error <= OVER for error in errors)
    met = False if not inside else True if len(errors) == len(expected) else None
    yield "plan at most 10 % over and 3 % under", text, met


def memory(of: Benchmark) -> list[str]:
    """Return peaks beside the plan's, and the terms that the plan adds up."""
    rows = []
    for step in of.steps:
        if step.kind not in PHASE:
            continue
        peak, need, error = of.peak(step), of.plan(step), plan_error(of, step)
        terms = {} if need is None else {term: size / GIB for term, size in need.terms.items()}
        rows.append(
            [
                PHASE[step.kind],
                step.name,
                of.state(step.name) if peak is None else f"{peak / GIB:.2f}",
                "-" if need is None else f"{need.peak / GIB:.2f}",
                "-" if need is None or is_mapped(of, step) else figure(error, "{:+.1%}"),
                ", ".join(f"{term} {size:.2f}" for term, size in terms.items() if size >= 0.005) or "-",
            ]
        )
    kind = "RAM" if of.device == "cpu" else "GPU memory"
    return [
        f"## Peak {kind} by phase, GiB",
        "",
        *table("phase: | step: | measured | plan | plan is off by | the plan's terms:", rows),
        "",
        "The plan assumes the longest prompts and outputs, so it is shown for the steps that reach them. `validate` "
        "runs the code of `generate` with one sample per prompt, and `select` that of `judge`, so they have no step of "
        "their own; `pair` is arithmetic.",
    ]


def floors(of: Benchmark, step: Step, amount: float | None) -> list[str]:
    """Return `amount` per second by bandwidth alone and by operations alone, and the share of the lower reached."""
    floor = of.floor(step)
    if floor is None or amount is None:
        return [NOT_MEASURED] * 3
    reached = floor.seconds / of.measured(step.name)["seconds"]
    return [f"{amount / floor.moving:.3g}", f"{amount / floor.computing:.3g}", f"{reached:.0%}"]


FLOORS = "at most, by bandwidth | at most, by FLOP/s | share reached"


def sampling(of: Benchmark) -> list[str]:
    """Return tokens per second by engine and batch."""
    rows, shift = [], None
    for step in speeds(of):
        found, plain = of.measured(step.name), plain_step(of, step.setting["batch"])
        times = None
        if found:
            shift = found.get("shift", shift)
            times = plain and rate(of, plain) and rate(of, step) / rate(of, plain)
        tokens = found and found["tokens"]
        rows.append(
            [
                step.setting["engine"],
                str(step.setting["batch"]),
                figure(tokens, "{}") if found else of.state(step.name),
                figure(rate(of, step)),
                "-" if plain is None else figure(times, "{:.2f}x"),
                *floors(of, step, tokens),
            ]
        )
    first = sizes_of(of.shape, of.device)
    return [
        "## Sampling, tokens/s",
        "",
        *table(f"engine: | batch | tokens | tokens/s | times generate | {FLOORS}", rows),
        "",
        f"Samples of {first.mean_length} tokens on average and at most {first.new_tokens}, {K} per prompt. "
        f"Instructions of at most {first.prompt_tokens} tokens, with the thought prompt around them. Mean KL(sampler "
        f"|| trainer) of gguf: {figure(shift, '{:.4f} nats a token')}.",
    ]


def judging(of: Benchmark) -> list[str]:
    """Return calls per second by mode."""
    rows = []
    for step in of.of("judging"):
        found = of.measured(step.name)
        calls, tokens, seconds = (found[key] for key in ("calls", "tokens", "seconds")) if found else (None, None, None)
        rows.append(
            [
                step.setting["mode"],
                str(calls) if found else of.state(step.name),
                figure(found and calls / seconds, "{:.2f}"),
                figure(found and tokens / seconds),
                figure(found and found["prefill"]),
                *floors(of, step, calls),
            ]
        )
    first = of.of("judging")[0].setting
    floors_of_calls = FLOORS.replace("at most", "calls/s at most")
    return [
        "## Judging, calls/s",
        "",
        *table(f"mode: | calls | calls/s | tokens/s | one prompt alone, tokens/s | {floors_of_calls}", rows),
        "",
        f"All pairs of {first['responses']} answers (cut to {first['characters']} characters), in both orders; a "
        f"prefix that comparisons share is counted once. Explanations of {first['explain_tokens']} tokens. "
        f"One prompt alone: {first['prefill']} tokens.",
    ]


def training(of: Benchmark) -> list[str]:
    """Return tokens and pairs per second by path, rank and optimizer."""
    rows = []
    trl = trained(of, dpo_step(of, "trl"))
    unsloth = trained(of, dpo_step(of, "unsloth"))
    for step in of.of("training"):
        found, speed = of.measured(step.name), trained(of, step)
        tokens = found and speed * found["seconds"]
        rows.append(
            [
                step.setting["path"],
                str(step.setting["rank"]),
                step.setting["optimizer"],
                figure(speed) if found else of.state(step.name),
                figure(found and found["pairs_per_second"], "{:.3f}"),
                figure(speed and trl and speed / trl, "{:.2f}x"),
                figure(speed and unsloth and speed / unsloth, "{:.2f}x"),
                *floors(of, step, tokens),
            ]
        )
    first = of.of("training")[0].setting
    return [
        "## DPO, tokens/s",
        "",
        *table(f"path: | rank | optimizer: | tokens/s | pairs/s | times trl | times unsloth | {FLOORS}", rows),
        "",
        f"Pairs of {first['tokens']} tokens a side, one at a time; tokens of both sides are counted.",
    ]


def merging(of: Benchmark) -> list[str]:
    """Return seconds, RAM and disk of what comes between iterations."""
    rows = []
    for step in [*of.of("fold"), *of.of("requantize")]:
        found, floor = of.measured(step.name), of.floor(step)
        rows.append(
            [
                step.name,
                f"{found['seconds']:.1f}" if found else of.state(step.name),
                figure(found and found["peak"]["host"] / GIB, "{:.2f}"),
                figure(found and found["disk"] / 1e9, "{:.3f}"),
                figure(floor and floor.moving, "{:.3g}"),
                figure(floor and floor.computing, "{:.3g}"),
                figure(floor and floor.seconds / found["seconds"], "{:.0%}"),
            ]
        )
    largest = next((found["shard"] for step in of.of("requantize") if (found := of.measured(step.name))), None)
    return [
        "## Merging, seconds",
        "",
        *table(f"merge: | seconds | peak RAM, GiB | disk, GB | {FLOORS.replace('at most', 'at least')}", rows),
        "",
        "fold is the whole phase: it loads the base and measures the KL divergence. requantize is only the merge into "
        "16-bit weights on disk, with its verification (bandwidth is the disk's). Largest shard: "
        f"{figure(largest and largest / GIB, '{:.2f} GiB')}.",
    ]


def iteration(of: Benchmark) -> list[str]:
    """Return the hours of one iteration here, and on cards that a reader may have."""
    sampled = [step for step in speeds(of) if step.setting["engine"] != "generate" and of.measured(step.name)]
    fastest = max(sampled, key=lambda step: rate(of, step), default=None)
    fold = of.measured("fold")
    judge = {key: value for key, value in sizes_of(of.shape, of.device).judge.items() if key != "explain_tokens"}
    setting = fastest.setting if fastest else {"engine": "transformers", "batch": sizes_of(of.shape, of.device).batch}
    rows = []
    for label, name in RECIPES.items():
        recipe = recipe_as_measured(name, setting["engine"], setting["batch"], judge)
        trains = trained(of, dpo_step(of, "ours"))
        here = seconds_measured(recipe, fastest and rate(of, fastest), *judged(of), trains, fold and fold["seconds"])
        rows.append([label, "here, measured", *_hours(here)])
        for card in (card for card in CARDS if card.name in ESTIMATED):
            there: Seconds = dict.fromkeys(PHASES)  # a CPU's figures say nothing about a card
            if of.device == "cuda" and of.machine is not None:
                there = seconds_elsewhere(here, recipe, of.model, of.judge, of.card, card)
            rows.append([label, f"{card.name}, estimated", *_hours(there)])
    how = f"Sampled with {setting['engine']}, batch {setting['batch']}, the fastest measured. " if fastest else ""
    return [
        "## Hours of one iteration of one arm",
        "",
        *table(f"recipe: | card: | {' | '.join(PHASES)} | all", rows),
        "",
        f"{how}Here: the recipe's numbers of prompts, samples and pairs over the speeds above, with texts of the "
        "lengths that `tpo-lite plan` assumes; loading models is left out. Estimated: the same, scaled by what the "
        "plan's arithmetic gives for both cards' published figures; nothing was measured on them.",
    ]


def _hours(seconds: dict[str, float | None]) -> list[str]:
    whole = None if None in seconds.values() else sum(seconds.values())
    return [figure(value and value / 3600, "{:.2f}") for value in [*(seconds[phase] for phase in PHASES), whole]]
