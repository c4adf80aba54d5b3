"""Which model a name on the command line means, and how it is asked: a run, an adapter, a GGUF or a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tpo_lite.errors import InputError
from tpo_lite.evaluation.outputs import find_model, worker_in
from tpo_lite.files import read_json
from tpo_lite.hub import gguf_path, is_gguf, model_path
from tpo_lite.kinds import Arm, SampledGguf, ThoughtPrompt
from tpo_lite.recipe_keys import Sampling
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import Policy, bare_base, policy
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK, ThoughtStyle

STYLES: dict[ThoughtPrompt, ThoughtStyle] = {"generic": GENERIC, "specific": SPECIFIC, "think": THINK, "direct": DIRECT}


@dataclass(frozen=True)
class RunModel:
    """M_t of an arm of a run."""

    root: Path
    """The run folder."""
    arm: Arm
    last: int
    """The number of the last model that is finished."""
    number: int


@dataclass(frozen=True)
class Source:
    """A model on disk, and how it is asked."""

    name: str
    policy: Policy
    """Base and adapter; `work` is where the run keeps files of its own, if it is a run's. A GGUF that is not a run's
    base is its own `model`."""
    style: ThoughtStyle
    sampling: Sampling
    """Temperature, nucleus and the longest output, for requests that do not say."""
    weights: SampledGguf
    budget: int | None = None
    """The thought's budget in the recipe."""
    of_run: RunModel | None = None
    gpu: int | None = None
    """The GPU that the run used."""


def find_source(name: str, style: ThoughtPrompt | None = None) -> Source:
    """Return the model that `name` means: a folder of a run, an adapter's folder, a GGUF, or a model.

    RUN is the last model of its thinking arm, if it has one; RUN/ARM and RUN/ARM/iteration-<t> are as in
    `tpo_lite.evaluation.outputs.find_model`. `style` is how a model is asked that is not a run's, by default directly;
    an adapter is asked with the generic thought prompt.

    Raises `InputError` for a name that means no model, a run that goes on or has no finished iteration, and for a
    `style` with a run, which has its own.
    """
    path = Path(name).expanduser()
    root = next((each for each in (path, *path.absolute().parents[:3]) if (each / "recipe.yaml").is_file()), None)
    if root is not None and path.exists():
        if style is not None:
            raise InputError(f"--thought {style} is given, but {name} is a run, which has its own. Leave it out.")
        return _of_run(path, RunFolder(root))
    asked = None if style is None else STYLES[style]
    if is_gguf(name):
        file = gguf_path(name)
        return _plain(file.stem, Policy(str(file), None, file.parent, file), asked or DIRECT)
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise InputError(f"{path}/adapter_config.json names no base_model_name_or_path. Write the base there.")
        base = model_path(base, f"{path}/adapter_config.json: base_model_name_or_path")
        return _plain(path.resolve().name, Policy(base, path, path), asked or GENERIC)
    return _plain(path.name, Policy(model_path(name), None, path), asked or DIRECT)


def _plain(name: str, policy: Policy, style: ThoughtStyle) -> Source:
    """Return a source that is not a run's, with the sampling of a recipe that does not say."""
    return Source(name, policy, style, Sampling(), "Q4_K_M")


def _of_run(path: Path, folder: RunFolder) -> Source:
    _check_at_rest(folder)
    if (path / "recipe.yaml").is_file():
        path = path / folder.load_recipe().arms[0]
    if path.name in ("adapter", "model"):
        path = path.parent
    folder, arm, number = find_model(path)
    last = find_model(folder.root / arm)[2]
    return model_of_run(RunModel(folder.root, arm, last, number))


def model_of_run(model: RunModel) -> Source:
    """Return M_t of a run, ready to be asked as the run asked it. Raises `InputError` if there is no such model."""
    folder = RunFolder(model.root)
    if not 0 <= model.number <= model.last:
        raise InputError(f"{folder.root} has M_0 to M_{model.last} of {model.arm}. Give one of these numbers.")
    recipe = folder.load_settled()
    found = policy(folder, recipe, model.arm, model.number)
    return Source(
        name=f"{folder.root.resolve().name}-{model.arm}-M_{model.number}",
        policy=found,
        style=recipe.style(model.arm),
        sampling=recipe.sampling,
        weights=recipe.gguf_type,
        budget=recipe.thought.budget if model.arm == "thinking" else None,
        of_run=model,
        gpu=folder.load_place().gpu,
    )


def base_of(source: Source) -> Source:
    """Return the model before any training, asked directly, to put beside `source`."""
    found = replace(source.policy, adapter=None)
    if source.of_run is not None:
        folder = RunFolder(source.of_run.root)
        found = bare_base(folder, folder.load_settled())
    return replace(source, name="base", policy=found, style=DIRECT, budget=None)


def _check_at_rest(folder: RunFolder) -> None:
    """Raise `InputError` if a process works in a run folder. Writes nothing."""
    if worker_in(folder.root) is not None:
        raise InputError(
            f"{folder.root} is still going, and needs this machine's memory. Wait until it ends, or stop it: "
            "`tpo-lite train` goes on later."
        )
