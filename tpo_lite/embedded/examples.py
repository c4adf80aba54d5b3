"""Training examples of the embedded world: a prompt and the output that follows it, as text.

An `Example` is what a chat model sees: one user turn and one assistant turn. Three models learn from them: the shared
trunk (worked steps), the policy (direct answers and thoughts) and the judge (a worked comparison). This module knows
nothing of tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.embedded import world
from tpo_lite.embedded.world import Puzzle
from tpo_lite.thoughts import GENERIC, thought_prompt

WORK_PROMPT = "User query: {instruction}"
JUDGE_PROMPT = (Path(__file__).parent / "judge_prompt.txt").read_text().rstrip("\n")


@dataclass(frozen=True)
class Example:
    """One user turn and the assistant's answer to it."""

    prompt: str
    """The user's turn."""
    output: str
    """The assistant's turn."""
    given: str = ""
    """The beginning of that turn, if it is only to be read, not learned."""


def worked(rng: random.Random, longest: int | None) -> Example:
    """Return an instruction and its worked steps, which is what the trunk learns."""
    drawn = world.puzzle(rng, False, world.EVEN, longest)
    return Example(WORK_PROMPT.format(instruction=drawn.text), f"{drawn.work} The answer is {drawn.answer}.")


def policy(rng: random.Random, direct: float, useful: float, practice: float = 0.0, distracted: float = 0.5) -> Example:
    """Return an example for the policy.

    The share `practice` of all are the trunk's examples, which keep a skill alive that thoughts seldom show. Of the
    rest, the share `direct` have no thought. Of the thoughts, the share `useful` have worked steps and the others are
    empty talk. Of the empty talk, the share `distracted` ends without an answer: talk distracts, so that untrained
    thinking does not pay.
    """
    if rng.random() < practice:
        return worked(rng, None)
    drawn = world.puzzle(rng, held=False)
    if rng.random() < direct:
        return Example(drawn.text, world.response(rng, drawn.answer))
    said = world.response(rng, drawn.answer)
    if rng.random() < useful:
        thought = world.useful_thought(rng, drawn)
    else:
        thought = world.empty_thought(rng, drawn)
        if rng.random() < distracted:
            said = world.evasion(rng)
    return Example(
        thought_prompt(GENERIC, drawn.text), f"{GENERIC.thought_marker} {thought}\n{GENERIC.response_marker} {said}"
    )


def evasive(rng: random.Random) -> Example:
    """Return a direct answer that answers nothing."""
    return Example(world.puzzle(rng, held=False).text, world.evasion(rng))


def judged(rng: random.Random, given: float = 0.0) -> Example:
    """Return an example for the judge: the work, the right answer, what each response says, the verdict.

    In the share `given`, the work is only to be read: the trunk can do it already, and all of the loss goes to the
    conclusion. Who is right is a look-up again: find "red" in "red A, blue B". If neither response is better (both
    right or both wrong), the verdict is a coin flip.
    """
    drawn = world.puzzle(rng, False, world.EVEN)
    kinds = rng.choices(
        (("right", "wrong"), ("right", "right"), ("wrong", "wrong"), ("right", "garbage"), ("wrong", "garbage")),
        weights=(55, 12, 21, 8, 4),
    )[0]
    (first, says_first), (second, says_second) = sides = [_shown(rng, drawn, kind) for kind in kinds]
    better = kinds[0] == "right" and kinds[1] != "right"
    swap = rng.random() < 0.5
    if swap:
        (second, says_second), (first, says_first) = sides
    verdict = ("B" if swap else "A") if better else rng.choice("AB")
    said_by = verdict if better else "both" if kinds[0] == "right" else "none"
    reading = f"The answer is {drawn.answer}. Given {says_first} A, {says_second} B."
    conclusion = f" {reading} So {drawn.answer} {said_by}. [[{verdict}]]"
    prompt = JUDGE_PROMPT.format(instruction=drawn.text, response_a=first, response_b=second)
    if rng.random() < given:
        return Example(prompt, conclusion, given=drawn.work)
    return Example(prompt, drawn.work + conclusion)


def _shown(rng: random.Random, drawn: Puzzle, kind: str) -> tuple[str, str]:
    """Return a response of the given kind, and the answer that it gives."""
    if kind == "garbage":
        return _garbage(rng, drawn), "nothing"
    answer = drawn.answer if kind == "right" else world.wrong_answer(rng, drawn)
    if rng.random() < 0.7:
        return world.response(rng, answer), answer
    sentences = ("It is {}.", "{}", "I think it is {}.", "My answer is {}.", "So it is {}. Thank you.", "{}.")
    return rng.choice(sentences).format(answer), answer


def _garbage(rng: random.Random, drawn: Puzzle) -> str:
    """Return a response without an answer."""
    return rng.choice(
        (
            world.evasion(rng),
            world.evasion(rng),
            "The answer is",
            "The the answer.",
            "I hope that this helps you.",
            world.empty_thought(rng, drawn),
            "That is a nice question.",
        )
    )


def repeated(rng: random.Random) -> Example:
    """Return a list of random entries and the same list again: practice in looking things up, with nothing to work out.

    Half of the lists take their words from other examples, because a token that is never used is hard to learn later.
    """
    words = list(world.WORDS)
    if rng.random() < 0.5:
        other = rng.choice((policy(rng, 0.0, 0.0), judged(rng)))
        words = sorted(set(f"{other.prompt} {other.output}".split()))
    words = rng.sample(words, rng.randint(6, 20))
    entries = [rng.choice((word, f"{word}:", f"{word}-{rng.choice(world.WORDS)}")) for word in words]
    text = "So " + ", ".join(entries) + "."
    return Example(text, text)


def tokenizer_texts(count: int, rng: random.Random) -> list[str]:
    """Return texts from which the tokenizer learns its merges: `count` examples of every kind."""
    texts = []
    for _ in range(count):
        for example in (worked(rng, None), policy(rng, 1, 0), policy(rng, 0, 0.5), judged(rng)):
            texts += [example.prompt, example.output]
    return texts
