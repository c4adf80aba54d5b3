"""The instructions of evaluation sets, known by their hashes, so that training can leave them out.

The list holds AlpacaEval's 805 instructions and Arena-Hard v0.1's 500. Their texts are not shipped. To write the list
anew from the published files (JSONL, one instruction per line):

    python -m tpo_lite.instructions.leakage ALPACA_EVAL.jsonl ARENA_HARD.jsonl > tpo_lite/instructions/leakage.txt
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache
from importlib import resources

from tpo_lite.errors import TpoError


def normalize(text: str) -> str:
    r"""Return the text in one form: NFKC, case folded, and each run of white space replaced by one space.

    >>> normalize("What  is\nTPO? ")
    'what is tpo?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of the normalized text. It is an instruction's id.

    Ids are part of the keys of all random numbers (`tpo_lite.seeds`), so this must not change.
    """
    return hashlib.sha256(normalize(text).encode()).hexdigest()[:16]


def is_leaked(text: str) -> bool:
    """Return whether the text is an instruction of AlpacaEval or Arena-Hard v0.1, after `normalize`."""
    return fingerprint(text) in _known()


@cache
def _known() -> frozenset[str]:
    """Return the fingerprints in leakage.txt."""
    lines = resources.files("tpo_lite.instructions").joinpath("leakage.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def main(paths: list[str]) -> int:
    """Print the list for the given instruction files, and return the exit code."""
    # load.py imports this module, so it can be imported only here.
    from tpo_lite.instructions.load import load

    try:
        hashes = {fingerprint(row.text) for path in paths for row in load(path).instructions}
    except TpoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(
        "# SHA-256 (first 16 hex digits, text normalized) of AlpacaEval's 805 and Arena-Hard v0.1's 500 "
        "instructions; written by: "
        "python -m tpo_lite.instructions.leakage ALPACA_EVAL.jsonl ARENA_HARD.jsonl > tpo_lite/instructions/leakage.txt"
    )
    print("\n".join(sorted(hashes)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
