"""IFEval: how often a response follows instructions that a program can check (Zhou et al., arXiv 2311.07911).

The checkers are those that `lm-eval` ships. Strict takes the response as it is; loose also accepts it without its first
line, its last line or its asterisks. A prompt has up to three instructions: at prompt level all must be followed, at
instruction level each counts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError, first_line
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.evaluation.outputs import Outputs, answers_to
from tpo_lite.files import read_rows
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.intervals import Estimate, Share, estimate, share

LEVELS = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
"""lm-eval's names of the four scores."""


@dataclass(frozen=True)
class IfEval:
    """The four scores of one model."""

    model: str
    """The model."""
    prompts: int
    """Prompts."""
    instructions: int
    """Instructions in all prompts."""
    scores: dict[str, Share | Estimate]
    """By lm-eval's names: Wilson intervals at prompt level; at instruction level those of one prompt are a cluster."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as `eval ifeval --json` prints them."""
        figures = {
            name: {"value": score.value, "interval": [score.low, score.high]} for name, score in self.scores.items()
        }
        return {"model": self.model, "n": self.prompts, "instructions": self.instructions} | figures


def score(outputs: Outputs, prompts: Path) -> IfEval:
    """Check the responses; `prompts` is IFEval's input data: key, prompt, instruction_id_list and kwargs in each row.

    Raises `InputError` for a row of another form, outputs to other prompts, prompts without an output, and where the
    checkers or the data that they need are not installed.
    """
    documents: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(prompts, "prompt"):
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(row.get("prompt"), str) or not isinstance(ids, list) or not isinstance(kwargs, list):
            raise InputError(f"{where} is no prompt of IFEval: prompt, instruction_id_list and kwargs are needed.")
        if len(ids) != len(kwargs):
            raise InputError(f"{where}: {len(ids)} instructions and {len(kwargs)} kwargs. Give one for each.")
        documents[fingerprint(row["prompt"])] = {"key": row.get("key", where)} | row
    given = answers_to(outputs, [row["prompt"] for row in documents.values()], prompts.name)
    check = _checkers()
    results = [check(document, [given[key].response]) for key, document in documents.items()]
    return IfEval(
        outputs.model,
        len(documents),
        sum(len(result["inst_level_strict_acc"]) for result in results),
        {level: _score([result[level] for result in results]) for level in LEVELS},
    )


def _score(followed: Sequence[bool | list[bool]]) -> Share | Estimate:
    """Return the score over prompts, or over the instructions in them."""
    values, clusters = [], []
    for prompt, result in enumerate(followed):
        if not isinstance(result, list):
            return share(sum(map(bool, followed)), len(followed))
        values += [float(each) for each in result]
        clusters += [prompt] * len(result)
    return estimate(values, clusters)


def _checkers() -> Any:
    """Return lm-eval's function that checks a response."""
    hint = "Install it: pip install 'tpo_lite[eval]'"
    if importlib.util.find_spec("nltk") is None:
        raise InputError(f"IFEval's checkers need the extra `eval` (No module named 'nltk'). {hint}")
    import nltk

    try:
        # Before lm-eval is imported, which would download it and print that to the standard output.
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError as error:
        raise InputError(
            "IFEval's checkers count sentences with NLTK's data `punkt_tab`, which is not installed. "
            "Install it: python -m nltk.downloader punkt_tab"
        ) from error
    try:
        import langdetect
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise InputError(f"IFEval's checkers need the extra `eval` ({first_line(error)}). {hint}") from error
    # Without a seed, the language of a short text is guessed differently from run to run.
    langdetect.DetectorFactory.seed = 0
    return utils.process_results


def as_text(found: IfEval) -> str:
    """Return the scores as lines for a terminal."""
    rows = [["", "%", "95 % interval"]]
    rows += [
        [name, f"{100 * (score.value or 0):.2f}", between(100 * score.low, 100 * score.high)]
        for name, score in found.scores.items()
    ]
    return f"{found.model}: {found.prompts} prompts, {found.instructions} instructions\n{aligned(rows)}"
