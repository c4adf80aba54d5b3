"""A recipe: everything that decides a run's result, in one YAML file.

Unknown keys are errors, and every error names the key, the value and the remedy. Recipes that come with the package
are found by name (`tpo-lite recipes list`), others by path. The same recipe runs on a CPU and on a GPU.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tpo_lite.errors import InputError
from tpo_lite.kinds import Arm, Engine, JudgeMode, KvType, Merge, MergeBase, TournamentKind
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK, ThoughtStyle, custom_style

Positive = Annotated[int, Field(ge=1)]
Auto = Literal["auto"]
"""Left to `tpo_lite.plan.choices.settle`, which chooses a value for the machine when a run starts. A `SettledRecipe`
(`tpo_lite.settled`) has none of these."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Instructions(Section):
    """Where instructions come from and which are kept (the paper's data and sampling)."""

    source: str = "embedded"
    """A JSONL, JSON, CSV, Parquet or text file, `hub:name[:split[:column]]`, `everyday` (600 shipped) or `embedded`."""
    per_iteration: Positive = 500
    """Instructions per iteration; iterations never share one."""
    validation: Positive = 100
    """Held-out instructions on which checkpoints are compared."""
    max_tokens: Positive = 512
    """Longer instructions are dropped and counted."""
    allow_leakage: bool = False
    """Keep instructions that are among AlpacaEval's 805 or Arena-Hard's 500."""
    turn: Literal["first", "last"] = "first"
    """Which user turn of a conversation is answered; last: with all turns before it as history."""
    skip_bad: bool = False
    """Count malformed lines instead of stopping at the first."""


class Thought(Section):
    """The thought prompt (the paper's thought prompts)."""

    style: Literal["generic", "specific", "think", "direct", "custom"] = "generic"
    """The paper's two prompts, its generic one with <think> tags, no thought at all, or `prompt` below."""
    prompt: str | None = None
    """Custom style: the text around the instruction, with {instruction} once."""
    thought_marker: str | None = None
    """Custom style: what thoughts are written after, if anything."""
    response_marker: str | None = None
    """Custom style: what the response is written after."""


class Sampling(Section):
    """How the K outputs of an instruction are sampled (the paper's data and sampling)."""

    k: Annotated[int, Field(ge=2)] = 8
    """Outputs per instruction."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.8
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus: the smallest set of tokens with at least this probability."""
    max_new_tokens: Positive = 1024
    """Longer outputs are truncated, and a truncated output is malformed."""
    batch: Auto | Positive = 64
    """Sequences decoded at a time."""


class JudgeSettings(Section):
    """The model that compares two responses (the paper's judges)."""

    model: str = "embedded"
    """A GGUF file, `hub:owner/repo/file.gguf`, or `embedded`; reward-model: a folder or hub id (owner/name);
    openai: the server's name for it."""
    mode: JudgeMode = "explain"
    """A GGUF that says its verdict at once, explains itself first, or rates each response from 1 to 10; a
    sequence-classification model that scores each response; any OpenAI-compatible server, with explanations."""
    template: str | None = None
    """A judge prompt with {instruction}, {response_a}, {response_b} (score: {response}); None: judges/prompts.py."""
    chat_template: str | None = None
    """A Jinja chat template, for a GGUF that has none of its own."""
    explain_tokens: Positive = 512
    """Tokens of explanation before the verdict is forced; openai: of the whole reply."""
    context: Auto | Positive = 8192
    """Tokens that all sequences decoded together may hold; reward-model: of a batch, padding included."""
    batch: Positive = 512
    """Tokens per decode."""
    sequences: Positive = 32
    """Comparisons decoded together; openai: requests in flight."""
    prompts_at_once: Positive = 8
    """Instructions judged as one unit of work."""
    kv_type: Auto | KvType = "f16"
    """Type of the KV cache, keys and values alike."""
    overlong: Literal["drop", "truncate"] = "drop"
    """A comparison longer than the context: leave it out, or cut the middle of the longer response, then of both."""
    gpu_layers: Annotated[int, Field(ge=-1)] = -1
    """With --gpu: layers of the GGUF on the GPU; -1: all."""
    fewer_gpu_layers: bool = False
    """If the GPU's memory is too small, put fewer layers there and say so, instead of stopping."""
    quantize: Literal["none", "nf4"] = "none"
    """reward-model: load it in 16 bit, or in 4-bit NF4."""
    trust_remote_code: bool = False
    """reward-model: run the Python code that came with it, which ArmoRM needs. Read it first."""
    base_url: str = "https://api.openai.com/v1"
    """openai: the server. Its key is read from the environment variable OPENAI_API_KEY."""
    max_calls: Positive | None = None
    """openai: stop before more requests than this are sent in the whole run, repeated ones included."""


class TournamentSettings(Section):
    """Which comparisons the judge is asked for."""

    kind: TournamentKind = "adaptive"
    """All pairs in both orders (the paper's), each pair in one, or as many as it takes to settle best and worst."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """adaptive: best and worst are settled when a full round robin would find none clearly better or worse, with
    this probability each."""


class Rating(Section):
    """Bradley-Terry ratings of the K responses (the paper's judges)."""

    wins: Literal["soft", "hard"] = "soft"
    """Probabilities or verdicts as wins."""
    prior: Annotated[float, Field(gt=0.0)] = 0.1
    """Strength of the weak prior without which a response that wins everything has no finite rating."""


class LengthControl(Section):
    """Length-controlled scores (the paper's length control)."""

    rho: Literal["auto"] | Annotated[float, Field(ge=0.0, le=0.5)] = "auto"
    """Weight of the length; auto: the smallest with chosen responses on average not longer than rejected ones."""


class PairSettings(Section):
    """Which pairs are trained on."""

    malformed_share: Share = 0.1
    """At most this share of pairs reject a malformed output."""
    max_tokens: Positive = 2048
    """Prompt plus output; longer pairs are dropped, never cut."""


class Lora(Section):
    """The adapter that one iteration adds, on all linear layers."""

    rank: Positive = 16
    """Rank r of an iteration's block."""
    alpha: Annotated[float, Field(gt=0.0)] = 16
    """Updates are scaled by alpha / rank."""


class Train(Section):
    """DPO (the paper's training; TRL's DPOTrainer)."""

    loss: Literal["dpo", "irpo"] = "dpo"
    """irpo adds the negative log-likelihood of the chosen output, divided by its length in tokens."""
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Strength of the tie to the reference M_t."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Decay of the learning rate."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of steps over which the learning rate rises."""
    epochs: Positive = 2
    """Passes over the pairs; each ends in a checkpoint."""
    batch: Positive = 32
    """Pairs per optimizer step."""
    micro_batch: Auto | Positive = 1
    """Pairs per forward pass; gradients accumulate up to `batch`."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """Adam with 32-bit or 8-bit state; paged: on a full GPU the state moves to RAM. On a CPU nothing is paged."""
    gradient_checkpointing: Auto | bool = False
    """Recompute activations in the backward pass to save memory."""
    older_blocks: Literal["train", "frozen"] = "frozen"
    """With `merge: fold`: whether older blocks keep learning (benchmarks/results/embedded-settings.md)."""


class Evaluation(Section):
    """Sampling on the validation slice."""

    retries: Annotated[int, Field(ge=0)] = 2
    """A malformed output is sampled again this often (the paper's training); then it loses."""


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
    baseline: bool = False
    """Also train the direct baseline: the same seed, judge, loss and data, without thoughts."""
    instructions: Instructions = Instructions()
    thought: Thought = Thought()
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
    batch, micro_batch = recipe.train.batch, recipe.train.micro_batch
    if micro_batch != "auto" and batch % min(micro_batch, batch):
        nearest = next(size for size in divisors(batch) if size < micro_batch)
        raise InputError(f"train.micro_batch: {micro_batch} must divide train.batch ({batch}). Use {nearest}.")
    if recipe.model == "embedded" and recipe.thought.style not in ("generic", "direct"):
        raise InputError(
            f"thought.style: {recipe.thought.style!r} does not fit the embedded policy, which only knows the generic "
            "thought prompt and direct answers. Take one of these, or another model."
        )
    return recipe


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
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return which keys differ, as "key: old -> new" lines."""
    values = [(key, value_of(old, key), value_of(new, key)) for key in _keys(Recipe)]
    return [f"{key}: {a!r} -> {b!r}" for key, a, b in values if a != b and not isinstance(a, Section)]


Keys = dict[str, Any]
"""Values by a recipe's key.path."""


def with_keys(recipe: AnyRecipe, keys: Keys) -> AnyRecipe:
    """Return `recipe` with other values. Raises `InputError` for an unknown key and a value that does not fit."""
    data = recipe.model_dump()
    for key, value in keys.items():
        *sections, name = key.split(".")
        reduce(lambda section, part: section.setdefault(part, {}), sections, data)[name] = value
    return parse_as(type(recipe), data, f"with {', '.join(f'{key}={value}' for key, value in keys.items())}")


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the value at a key.path."""
    return reduce(getattr, key.split("."), recipe)
