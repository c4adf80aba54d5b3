"""Both arms of a run at one M_t, on the slice that models are reported on: what head to heads and controls start from.

What evaluations of M_t add to a run lies in RUN/evaluation/M_<t>/. The samples there depend on the run's recipe, the
model and their number alone, which their names give. So every control uses the same ones, and none is drawn twice.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.evaluation.history import history
from tpo_lite.evaluation.outputs import Output, Outputs, count_finished, find_model
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.machine.device import Device
from tpo_lite.phases.figures import final_response
from tpo_lite.records import Instruction, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe


@dataclass(frozen=True)
class Arms:
    """The thinking and the direct M_t of a run."""

    folder: RunFolder
    recipe: SettledRecipe
    model: int
    """t."""

    @property
    def out(self) -> Path:
        """Return the folder for what evaluations of this M_t add to the run."""
        return self.folder.root / "evaluation" / f"M_{self.model}"

    @property
    def held_out(self) -> HeldOut:
        """Return the slice that models are reported on: the test slice or, in a run without one, the validation one."""
        return "test" if self.recipe.instructions.test else "validation"

    @cached_property
    def instructions(self) -> list[Instruction]:
        """Return the slice's instructions, in its order."""
        return list(read_jsonl(self.folder.instructions(self.held_out), Instruction))

    def answers(self, arm: Arm) -> dict[str, PromptSamples]:
        """Return the arm's recorded answers by the instruction's id, in the slice's order.

        Raises `InputError` for an answer to another instruction, a second one to the same, and one that is missing.
        """
        find = self.folder.test_of if self.held_out == "test" else self.folder.validation_of
        return answers_in(find(arm, self.model), self.instructions)

    def outputs(self, arm: Arm) -> Outputs:
        """Return the same as outputs that can be compared; what a malformed answer says is empty."""
        by_id = {
            key: output_of(answer.instruction, final_response(answer)) for key, answer in self.answers(arm).items()
        }
        return Outputs(f"{arm} M_{self.model}", by_id)


def output_of(asked: Instruction, response: str) -> Output:
    """Return a response to an instruction of a run."""
    return Output(asked.conversation(), response, asked.category, asked.answer, asked.source)


def answers_in(path: Path, instructions: list[Instruction]) -> dict[str, PromptSamples]:
    """Read a file of answers to a slice; see `Arms.answers`."""
    found: dict[str, PromptSamples] = {}
    asked = {each.id for each in instructions}
    for row, answer in enumerate(read_jsonl(path, PromptSamples), 1):
        text = answer.instruction.text[:60]
        if answer.instruction.id not in asked:
            raise InputError(f"{path}:{row}: {text!r} is not an instruction of the slice. Remove that line.")
        if answer.instruction.id in found:
            raise InputError(f"{path}:{row} answers {text!r} again. Remove one of the lines.")
        found[answer.instruction.id] = answer
    missing = [each for each in instructions if each.id not in found]
    if missing:
        raise InputError(
            f"{path} lacks answers to {len(missing)} of {len(asked)} instructions, the first of which is "
            f"{missing[0].text[:60]!r}. Delete that file and run tpo-lite train again."
        )
    return {each.id: found[each.id] for each in instructions}


def open_arms(root: Path, model: int | None = None) -> Arms:
    """Return both arms of a run at M_`model`; None is the last that both have.

    Raises `InputError` for a folder that is not a run's, a run with one arm, and a model that is not finished.
    """
    folder = RunFolder(root)
    recipe = folder.load_settled()
    if len(recipe.arms) < 2:
        raise InputError(f"{root} has only the {recipe.arms[0]} arm. Train a run with both: --set baseline=true --new.")
    last = min(finished(folder, arm) for arm in recipe.arms)
    if last == 0 and model is None:
        raise InputError(f"{root} has no finished iteration of both arms. Go on with it: tpo-lite train --out {root}")
    if model is not None and not 0 <= model <= last:
        raise InputError(f"--at {model}: both arms have M_0 to M_{last}. Give one of these.")
    return Arms(folder, recipe, last if model is None else model)


def finished(folder: RunFolder, arm: Arm) -> int:
    """Return the number of the arm's last model that has answered the slice that models are reported on."""
    phase = "test" if folder.load_started().instructions.test else "fold"
    return count_finished(folder, arm, phase)


def more_samples(arms: Arms, arm: Arm, model: int, n: int, device: Device) -> list[PromptSamples]:
    """Return N fresh outputs of a model for each instruction of the slice, in the slice's order, each without retries.

    They are kept in RUN/evaluation/M_<model>/<arm>-<n>.jsonl; a stopped call goes on where it was.
    """
    from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
    from tpo_lite.sampling.to_file import sample_into

    path = arms.folder.root / "evaluation" / f"M_{model}" / f"{arm}-{n}.jsonl"
    there = {record.instruction.id for record in read_jsonl(path, PromptSamples)}
    if not there >= {each.id for each in arms.instructions}:
        loaded = LoadedPolicy(arms.recipe, policy(arms.folder, arms.recipe, arm, model), device)
        key = sampling_key(arms.recipe, arm, model, "controls")
        sample_into(path, loaded, arms.instructions, arm, key, n, 0, f"{arm} M_{model}, {n} samples")
        del loaded
        release(device)
    return list(answers_in(path, arms.instructions).values())


def release(device: Device) -> None:
    """Give the memory of a model that nothing refers to any more back to the GPU, for the judge that comes next."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


CONTROLS = ("best-of", "majority", "swap-thoughts")
"""The controls; the tables that `tpo-lite eval` writes lie in RUN/evaluation/M_<t>/<control>/."""
TABLE, RESULTS = "table.txt", "results.jsonl"
"""The last table as text, and every one as a line of JSON."""


def beside(arms: Arms) -> str:
    """Return the tables of the controls that have been made for this M_t, and how to make those that have not."""
    tables, missing = [], []
    for control in CONTROLS:
        path = arms.out / control / TABLE
        if path.exists():
            tables.append(path.read_text(encoding="utf-8").rstrip("\n"))
        else:
            missing.append(f"tpo-lite eval {control} {arms.folder.root} --at {arms.model}")
    if missing:
        tables.append("Would sampling more have done? Not asked yet:\n" + "\n".join(f"  {line}" for line in missing))
    return "\n\n".join(tables)


def latest(arms: Arms) -> dict[str, Any]:
    """Return the last figures of each control that has been made for this M_t."""
    made = {control: history(arms.out / control / RESULTS) for control in CONTROLS}
    return {control: found[-1] for control, found in made.items() if found}


def meeting(a: Path, b: Path) -> Arms | None:
    """Return the run whose thinking and direct M_t two folders are, in whichever order; None for anything else."""
    if not (a.is_dir() and b.is_dir()):
        return None
    (folder, first, model), (other, second, number) = find_model(a), find_model(b)
    if folder.root != other.root or model != number or first == second:
        return None
    return open_arms(folder.root, model)
