"""The typed records that flow through one iteration, one JSON line each.

instructions -> samples -> judgements -> scores -> pairs. Every file is plain JSONL, which
`datasets.load_dataset("json", data_files=...)` reads. A line is one finished unit of work, such as a prompt with all
its samples. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from tpo_lite.errors import InputError
from tpo_lite.files import write_atomically
from tpo_lite.thoughts import WELL_FORMED, Outcome

R = TypeVar("R", bound="Record")

VerdictLabel = Literal["A", "B", "tie", "unparsed", "overlong"]
"""What a judge says of two responses: the first is better, the second is, or they are exactly even; "unparsed" if no
verdict could be read, "overlong" if the comparison did not fit the judge's context and was not made."""
VERDICT_LABELS: tuple[VerdictLabel, ...] = get_args(VerdictLabel)

DropReason = Literal["no_well_formed", "one_response", "not_judged", "tied", "too_long"]
"""Why a prompt has no pair."""
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)

PairKind = Literal["best-worst", "malformed"]
"""What is rejected: the worst response, or an output that could not be parsed."""

PairCount = Literal["prompts"] | PairKind | DropReason
"""Keys of a count of prompts: all of them, those with a pair by its kind, those without one by the reason."""

Turn = dict[str, str]
"""A turn of a conversation as in OpenAI's messages: "role" ("system", "user" or "assistant") and "content"."""


@dataclass(frozen=True)
class Record:
    """A line of a run's JSONL files."""

    def to_dict(self) -> dict[str, Any]:
        """Return this record as plain lists, dicts, strings and numbers."""
        return dataclasses.asdict(self, dict_factory=_without_absent)

    def to_json(self) -> str:
        """Return this record as one line of JSON, without the line break."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a record from what `to_dict` gave."""
        return cls(**data)


ABSENT_IF_NONE = ("context", "scores")
"""Fields that most records lack. They are not in the JSON where they are None."""


def _without_absent(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a record's fields as a dict, without those of `ABSENT_IF_NONE` that are None."""
    return {name: value for name, value in fields if name not in ABSENT_IF_NONE or value is not None}


@dataclass(frozen=True)
class UnitRecord(Record):
    """A record about one unit of work."""

    id: str
    """The id of the instruction, a hash of its normalized text; in calibration, that of the pair of responses."""


@dataclass(frozen=True)
class Instruction(UnitRecord):
    """One user instruction x."""

    text: str
    """What the user asks, without thought prompt or chat markers."""
    source: str
    """File and line, hub dataset and row, or "embedded"."""
    category: str | None = None
    """The paper's category, where the source names one."""
    answer: str | None = None
    """The right answer, where one is known. It is used to measure, never to train or judge."""
    context: list[Turn] | None = None
    """What comes before x: a system prompt, earlier turns of the conversation, or both. Not in the JSON if None."""

    def conversation(self) -> str:
        r"""Return x with its context, as a judge sees it. Without a context it is x alone.

        >>> system = {"role": "system", "content": "Be brief."}
        >>> Instruction("1", "What is a fjord?", "here", context=[system]).conversation()
        'System: Be brief.\n\nUser: What is a fjord?'
        """
        if not self.context:
            return self.text
        turns = [*self.context, {"role": "user", "content": self.text}]
        return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


@dataclass(frozen=True)
class Sample(Record):
    """One sampled output, split into thought z and response y (the paper's thought prompts)."""

    k: int
    """Index among the K samples of its prompt."""
    token_ids: list[int]
    """Exactly what was sampled or put in, the end-of-turn token included: what DPO trains on."""
    text: str
    """The decoded tokens without the final end-of-turn token."""
    outcome: Outcome
    """How the output was read: "ok", what is unusual about it, or why it is malformed."""
    thought: str
    """z; empty for the direct style and for malformed outputs."""
    response: str
    """y, the only part a judge sees; empty for malformed outputs."""
    thought_tokens: int
    """Length of z in tokens."""
    response_tokens: int
    """Length of y in tokens: the length that length control controls."""

    @property
    def well_formed(self) -> bool:
        """Whether the output has a response.

        In older run folders an empty thought and a second marker made an output malformed. It has no response there,
        so it stays malformed.
        """
        return self.outcome in WELL_FORMED and self.response != ""


@dataclass(frozen=True)
class PromptSamples(Record):
    """The K samples of one instruction."""

    instruction: Instruction
    """x as the judge will see it."""
    prompt_ids: list[int]
    """p + x in the chat template, as token ids."""
    samples: list[Sample]
    """K samples, ordered by k; fewer where some are not to be trained on."""

    def sample(self, k: int) -> Sample:
        """Return sample k."""
        return next(sample for sample in self.samples if sample.k == k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a record from what `to_dict` gave."""
        return cls(
            Instruction(**data["instruction"]),
            data["prompt_ids"],
            [Sample(**sample) for sample in data["samples"]],
        )


@dataclass(frozen=True)
class Comparison(Record):
    """One question to a judge and its answer: response `first` shown as A, `second` as B."""

    first: int
    """k of the response in the first slot."""
    second: int
    """k of the response in the second slot."""
    p_first: float
    """Probability that the first is better. Where the verdict is "unparsed" it was read after a verdict had been opened
    for the judge, or is 0.5 if that is not possible."""
    verdict: VerdictLabel
    """"A" is the response shown first, "B" the second."""
    explanation: str = ""
    """What the judge wrote before its verdict (explain mode)."""


@dataclass(frozen=True)
class ResponseScore(Record):
    """What a pointwise judge says of one response."""

    k: int
    """The sample with this response: of those with the same text, the lowest k."""
    score: float | None
    """Its score on the judge's own scale, the higher the better; None if it did not fit the judge's context."""


@dataclass(frozen=True)
class PromptJudgements(UnitRecord):
    """What the judge said of one instruction's distinct responses: of pairs of them or, if it is pointwise, of each."""

    comparisons: list[Comparison]
    """Each counts for every pair of samples with the same two response texts. Empty if the judge is pointwise."""
    calls: int
    """Questions put to the judge."""
    saved: int
    """Questions that a full round robin over the samples would have asked on top; if the judge is pointwise, that one
    score for each well-formed sample would have."""
    scores: list[ResponseScore] | None = None
    """Scores by a pointwise judge; None, and not in the JSON, if the judge compares pairs. Each counts for every sample
    with the same response text."""

    def overlong(self) -> int:
        """Return how many comparisons, or responses, did not fit the judge's context."""
        made = sum(comparison.verdict == "overlong" for comparison in self.comparisons)
        return made + sum(each.score is None for each in self.scores or [])

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a record from what `to_dict` gave."""
        return cls(
            data["id"],
            [Comparison(**comparison) for comparison in data["comparisons"]],
            data["calls"],
            data["saved"],
            [ResponseScore(**score) for score in data["scores"]] if "scores" in data else None,
        )


@dataclass(frozen=True)
class PromptScores(UnitRecord):
    """Ratings of one instruction's well-formed samples."""

    ks: list[int]
    """The samples that are rated; malformed ones never are."""
    ratings: list[float]
    """Bradley-Terry log-strengths e_m, natural-log scale, mean zero; the raw scores if the judge is pointwise."""
    elo: list[float] | None
    """Bradley-Terry ratings on the Elo scale: 1000 + 400 / ln(10) * e_m; None if the judge is pointwise."""
    lengths: list[int]
    """Response lengths in tokens."""
    controlled: list[float]
    """Length-controlled scores s_i = z(rating) - rho * z(length)."""


@dataclass(frozen=True)
class Pair(UnitRecord):
    """One preference pair: p+x -> z_c+y_c preferred to p+x -> z_r+y_r."""

    kind: PairKind
    """What is rejected."""
    prompt_ids: list[int]
    """Token ids of p + x."""
    chosen_ids: list[int]
    """Token ids of the chosen output as sampled."""
    rejected_ids: list[int]
    """Token ids of the rejected output as sampled."""
    chosen_k: int
    """Which sample was chosen."""
    rejected_k: int
    """Which sample was rejected."""
    chosen_response_tokens: int
    """Length of the chosen response in tokens."""
    rejected_response_tokens: int
    """Length of the rejected response in tokens (0 for a malformed one)."""


@dataclass(frozen=True)
class Example(UnitRecord):
    """One output that a warm start trains on: p+x -> z+y."""

    k: int
    """Which sample of the prompt it is."""
    prompt_ids: list[int]
    """Token ids of p + x."""
    output_ids: list[int]
    """Token ids of the output: sampled, but for the markers that were put in; it ends the turn."""


@dataclass(frozen=True)
class MatchResult(UnitRecord):
    """One validation instruction: a checkpoint's response against another model's."""

    win: float
    """The mean over both orders of the probability that the checkpoint's response is better."""
    overlong: bool = False
    """The responses did not fit the judge's context, and `win` is 0.5."""


def read_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the records of a run's JSONL file; a last line cut off by a kill is not a record.

    A missing file has no records. Raises `InputError` for a damaged line that is not the last.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield kind.from_dict(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{path}:{number} is damaged ({error}). Delete that file and run the same command again."
                ) from error


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write a whole JSONL file of records, atomically."""
    write_atomically(path, "".join(record.to_json() + "\n" for record in records))


class JsonlAppender:
    """Appends records to a file so that each survives a kill: one write and fsync for each call.

    Opening drops a last line that a kill cut off.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole != len(data):
                with path.open("r+b") as file:
                    file.truncate(whole)
        self._file = path.open("ab")

    def append(self, *records: Record) -> None:
        """Write the records and wait until they are on disk."""
        text = "".join(record.to_json() + "\n" for record in records)
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
