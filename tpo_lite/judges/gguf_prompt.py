"""A judge prompt in a GGUF's own chat template: from texts to token sequences, and from their logits to the answer.

Only what the template wrote can become a control token; whatever the judged texts say stays text. BOS comes exactly
once. The judge's turn is opened, and only what follows there is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import llama_cpp
import numpy as np
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpo_lite.chat import split_at_special_tokens
from tpo_lite.errors import InputError, TpoError, first_line
from tpo_lite.judges.choices import Branch, branches, probabilities
from tpo_lite.judges.prompts import check_template, cut_middle, fill
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Decision, Decoded, Leaf
from tpo_lite.llamacpp.model import GgufModel

OPENING, CLOSING = "[[", "]]"
"""What stands around the judge's answer."""


@dataclass(frozen=True)
class Question:
    """A filled-in prompt."""

    leaves: list[Leaf]
    """What to decode: one leaf per branch."""
    branches: list[Branch]
    """Where the possible answers differ."""

    @property
    def room(self) -> int:
        """The most KV cells that a leaf can need."""
        return max(leaf.room for leaf in self.leaves)


@dataclass(frozen=True)
class Answer:
    """The judge's answer to a question."""

    probabilities: np.ndarray
    """Of the possible answers, in their order; they sum to 1."""
    decoded: Decoded
    """The decoded leaf of the first branch, with the explanation if one was requested."""


class GgufPrompt:
    """A judge prompt for one model: turns texts into a `Question`.

    `fields` are the placeholders of `template`: first the instruction, then the responses. `answers` are what may come
    between `around`; none may be the beginning of another, with what comes after it. With `explain_tokens` the judge
    writes first, and the answer is read when it comes to one; the answers must then differ in a single token.

    Raises `InputError` for a template without its placeholders, a model without chat template if none is given, a chat
    template that fails or does not show the prompt exactly once, and a vocabulary that cannot write the answers.
    """

    def __init__(
        self,
        model: GgufModel,
        template: str,
        fields: Sequence[str],
        answers: Sequence[str],
        system: str | None = None,
        chat_template: str | None = None,
        explain_tokens: int = 0,
        around: tuple[str, str] = (OPENING, CLOSING),
    ):
        self.model = model
        self._answers = [f"{around[0]}{answer}{around[1]}" for answer in answers]
        # These slots, of private-use characters, hold the places of the judged texts in the rendered chat template.
        self._slots = {field: f"\ue000{index}\ue001" for index, field in enumerate(fields)}
        self._field_of = {slot: field for field, slot in self._slots.items()}
        self._slot = re.compile("|".join(self._field_of))
        self._pieces, self._last = self._split(self._render(check_template(template, fields), system, chat_template))
        self.branches = self._branches("")
        self._continuation = None
        if explain_tokens:
            (branch,) = self.branches
            decision = Decision(model.detokenize(branch.path).strip().encode(), branch.among, branch.path)
            self._continuation = Continuation(explain_tokens, stop_tokens=model.end_tokens(), decision=decision)

    def question(self, texts: Mapping[str, str], room: int, truncate: bool) -> Question | None:
        """Return the question about these texts; None if it needs more than `room` tokens.

        With `truncate`, the middle of the longer response is cut out until the question fits; once the responses are
        equally long, the middle of both. Both orders of a pair show the same cuts.
        """
        cut, shown = 0, texts
        while True:
            question = self._whole(shown)
            needed = question.room
            if truncate and (other_order := self._swapped(shown)) != shown:
                needed = max(needed, self._whole(other_order).room)
            if needed <= room:
                return question
            # A cut can split characters, and their halves cost tokens too. So each time more is cut from the whole
            # texts: another cut of a text that is already cut could give the same text again and again.
            cut += needed - room
            shorter = self._cut(texts, cut) if truncate else None
            if shorter is None:
                return None
            shown = shorter

    def check_room(self, room: int) -> None:
        """Raise `InputError` if not even a question about empty texts fits `room` tokens."""
        needed = self._whole(dict.fromkeys(self._slots, "")).room
        if needed > room:
            explained, fewer = "", ""
            if self._continuation is not None:
                explained, fewer = " with its explanation", ", fewer judge.explain_tokens"
            raise InputError(
                f"judge.context: a question to {self.model.path} takes {needed} tokens{explained} before any text is "
                f"filled in, and {room} is all it can hold. Give a larger context{fewer}, or use another judge."
            )

    def _swapped(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return the texts with the responses in the other order."""
        _, *responses = self._slots
        return {**texts, **{field: texts[other] for field, other in zip(responses, reversed(responses), strict=True)}}

    def _whole(self, texts: Mapping[str, str]) -> Question:
        """Return the question about these texts, uncut."""
        tokens = [t for piece in self._pieces for t in self._tokens(piece, texts)]
        bos = self.model.bos
        if bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        if self._continuation is not None:
            return Question([Leaf(tokens + self._tokens(self._last, texts), self._continuation)], self.branches)
        found = self._branches(self._filled(self._last, texts))
        return Question([Leaf([*tokens, *branch.path], logits_of=branch.among) for branch in found], found)

    def _tokens(self, piece: int | str, texts: Mapping[str, str]) -> list[int]:
        """Return the tokens of a piece of the prompt, its slots filled."""
        if isinstance(piece, int):
            return [piece]
        return self.model.tokenize(self._filled(piece, texts), special=False)

    def _filled(self, text: str, texts: Mapping[str, str]) -> str:
        return self._slot.sub(lambda match: texts[self._field_of[match[0]]], text)

    def _branches(self, before: str) -> list[Branch]:
        """Return where the answers after `before` differ: usually after the tokens of `before` and `[[`.

        This also covers a vocabulary in which `[[A` is a single token.
        """
        tokens = [self.model.tokenize(before + answer, special=False) for answer in self._answers]
        for answer, written in zip(self._answers, tokens, strict=True):
            if not self.model.detokenize(written).endswith(answer):
                other = next(each for each in self._answers if each != answer)
                raise InputError(
                    f"{self.model.path}: no token of its vocabulary tells {answer} from {other}, so it cannot judge. "
                    "Use another model."
                )
        return branches(tokens)

    def _cut(self, texts: Mapping[str, str], excess: int) -> dict[str, str] | None:
        """Return the texts with `excess` tokens less in the middle of the responses; None if they are too short.

        What is cut from a response does not depend on its slot.
        """
        tokenize = partial(self.model.tokenize, special=False)
        _, *responses = self._slots
        lengths = {field: len(tokenize(texts[field])) for field in responses}
        *other, longest = sorted(responses, key=lambda field: (lengths[field], texts[field]))
        shares = {longest: excess}
        for field in other:
            shares[field] = max(0, excess - (lengths[longest] - lengths[field])) // 2
            shares[longest] -= shares[field]
        found = dict(texts)
        for field, share in shares.items():
            if share:
                shorter = cut_middle(texts[field], share, tokenize, self.model.detokenize)
                if shorter is None:
                    return None
                found[field] = shorter
        return found

    def _render(self, template: str, system: str | None, chat_template: str | None) -> str:
        """Return the judge prompt in the chat template, with slots for the texts and the judge's turn opened."""
        source = chat_template or self.model.chat_template
        if source is None:
            raise InputError(
                f"{self.model.path} has no chat template. Give one (judge.chat_template), or use an instruct model."
            )
        prompt = fill(template, self._slots)
        ways = [[{"role": "user", "content": prompt}]]
        if system:
            # Gemma's template refuses system turns, and others leave them out. There the system text goes in front of
            # the user's, as for the policy (`tpo_lite.chat`).
            turns = [{"role": "system", "content": system}, *ways[0]]
            ways = [turns, [{"role": "user", "content": f"{system}\n\n{prompt}"}]]
        # The environment of transformers, but without its clock (strftime_now), for which templates have a fallback:
        # after a resume, a prompt that shows the date would not be judged as before.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        for messages in ways:
            try:
                rendered = environment.from_string(source).render(
                    messages=messages,
                    add_generation_prompt=True,
                    bos_token=self.model.special_token_text("bos"),
                    eos_token=self.model.special_token_text("eos"),
                    raise_exception=_raise_template_error,
                )
            except Exception as error:  # a template's own expressions may raise anything
                problem = f"fails: {first_line(error)}"
                continue
            once = all(rendered.count(slot) == prompt.count(slot) for slot in self._field_of)
            if once and (system or "").strip() in rendered:
                return rendered
            problem = "does not show the user's text exactly once"
        raise InputError(f"The chat template of {self.model.path} {problem}. Give another (judge.chat_template).")

    def _split(self, rendered: str) -> tuple[list[int | str], str]:
        """Return the rendered prompt as control tokens and the texts between them, and the text after the last one.

        The judged texts are filled in later and each text is tokenized as a whole, so tokens merge across the edges of
        a judged text as in any prompt.
        """
        controls = self.model.control_tokens()
        text, *rest = split_at_special_tokens(rendered, controls)
        pieces: list[int | str] = []
        for control, after in zip(rest[::2], rest[1::2], strict=True):
            token, attributes = controls[control]
            before = text.rstrip() if attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP else text
            pieces += [before, token] if before else [token]
            text = after.lstrip() if attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP else after
        return pieces, text


def ask(decoder: LlamaCpp, questions: Sequence[Question | None]) -> list[Answer | None]:
    """Return the answers, decoded all together; None where there is no question.

    Raises `TpoError` if the model gives logits that are not finite numbers.
    """
    decoded = iter(decoder.decode([leaf for question in questions if question for leaf in question.leaves]))
    return [
        None if question is None else _answer(decoder, question, [next(decoded) for _ in question.leaves])
        for question in questions
    ]


def _answer(decoder: LlamaCpp, question: Question, decoded: list[Decoded]) -> Answer:
    logits = [each.logits for each in decoded if each.logits is not None]
    chosen = probabilities(question.branches, logits)
    if not np.isfinite(chosen).all():
        raise TpoError(f"{decoder.path} gives logits that are not finite numbers: replace the file.")
    return Answer(chosen, decoded[0])


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)
