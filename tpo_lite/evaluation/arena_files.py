"""Arena-Hard's files: battles, judgements and answers, read as they are.

Judgements are the official `model_judgment/JUDGE/MODEL.jsonl`, of version 0.1 (question_id, model, judge, games) and of
2.0 (uid, category, judge, model, baseline, games). The first game shows the baseline as A, the second the model.
Battles are what version 0.1's `show_result.py` wrote: question_id, model_a, model_b and winner, with one line for each
vote. Answers are the official `model_answer/MODEL.jsonl` of both versions, or question_id, answer and token_len.

A verdict that one side is significantly better (">>") counts as three. A game without a readable verdict counts
for nothing; in version 2.0's files it takes the question's other game with it, as in the official code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.files import read_rows

STRONG = 3
"""How often a verdict that one side is significantly better counts."""
VERDICTS = {
    "A>>B": (1.0, STRONG),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, STRONG),
    "A<<B": (0.0, STRONG),
    "A<B": (0.0, 1),
    "B=A": (0.5, 1),
    "B<A": (1.0, 1),
    "B<<A": (1.0, STRONG),
}
"""The score of A and the weight of each label that the official code knows. A judge is asked for the first five."""
WINNERS = {"model_a": 1.0, "tie": 0.5, "tie (bothbad)": 0.5, "model_b": 0.0}
"""The score of model_a for each winner in a file of battles."""
BASELINES = {
    "arena-hard-v0.1": "gpt-4-0314",
    "hard_prompt": "o3-mini-2025-01-31",
    "coding": "o3-mini-2025-01-31",
    "math": "o3-mini-2025-01-31",
    "creative_writing": "gemini-2.0-flash-001",
}
"""The official baseline of each category of questions."""
V01 = "arena-hard-v0.1"
"""Version 0.1's only category."""


@dataclass(frozen=True)
class Battle:
    """A vote between two models' answers to one question."""

    question: str
    """The question's id."""
    category: str
    """"arena-hard-v0.1", or a category of version 2.0."""
    model_a: str
    """One model; in a judgement the baseline."""
    model_b: str
    """The other."""
    score: float
    """1 where model_a wins, 0.5 for a tie, 0 where model_b wins."""
    votes: int
    """How often the vote counts."""


@dataclass(frozen=True)
class Battles:
    """All votes of one or more files."""

    battles: list[Battle]
    """In the order of the files."""
    judges: list[str]
    """Names of the judges, where the files tell. As in the official code, the votes of several are put together."""
    unparsed: int
    """Games without a readable verdict."""
    left_out: int
    """Readable games that were left out because the question's other game was not readable (version 2.0)."""


def read_battles(paths: Sequence[Path], baseline: str | None = None) -> Battles:
    """Read files of battles or of judgements.

    `baseline` is the model that judgements without the field `baseline` were made against; None for version 0.1's own.
    Raises `InputError`, with file and line, for a line of neither form, an unknown winner or label, a judgement that
    comes twice, and files without a single vote.
    """
    battles: list[Battle] = []
    judges: set[str] = set()
    seen: dict[tuple[str, str, str], str] = {}
    unparsed = left_out = 0
    for where, row in (each for path in paths for each in read_rows(path, "battle or judgement")):
        if "games" not in row:
            battles.append(_battle(row, where))
            continue
        question, category, model, judge, against = _judgement(row, where, baseline)
        key = (question, model, judge)
        if key in seen:
            raise InputError(f"{where} judges {model} on {question} again, after {seen[key]}. Keep one of them.")
        seen[key] = where
        judges |= {judge} - {""}
        votes = _votes(row["games"], where)
        unparsed += votes.count(None)
        if None in votes and "uid" in row:
            left_out += len(votes) - votes.count(None)
            continue
        battles += [Battle(question, category, against, model, *vote) for vote in votes if vote is not None]
    if not battles:
        raise InputError(f"{', '.join(map(str, paths))}: no game has a verdict. Give judgements with readable scores.")
    return Battles(battles, sorted(judges), unparsed, left_out)


def _battle(row: dict[str, Any], where: str) -> Battle:
    question = row.get("question_id", row.get("uid"))
    names = [row.get("model_a"), row.get("model_b")]
    if not isinstance(question, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"{where} is neither a battle (question_id, model_a, model_b, winner) nor a judgement (games). "
            "Fix that line or remove it."
        )
    if names[0] == names[1]:
        raise InputError(f"{where} lets {names[0]} play against itself. Fix that line or remove it.")
    winner = row.get("winner")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise InputError(f"{where}: winner is {winner!r}. Give one of {', '.join(WINNERS)}.")
    return Battle(question, str(row.get("category", V01)), str(names[0]), str(names[1]), WINNERS[winner], 1)


def _judgement(row: dict[str, Any], where: str, baseline: str | None) -> tuple[str, str, str, str, str]:
    """Return the question, its category, the model, the judge and the baseline of a judgement."""
    question, model = row.get("question_id", row.get("uid")), row.get("model")
    if not isinstance(question, str) or not isinstance(model, str) or not model:
        raise InputError(
            f"{where}: uid (or question_id) and model are needed beside games. Fix that line or remove it."
        )
    category = str(row.get("category") or V01)
    against = row.get("baseline") or baseline or BASELINES.get(category)
    if not isinstance(against, str):
        raise InputError(f"{where} does not name its baseline, and {category} has none of its own. Give --baseline.")
    if against == model:
        raise InputError(f"{where} lets {model} play against itself. Fix that line or remove it.")
    return question, category, model, str(row.get("judge") or ""), against


def _votes(games: Any, where: str) -> list[tuple[float, int] | None]:
    """Return the baseline's score and the weight of both games, None for one without a verdict."""
    if not isinstance(games, list) or len(games) != 2:
        raise InputError(f"{where}: games must be two, with the answers in both orders. Fix that line or remove it.")
    votes: list[tuple[float, int] | None] = []
    for swapped, game in enumerate(games):
        label = game.get("score") if isinstance(game, dict) else game
        if label is None:
            votes.append(None)
        elif label in VERDICTS:
            score, weight = VERDICTS[label]
            votes.append((1 - score if swapped else score, weight))
        else:
            raise InputError(f"{where}: score is {label!r}. Give one of {', '.join(VERDICTS)}, or null.")
    return votes


@dataclass(frozen=True)
class Style:
    """What style control knows of an answer."""

    tokens: int
    """Its length in tokens, as the file says."""
    headers: int
    """Markdown headings."""
    lists: int
    """Items of lists."""
    bold: int
    """Bold passages."""


@dataclass(frozen=True)
class Answers:
    """One model's answers."""

    model: str
    """Its name: `model` or `model_id`, or the file's stem."""
    styles: dict[str, Style]
    """For each question id, the style of the answer."""

    @property
    def average_tokens(self) -> int:
        """Mean length in tokens, rounded down as on the leaderboard."""
        return sum(style.tokens for style in self.styles.values()) // len(self.styles)


def read_answers(path: Path) -> Answers:
    """Read a file of answers.

    Raises `InputError`, with file and line, for a line in none of the forms, one without the number of tokens, a
    question that comes twice, and lines of two models.
    """
    styles: dict[str, Style] = {}
    names: set[str] = set()
    for where, row in read_rows(path, "answer"):
        question = row.get("question_id", row.get("uid"))
        text, facts = _answer(row)
        tokens = facts.get("token_len")
        if not isinstance(question, str) or not isinstance(text, str):
            raise InputError(f"{where} is not an answer in the form of Arena-Hard. Fix that line or remove it.")
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise InputError(f"{where}: token_len is {tokens!r}. Give the length of the answer in tokens.")
        if question in styles:
            raise InputError(f"{where} answers {question} again. Keep one of them.")
        counts = count_markdown(text) | {key: _count(facts[key]) for key in MARKDOWN if key in facts}
        styles[question] = Style(tokens, *(counts[key] for key in MARKDOWN))
        names |= {str(row[key]) for key in ("model", "model_id") if row.get(key)}
    if len(names) > 1:
        raise InputError(f"{path} has answers of {' and '.join(sorted(names)[:2])}. Give one file for each model.")
    return Answers(names.pop() if names else path.stem, styles)


def _answer(row: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return an answer's text and what is known of its style."""
    try:
        if "messages" in row:
            content = row["messages"][-1]["content"]
            return content["answer"] if isinstance(content, dict) else content, dict(row.get("metadata") or {})
        if "choices" in row:
            turn = row["choices"][0]["turns"][0]
            return turn["content"], {"token_len": turn.get("token_len")} | dict(row.get("conv_metadata") or {})
        return row["answer"], row
    except (KeyError, IndexError, TypeError, ValueError):
        return None, {}


MARKDOWN = ("header_count", "list_count", "bold_count")
"""The names of the counts in answer files, in the order of `Style`."""
_PATTERNS = {
    "header_count": [rf"^#{{{level}}}\s" for level in range(1, 7)],
    "list_count": [r"^\s*\d+\.\s", r"^\s*[-*+]\s"],
    "bold_count": [r"\*\*[^*\n]+\*\*", r"__[^_\n]+__"],
}
_CODE = re.compile(r"```([^`]*)```")


def count_markdown(text: str) -> dict[str, int]:
    r"""Return the counts of headings, list items and bold passages outside of code, as the official script counts them.

    >>> count_markdown("# Tea\n- **hot**\n- cold\n```\n# no heading\n```")
    {'header_count': 1, 'list_count': 2, 'bold_count': 1}
    """
    for block in _CODE.findall(text):
        # As the official script does: it removes what is between the fences and leaves the fences.
        text = text.replace(block, "")
    return {
        key: sum(len(re.findall(pattern, text, re.MULTILINE)) for pattern in patterns)
        for key, patterns in _PATTERNS.items()
    }


def _count(value: Any) -> int:
    """Return a count, which the official files split by kind."""
    return sum(value.values()) if isinstance(value, dict) else int(value)


def files_in(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files, and for each folder the JSONL files in it. Raises `InputError` for a folder without any."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(path.glob("*.jsonl"))
        if not found:
            raise InputError(f"{path} holds no .jsonl file. Give a folder such as model_judgment/JUDGE.")
        yield from found
