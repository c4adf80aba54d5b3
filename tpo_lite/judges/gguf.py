"""A judge in a GGUF file, through llama.cpp.

Two modes. `verdict`: the judge's turn is opened and ends at `[[`; P(A) is the softmax over the logits of
the two tokens that go on to `A]]` and `B]]`. `explain`: the judge writes greedily; where it is about to
put `A` or `B` after a `[[` of its own, P(A) is read at that spot; where it never does, `[[` is appended and
P(A) read there, and the verdict says so. Either way only the judge's own turn is read, so a response that
contains `[[A]]` is a text like any other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import llama_cpp
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpo_lite.errors import InputError, TpoError
from tpo_lite.judges import JudgeRequest, Verdict
from tpo_lite.judges.prompt import EXPLAIN_TEMPLATE, FIELDS, VERDICT_TEMPLATE, check_template, fill
from tpo_lite.llamacpp import Continuation, Decision, Decoded, Leaf, LlamaCpp

OPENING = "[["
"""What stands before the verdict's letter."""

CUT_MARK = "\n[...]\n"
"""Stands where the middle of a response was cut out."""

# Private-use characters that hold the places of the judged texts while the chat template is rendered.
_SLOTS = {field: f"\ue000{index}\ue001" for index, field in enumerate(FIELDS)}
_SLOT = re.compile("|".join(_SLOTS.values()))
_FIELD_OF = {slot: field for field, slot in _SLOTS.items()}


class GgufJudge:
    """Compares responses with a GGUF language model; implements `tpo_lite.judges.Judge`.

    `template` is a judge prompt with {instruction}, {response_a} and {response_b} (None: the Self-Taught
    Evaluator's for the mode), `system` an optional system message, `chat_template` a Jinja template in
    place of the GGUF's own. `overlong` says what becomes of a pair that does not fit the context: "drop"
    (label "overlong", p_a 0.5) or "truncate" (the middle of the longer response is cut). `flash_attn`
    None takes it except where it is the slower one: explanations on a CPU with an f16 cache. The other
    arguments are those of `LlamaCpp`. On a CPU few sequences (8 to 16) are best for explanations: each
    token written is compared with the cells of all sequences in flight.

    Raises `InputError` for a model without chat template where none is given, and for a vocabulary in
    which no token tells `[[A]]` from `[[B]]`.
    """

    def __init__(
        self,
        path: str | Path,
        mode: Literal["verdict", "explain"] = "verdict",
        template: str | None = None,
        system: str | None = None,
        chat_template: str | None = None,
        explain_tokens: int = 512,
        overlong: Literal["drop", "truncate"] = "drop",
        n_ctx: int = 8192,
        n_batch: int = 512,
        n_seq_max: int = 16,
        n_gpu_layers: int = 0,
        kv_type: Literal["f16", "q8_0"] = "f16",
        flash_attn: bool | None = None,
        n_threads: int | None = None,
    ):
        self.overlong = overlong
        template = check_template(template or (VERDICT_TEMPLATE if mode == "verdict" else EXPLAIN_TEMPLATE))
        if flash_attn is None:
            # llama.cpp's CPU kernel passes over other sequences' cells at little cost, but reads its own
            # several times slower than the matrix product does, one token at a time.
            flash_attn = mode == "verdict" or n_gpu_layers != 0 or kv_type != "f16"
        self.engine = LlamaCpp(path, n_ctx, n_batch, n_seq_max, n_gpu_layers, kv_type, flash_attn, n_threads)
        self._pieces = self._split(self._render(template, system, chat_template))
        opening, among = self._verdict_tokens("")
        self._continuation = None
        if mode == "explain":
            decision = Decision(self.engine.detokenize(opening).strip().encode(), among, tuple(opening))
            self._continuation = Continuation(
                explain_tokens, stop_tokens=self.engine.end_tokens(), decision=decision
            )

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict a request, in the same order; see `tpo_lite.judges.Judge`."""
        leaves = [self._leaf(request) for request in requests]
        decoded = iter(self.engine.decode([leaf for leaf in leaves if leaf is not None]))
        return [Verdict(0.5, "overlong") if leaf is None else self._verdict(next(decoded)) for leaf in leaves]

    def _verdict(self, decoded: Decoded) -> Verdict:
        logit_a, logit_b = (float(logit) for logit in decoded.logits)
        p_a = 0.5 + 0.5 * math.tanh((logit_a - logit_b) / 2)
        if not math.isfinite(p_a):
            raise TpoError(f"{self.engine.path} gives logits that are no numbers: replace the file.")
        forced = decoded.ended in ("stop", "length")
        explanation = self.engine.detokenize(decoded.tokens).removesuffix(OPENING).strip()
        return Verdict(p_a, "unparsed" if forced else "A" if p_a > 0.5 else "B", explanation, forced)

    # From a request to tokens

    def _leaf(self, request: JudgeRequest) -> Leaf | None:
        """The request as tokens; None if it is too long and may not be cut."""
        while True:
            leaf = self._whole_leaf(request)
            excess = leaf.room - self.engine.max_leaf
            if excess <= 0:
                return leaf
            shorter = self._cut(request, excess) if self.overlong == "truncate" else None
            if shorter is None:
                return None
            request = shorter

    def _whole_leaf(self, request: JudgeRequest) -> Leaf:
        texts = dataclasses.asdict(request)
        tokens = [t for piece in self._pieces[:-1] for t in self._tokens(piece, texts)]
        if self.engine.bos is not None and tokens[:1] != [self.engine.bos]:
            tokens.insert(0, self.engine.bos)
        last = self._pieces[-1]
        if self._continuation is not None:
            return Leaf(tokens + self._tokens(last, texts), self._continuation)
        opening, among = self._verdict_tokens(_fill_slots(last, texts))
        return Leaf(tokens + opening, logits_of=among)

    def _tokens(self, piece: int | str, texts: dict[str, str]) -> list[int]:
        if isinstance(piece, int):
            return [piece]
        return self.engine.tokenize(_fill_slots(piece, texts), special=False)

    def _verdict_tokens(self, before: str) -> tuple[list[int], tuple[int, int]]:
        """The tokens up to where the two verdicts after `before` first differ, and the two that differ.

        Usually these are the tokens of `before` and `[[`, and those of `A` and `B`; a vocabulary that has
        `[[A` as one token is served as well.
        """
        a, b = (self.engine.tokenize(f"{before}{OPENING}{letter}]]", special=False) for letter in "AB")
        for index, among in enumerate(zip(a, b)):
            if among[0] != among[1]:
                return a[:index], among
        raise InputError(
            f"{self.engine.path}: no token of its vocabulary tells [[A]] from [[B]], so it cannot judge. "
            "Take another model."
        )

    def _cut(self, request: JudgeRequest, excess: int) -> JudgeRequest | None:
        """The request with `excess` tokens less in the middle of its longer response; None if too short.

        Both orders of a pair cut the same response: which is longer does not depend on the slot.
        """
        by_length = {}
        for field in ("response_a", "response_b"):
            text = getattr(request, field)
            by_length[field] = (len(tokens := self.engine.tokenize(text, special=False)), text, tokens)
        longer = max(by_length, key=lambda field: by_length[field])
        tokens = by_length[longer][2]
        keep = len(tokens) - excess - len(self.engine.tokenize(CUT_MARK, special=False))
        if keep < 2:
            return None
        head, tail = tokens[: keep - keep // 2], tokens[len(tokens) - keep // 2 :]
        text = self.engine.detokenize(head) + CUT_MARK + self.engine.detokenize(tail)
        return dataclasses.replace(request, **{longer: text})

    def _render(self, template: str, system: str | None, chat_template: str | None) -> str:
        """The judge prompt in the chat template, slots in place of the texts, the judge's turn opened."""
        source = chat_template or self.engine.chat_template
        if source is None:
            raise InputError(
                f"{self.engine.path} has no chat template. Give one (judge.chat_template), or take an "
                "instruct model."
            )
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": fill(template, *_SLOTS.values())})
        # transformers' environment for chat templates, without its clock (strftime_now): a prompt that
        # changes with the date could not be judged alike after a resume, and templates have a fallback.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        try:
            return environment.from_string(source).render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self.engine.special_token_text("bos"),
                eos_token=self.engine.special_token_text("eos"),
                raise_exception=_raise_template_error,
            )
        except TemplateError as error:
            raise InputError(
                f"The chat template of {self.engine.path} fails: {error}. Give another (judge.chat_template)."
            ) from error

    def _split(self, rendered: str) -> list[int | str]:
        """The rendered prompt as control tokens and the stretches of text between them; the last is text.

        Only what the template wrote can be a control token: the judged texts are filled in later, and each
        stretch is tokenized as a whole, so tokens merge across the edges of a judged text as in any prompt.
        """
        controls = self.engine.control_tokens()
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        pattern = "(" + "|".join(map(re.escape, longest_first)) + ")"
        pieces: list[int | str] = []
        strip_next = False
        for text in re.split(pattern, rendered) if controls else [rendered]:
            if text not in controls:
                pieces.append(text.lstrip() if strip_next else text)
                continue
            token, attributes = controls[text]
            if attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP:
                pieces[-1] = pieces[-1].rstrip()
            strip_next = bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP)
            pieces.append(token)
        return [piece for piece in pieces[:-1] if piece != ""] + pieces[-1:]


def _fill_slots(text: str, texts: dict[str, str]) -> str:
    return _SLOT.sub(lambda match: texts[_FIELD_OF[match[0]]], text)


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)
