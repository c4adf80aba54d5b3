"""The bodies of OpenAI's chat completions and completions: what of them is understood, and what is refused.

What would change the reply and is not supported is refused. Fields that nobody knows are ignored, since clients send
many.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tpo_lite.errors import InputError
from tpo_lite.instructions.conversations import read_conversation
from tpo_lite.records import Turn
from tpo_lite.serving.loaded import Wishes

UNSUPPORTED = (
    *("audio", "best_of", "echo", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
    *("modalities", "n", "prediction", "presence_penalty", "response_format", "suffix", "tool_choice", "tools"),
    *("top_logprobs", "web_search_options"),
)
NEUTRAL: tuple[Any, ...] = (None, False, "", "none", [], {}, {"type": "text"}, ["text"])
"""Values with which a field that is not supported asks for nothing; 0 is equal to False."""
ONE = ("best_of", "n")
"""Fields of which 1 asks for nothing."""
STOPS = 16
"""The most stop texts in a request."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream holds besides the reply."""

    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    thought_budget: Annotated[int, Field(ge=0)] | None = None
    """Ours: tokens of thought; 0: none."""
    include_reasoning: bool | None = None
    """Whether the reply has `reasoning_content`; None: as the server was started."""

    def wishes(self) -> Wishes:
        """Return how the reply is to be."""
        stop = self.stop or []
        return Wishes(
            self.max_completion_tokens or self.max_tokens,
            self.temperature,
            self.top_p,
            self.seed,
            self.thought_budget,
            (stop,) if isinstance(stop, str) else tuple(stop),
        )

    @property
    def usage(self) -> bool:
        """Return whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Message(BaseModel):
    """A turn."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]

    def conversation(self) -> tuple[str, list[Turn]]:
        """Return the user's last turn and the turns before it. Raises `InputError` for turns that are no such thing."""
        turns = [{"role": turn.role, "content": _text(turn)} for turn in self.messages]
        if turns[-1]["role"] != "user":
            raise InputError(f"messages: the last one is the {turns[-1]['role']}'s. End with the user's.")
        try:
            return read_conversation(turns, "last")
        except ValueError as error:
            raise InputError(f"messages: the conversation {error}.") from error


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    @property
    def text(self) -> str:
        """Return the prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


AnyBody = TypeVar("AnyBody", bound=Body)


def read_body(kind: type[AnyBody], data: bytes) -> AnyBody:
    """Return a request's body. Raises `InputError` that names what does not fit."""
    try:
        body = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where + ': ' if where else ''}{first['msg']}.") from error
    for name in UNSUPPORTED:
        value = (body.model_extra or {}).get(name)
        if value not in NEUTRAL and not (name in ONE and value == 1):
            raise InputError(f"{name}: {value!r} is not supported. Leave it out.")
    return body


def _text(turn: Message) -> str:
    """Return a turn's text, which may be in parts. Raises `InputError` for parts that are not text."""
    if isinstance(turn.content, str):
        return turn.content
    parts = turn.content or []
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
        raise InputError(f"messages: the {turn.role}'s content is not text. This model reads text only.")
    return "".join(part["text"] for part in parts)
