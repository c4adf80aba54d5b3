"""The figures of a run, collected from the summaries of its phases and written to results.json."""

from __future__ import annotations

from pydantic import ValidationError

from tpo_lite.errors import InputError
from tpo_lite.files import read_json, write_json
from tpo_lite.kinds import Arm
from tpo_lite.loop.results_schema import SCHEMA_VERSION, ArmResults, IterationResults, Results, ValidationResults
from tpo_lite.phases.summaries import (
    DpoSummary,
    FoldSummary,
    GenerateSummary,
    JudgeSummary,
    MergeFigures,
    PairFigures,
    PairSummary,
    PrepareSummary,
    SelectSummary,
    ValidateSummary,
    read_summary,
)
from tpo_lite.run import PHASES, RunFolder
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
        arms={arm: _arm(folder, arm, recipe.iterations) for arm in recipe.arms},
    )


def _arm(folder: RunFolder, arm: Arm, iterations: int) -> ArmResults:
    generated = folder.is_done("generate", arm, 0)
    finished = [t for t in range(iterations) if folder.is_done(PHASES[-1], arm, t)]
    return ArmResults(
        base=read_summary(GenerateSummary, folder, arm, 0).base if generated else None,
        iterations=[_iteration(folder, arm, t) for t in finished],
    )


def _iteration(folder: RunFolder, arm: Arm, iteration: int) -> IterationResults:
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
        seconds=folder.seconds(arm, iteration),
        peak_bytes={phase: folder.done(phase, arm, iteration)["peak_bytes"] for phase in PHASES},
    )
