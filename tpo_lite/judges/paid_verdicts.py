"""Verdicts that a server has given and that cost money or hours: kept at once, one by one, and never asked again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.judges.protocol import Verdict
from tpo_lite.records import JsonlAppender, Record, read_jsonl


@dataclass(frozen=True)
class PaidVerdict(Record):
    """A line of the file."""

    request: str
    """A hash of the server and of all that was sent."""
    p_a: float
    """As in `Verdict`."""
    label: str
    """As in `Verdict`."""
    explanation: str
    """As in `Verdict`."""


class PaidVerdicts:
    """Verdicts by request, kept in the JSONL file `path` over the processes of a run; None keeps them in memory.

    `add` may be called from several threads. Raises `InputError` for a damaged file.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._lock = path, threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        if path is not None:
            for line in read_jsonl(path, PaidVerdict):
                self._verdicts[line.request] = Verdict(line.p_a, line.label, line.explanation)

    def get(self, request: str) -> Verdict | None:
        """The verdict on a request; None if there is none yet."""
        return self._verdicts.get(request)

    def add(self, request: str, verdict: Verdict) -> None:
        """Keeps a verdict; it is on disk on return."""
        with self._lock:
            self._verdicts[request] = verdict
            if self.path is not None:
                with JsonlAppender(self.path) as out:
                    out.append(PaidVerdict(request, verdict.p_a, verdict.label, verdict.explanation))
