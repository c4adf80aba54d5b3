"""Puts a prompt's responses before a judge, any judge, and records what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from tpo_lite.judges.both_orders import as_comparison, ask_both_orders
from tpo_lite.judges.protocol import Judge, JudgeRequest
from tpo_lite.preferences.tournament import Match, Tournament, distinct_responses, saved_calls
from tpo_lite.records import Comparison, PromptJudgements, PromptSamples


def judge_prompts(judge: Judge, prompts: Sequence[PromptSamples], tournament: Tournament) -> Iterator[PromptJudgements]:
    """Play a tournament for each prompt; one round of all of them is one call to the judge.

    Yields a prompt's judgements as soon as its tournament and those of all prompts before it are over. The judge sees
    the instruction x and two responses y, but neither the thought prompt nor a thought. A pointwise judge is asked
    about every pair in one order, whatever the tournament: it scores each distinct response once, and these are its
    calls. A comparison that is too long for the judge is recorded as "overlong" and is not a call.
    """
    if judge.pointwise:
        pairs = [list(combinations(distinct_responses(prompt), 2)) for prompt in prompts]
        for prompt, comparisons in zip(prompts, _play(judge, prompts, pairs), strict=True):
            yield _judgements(prompt, comparisons, pointwise=True)
        return
    played: list[list[Comparison]] = [[] for _ in prompts]
    going, given = list(range(len(prompts))), 0
    while given < len(prompts):
        matches = {index: tournament.next_round(prompts[index], played[index]) for index in going}
        going = [index for index in going if matches[index]]
        over = going[0] if going else len(prompts)
        for index in range(given, over):
            yield _judgements(prompts[index], played[index], pointwise=False)
        given = over
        answers = _play(judge, [prompts[index] for index in going], [matches[index] for index in going])
        for index, comparisons in zip(going, answers, strict=True):
            played[index] += comparisons


def _judgements(prompt: PromptSamples, comparisons: list[Comparison], pointwise: bool) -> PromptJudgements:
    made = [comparison for comparison in comparisons if comparison.verdict != "overlong"]
    calls = len({k for each in made for k in (each.first, each.second)}) if pointwise else len(made)
    # What is too long for the judge was neither asked nor saved.
    saved = saved_calls(prompt, calls + len(comparisons) - len(made))
    return PromptJudgements(prompt.instruction.id, comparisons, calls, saved)


def _play(judge: Judge, prompts: Sequence[PromptSamples], matches: Sequence[list[Match]]) -> list[list[Comparison]]:
    """Return the comparisons of these matches, one list per prompt."""
    requests = [
        JudgeRequest(text, prompt.samples[first].response, prompt.samples[second].response)
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
