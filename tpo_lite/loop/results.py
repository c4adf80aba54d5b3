"""The figures of a run, collected from the summaries of its phases and written to results.json."""

from __future__ import annotations

from pydantic import ValidationError

from tpo_lite.errors import InputError
from tpo_lite.files import read_json, write_json
from tpo_lite.kinds import Arm
from tpo_lite.loop.results_schema import (
    SCHEMA_VERSION,
    ArmResults,
    HeldOutResults,
    IterationResults,
    Results,
    ValidationResults,
    WarmStartResults,
)
from tpo_lite.phase_order import WARM_PHASES, phases_of
from tpo_lite.phases.judges_summaries import CrosscheckSummary, MatchSummary
from tpo_lite.phases.summaries import (
    AnswerSummary,
    DpoSummary,
    FoldSummary,
    GenerateSummary,
    JudgeSummary,
    MergeFigures,
    PairFigures,
    PairSummary,
    PrepareSummary,
    SelectSummary,
    ShareFigures,
    ValidateSummary,
    read_summary,
)
from tpo_lite.phases.warm_summaries import WarmSampleSummary, WarmStartSummary
from tpo_lite.recipe import Recipe
from tpo_lite.run import RunFolder
from tpo_lite.version import __version__


def write_results(folder: RunFolder) -> None:
    """Write results.json from what is finished."""
    write_json(folder.root / "results.json", collect(folder).to_dict())


def read_results(folder: RunFolder) -> Results:
    """Read results.json. Raises `InputError` if it is missing or damaged."""
    path = folder.root / "results.json"
    try:
        return Results.from_dict(read_json(path))
    except ValidationError as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}). Delete it and run the same command again."
        ) from error


def collect(folder: RunFolder) -> Results:
    """Return the content of results.json: every iteration of which all phases are finished."""
    recipe = folder.load_started()
    prepared = folder.is_done("prepare", None, 0)
    return Results(
        schema_version=SCHEMA_VERSION,
        tpo_lite=__version__,
        recipe=recipe.model_dump(),
        limits=folder.limits,
        instructions=read_summary(PrepareSummary, folder, None, 0) if prepared else None,
        arms={arm: _arm(folder, recipe, arm) for arm in recipe.arms},
        thinking_vs_direct=_arms_against_each_other(folder, recipe),
    )


def _arm(folder: RunFolder, recipe: Recipe, arm: Arm) -> ArmResults:
    generated = read_summary(GenerateSummary, folder, arm, 0) if folder.is_done("generate", arm, 0) else None
    return ArmResults(
        warm_start=_warm_start(folder, arm),
        base=generated.base if generated else None,
        base_test=generated.base_test if generated else None,
        iterations=[_iteration(folder, recipe, arm, t) for t in _finished(folder, recipe, arm)],
    )


def _warm_start(folder: RunFolder, arm: Arm) -> WarmStartResults | None:
    if not all(folder.is_done(phase, arm, 0) for phase in WARM_PHASES):
        return None
    return WarmStartResults(
        samples=read_summary(WarmSampleSummary, folder, arm, 0),
        training=read_summary(WarmStartSummary, folder, arm, 0),
        seconds=folder.seconds(arm, 0, WARM_PHASES[0]),
        peak_bytes={phase: folder.done(phase, arm, 0)["peak_bytes"] for phase in WARM_PHASES},
    )


def _finished(folder: RunFolder, recipe: Recipe, arm: Arm) -> list[int]:
    """Return the iterations whose phases are all finished, and nothing that they left is missing."""
    phases = phases_of(recipe)
    return [t for t in range(recipe.iterations) if all(folder.is_done(phase, arm, t) for phase in phases)]


def _arms_against_each_other(folder: RunFolder, recipe: Recipe) -> list[ShareFigures]:
    """Return the thinking arm's win rate against the direct one's, for M_0 and then for each iteration's model."""
    found: list[ShareFigures | None] = []
    if recipe.instructions.test:
        matched = [
            read_summary(MatchSummary, folder, recipe.arms[-1], t) for t in _finished(folder, recipe, recipe.arms[-1])
        ]
        found = [summary.base_thinking_vs_direct for summary in matched[:1]]
        found += [summary.thinking_vs_direct for summary in matched]
    return [rate for rate in found if rate is not None]


def _tested(folder: RunFolder, arm: Arm, iteration: int) -> HeldOutResults:
    answered = read_summary(AnswerSummary, folder, arm, iteration)
    matched = read_summary(MatchSummary, folder, arm, iteration)
    return HeldOutResults(
        **vars(answered),
        win_rate=matched.win_rate,
        win_rate_base=matched.win_rate_base,
        overlong=matched.overlong,
    )


def _iteration(folder: RunFolder, recipe: Recipe, arm: Arm, iteration: int) -> IterationResults:
    generated = read_summary(GenerateSummary, folder, arm, iteration)
    paired = read_summary(PairSummary, folder, arm, iteration)
    selected = read_summary(SelectSummary, folder, arm, iteration)
    folded = read_summary(FoldSummary, folder, arm, iteration)
    validated = folded.validation or read_summary(ValidateSummary, folder, arm, iteration).models[selected.chosen]
    return IterationResults(
        prompts=generated.prompts,
        engine=generated.engine,
        probe=generated.probe,
        shift=generated.shift,
        parse=generated.parse,
        thought_tokens=generated.thought_tokens,
        response_tokens=generated.response_tokens,
        judge=read_summary(JudgeSummary, folder, arm, iteration),
        rho=paired.rho,
        rho_reached=paired.rho_reached,
        pairs=PairFigures(
            pairs=paired.pairs,
            counts=paired.counts,
            chosen_tokens=paired.chosen_tokens,
            rejected_tokens=paired.rejected_tokens,
        ),
        dpo=read_summary(DpoSummary, folder, arm, iteration),
        crosscheck=read_summary(CrosscheckSummary, folder, arm, iteration) if recipe.select.judge else None,
        merge=MergeFigures(merge=folded.merge, rank=folded.rank, update_norm=folded.update_norm, kl=folded.kl),
        accuracy=validated.accuracy,
        validation=ValidationResults(
            chosen=selected.chosen,
            checkpoints=selected.checkpoints,
            win_rate=selected.win_rate,
            prompts=validated.prompts,
            checked=validated.checked,
            parse=validated.parse,
            thought_tokens=validated.thought_tokens,
            response_tokens=validated.response_tokens,
        ),
        test=_tested(folder, arm, iteration) if recipe.instructions.test else None,
        seconds=folder.seconds(arm, iteration),
        peak_bytes={phase: folder.done(phase, arm, iteration)["peak_bytes"] for phase in phases_of(recipe)},
    )
