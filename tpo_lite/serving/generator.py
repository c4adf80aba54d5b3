"""One thread that decodes the replies to all requests together; requests come and go at any time."""

from __future__ import annotations

import codecs
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tpo_lite.chat import Chat
from tpo_lite.errors import OutOfMemory, TpoError
from tpo_lite.insertion import Insertion
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.llamacpp.leaves import Continuation, Ended, Leaf
from tpo_lite.llamacpp.live import LiveSchedule, check_fits
from tpo_lite.serving.streamed import Parts, Streamed
from tpo_lite.thoughts import ThoughtStyle, end_of_thought


class Busy(TpoError):
    """As many requests are being answered or wait as may."""


@dataclass(frozen=True)
class Request:
    """What a model is to reply to, and how."""

    prompt: list[int]
    max_tokens: int
    """Of the whole output, thought and markers included."""
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    """From 0, at most 128 bits."""
    style: ThoughtStyle | None
    """How thought and response are told apart; None: the output is the response, as it is."""
    budget: int | None = None
    """Tokens of output after which the response marker is put in, if it has not come; None: no bound."""
    stops: tuple[str, ...] = ()
    """Texts that end the response; they are not part of it."""


@dataclass(frozen=True)
class Finished:
    """The end of a reply."""

    reason: Literal["stop", "length"]
    tokens: int
    """Of the whole output, a stop token included."""
    thought_tokens: int
    """Of these, those up to the response marker."""


Event = Parts | Finished | TpoError
"""What comes of a request: parts of the reply, then its end or an error."""
Deliver = Callable[[Event], None]


class Generator:
    """A model that replies to many requests at a time, each as soon as there is room for it.

    `rows` sequences of the context are decoded together, and `queue` more requests may wait. `stops` are the tokens
    that end a turn. A reply depends on its request and, by rounding alone, on what is decoded beside it.
    """

    def __init__(self, context: LlamaContext, chat: Chat, stops: frozenset[int], queue: int):
        self.context, self.chat, self.stops = context, chat, stops
        self.most = context.n_seq_max + queue
        """The most requests that are answered or wait."""
        self._tokenizer = threading.Lock()  # a tokenizer of transformers serves one thread at a time
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._rows: dict[int, _Row] = {}
        self._joining: list[_Row] = []
        self._leaving: list[_Row] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    def prompt_ids(self, encode: Callable[[Chat], list[int]]) -> list[int]:
        """Return what `encode` makes with the model's tokenizer, in any thread."""
        with self._tokenizer:
            return encode(self.chat)

    def submit(self, request: Request, deliver: Deliver) -> int:
        """Ask for a reply, and return the request's number.

        `deliver` gets the parts of the reply, in their order, then `Finished` or an error, in the generator's thread.
        It must return at once; if it raises, the request is given up. Raises `InputError` for a request that does not
        fit the context, and `Busy`.
        """
        with self._changed:
            self.check_free()
            leaf = Leaf(request.prompt, self._continuation(request))
            check_fits(self.context, leaf)
            row = _Row(next(self._numbers), leaf, deliver, Streamed(request.style, request.stops))
            self._rows[row.number] = row
            self._joining.append(row)
            self._changed.notify()
        return row.number

    def check_free(self) -> None:
        """Raise `Busy` if a request would have no place now."""
        if self._closed or len(self._rows) >= self.most:
            raise Busy(f"{self.most} requests are being answered or wait. Try again later.")

    def leave(self, number: int) -> None:
        """Give up a request, finished or not. Something may still be delivered that is on its way."""
        with self._changed:
            row = self._rows.pop(number, None)
            if row is not None:
                self._leaving.append(row)
                self._changed.notify()

    def close(self) -> None:
        """End the thread, after the decode that is going on; whoever still waits gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _continuation(self, request: Request) -> Continuation:
        """Return how a request's prompt is continued.

        The response marker comes at the budget and, so that no reply is without a response, in place of an end of turn
        before the marker.
        """
        style, insertion = request.style, None
        if style is not None and style.response_marker is not None:
            after = request.max_tokens if request.budget is None else request.budget
            insertion = Insertion(after, lambda row, output: self._marker(style, output), before_stop=True)
        return Continuation(
            request.max_tokens, request.temperature, request.top_p, request.seed, self.stops, insertion=insertion
        )

    def _marker(self, style: ThoughtStyle, output: list[int]) -> list[int]:
        with self._tokenizer:
            text = end_of_thought(style, self.chat.text(output))
            return self.chat.text_ids(text) if text else []

    def _work(self) -> None:
        """Decode for ever; an error ends the replies that are going on, and not those to come."""
        schedule, going = LiveSchedule(self.context), dict[int, _Row]()
        while True:
            with self._changed:
                while not (self._joining or self._leaving or going or self._closed):
                    self._changed.wait()
                if self._closed:
                    going |= self._rows
                    break
                joining, leaving = self._joining, self._leaving
                self._joining, self._leaving = [], []
            try:
                self._round(schedule, going, joining, leaving)
            except Exception as error:
                self._fail(going, _as_ours(error))
                schedule, going = LiveSchedule(self.context), {}
        self._fail(going, TpoError("The model is being unloaded. Ask again once it is back."))

    def _round(self, schedule: LiveSchedule, going: dict[int, _Row], joining: list[_Row], leaving: list[_Row]) -> None:
        """Let rows join and leave, decode once, and deliver what comes of it."""
        going |= {row.number: row for row in joining}
        for row in joining:
            schedule.add(row.number, row.leaf)
        for row in leaving:
            if going.pop(row.number, None) is not None:
                schedule.remove(row.number)
        for number, tokens, ended in schedule.advance() if going else ():
            self._take(schedule, going, going[number], tokens, ended)

    def _take(
        self, schedule: LiveSchedule, going: dict[int, _Row], row: _Row, tokens: list[int], ended: Ended | None
    ) -> None:
        """Deliver what has come of a row, and let it leave if that was the last."""
        text = b"".join(self.context.token_bytes(token, special=True) for token in tokens if token not in self.stops)
        over = row.take(text, len(tokens), ended)
        if over:
            del going[row.number]
            if ended is None:
                schedule.remove(row.number)
            with self._changed:
                self._rows.pop(row.number, None)

    def _fail(self, going: dict[int, _Row], error: TpoError) -> None:
        with self._changed:
            for number in going:
                self._rows.pop(number, None)
        for row in going.values():
            row.tell(error)


@dataclass
class _Row:
    """A request that is being answered, in the generator's thread."""

    number: int
    leaf: Leaf
    deliver: Deliver
    streamed: Streamed
    tokens: int = 0
    thought_tokens: int = 0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def take(self, text: bytes, tokens: int, ended: Ended | None) -> bool:
        """Deliver what these bytes of output make known; return whether the reply is over."""
        self.tokens += tokens
        if self.streamed.thinking:
            self.thought_tokens += tokens
        parts = [self.streamed.feed(self.decoder.decode(text, final=ended is not None))]
        if ended is not None:
            parts.append(self.streamed.end())
        whole = Parts("".join(part.thought for part in parts), "".join(part.response for part in parts))
        if any(whole) and not self.tell(whole):
            return True
        if ended is None and not self.streamed.stopped:
            return False
        cut = ended == "length" and not self.streamed.stopped
        self.tell(Finished("length" if cut else "stop", self.tokens, self.thought_tokens))
        return True

    def tell(self, event: Event) -> bool:
        """Deliver an event; return whether there still is somebody."""
        try:
            self.deliver(event)
        except Exception:  # whoever asked is gone, and has nobody to tell
            return False
        return True


def _as_ours(error: Exception) -> TpoError:
    if isinstance(error, OutOfMemory):
        return TpoError(f"{error} Or start again with a smaller --context.")
    return error if isinstance(error, TpoError) else TpoError(f"{type(error).__name__}: {error}")
