"""Puts a prompt's responses before a judge and records what it says; any judge, no model of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tpo_lite.judges import Judge, JudgeRequest
from tpo_lite.records import Comparison, PromptJudgements, PromptSamples
from tpo_lite.tournament import round_robin, saved_calls


def judge_prompts(judge: Judge, prompts: Sequence[PromptSamples]) -> list[PromptJudgements]:
    """A round robin for each prompt, all of them in one call to the judge.

    The judge sees the instruction x and two responses y: neither the thought prompt nor a thought.
    """
    games = [round_robin(prompt) for prompt in prompts]
    requests = [
        JudgeRequest(prompt.instruction.text, prompt.samples[first].response, prompt.samples[second].response)
        for prompt, pairs in zip(prompts, games, strict=True)
        for first, second in pairs
    ]
    verdicts = iter(judge.compare(requests))
    records = []
    for prompt, pairs in zip(prompts, games, strict=True):
        comparisons = []
        for first, second in pairs:
            verdict = next(verdicts)
            comparisons.append(Comparison(first, second, verdict.p_a, verdict.label, verdict.explanation))
        records.append(
            PromptJudgements(prompt.instruction.id, comparisons, len(pairs), saved_calls(prompt, len(pairs)))
        )
    return records


def head_to_head(judge: Judge, instructions: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    """How far each of our responses beats theirs: the mean over both orders of P(ours is better).

    An empty response stands for an output that stayed malformed: it loses to any other, and two of them
    tie. Equal responses tie at 0.5. Neither costs a call.
    """
    requests, where = [], []
    wins = [0.5] * len(instructions)
    for index, (instruction, mine, other) in enumerate(zip(instructions, ours, theirs, strict=True)):
        if mine == other:
            continue
        if not mine or not other:
            wins[index] = 1.0 if mine else 0.0
            continue
        requests += [JudgeRequest(instruction, mine, other), JudgeRequest(instruction, other, mine)]
        where.append(index)
    verdicts = judge.compare(requests)
    for number, index in enumerate(where):
        wins[index] = (verdicts[2 * number].p_a + 1 - verdicts[2 * number + 1].p_a) / 2
    return wins
