"""The content of results.json, schema version 1: `python -m tpo_lite.loop.results_schema` prints its JSON schema.

The schema is kept in docs/results.schema.json, which `make docs` writes. `null` means that there was nothing to
measure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from tpo_lite.kinds import Arm, Engine
from tpo_lite.phases.judges_summaries import CrosscheckSummary
from tpo_lite.phases.summaries import (
    DpoSummary,
    Figures,
    HeldOutFigures,
    JudgeSummary,
    MergeFigures,
    PairFigures,
    PrepareSummary,
    SelectFigures,
    ShareFigures,
    ValidationFigures,
)
from tpo_lite.phases.warm_summaries import WarmSampleSummary, WarmStartSummary
from tpo_lite.thoughts import Outcome

SCHEMA_VERSION: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class ValidationResults(SelectFigures):
    """Which candidate became M_{t+1}, and what it answered on the validation slice."""

    prompts: int
    """Instructions answered."""
    checked: int
    """Instructions with an answer to check against."""
    parse: dict[Outcome, int]
    """First outputs by outcome; all are well-formed but no_marker, empty_response and truncated."""
    thought_tokens: float | None
    """Mean length of well-formed thoughts in tokens; null without any."""
    response_tokens: float | None
    """Mean length of well-formed responses in tokens; null without any."""


@dataclass(frozen=True, kw_only=True)
class HeldOutResults(HeldOutFigures):
    """What M_{t+1} answered on the test slice, and what the judge says of it."""

    win_rate: ShareFigures
    """Against M_0, a tie counting 0.5."""
    win_rate_base: ShareFigures | None = None
    """Against the base before a warm start; null without one."""
    overlong: int
    """Matches on the test slice that did not fit the judge; each is a tie."""


@dataclass(frozen=True, kw_only=True)
class IterationResults(Figures):
    """One iteration, from M_t to M_{t+1}."""

    prompts: int
    """Instructions sampled."""
    engine: Engine
    """What sampled."""
    probe: float | None
    """Largest change in log-probability (nats) that the live adapter makes; null where M_t has no adapter."""
    shift: float | None
    """Mean KL(sampler || trainer) in nats per token; null unless engine gguf samples."""
    parse: dict[Outcome, int]
    """Samples by outcome; all are well-formed but no_marker, empty_response and truncated."""
    thought_tokens: float | None
    """Mean length of well-formed thoughts in tokens; null without any."""
    response_tokens: float | None
    """Mean length of well-formed responses in tokens; null without any."""
    judge: JudgeSummary
    """What the judge was asked and answered."""
    rho: float
    """Weight of the length in length control."""
    rho_reached: bool | None
    """Whether an automatic rho kept chosen responses from being longer; null where rho was given."""
    pairs: PairFigures
    """The pairs made."""
    dpo: DpoSummary
    """The course of training."""
    crosscheck: CrosscheckSummary | None = None
    """What the training judge says of the choice of `select.judge`; null in a run without a second judge."""
    merge: MergeFigures
    """How M_{t+1} was made."""
    accuracy: float | None
    """Share of M_{t+1}'s right answers on the validation slice; null where no instruction has an answer."""
    validation: ValidationResults
    """M_{t+1} on the validation slice."""
    test: HeldOutResults | None = None
    """M_{t+1} on the test slice; null in a run without one."""
    seconds: dict[str, float]
    """Wall time of each phase in seconds."""
    peak_bytes: dict[str, dict[str, int]]
    """Peak memory of each phase in bytes: host, and on a GPU gpu, gpu_reserved and gpu_allocated (see
    tpo_lite/machine/memory.py)."""


@dataclass(frozen=True, kw_only=True)
class WarmStartResults(Figures):
    """From the base to M_0: the base before, the examples, and supervised training on them."""

    samples: WarmSampleSummary
    """The base before, and the examples."""
    training: WarmStartSummary
    """The course of training."""
    seconds: dict[str, float]
    """Wall time of each phase in seconds."""
    peak_bytes: dict[str, dict[str, int]]
    """Peak memory of each phase in bytes, as in an iteration."""


@dataclass(frozen=True, kw_only=True)
class ArmResults(Figures):
    """One arm of a run."""

    warm_start: WarmStartResults | None = None
    """How the base became M_0; null where the recipe has no warm start, or it is not finished."""
    base: ValidationFigures | None
    """M_0 on the validation slice; null until it was sampled."""
    base_test: HeldOutFigures | None = None
    """M_0 on the test slice; null until it was sampled, and in a run without such a slice."""
    iterations: list[IterationResults]
    """The iterations that are finished."""


@dataclass(frozen=True, kw_only=True)
class Results(Figures):
    """The figures of a run."""

    schema_version: Literal[1]
    """Version of this schema."""
    tpo_lite: str
    """Version of the package that wrote the file."""
    recipe: dict[str, Any]
    """The whole recipe (tpo_lite/recipe.py and recipe_keys.py)."""
    limits: dict[str, int]
    """Batch sizes, by the recipe's key, that memory had room for where the recipe's own did not fit."""
    instructions: PrepareSummary | None
    """Counts of instructions; null until they were read."""
    arms: dict[Arm, ArmResults]
    """The models trained."""
    thinking_vs_direct: list[ShareFigures] = field(default_factory=list)
    """Win rates of the thinking arm against the direct arm on the test slice: that of M_0, of M_1, and so on; empty
    without a test slice or with one arm."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of results.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Results).json_schema()


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
