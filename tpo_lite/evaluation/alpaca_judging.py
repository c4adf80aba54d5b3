"""Annotations of AlpacaEval by a judge of our own: a model's outputs against the baseline's, in the official form.

The judge sees each pair in both orders, and its preference is the mean, so that a preference for a slot cancels out.
The official judge sees one order, drawn at random. The instructions are those of the files and must be AlpacaEval's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.errors import InputError
from tpo_lite.evaluation.alpaca_annotations import number_of
from tpo_lite.evaluation.outputs import Outputs, same_instructions
from tpo_lite.evaluation.versus import first_wins


def check_instructions(outputs: Outputs, reference: Outputs) -> list[str]:
    """Return the ids of the instructions. Raises `InputError`, with the row, for one that is not AlpacaEval's."""
    ids = same_instructions(outputs, reference)
    for key in ids:
        output = outputs.by_id[key]
        if number_of(output.instruction) is None:
            raise InputError(
                f"{output.where}: {output.instruction[:60]!r} is not an instruction of AlpacaEval. Remove that row. "
                "For instructions of your own there is `tpo-lite eval versus`."
            )
    return ids


def official_rows(
    outputs: Outputs, reference: Outputs, ids: Sequence[str], judged: Sequence[JudgedPair], judge: str
) -> list[dict[str, Any]]:
    """Return the rows of the official annotations.json; `judged` has the reference's responses as 1.

    A pair that did not fit the judge has no row.
    """
    wins = first_wins(reference, outputs, ids, judged)
    return [
        {
            "instruction": outputs.by_id[key].instruction,
            "output_1": reference.by_id[key].response,
            "generator_1": reference.model,
            "output_2": outputs.by_id[key].response,
            "generator_2": outputs.model,
            "annotator": judge,
            "preference": 2 - win,
        }
        for key, win in wins.items()
        if win is not None
    ]
