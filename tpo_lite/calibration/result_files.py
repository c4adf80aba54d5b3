"""Result files of judges: what was recorded about pairs of responses, each pair in both orders.

Files are read as they are: LLMBar's (result.json, or JSONL of text, winner, text_swapped and winner_swapped),
JudgeBench's (judgments), Arena-Hard's (games, whose first shows the baseline as A) and our own. Verdicts are parsed
from the judge's texts by the rules of the evaluators that wrote the files. Where a file records a parsed verdict too,
the two are compared. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.calibration.gold_pairs import judgebench_group, read_label
from tpo_lite.calibration.judged_pair import ORDERS, JudgedPair
from tpo_lite.errors import InputError
from tpo_lite.files import read_rows
from tpo_lite.judges.verdicts import VERDICTS, bracketed_label
from tpo_lite.records import VERDICT_LABELS, Comparison, VerdictLabel


@dataclass(frozen=True)
class JudgeOutputs:
    """A result file."""

    pairs: list[JudgedPair]
    """In the file's order."""
    recorded: int
    """Texts beside which the file records a verdict; that none was readable counts as one."""
    differing: list[str]
    """Ids of pairs with a text that parses to another verdict than the recorded one."""


@dataclass(frozen=True)
class _Row:
    """One line of a result file. The two texts and the two recorded labels are in terms of slots A and B."""

    id: str
    group: str
    label: int | None
    lengths: list[int] | None
    texts: list[str | None]
    recorded: list[str | None]

    def __post_init__(self) -> None:
        for value in (self.group, *(each for each in self.texts + self.recorded if each is not None)):
            if not isinstance(value, str):
                raise ValueError(f"{value!r} is not a text")


def llmbar_explained_label(text: str) -> str | None:
    """Read "A" or "B" by the rule of LLMBar's evaluators that explain (CoT): the sentence "Output (a) is better"."""
    return _first_found(text, r"Output \({}\) is better.")


def llmbar_label(text: str) -> str | None:
    """Read "A" or "B" by the rule of LLMBar's other evaluators: a line that begins with "Output (a)"."""
    return _first_found(text, r"(?:^|\n) ?Output \({}\)")


def _first_found(text: str, pattern: str) -> str | None:
    # As LLMBar does, look for (a) in the whole text first, even where (b) comes earlier.
    return next((letter for letter in "AB" if re.search(pattern.format(letter.lower()), text.strip())), None)


def label_parser(texts: Sequence[str]) -> Callable[[str], str | None] | None:
    """Return the rule that reads most of a judge's texts, the stricter one in a tie; None if no rule reads any.

    Files do not name the rule of the evaluator that wrote them, and a judge keeps to one form.
    """
    rules = (bracketed_label, llmbar_explained_label, llmbar_label)
    read = [sum(rule(text) is not None for text in texts) for rule in rules]
    return rules[read.index(max(read))] if any(read) else None


def read_outputs(path: Path) -> JudgeOutputs:
    """Read the judge's answers in a result file.

    If no rule can read the texts, as with reward models, only the recorded verdicts count. Raises `InputError`, with
    file and line, for a line of no known form, one that lacks an order, and one about a pair that came before.
    """
    ours: list[JudgedPair] = []
    rows: list[_Row] = []
    seen: dict[str, str] = {}
    for number, (where, data) in enumerate(read_rows(path, "pair of responses")):
        try:
            if "comparisons" in data:
                ours.append(_checked(JudgedPair.from_dict(data), where))
                name = ours[-1].id
            else:
                rows.append(_read_row(data, where, f"{path.stem}:{number}", path.stem))
                name = rows[-1].id
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"{where} is a damaged judgement ({type(error).__name__}: {error}). Fix that line or remove it."
            ) from error
        if name in seen:
            raise InputError(
                f"{where} judges the pair {name!r} of {seen[name]} again. Give the file of one judge, once."
            )
        seen[name] = where
    if not rows:
        return JudgeOutputs(ours, 0, [])
    parse = label_parser([text for row in rows for text in row.texts if text is not None])
    if parse is None:
        return JudgeOutputs(ours + [_judged(row, row.recorded) for row in rows], 0, [])
    pairs, differing = [], []
    for row in rows:
        labels = [None if text is None else parse(text) for text in row.texts]
        pairs.append(_judged(row, labels))
        # JudgeBench records A>>B as A>B.
        if any(r not in (p, p and p.replace(">>", ">")) for p, r in zip(labels, row.recorded, strict=True)):
            differing.append(row.id)
    return JudgeOutputs(ours + pairs, 2 * len(rows), differing)


def _read_row(row: dict[str, Any], where: str, default_id: str, stem: str) -> _Row:
    lengths: list[int] | None
    if "text_swapped" in row:
        texts = [row["text"], row["text_swapped"]]
        winners = [row["winner"], row["winner_swapped"]]
        id, label = f"{row['set']}:{row['i']}", read_label(row["label"], where)
        return _Row(id, row["set"], label, None, texts, _slots(winners))
    if "results" in row:
        orders = [row["results"][-1][f"swap = {swap}"] for swap in (False, True)]
        texts = [order["completion"][0] if "completion" in order else None for order in orders]
        lengths = [len(row["output_1"]), len(row["output_2"])]
        slots = _slots([order["winner"] for order in orders])
        return _Row(default_id, stem, read_label(row["label"], where), lengths, texts, slots)
    if "judgments" in row:
        answers = [answer or {} for answer in _two(row["judgments"], "judgments")]
        # JudgeBench's own files have the text one level down.
        texts = [answer.get("response", (answer.get("judgment") or {}).get("response")) for answer in answers]
        lengths = [len(row["response_A"]), len(row["response_B"])] if "response_A" in row else None
        group = judgebench_group(str(row["source"])) if "source" in row else stem
        decisions = [answer.get("decision") for answer in answers]
        return _Row(str(row["pair_id"]), group, read_label(row["label"], where), lengths, texts, decisions)
    if "games" in row:
        games = _two(row["games"], "games")
        texts, scores = [game["judgment"] for game in games], [game["score"] for game in games]
        return _Row(str(row["question_id"]), stem, None, None, texts, scores)
    raise InputError(
        f"{where} is not a judge's output. Give a result file of LLMBar, JudgeBench, Arena-Hard or `judge run`."
    )


def _two(answers: list[Any], key: str) -> list[Any]:
    if len(answers) != 2:
        raise ValueError(f"{key} has {len(answers)} entries, not one for each order")
    return answers


def _slots(winners: list[str | None]) -> list[str | None]:
    """Return LLMBar's winners "1" and "2" as slots: with the outputs swapped, the first slot shows output 2."""
    return [
        None if winner is None else "AB"[("1", "2").index(winner) ^ swapped] for swapped, winner in enumerate(winners)
    ]


def _judged(row: _Row, labels: Sequence[str | None]) -> JudgedPair:
    comparisons = []
    for (first, second), label in zip(ORDERS, labels, strict=True):
        verdict: VerdictLabel = "unparsed" if label is None else VERDICTS.get(label, "unparsed")
        comparisons.append(Comparison(first, second, {"A": 1.0, "B": 0.0}.get(verdict, 0.5), verdict))
    return JudgedPair(row.id, row.group, row.label, row.lengths, comparisons, soft=False)


def _checked(pair: JudgedPair, where: str) -> JudgedPair:
    if tuple((c.first, c.second) for c in pair.comparisons) != ORDERS:
        raise ValueError("comparisons must be those of response 1 with 2 and of 2 with 1")
    if not all(0 <= c.p_first <= 1 for c in pair.comparisons):
        raise ValueError("p_first must be between 0 and 1")
    if any(c.verdict not in VERDICT_LABELS for c in pair.comparisons):
        raise ValueError('a verdict must be "A", "B", "tie", "unparsed" or "overlong"')
    if not all(isinstance(text, str) for text in (pair.id, pair.group, pair.judge)):
        raise ValueError("id, group and judge must be texts")
    if pair.lengths is not None and [type(length) for length in pair.lengths] != [int, int]:
        raise ValueError("lengths must be two numbers")
    return dataclasses.replace(pair, label=read_label(pair.label, where))
