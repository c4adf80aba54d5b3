"""Texts that benchmarks work on: this project's own, so that they run in any clone and read nothing else.

With random weights only the lengths of texts matter. Those here are about as long as AlpacaEval's: instructions of 18
words in the median, a few ten times as long, and answers of 2,000 characters.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from tpo_lite.embedded import world

ROOT = Path(__file__).resolve().parents[1]
PUZZLES = 2000
INSTRUCTION_WORDS, LONGEST_INSTRUCTION = 18, 300
ANSWER_WORDS = 330
ANSWERS = 8

Case = tuple[str, list[str]]
"""An instruction and different answers to it."""


def corpus() -> list[str]:
    """Return some 130,000 words of English and code: README, docs, recipes, source, and the embedded world."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.yaml")]
    files += (ROOT / "tpo_lite").rglob("*.py")
    rng = random.Random("benchmark texts")
    puzzles = world.puzzles(PUZZLES, seed=0)
    return [
        *(file.read_text(encoding="utf-8") for file in sorted(files)),
        *(puzzle.text for puzzle in puzzles),
        *(world.response(rng, rng.choice(puzzle.choices)) for puzzle in puzzles),
    ]


def passages(count: int) -> list[Case]:
    """Return `count` requests to rewrite a passage of the README, each with eight answers, other passages of it."""
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    rng = random.Random("benchmark passages")

    def passage(length: int) -> str:
        start = rng.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    cases = []
    for _ in range(count):
        length = min(LONGEST_INSTRUCTION, round(rng.lognormvariate(math.log(INSTRUCTION_WORDS), 0.8)))
        answers = [passage(round(ANSWER_WORDS * rng.uniform(0.5, 1.5))) for _ in range(ANSWERS)]
        cases.append((f"Put this into plainer words:\n\n{passage(length)}", answers))
    return cases


def puzzles_with_answers(count: int) -> list[Case]:
    """Return `count` instructions of the embedded world with eight responses each, right and wrong ones."""
    rng, cases = random.Random("judge throughput"), []
    for puzzle in world.puzzles(count, seed=5):
        said: dict[str, None] = {}
        while len(said) < ANSWERS:
            said[rng.choice((world.response(rng, rng.choice(puzzle.choices)), world.evasion(rng)))] = None
        cases.append((puzzle.text, list(said)))
    return cases
