"""Best of N: would sampling the direct model more often, and letting the training judge pick, have done as well?

The direct model answers N times, with N such that it may spend at least as many tokens as the thinking model does on
one answer. The training judge compares the N responses in both orders, and the one with the highest Bradley-Terry
rating is taken, without length control.
"""

from __future__ import annotations

import numpy as np

from tpo_lite.evaluation.arms import Arms, more_samples, output_of
from tpo_lite.evaluation.controls import Entrant, equal_tokens, sampled_tokens
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.groups import in_groups
from tpo_lite.judges.open import open_judge
from tpo_lite.machine.device import Device
from tpo_lite.preferences.pairs import score_prompt
from tpo_lite.preferences.play import judge_prompts
from tpo_lite.preferences.tournament import RoundRobin, distinct_responses
from tpo_lite.progress import progress
from tpo_lite.records import PromptJudgements, PromptSamples, read_jsonl


def best_of(arms: Arms, n: int | None, device: Device) -> list[Entrant]:
    """Return thinking and direct with one answer each, and the best of N direct ones; N None is that of equal tokens.

    The samples and what the judge says of them are kept in the run; a stopped call goes on where it was.
    """
    single = singles(arms)
    thinking, direct = single
    count = n or equal_tokens(thinking.tokens, direct.tokens)
    samples = more_samples(arms, "direct", arms.model, count, device)
    judged = _judged(arms, samples, count, device)
    by_id = {}
    for prompt in samples:
        k = _best(arms, prompt, judged[prompt.instruction.id])
        by_id[prompt.instruction.id] = output_of(prompt.instruction, "" if k is None else prompt.sample(k).response)
    name = f"direct M_{arms.model}, best of {count}"
    tokens = sampled_tokens({prompt.instruction.id: prompt for prompt in samples})
    calls = {key: record.calls for key, record in judged.items()}
    return [*single, Entrant(f"best-of-{count}", Outputs(name, by_id), tokens, calls)]


def singles(arms: Arms) -> list[Entrant]:
    """Return both arms with one answer each, as the run recorded them."""
    entrants = []
    for arm in arms.recipe.arms:
        outputs = arms.outputs(arm)
        name = f"{outputs.model}, one answer"
        entrants.append(Entrant(arm, Outputs(name, outputs.by_id), sampled_tokens(arms.answers(arm))))
    return sorted(entrants, key=lambda entrant: entrant.key != "thinking")


def _judged(arms: Arms, samples: list[PromptSamples], count: int, device: Device) -> dict[str, PromptJudgements]:
    """Return what the training judge says of each prompt's responses, by the instruction's id."""
    path = arms.out / f"direct-{count}-judgements.jsonl"
    prompts = {prompt.instruction.id: prompt for prompt in samples}
    finished = {record.id: record for record in read_jsonl(path, PromptJudgements)}
    if finished.keys() >= prompts.keys():
        return finished
    settings = arms.recipe.judge
    judge = open_judge(settings, device, arms.folder.root / "judge-calls", arms.folder.load_day())
    with progress(f"pick the best of {count}", len(prompts), "prompts", len(finished)) as advance:
        groups = in_groups(
            path,
            prompts,
            finished,
            settings.prompts_at_once,
            lambda group: judge_prompts(judge, group, RoundRobin()),
            lambda record: advance(1),
        )
        for _ in groups:
            pass
    return finished


def _best(arms: Arms, prompt: PromptSamples, judged: PromptJudgements) -> int | None:
    """Return the sample with the best response, the first of equal ones; None where none is well-formed.

    Where the judge could say nothing of any response, it is the first well-formed one.
    """
    distinct = distinct_responses(prompt)
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    rating = arms.recipe.rating
    scores = score_prompt(prompt, judged, soft=rating.wins == "soft", prior=rating.prior, rho=0.0)
    return scores.ks[int(np.argmax(scores.ratings))] if scores.ks else distinct[0]
