"""A recipe: everything that decides a run's result, in one YAML file.

Unknown keys are errors, and every error names the key, the value and the remedy. Recipes that come with the package
are found by name (`tpo-lite recipes list`), others by path. The same recipe runs on a CPU and on a GPU.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from tpo_lite.errors import InputError
from tpo_lite.kinds import Arm, Engine, Merge, MergeBase, Quantize
from tpo_lite.recipe_keys import (
    Auto,
    Evaluation,
    Instructions,
    JudgeSettings,
    LengthControl,
    Lora,
    PairSettings,
    Positive,
    Rating,
    Sampling,
    Section,
    Selection,
    Thought,
    TournamentSettings,
    Train,
    WarmStart,
)
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK, ThoughtStyle, custom_style


class Recipe(Section):
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides slices, samples and training order."""
    iterations: Positive = 3
    """Rounds of sample, judge, train, fold."""
    model: str = "embedded"
    """M_0: a hub id, a local folder, `embedded`, or a GGUF (file.gguf or hub:owner/repo/file.gguf)."""
    engine: Auto | Engine = "auto"
    """What samples; auto is the engine measured fastest on such a device, chosen when a run starts."""
    quantize: Auto | Quantize = "auto"
    """The base in 4-bit NF4, or as it is; auto: NF4 on a GPU, and on a CPU what is measured fastest there."""
    baseline: bool = False
    """Also train the direct baseline: the same seed, judge, loss and data, without thoughts."""
    instructions: Instructions = Instructions()
    thought: Thought = Thought()
    warm_start: WarmStart = WarmStart()
    sampling: Sampling = Sampling()
    judge: JudgeSettings = JudgeSettings()
    tournament: TournamentSettings = TournamentSettings()
    rating: Rating = Rating()
    length_control: LengthControl = LengthControl()
    pairs: PairSettings = PairSettings()
    lora: Lora = Lora()
    train: Train = Train()
    merge: Merge = "fold"
    """How M_{t+1} carries the update on: see README, "Between iterations"."""
    merge_base: MergeBase = "w16"
    """With `merge: requantize`: what to merge into; nf4 loses most of small updates (benchmarks/results/merging.md)."""
    select: Selection = Selection()
    evaluation: Evaluation = Evaluation()

    @property
    def arms(self) -> list[Arm]:
        """Return the models trained: "thinking", "direct" or both."""
        if self.thought.style == "direct":
            return ["direct"]
        return ["thinking", "direct"] if self.baseline else ["thinking"]

    def style(self, arm: Arm) -> ThoughtStyle:
        """Return the thought prompt of an arm."""
        if arm == "direct":
            return DIRECT
        if self.thought.style == "custom":
            if self.thought.prompt is None or self.thought.response_marker is None:
                raise InputError("thought.style is custom: give thought.prompt and thought.response_marker too.")
            return custom_style(self.thought.prompt, self.thought.response_marker, self.thought.thought_marker)
        return {"generic": GENERIC, "specific": SPECIFIC, "think": THINK}[self.thought.style]


PACKAGE = Path(__file__).parent
SHIPPED = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"
"""Inside an installed wheel, or beside the package in a checkout."""


def shipped() -> list[Path]:
    """Return the recipes that came with the package, by name."""
    return sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem)


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one. Raises `InputError`."""
    for path in (Path(name), SHIPPED / f"{name}.yaml", SHIPPED / name):
        if path.is_file():
            return path
    names = ", ".join(path.stem for path in shipped())
    raise InputError(f"no recipe {name!r}. Give a YAML file or one of: {names}.")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides, values in YAML.

    Raises `InputError` for YAML that cannot be read and for keys and values that do not fit.
    """
    path = recipe_path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read recipe {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}. Fix that line.") from error
    if not isinstance(data, dict):
        raise InputError(f"recipe {path} holds no keys; see `tpo-lite recipes show embedded` for one that does.")
    for override in overrides:
        _override(data, override)
    return parse_recipe(data, str(path))


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r} is not key.path=value, such as --set thought.style=direct.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {key}: {text!r} is not a YAML value; quote it.") from error
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise InputError(f"--set {key}: {parent} is not a section with keys. See `tpo-lite recipes show embedded`.")
    data[last] = value


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def parse_recipe(data: dict[str, Any], source: str) -> Recipe:
    """Return the recipe that `data` holds. Raises `InputError` that names each wrong key, its value and the remedy."""
    return parse_as(Recipe, data, source)


def parse_as(kind: type[AnyRecipe], data: dict[str, Any], source: str) -> AnyRecipe:
    """Do the same for `Recipe` or a subclass of it."""
    try:
        recipe = kind.model_validate(data)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(item)}" for item in error.errors())
        raise InputError(f"recipe {source} does not fit:\n{problems}") from error
    for arm in recipe.arms:
        recipe.style(arm)  # a custom thought prompt is checked here, before anything starts
    for key in ("prompt", "thought_marker", "response_marker"):
        if recipe.thought.style != "custom" and getattr(recipe.thought, key) is not None:
            raise InputError(f"thought.{key} is given, but thought.style is {recipe.thought.style}: set it to custom.")
    budget, longest = recipe.thought.budget, recipe.sampling.max_new_tokens
    if budget is not None and recipe.thought.style == "direct":
        raise InputError("thought.budget is given, but thought.style is direct, which has no thoughts: remove it.")
    if budget is not None and budget >= longest:
        raise InputError(
            f"thought.budget: {budget} leaves nothing of sampling.max_new_tokens ({longest}) for a response. "
            "Lower the budget, or raise sampling.max_new_tokens."
        )
    if (recipe.warm_start.kind == "file") != (recipe.warm_start.file is not None):
        raise InputError(
            f"warm_start.kind is {recipe.warm_start.kind} and warm_start.file is {recipe.warm_start.file}: give a file "
            "with kind: file, and only then."
        )
    batch, micro_batch = recipe.train.batch, recipe.train.micro_batch
    if micro_batch != "auto" and batch % min(micro_batch, batch):
        nearest = next(size for size in divisors(batch) if size < micro_batch)
        raise InputError(f"train.micro_batch: {micro_batch} must divide train.batch ({batch}). Use {nearest}.")
    if recipe.quantize == "none" and recipe.merge_base == "nf4":
        raise InputError(
            "merge_base: nf4 merges into dequantized 4-bit weights, which quantize: none does not have. "
            "Use merge_base: w16."
        )
    _check_judge_prompt(recipe.judge, "judge")
    if recipe.select.judge is not None:
        _check_judge_prompt(recipe.select.judge, "select.judge")
    if recipe.model == "embedded" and recipe.thought.style not in ("generic", "direct"):
        raise InputError(
            f"thought.style: {recipe.thought.style!r} does not fit the embedded policy, which only knows the generic "
            "thought prompt and direct answers. Take one of these, or another model."
        )
    return recipe


def _check_judge_prompt(judge: JudgeSettings, section: str) -> None:
    """Raise `InputError` for a judge prompt that the judge would not get, or that does not fit it."""
    own = next((key for key in ("template", "system") if getattr(judge, key) is not None), None)
    named = f"{section}.prompt: {judge.prompt}"
    if judge.mode == "reward-model" and (own or judge.prompt != "seed"):
        given = f"{section}.{own}" if own else named
        raise InputError(f"{given} is given, but a reward model is not asked anything. Leave it out.")
    if judge.prompt == "seed":
        return
    if own:
        raise InputError(f"{section}.{own} is given, but {named} has a text of its own. Leave out one of them.")
    if judge.mode == "score":
        raise InputError(f"{named} compares two responses, but {section}.mode is score. Set it to verdict.")
    if judge.mode == "explain" and judge.prompt == "skywork-critic":
        raise InputError(f"{named} asks for no explanation, but {section}.mode is explain. Set it to verdict.")
    if judge.model == "embedded" and judge.mode != "openai":
        raise InputError(f"{named} does not fit the embedded judge, which only knows its own. Leave it out.")


def divisors(batch: int) -> list[int]:
    """Return the micro-batches that add up to `batch`, the largest first."""
    return [size for size in range(batch, 0, -1) if batch % size == 0]


def _problem(item: Any) -> str:
    """Return one line for one of pydantic's errors: key, value, remedy."""
    # A union such as "auto" | float reports each member with a location of its own.
    known = _keys(Recipe)
    key = ".".join(str(part) for part in item["loc"])
    while key not in known and item["type"] != "extra_forbidden" and "." in key:
        key = key.rpartition(".")[0]
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else "remove it, or see `tpo-lite recipes show embedded`."
        return f"{key}: unknown key (value {item['input']!r}); {hint}"
    return f"{key}: {item['input']!r} does not fit: {item['msg'].lower()}."


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):  # a section may be one of a union, with None
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return which keys differ, as "key: old -> new" lines."""
    values = [(key, value_of(old, key), value_of(new, key)) for key in _keys(Recipe)]
    sections = [key for key, a, b in values if isinstance(a, Section) and isinstance(b, Section)]
    within = [(key, a, b) for key, a, b in values if key.rpartition(".")[0] in ("", *sections)]
    return [f"{key}: {a!r} -> {b!r}" for key, a, b in within if a != b and key not in sections]


Keys = dict[str, Any]
"""Values by a recipe's key.path."""


def with_keys(recipe: AnyRecipe, keys: Keys) -> AnyRecipe:
    """Return `recipe` with other values. Raises `InputError` for an unknown key and a value that does not fit."""
    data = recipe.model_dump()
    for key, value in keys.items():
        *sections, name = key.split(".")
        section = data
        for part in sections:
            if section.setdefault(part, {}) is None:
                section[part] = {}
            section = section[part]
        section[name] = value
    return parse_as(type(recipe), data, f"with {', '.join(f'{key}={value}' for key, value in keys.items())}")


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the value at a key.path; None in a section that the recipe does not have."""
    return reduce(lambda section, part: None if section is None else getattr(section, part), key.split("."), recipe)
