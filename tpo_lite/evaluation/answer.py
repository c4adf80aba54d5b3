"""Lets a model of a run answer a file of instructions: one output each, and malformed ones are sampled again.

Everything is written to one folder: `samples.jsonl` with thoughts and tokens, one line as soon as a prompt is finished;
`model_outputs.json` with the responses alone, in the form that `alpaca_eval` takes; and `settings.json`, which says how
they were sampled and from what.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.evaluation.outputs import find_model
from tpo_lite.files import read_json, write_json
from tpo_lite.instructions.load import load
from tpo_lite.machine.device import Device
from tpo_lite.records import Instruction, PromptSamples
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.sampling.to_file import sample_into
from tpo_lite.version import __version__

SAMPLES, OUTPUTS, SETTINGS = "samples.jsonl", "model_outputs.json", "settings.json"


@dataclass(frozen=True)
class Answered:
    """What a model answered."""

    model: str
    """Its name, such as "thinking M_2"."""
    outputs: Path
    """model_outputs.json."""
    n: int
    """Instructions."""
    outcomes: dict[str, int]
    """First attempts by outcome."""
    malformed: int
    """Outputs that stayed malformed; their response is empty."""


def answer(source: Path, questions: Path, out: Path, device: Device, suffix: str = "") -> Answered:
    """Let the model of a run's folder answer a file of instructions; a stopped call goes on where it was.

    `source` is `RUN/ARM` or `RUN/ARM/iteration-<t>`; `suffix` is added to every instruction for the model, but not to
    the instruction that is written. Raises `InputError` for a folder that holds the outputs of something else, a run
    that cannot be read, and a file without instructions.
    """
    folder, arm, model = find_model(source)
    recipe = folder.load_settled()
    rows = {row.id: row for row in load(questions).instructions}
    if not rows:
        raise InputError(f"{questions} has no instructions. Give a JSON or JSONL file of them.")
    settings = {
        "version": __version__,
        "run": str(folder.root),
        "model": f"{arm} M_{model}",
        "questions": hashlib.sha256(questions.read_bytes()).hexdigest(),
        "suffix": suffix,
        "seed": recipe.seed,
        "thought": recipe.thought.model_dump(mode="json"),
        "sampling": recipe.sampling.model_dump(mode="json"),
        "retries": recipe.evaluation.retries,
        "engine": recipe.engine,
        "base": recipe.model,
    }
    _keep_apart(out, settings)
    write_json(out / SETTINGS, settings)
    asked = [dataclasses.replace(row, text=row.text + suffix) for row in rows.values()]
    loaded = LoadedPolicy(recipe, policy(folder, recipe, arm, model), device)
    key = sampling_key(recipe, arm, model, "evaluation")
    name = f"{arm} M_{model}"
    answered = sample_into(out / SAMPLES, loaded, asked, arm, key, 1, recipe.evaluation.retries, name)
    write_json(out / OUTPUTS, [_output(rows[each.instruction.id], each, name) for each in answered])
    return Answered(
        name,
        out / OUTPUTS,
        len(answered),
        dict(Counter(each.samples[0].outcome for each in answered)),
        sum(not each.samples[-1].well_formed for each in answered),
    )


def _keep_apart(out: Path, settings: dict[str, Any]) -> None:
    """Raise `InputError` if the folder holds samples that were made in another way."""
    if not (out / SAMPLES).exists():
        return
    before = read_json(out / SETTINGS) if (out / SETTINGS).exists() else {}
    for key, now in settings.items():
        if before.get(key) != now:
            raise InputError(f"{out} holds outputs with another {key}: {before.get(key)!r}. Give another folder.")


def _output(row: Instruction, answered: PromptSamples, model: str) -> dict[str, Any]:
    """Return an entry of model_outputs.json."""
    entry = {"instruction": row.text, "output": answered.samples[-1].response, "generator": model}
    return entry | {key: value for key in ("category", "answer") if (value := getattr(row, key)) is not None}
