"""Verdicts of a server, which cost money or hours: each is saved as soon as it is given, and never asked for again."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.judges.protocol import Verdict
from tpo_lite.records import JsonlAppender, Record, VerdictLabel, read_jsonl


@dataclass(frozen=True)
class PaidVerdict(Record):
    """A line of the file."""

    request: str
    """A hash of the server's address and of everything that was sent."""
    p_a: float
    """As in `Verdict`."""
    label: VerdictLabel
    """As in `Verdict`."""
    explanation: str
    """As in `Verdict`."""


class PaidVerdicts:
    """Verdicts by request, kept in the JSONL file `path` for all processes of a run, or in memory if that is None.

    `add` may be called from several threads. Raises `InputError` for a damaged file.
    """

    def __init__(self, path: Path | None = None):
        self.path, self._lock = path, threading.Lock()
        self._verdicts: dict[str, Verdict] = {}
        if path is not None:
            for line in read_jsonl(path, PaidVerdict):
                self._verdicts[line.request] = Verdict(line.p_a, line.label, line.explanation)

    def get(self, request: str) -> Verdict | None:
        """Return the verdict on a request; None if there is none yet."""
        return self._verdicts.get(request)

    def add(self, request: str, verdict: Verdict) -> None:
        """Save a verdict; it is on disk when this returns."""
        with self._lock:
            self._verdicts[request] = verdict
            if self.path is not None:
                with JsonlAppender(self.path) as out:
                    out.append(PaidVerdict(request, verdict.p_a, verdict.label, verdict.explanation))
