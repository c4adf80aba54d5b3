"""A conversation with one model, or with a run's model and the base beside it; knows nothing of terminals."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tpo_lite.errors import InputError, TpoError
from tpo_lite.records import Turn
from tpo_lite.serving.generator import Event, Finished, Request
from tpo_lite.serving.loaded import LoadedModel, TooLong, Wishes
from tpo_lite.serving.source import Source, base_of, model_of_run
from tpo_lite.serving.streamed import Parts

HELP = """/thoughts      show thoughts, or hide them again
/iter N        talk to M_N, with the base beside it; /iter: to the last model alone
/budget N      end thoughts after N tokens; 0: no thoughts; /budget: as the model is used to
/clear         forget the conversation
/quit          end (or Ctrl-D)"""


class Said(NamedTuple):
    """Something that came of a model."""

    side: int
    """0: the model; 1: the base beside it."""
    event: Parts | Finished


@dataclass
class Answer:
    """What one model has answered so far."""

    thought: str = ""
    response: str = ""
    end: Finished | None = None
    thought_seconds: float | None = None
    """From the question to the response; None while the model thinks."""


class Talk:
    """A conversation. `open_model` loads a model; `history` is a JSONL file to which exchanges are added."""

    def __init__(self, source: Source, open_model: Callable[[Source], LoadedModel], history: Path | None = None):
        self._open = open_model
        self._base: LoadedModel | None = None
        self.beside = False
        """Whether the base answers too."""
        self.show_thoughts = False
        self._budget: int | None = None
        self._turns: list[Turn] = []
        self._history = history
        if history is not None:
            append_line(history, "")  # whether it can be written shows now, not after the first reply
        self.model = open_model(source)
        self.answers: list[Answer] = []
        """Those to the last question: the model's, then the base's."""

    @property
    def names(self) -> list[str]:
        """Return the models that answer."""
        return [self.model.source.name] + (["base"] if self.beside else [])

    def command(self, line: str) -> str | None:
        """Obey a line that begins with a slash, and return what to say about it; None ends the conversation.

        Raises `InputError` for an unknown command or a wrong number; then everything stays as it was.
        """
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        if name in ("/quit", "/exit"):
            return None
        if name == "/help":
            return HELP
        if name == "/clear":
            self._turns.clear()
            return "The conversation is forgotten."
        if name == "/thoughts":
            self.show_thoughts = not self.show_thoughts
            last = "".join(f"\n{answer.thought}" for answer in self.answers[:1] if answer.thought)
            return f"Thoughts are shown.{last}" if self.show_thoughts else "Thoughts are hidden."
        if name == "/budget":
            self._budget = _number(argument, "/budget") if argument else None
            return (
                "Thoughts are as long as the model is used to."
                if not argument
                else f"Thoughts end after {argument} tokens."
            )
        if name == "/iter":
            return self._choose(argument)
        raise InputError(f"there is no command {name}. /help lists them.")

    def _choose(self, argument: str) -> str:
        """Take another model of the run, with the base beside it, or the last one alone."""
        of_run = self.model.source.of_run
        if of_run is None:
            raise InputError("/iter: only a run has iterations. Start `tpo-lite chat` with a run folder.")
        number = _number(argument, "/iter") if argument else of_run.last
        source = model_of_run(replace(of_run, number=number))
        if argument and self._base is None:
            self._base = self._open(base_of(source))
        if source != self.model.source:
            opened = self._open(source)
            self.model.close()
            self.model = opened
        self.beside = bool(argument)
        others = ", and the base beside it" if self.beside else ""
        return f"{source.name} answers{others}. The run has M_0 to M_{of_run.last}."

    def ask(self, text: str) -> Iterator[Said]:
        """Yield what the models say to a user's turn, as it comes; then remember the exchange, without the thoughts.

        An exchange that is broken off, or has no response, is not remembered. Raises `InputError` for a text that is
        too long, and `TpoError` if a model fails.
        """
        models = [self.model] + ([self._base] if self.beside and self._base else [])
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        requests = [self._request(model, text) for model in models]
        started = time.monotonic()
        self.answers = [Answer() for _ in models]
        numbers = []
        try:
            for side, (model, request) in enumerate(zip(models, requests, strict=True)):
                numbers.append(model.generator.submit(request, partial(_put, events, side)))
            while any(answer.end is None for answer in self.answers):
                side, event = events.get()
                if isinstance(event, TpoError):
                    raise event
                _note(self.answers[side], event, time.monotonic() - started)
                yield Said(side, event)
        finally:
            for model, number in zip(models, numbers, strict=False):
                model.generator.leave(number)
        if self.answers[0].response:
            self._turns += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": self.answers[0].response},
            ]
        self._record(text)

    def _request(self, model: LoadedModel, text: str) -> Request:
        """Return the request for a reply in this conversation; the oldest turns are forgotten if it gets too long."""
        enough = min(model.source.sampling.max_new_tokens, model.room // 4)
        while True:
            try:
                request = model.request(text, self._turns, Wishes(budget=self._budget))
                if request.max_tokens >= enough or not self._turns:
                    return request
            except TooLong:
                if not self._turns:
                    raise
            del self._turns[:2]

    def _record(self, text: str) -> None:
        """Add the exchange to the history."""
        if self._history is None:
            return
        answers = [
            {"model": name, "thought": answer.thought, "response": answer.response}
            for name, answer in zip(self.names, self.answers, strict=True)
        ]
        now = datetime.now().astimezone().isoformat("T", "seconds")
        append_line(self._history, json.dumps({"time": now, "user": text, "answers": answers}, ensure_ascii=False))

    def close(self) -> None:
        """Free the models."""
        for model in (self.model, self._base):
            if model is not None:
                model.close()


def _put(events: queue.SimpleQueue[tuple[int, Event]], side: int, event: Event) -> None:
    events.put((side, event))


def _note(answer: Answer, event: Parts | Finished, seconds: float) -> None:
    """Add an event to an answer."""
    if isinstance(event, Finished):
        answer.end = event
        return
    answer.thought += event.thought
    answer.response += event.response
    if event.response and answer.thought_seconds is None:
        answer.thought_seconds = seconds


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, or make sure that one can be added if it is empty. Raises `InputError` if not."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n" if line else "")
    except OSError as error:
        raise InputError(f"--history {path} cannot be written ({error.strerror}). Give another file.") from error


def _number(text: str, name: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{name} {text}: give a whole number.")
    return int(text)
