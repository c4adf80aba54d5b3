"""Instructions of the evaluation sets, known by hash, so that training can leave them out.

The list holds AlpacaEval's 805 instructions and Arena-Hard v0.1's 500. Their texts are not shipped.
Write it anew from the published files (JSONL, an instruction a line) with

    python -m tpo_lite.instructions.leakage ALPACA_EVAL.jsonl ARENA_HARD.jsonl > tpo_lite/instructions/leakage.txt
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache
from importlib import resources

from tpo_lite.errors import TpoError


def normalise(text: str) -> str:
    """The text with compatibility forms, case and runs of white space made one (NFKC, casefold).

    >>> normalise("What  is\\nTPO? ")
    'what is tpo?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> str:
    """The first 16 hex digits of the SHA-256 of the normalised text."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def is_leaked(text: str) -> bool:
    """Whether the text is an instruction of AlpacaEval or Arena-Hard v0.1, up to `normalise`."""
    return fingerprint(text) in _known()


@cache
def _known() -> frozenset[str]:
    lines = resources.files("tpo_lite.instructions").joinpath("leakage.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def main(paths: list[str]) -> int:
    """Prints the list for the given instruction files; returns the exit code."""
    # instructions.py asks this module for leaks, so it can be imported only here.
    from tpo_lite.instructions.load import load

    try:
        hashes = {fingerprint(row.text) for path in paths for row in load(path).instructions}
    except TpoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        "# SHA-256 (first 16 hex digits, text normalised) of AlpacaEval's 805 and Arena-Hard v0.1's 500 "
        "instructions; written by: "
        "python -m tpo_lite.instructions.leakage ALPACA_EVAL.jsonl ARENA_HARD.jsonl > tpo_lite/instructions/leakage.txt"
    )
    print("\n".join(sorted(hashes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
