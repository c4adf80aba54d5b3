"""Which instructions are fit for training, and how they are divided into disjoint slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tpo_lite.errors import InputError
from tpo_lite.instructions.leakage import is_leaked, normalize
from tpo_lite.instructions.near_duplicates import near_duplicates
from tpo_lite.records import Instruction
from tpo_lite.seeds import keyed_hash

TOKENS_AROUND_A_TURN = 8
"""What marks a turn of the context, in tokens: 5 in the chat templates of Llama 3 and Qwen, fewer in a judge's text."""


@dataclass(frozen=True)
class Prepared:
    """Instructions fit for training, and how many were dropped for which reason."""

    kept: list[Instruction]
    """In their order before."""
    counts: dict[str, int]
    """How many there were. "read" is all of them. Those dropped are counted under the first reason that applies:
    "empty", "duplicates", "leaked", "too_long", "near_duplicates". "kept" are left, of which "leaked_kept" are in an
    evaluation set (0 without `allow_leakage`)."""


@dataclass(frozen=True)
class Slices:
    """Disjoint lists of instructions."""

    validation: list[Instruction]
    """Held out from training in every iteration: on it checkpoints are compared."""
    test: list[Instruction]
    """Held out too, and from every choice: on it models are reported."""
    iterations: list[list[Instruction]]
    """One list per iteration. No instruction is used twice."""
    warm_start: list[Instruction]
    """What is left for a warm start, as far as it goes."""


def prepare(
    instructions: list[Instruction],
    *,
    token_count: Callable[[str], int],
    max_tokens: int,
    allow_leakage: bool,
) -> Prepared:
    """Drop the instructions that should not be trained on.

    Dropped are empty instructions, duplicates (equal except for case and white space), instructions of an evaluation
    set unless `allow_leakage` is set, those of more than `max_tokens` tokens by `token_count`, and near duplicates
    (`tpo_lite.instructions.near_duplicates`). The first of several duplicates is kept. An instruction's context belongs
    to the text that is compared and to its length, and a user turn of an evaluation set counts as leaked there too.
    """
    counts = dict.fromkeys(
        ("read", "empty", "duplicates", "leaked", "too_long", "near_duplicates", "kept", "leaked_kept"), 0
    )
    counts["read"] = len(instructions)
    seen: set[str] = set()
    fit: list[Instruction] = []
    for instruction in instructions:
        if not normalize(instruction.text):
            counts["empty"] += 1
        elif instruction.id in seen:
            counts["duplicates"] += 1
        elif not allow_leakage and _leaked(instruction):
            counts["leaked"] += 1
        elif _tokens(instruction, token_count) > max_tokens:
            counts["too_long"] += 1
        else:
            fit.append(instruction)
        seen.add(instruction.id)
    drop = near_duplicates([instruction.conversation() for instruction in fit])
    kept = [instruction for index, instruction in enumerate(fit) if index not in drop]
    counts["near_duplicates"] = len(drop)
    counts["kept"] = len(kept)
    counts["leaked_kept"] = sum(_leaked(instruction) for instruction in kept) if allow_leakage else 0
    return Prepared(kept, counts)


def _leaked(instruction: Instruction) -> bool:
    """Return whether the instruction, or an earlier user turn, is in an evaluation set."""
    earlier = [turn["content"] for turn in instruction.context or () if turn["role"] == "user"]
    return any(is_leaked(text) for text in (instruction.text, *earlier))


def _tokens(instruction: Instruction, token_count: Callable[[str], int]) -> int:
    """Return the length of an instruction with its context, in tokens."""
    context = sum(token_count(turn["content"]) + TOKENS_AROUND_A_TURN for turn in instruction.context or ())
    return token_count(instruction.text) + context


def slices(
    instructions: list[Instruction],
    *,
    seed: int,
    iterations: int,
    per_iteration: int,
    validation: int,
    test: int,
    warm_start: int = 0,
) -> Slices:
    """Draw a validation slice, a test slice and one slice of `per_iteration` instructions per iteration, all disjoint.

    Instructions are drawn in the order of `keyed_hash(seed, id)`: the validation slice first, then the iterations, and
    the test slice from the end. So the order of the input does not matter, more iterations leave the earlier slices
    unchanged, and a test slice leaves all others unchanged. A warm start gets at most `warm_start` of those that are
    left. Raises `InputError` if there are too few instructions.
    """
    needed = validation + test + iterations * per_iteration
    if len(instructions) < needed:
        raise InputError(_too_few(len(instructions), needed, iterations, per_iteration, validation, test))
    drawn = sorted(instructions, key=lambda instruction: keyed_hash(seed, instruction.id))
    return Slices(
        validation=drawn[:validation],
        test=drawn[len(drawn) - test :],
        iterations=[drawn[start : start + per_iteration] for start in range(validation, needed - test, per_iteration)],
        warm_start=drawn[needed - test : len(drawn) - test][:warm_start],
    )


def _too_few(usable: int, needed: int, iterations: int, per_iteration: int, validation: int, test: int) -> str:
    """Return the message: what there is, what is needed for what, and the most that fits in an iteration."""
    held_out = f"{validation} for validation + {test} for test"
    fits = (usable - validation - test) // iterations
    lower = f"set instructions.per_iteration={fits}" if fits > 0 else "lower these settings"
    return (
        f"there are {usable} usable instructions, but {needed} are needed ({held_out} + {iterations} iterations x "
        f"{per_iteration}). Add instructions or {lower}."
    )
