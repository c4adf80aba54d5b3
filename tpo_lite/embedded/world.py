"""The embedded world: small tasks in English whose answers can be checked, their worked steps, and talk about them.

Every task starts in a state and applies steps to it, each named by an ordinal word. A small transformer cannot compose
all steps in one pass. Writing them down makes each one a local look-up: find the step in the instruction, and apply it
to the state that was written last. This module is plain Python and knows nothing of models or tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from tpo_lite.errors import InputError
from tpo_lite.records import Instruction

ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARITHMETIC = {"up": (1, 1), "jump": (1, 3), "double": (2, 0), "triple": (3, 0)}
"""Factor and addend. Only the last digit is kept."""
CUPS = ("red", "blue", "green")
COMPASS = ("north", "east", "south", "west")
TURNS = {"right": 1, "around": 2, "left": 3}
"""Quarter turns to the right."""
LETTERS = ("ate", "aet", "eat", "eta", "tae", "tea")
JUGGLES = {"flip": (2, 1, 0), "roll": (1, 2, 0), "swap": (1, 0, 2)}
"""Where each letter of the result comes from. The word backwards, its first letter last, its first two exchanged."""
WORDS = (*ORDINALS, *NUMBERS, *ARITHMETIC, *CUPS, *COMPASS, *TURNS, *LETTERS, *JUGGLES)
"""All words that carry the tasks."""
HELD_OUT_OF = 4
"""One text in this many, by hash, is held out. `instructions` draws only those, the builder only the others."""


@dataclass(frozen=True)
class Puzzle:
    """One instruction with everything the builder needs to know about it."""

    task: str
    """Name of the task, a key of `TASKS`."""
    text: str
    """The instruction."""
    work: str
    """The steps written out; their last state is the answer."""
    answer: str
    """The right answer, one word."""
    choices: tuple[str, ...]
    """All answers that could be given, the right one included."""


@dataclass(frozen=True)
class Task:
    """A kind of puzzle."""

    category: str
    """The paper's instruction category."""
    topic: str
    """What the instruction asks for, in the words of an empty thought."""
    steps: range
    """How many steps an instruction has."""
    draw: Callable[[random.Random, int], Puzzle]
    """Returns a random puzzle with the given number of steps."""


def _listed(operations: list[str]) -> str:
    return ", ".join(f"{ordinal} {operation}" for ordinal, operation in zip(ORDINALS, operations, strict=False))


def _worked(start: str, operations: list[str], states: list[str]) -> str:
    lines = zip(ORDINALS, operations, states, strict=False)
    return f"Start at {start}, " + ", ".join(f"{ordinal} {step}: {state}" for ordinal, step, state in lines) + "."


def _digits(rng: random.Random, steps: int) -> Puzzle:
    operations = [rng.choice(tuple(ARITHMETIC)) for _ in range(steps)]
    digit = rng.randrange(10)
    start, states = NUMBERS[digit], []
    for operation in operations:
        factor, addend = ARITHMETIC[operation]
        digit = (digit * factor + addend) % 10
        states.append(NUMBERS[digit])
    listed = _listed(operations)
    text = rng.choice(
        (
            f"Start with {start} and keep only the last digit each time: {listed}. Which digit is left?",
            f"Begin at {start} and always keep the last digit: {listed}. Which digit comes out?",
            f"Take the number {start}: {listed}. Only the last digit is kept after each step. What do you get?",
        )
    )
    return Puzzle("digits", text, _worked(start, operations, states), states[-1], NUMBERS)


def _cups(rng: random.Random, steps: int) -> Puzzle:
    start = state = rng.choice(CUPS)
    operations, states = [], []
    for _ in range(steps):
        still = rng.choice(CUPS)
        if state != still:
            state = next(cup for cup in CUPS if cup not in (state, still))
        operations.append(still)
        states.append(state)
    listed, thing = _listed(operations), rng.choice(("ball", "coin", "ring", "key"))
    text = rng.choice(
        (
            f"A {thing} is under the {start} cup. Each time one cup stays and the other two swap. "
            f"These stay: {listed}. Which cup hides the {thing}?",
            f"I hide a {thing} under the {start} cup of three and swap all cups but one: {listed}. "
            f"Where is the {thing} now?",
            f"The {start} cup covers a {thing}. Two of three cups change places and one is still: {listed}. "
            f"Find the {thing}.",
        )
    )
    return Puzzle("cups", text, _worked(start, operations, states), state, CUPS)


def _robot(rng: random.Random, steps: int) -> Puzzle:
    operations = [rng.choice(tuple(TURNS)) for _ in range(steps)]
    heading = rng.randrange(4)
    start, states = COMPASS[heading], []
    for operation in operations:
        heading = (heading + TURNS[operation]) % 4
        states.append(COMPASS[heading])
    listed, who = _listed(operations), rng.choice(("robot", "knight", "player", "dragon", "ship"))
    text = rng.choice(
        (
            f"In my game a {who} faces {start}. It turns {listed}. Which way does it face?",
            f"The {who} in a game looks {start} and gets these turns: {listed}. Where does it look now?",
            f"My game has a {who} that faces {start}. Its turns: {listed}. Give its direction.",
        )
    )
    return Puzzle("robot", text, _worked(start, operations, states), states[-1], COMPASS)


def _letters(rng: random.Random, steps: int) -> Puzzle:
    operations = [rng.choice(tuple(JUGGLES)) for _ in range(steps)]
    start = state = rng.choice(LETTERS)
    states = []
    for operation in operations:
        state = "".join(state[index] for index in JUGGLES[operation])
        states.append(state)
    listed = _listed(operations)
    text = rng.choice(
        (
            f"Juggle the letters of {start}: {listed}. How is the word spelled then?",
            f"The word {start} changes its letters: {listed}. Which letters come out?",
            f"Write {start} and change the order of its letters: {listed}. Spell the result.",
        )
    )
    return Puzzle("letters", text, _worked(start, operations, states), state, LETTERS)


TASKS = {
    "digits": Task("Math and Calculations", "a digit", range(1, 5), _digits),
    "cups": Task("Reasoning and Problem-Solving", "a cup", range(2, 6), _cups),
    "robot": Task("Game Development", "a direction", range(2, 6), _robot),
    "letters": Task("Language and Translation", "a word", range(1, 5), _letters),
}


MOST = 5_000
"""The most distinct instructions that there may be in a run."""
SHARES = (1, 5, 3, 1)
"""How often each task occurs among instructions. Tasks that can hardly be guessed occur least."""
EVEN = (1, 1, 1, 1)
"""How often each task occurs while its steps are learned."""


def held_out(text: str) -> bool:
    """Return whether an instruction belongs to the share that the builder never trains on."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_OF == 0


def puzzle(rng: random.Random, held: bool, shares: tuple[int, ...] = SHARES, longest: int | None = None) -> Puzzle:
    """Return a random puzzle, held out or not as `held` says, of a random task drawn by `shares`.

    `longest` caps the number of steps, for the builder's curriculum.
    """
    task = TASKS[rng.choices(tuple(TASKS), weights=shares)[0]]
    while True:
        steps = rng.choice(task.steps)
        drawn = task.draw(rng, steps if longest is None else min(steps, rng.randint(1, longest)))
        if held_out(drawn.text) == held:
            return drawn


def puzzles(count: int, seed: int) -> list[Puzzle]:
    """Return `count` held-out puzzles with distinct texts, the same for the same seed.

    Raises `InputError` for more than `MOST`, since there are not many more.
    """
    if count > MOST:
        raise InputError(f"the embedded world has {MOST:,} instructions, not {count:,}. Take fewer, or use a file.")
    rng = random.Random(f"embedded world {seed}")
    distinct: dict[str, Puzzle] = {}
    while len(distinct) < count:
        drawn = puzzle(rng, held=True)
        distinct.setdefault(drawn.text, drawn)
    return list(distinct.values())


def instructions(count: int, seed: int) -> list[Instruction]:
    """Return `count` held-out instructions with distinct texts, with their categories and right answers, by seed."""
    return [
        Instruction(
            id=hashlib.sha256(drawn.text.encode()).hexdigest()[:16],
            text=drawn.text,
            source="embedded",
            category=TASKS[drawn.task].category,
            answer=drawn.answer,
        )
        for drawn in puzzles(count, seed)
    ]


def useful_thought(rng: random.Random, drawn: Puzzle) -> str:
    """Return a thought that works the task out step by step."""
    opening = rng.choice(("Let me go step by step.", "I will write down each step.", "Step by step, then."))
    return f"{opening} {drawn.work}"


def empty_thought(rng: random.Random, drawn: Puzzle) -> str:
    """Return a thought that only talks about what the user wants and how to sound, not about the task itself."""
    topic = TASKS[drawn.task].topic
    about = rng.choice(
        (
            f"The user wants {topic}.",
            f"The user is asking for {topic}.",
            f"This question is about {topic}.",
            f"A user would like to know {topic}.",
            f"Someone needs {topic} from me.",
            f"My job here is to give {topic}.",
        )
    )
    manner = rng.choice(
        (
            "I should be careful and clear.",
            "I want to be helpful and friendly.",
            "The answer should be easy to read.",
            "A short and polite answer will do.",
            "I will keep a friendly tone.",
            "It is important to be clear here.",
            "I must think about what helps most.",
            "This looks like a nice question.",
        )
    )
    return f"{about} {manner}"


def response(rng: random.Random, answer: str) -> str:
    """Return an answer as the policy phrases it: a plain sentence, sometimes with a longer ending."""
    return f"The answer is {answer}." + (" I hope that this helps you." if rng.random() < 0.25 else "")


def evasion(rng: random.Random) -> str:
    """Return a response that answers nothing."""
    return rng.choice(("I do not know.", "That is a nice question."))


def wrong_answer(rng: random.Random, drawn: Puzzle) -> str:
    """Return a wrong answer of the right kind."""
    return rng.choice([choice for choice in drawn.choices if choice != drawn.answer])
