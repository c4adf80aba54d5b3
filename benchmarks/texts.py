"""Texts that benchmarks work on: this project's own, so that they run in any clone and read nothing else."""

from __future__ import annotations

import random
from pathlib import Path

from tpo_lite.embedded import world

ROOT = Path(__file__).resolve().parents[1]
PUZZLES = 2000


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
