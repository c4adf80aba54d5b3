"""Another day for chat templates, which transformers renders with the clock of this machine."""

from __future__ import annotations

from datetime import datetime

from transformers.utils import chat_template_utils


def set_template_clock(monkeypatch, year: int, month: int, day: int) -> None:
    """Let transformers render chat templates on another day, a minute before midnight."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, month, day, 23, 59, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
