"""Tables of evaluations, as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines, the first column flush left and the others flush right.

    >>> print(aligned([["", "n"], ["wins", "12"]]))
           n
    wins  12
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def between(low: float, high: float, decimals: int = 2) -> str:
    """Return an interval as text.

    >>> between(1.5, 2.25, 1)
    '1.5 to 2.2'
    """
    return f"{low:.{decimals}f} to {high:.{decimals}f}"
