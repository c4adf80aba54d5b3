"""Phase "judge": the responses of one prompt against each other, responses only (the paper's judges)."""

from __future__ import annotations

from tpo_lite.phases import phase_main

if __name__ == "__main__":
    phase_main("judge")

from typing import Any

from tpo_lite.judges import Judge
from tpo_lite.judges.open import open_judge
from tpo_lite.judging import judge_prompts
from tpo_lite.progress import progress
from tpo_lite.records import JsonlAppender, PromptJudgements, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.summaries import judge_summary


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Writes judgements.jsonl; returns calls, calls saved, flip rate and first-slot rate."""
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    prompts = list(read_jsonl(folder / "samples.jsonl", PromptSamples))
    path = folder / "judgements.jsonl"
    finished = {record.id for record in read_jsonl(path, PromptJudgements)}
    at_once = recipe.judge.prompts_at_once
    groups = [prompts[start : start + at_once] for start in range(0, len(prompts), at_once)]
    judge: Judge = open_judge(recipe.judge)
    with JsonlAppender(path) as out, progress(f"{arm} {iteration + 1} judge", len(prompts), "prompts", len(finished)) as advance:
        # A group is judged whole even where a kill left half of it: what shares a batch decides the last
        # bits of the logits, and a resumed run must end with the same bytes.
        for group in groups:
            missing = [prompt for prompt in group if prompt.instruction.id not in finished]
            if not missing:
                continue
            ids = {prompt.instruction.id for prompt in missing}
            judged = [record for record in judge_prompts(judge, group) if record.id in ids]
            out.append(*judged)
            advance(len(judged), f"{sum(record.calls for record in judged)} calls")
    return judge_summary(list(read_jsonl(path, PromptJudgements)))
