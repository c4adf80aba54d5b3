"""Majority: would a vote over several final answers have done as well?

Two votes (self-consistency, Wang et al., arXiv 2203.11171): the trained direct model's, with at least as many tokens as
the thinking model spends on one answer; and the thinking prompt's before any training, M_0 with as many votes, so more
tokens. Final answers are compared as `tpo_lite.checking` reads them, without knowing the right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tpo_lite.checking import final_answer
from tpo_lite.errors import InputError
from tpo_lite.evaluation.arms import Arms, more_samples, output_of
from tpo_lite.evaluation.best_of import singles
from tpo_lite.evaluation.controls import Entrant, equal_tokens, sampled_tokens
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device
from tpo_lite.records import PromptSamples


def majority(arms: Arms, n: int | None, device: Device) -> list[Entrant]:
    """Return both arms with one answer each, and the votes; N None is that of equal tokens.

    Raises `InputError` if no instruction has a known answer: longer texts have no majority.
    """
    if not any(each.answer for each in arms.instructions):
        raise InputError(
            f"No instruction of the {arms.held_out} slice has a known answer, and longer texts have no majority. "
            "Use eval best-of, where a judge picks."
        )
    single = singles(arms)
    thinking, direct = single
    count = n or equal_tokens(thinking.tokens, direct.tokens)
    voters: list[tuple[Arm, int]] = [("direct", arms.model), ("thinking", 0)]
    votes = []
    for arm, model in voters:
        samples = more_samples(arms, arm, model, count, device)
        by_id = {x.instruction.id: output_of(x.instruction, most_common(_responses(x))) for x in samples}
        tokens = sampled_tokens({prompt.instruction.id: prompt for prompt in samples})
        votes.append(Entrant(f"{arm}-{model}", Outputs(f"{arm} M_{model}, majority of {count}", by_id), tokens))
    return [*single, *votes]


def _responses(prompt: PromptSamples) -> list[str]:
    return [sample.response for sample in prompt.samples if sample.well_formed]


def most_common(responses: Iterable[str]) -> str:
    """Return the first response with the most common final answer; of equally common answers, the earliest counts.

    It is empty where there is none.

    >>> most_common(["The answer is 3.", "It is hard. The answer is 4.", "4"])
    'It is hard. The answer is 4.'
    """
    by_answer: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for response in responses:
        answer = final_answer(response)
        by_answer.setdefault(answer, response)
        counts[answer] += 1
    return by_answer[counts.most_common(1)[0][0]] if counts else ""
