"""Puts a prompt's responses before a judge, any judge, and records what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpo_lite.judges.both_orders import as_comparison, ask_both_orders
from tpo_lite.judges.protocol import Judge, JudgeRequest, PointwiseJudge, is_pointwise
from tpo_lite.preferences.tournament import Match, Tournament, distinct_responses, saved_calls
from tpo_lite.records import Comparison, PromptJudgements, PromptSamples, ResponseScore


def judge_prompts(judge: Judge, prompts: Sequence[PromptSamples], tournament: Tournament) -> Iterator[PromptJudgements]:
    """Play a tournament for each prompt; one round of all of them is one call to the judge.

    Yields a prompt's judgements as soon as its tournament and those of all prompts before it are over. The judge sees
    the instruction x and two responses y, but neither the thought prompt nor a thought. A comparison that is too long
    for the judge is recorded as "overlong" and is not a call.

    A pointwise judge plays no tournament: it scores each distinct response of all prompts in one call.
    """
    if is_pointwise(judge):
        yield from _score(judge, prompts)
        return
    played: list[list[Comparison]] = [[] for _ in prompts]
    going, given = list(range(len(prompts))), 0
    while given < len(prompts):
        matches = {index: tournament.next_round(prompts[index], played[index]) for index in going}
        going = [index for index in going if matches[index]]
        over = going[0] if going else len(prompts)
        for index in range(given, over):
            yield _judgements(prompts[index], played[index])
        given = over
        answers = _play(judge, [prompts[index] for index in going], [matches[index] for index in going])
        for index, comparisons in zip(going, answers, strict=True):
            played[index] += comparisons


def _score(judge: PointwiseJudge, prompts: Sequence[PromptSamples]) -> Iterator[PromptJudgements]:
    ks = [distinct_responses(prompt) for prompt in prompts]
    items = [
        (text, prompt.sample(k).response)
        for prompt, distinct in zip(prompts, ks, strict=True)
        for text in [prompt.instruction.conversation()]
        for k in distinct
    ]
    found = iter(judge.scores(items) if items else [])
    for prompt, distinct in zip(prompts, ks, strict=True):
        scores = [ResponseScore(k, next(found)) for k in distinct]
        calls = sum(each.score is not None for each in scores)
        repeated = sum(sample.well_formed for sample in prompt.samples) - len(distinct)
        yield PromptJudgements(prompt.instruction.id, [], calls, repeated, scores)


def _judgements(prompt: PromptSamples, comparisons: list[Comparison]) -> PromptJudgements:
    calls = sum(comparison.verdict != "overlong" for comparison in comparisons)
    # What is too long for the judge was neither asked nor saved.
    return PromptJudgements(prompt.instruction.id, comparisons, calls, saved_calls(prompt, len(comparisons)))


def _play(judge: Judge, prompts: Sequence[PromptSamples], matches: Sequence[list[Match]]) -> list[list[Comparison]]:
    """Return the comparisons of these matches, one list per prompt."""
    requests = [
        JudgeRequest(text, prompt.sample(first).response, prompt.sample(second).response)
        for prompt, pairs in zip(prompts, matches, strict=True)
        for text in [prompt.instruction.conversation()]
        for first, second in pairs
    ]
    verdicts = iter(judge.compare(requests) if requests else [])
    return [[as_comparison(first, second, next(verdicts)) for first, second in pairs] for pairs in matches]


def head_to_head(
    judge: Judge, instructions: Sequence[str], ours: Sequence[str], theirs: Sequence[str]
) -> list[float | None]:
    """Return how clearly each of our responses beats theirs: the mean over both orders of P(ours is better).

    An empty response is an output that stayed malformed: it loses to any other, and two of them tie. Equal responses
    tie at 0.5. Neither costs a call. None means that a pair did not fit the judge.
    """
    requests, asked = [], []
    wins: list[float | None] = [0.5] * len(instructions)
    for index, (instruction, mine, other) in enumerate(zip(instructions, ours, theirs, strict=True)):
        if mine == other:
            continue
        if not mine or not other:
            wins[index] = 1.0 if mine else 0.0
            continue
        requests.append(JudgeRequest(instruction, mine, other))
        asked.append(index)
    for index, (first, second) in zip(asked, ask_both_orders(judge, requests), strict=True):
        fit = "overlong" not in (first.label, second.label)
        wins[index] = (first.p_a + 1 - second.p_a) / 2 if fit else None
    return wins
