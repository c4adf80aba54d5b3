"""Peak memory, RAM and disk of each phase: `tpo_lite.plan.memory` has the terms of the work that they do."""

from __future__ import annotations

from dataclasses import dataclass

from tpo_lite.hub import is_gguf
from tpo_lite.machine.cards import Card
from tpo_lite.phase_order import CHOOSING, JUDGED, SAMPLED, as_asked, phases_of, warm_phases
from tpo_lite.plan.memory import (
    OPTIMIZER_BYTES,
    folding,
    judge_ram,
    judging,
    sampled_rank,
    sampling,
    supervising,
    trained_rank,
    training,
)
from tpo_lite.plan.shapes import JudgeShape, ModelShape, choosing_shape
from tpo_lite.plan.weights import Terms
from tpo_lite.sampling.room import CHARACTERS_A_TOKEN, PROBE_PROMPTS
from tpo_lite.settled import SettledRecipe
from tpo_lite.training.room import KL_POSITIONS, KL_PROMPTS

_SAMPLED = ("warm_sample", *SAMPLED)
LIBRARIES = {
    "CPU": {
        **dict.fromkeys(("warm_start", "dpo"), 0.45e9),
        **dict.fromkeys((*_SAMPLED, "fold"), 0.35e9),
        **dict.fromkeys(JUDGED, 0.05e9),
    },
    "CUDA": {**dict.fromkeys(("warm_start", "dpo", *_SAMPLED, "fold"), 3e9), **dict.fromkeys(JUDGED, 1e9)},
}
"""RAM of a phase's process with its libraries and without models, in bytes. Measured on a CPU after the imports,
assumed for CUDA."""

TOKENIZER_BYTES = {"transformers": 2200, "llama.cpp": 450}
"""Bytes of RAM per token of the vocabulary. Measured with Llama-3's: 0.26 GiB in transformers, 0.055 in llama.cpp."""

SHARD = 5_000_000_000
"""Bytes of the largest file of a model on the hub."""


@dataclass(frozen=True)
class Need:
    """What one phase needs in one iteration of one arm."""

    phase: str
    terms: Terms
    """Bytes on the device at the peak. On a CPU that is RAM."""
    ram: float
    """Bytes of RAM at the peak."""
    disk: float
    """Bytes left on disk."""

    @property
    def peak(self) -> float:
        """Bytes on the device at the peak."""
        return sum(self.terms.values())


def needs(recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, card: Card) -> dict[str, Need]:
    """Return what each phase needs, in the order of the phases, in the last iteration; a warm start comes first."""
    last = recipe.iterations - 1
    sampled, trained = sampled_rank(recipe, last), trained_rank(recipe, last)
    # Float32 rows of one model; for one sequence also those of the other model, and four products in float64.
    sequences, positions = (
        min(KL_PROMPTS, recipe.instructions.validation),
        min(KL_POSITIONS, recipe.sampling.max_new_tokens),
    )
    kl_ram = (4 * sequences + 36) * positions * model.vocabulary
    merged = recipe.merge == "requantize"
    weights = 2 * model.parameters
    fold = folding(recipe, model, card, trained)
    if merged:  # the merged model answers the validation slice in the same process
        fold = max(fold, sampling(recipe, model, card, 1, 0), key=lambda terms: sum(terms.values()))
    judged = (judging(recipe, judge, card), judge_ram(recipe, judge, card))
    choosing, second = as_asked(recipe, "select"), choosing_shape(recipe, judge)
    chosen = (judging(choosing, second, card), judge_ram(choosing, second, card))
    phases: dict[str, tuple[Terms, float]] = {
        "warm_sample": (sampling(recipe, model, card, recipe.warm_start.samples, 0), 0),
        "warm_start": (supervising(recipe, model, card), 0),
        "generate": (sampling(recipe, model, card, recipe.sampling.k, sampled), 0),
        "judge": judged,
        "dpo": (training(recipe, model, card, trained), 0),
        "validate": (sampling(recipe, model, card, 1, trained), 0),
        "select": chosen,
        "crosscheck": judged,
        "fold": (fold, max(kl_ram, 2 * min(SHARD, weights) if merged else 0)),
        "test": (sampling(recipe, model, card, 1, sampled_rank(recipe, last + 1)), 0),
        "match": chosen,
    }
    disk = kept(recipe, model, last)
    found = {}
    for phase in disk:
        terms, ram = phases[phase]
        libraries = LIBRARIES["CUDA" if card.cuda else "CPU"][phase]
        asked = second if phase in CHOOSING else judge
        tokenizer = tokenizer_bytes(as_asked(recipe, phase), model, asked, phase)
        if not card.cuda:
            terms = {"libraries": libraries, "tokenizer": tokenizer} | terms | ({"comparison": ram} if ram else {})
        ram = libraries + tokenizer + ram if card.cuda else sum(terms.values())
        found[phase] = Need(phase, terms, ram, disk[phase])
    return found


def planned_warm(recipe: SettledRecipe) -> tuple[str, ...]:
    """Return the phases of a warm start that is sure to come. `auto` finds out in the run."""
    return () if recipe.warm_start.kind == "auto" else warm_phases(recipe)


def kept(recipe: SettledRecipe, model: ModelShape, iteration: int) -> dict[str, float]:
    """Return the bytes that each phase of iteration t of one arm leaves on disk, with outputs of the longest length.

    Some MB are not counted: M_0's answers to the held-out slices, and with `merge: requantize` the merged models' to
    the validation slice. A phase that the recipe does not have is left out.
    """
    sizes, epochs = recipe.instructions, recipe.train.epochs
    outputs = sizes.per_iteration * recipe.sampling.k
    # A sample's line holds its ids (8 bytes per token) and its text twice, whole and parsed.
    output_bytes = recipe.sampling.max_new_tokens * (8 + 2 * CHARACTERS_A_TOKEN)
    call_bytes = 80 + (recipe.judge.explain_tokens * CHARACTERS_A_TOKEN if recipe.judge.mode == "explain" else 0)
    adapter = 4 * model.lora_parameters(trained_rank(recipe, iteration))
    warm = recipe.warm_start
    left = {
        "warm_sample": (PROBE_PROMPTS + (sizes.test or sizes.validation) + warm.prompts * warm.samples) * output_bytes,
        "warm_start": (warm.epochs + 1) * 4 * model.lora_parameters(recipe.lora.rank),
        "generate": outputs * output_bytes,
        "judge": outputs * (recipe.sampling.k - 1) * call_bytes,
        "dpo": epochs * adapter,
        "validate": sizes.validation * epochs * output_bytes,
        "select": sizes.validation * (epochs + 1) * 80,
        "crosscheck": sizes.validation * (epochs + 1) * 80,
        "fold": 2 * model.parameters if recipe.merge == "requantize" else adapter,
        "test": sizes.test * output_bytes,
        "match": sizes.test * len(recipe.arms) * 80,
    }
    return {
        phase: left[phase] for phase in (*planned_warm(recipe), *phases_of(recipe)) if phase in left
    }  # "pair" leaves next to nothing


def passing(recipe: SettledRecipe, model: ModelShape) -> float:
    """Return the most bytes on disk that a run needs for a while and deletes again.

    These are the optimizer states of the checkpoints until training ends, or the 16-bit weights that a GGUF is made
    of. A GGUF as M_0 is sampled from as it is; with it only merged models are converted. With `quantize: none` the
    16-bit GGUF stays.
    """
    weights = model.lora_parameters(trained_rank(recipe, recipe.iterations - 1))
    states = recipe.train.epochs * weights * OPTIMIZER_BYTES[recipe.train.optimizer]
    converted = recipe.gguf_type != "F16" and (not is_gguf(recipe.model) or recipe.merge == "requantize")
    return max(states, 2 * model.parameters if recipe.engine == "gguf" and converted else 0)


def tokenizer_bytes(recipe: SettledRecipe, model: ModelShape, judge: JudgeShape | None, phase: str) -> float:
    """Return the bytes of the tokenizer in a phase. A judge behind a server has none on this machine."""
    if phase not in JUDGED:
        return TOKENIZER_BYTES["transformers"] * model.vocabulary
    reader = "transformers" if recipe.judge.mode == "reward-model" else "llama.cpp"
    return TOKENIZER_BYTES[reader] * judge.model.vocabulary if judge else 0
