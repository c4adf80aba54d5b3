"""A judge in a GGUF file, run with llama.cpp, that compares two responses.

In mode `verdict`, the judge's turn is opened with `[[`, and P(A) is the softmax over the logits of the two tokens that
lead to `A]]` and `B]]`. In mode `explain`, the judge writes greedily. When it is about to write `A` or `B` after its
own `[[`, P(A) is read there and the reply is over. If it never does, `[[` is appended, P(A) is read after it, and the
verdict says so. In both modes only the judge's own turn is read, so `[[A]]` in a response is a text like any other.

The prompt asks for the final verdict after the explanation, so the first verdict ends the reply: to read on, in case
another follows, would cost the tokens that end a turn in every comparison. So a judge that quotes a response's `[[A]]`
before its own verdict is misread. The openai judge, whose replies come complete, takes the last verdict. Among 862
recorded replies of GPT-4 Turbo and o1-mini, none had two verdicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tpo_lite.errors import InputError
from tpo_lite.judges.gguf_prompt import OPENING, Answer, GgufPrompt, Question, ask
from tpo_lite.judges.prompts import EXPLAIN_TEMPLATE, FIELDS, VERDICT_TEMPLATE
from tpo_lite.judges.protocol import JudgeRequest, Verdict, winner_label
from tpo_lite.llamacpp.context import SMALL_MODEL
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.model import GgufModel


def pair_prompt(
    model: GgufModel,
    mode: Literal["verdict", "explain"],
    template: str | None = None,
    system: str | None = None,
    chat_template: str | None = None,
    explain_tokens: int = 512,
) -> GgufPrompt:
    """Return the prompt that asks which of two responses is better; see `GgufJudge`."""
    explains = mode == "explain"
    template = template or (EXPLAIN_TEMPLATE if explains else VERDICT_TEMPLATE)
    prompt = GgufPrompt(model, template, FIELDS, "AB", system, chat_template, explain_tokens if explains else 0)
    for letter, token in zip("AB", prompt.branches[0].among, strict=True):
        if letter.encode() not in model.token_bytes(token):
            raise InputError(
                f"{model.path}: its vocabulary splits [[A]] and [[B]] at different places, so no single token is the "
                "verdict. Use another model."
            )
    return prompt


class GgufJudge:
    """Compares responses with a GGUF language model; implements `tpo_lite.judges.protocol.Judge`.

    `template` is a judge prompt with {instruction}, {response_a} and {response_b} (None: the seed's for the mode;
    `tpo_lite.judges.prompts` has others), `system` an optional system message, `chat_template` a Jinja template to use
    instead of the GGUF's.
    `overlong` says what happens to a pair that does not fit the context: "drop" (label "overlong", p_a 0.5) or
    "truncate" (the middle of the longer response is cut out, and once they are equally long, that of both).
    `flash_attn` None uses flash attention except where it is slower: for explanations of a small model on a CPU with
    an f16 cache. The other arguments are those of `LlamaCpp`.

    Raises `InputError` for a model without chat template if none is given, for a vocabulary in which no token
    distinguishes `[[A]]` from `[[B]]` or that splits them at different places, and for a context too small for any
    pair.
    """

    pointwise = False

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
        if flash_attn is None:
            # llama.cpp's CPU kernel skips other sequences' cells at little cost. One token at a time, the matrix
            # product is faster only if the whole model is small (1.9 times for the embedded judge).
            small = Path(path).is_file() and Path(path).stat().st_size < SMALL_MODEL
            flash_attn = mode == "verdict" or n_gpu_layers != 0 or kv_type != "f16" or not small
        self.decoder = LlamaCpp(path, n_ctx, n_batch, n_seq_max, n_gpu_layers, kv_type, flash_attn, n_threads)
        self.max_tokens = self.decoder.max_leaf
        """The most tokens of a prompt, including the explanation."""
        self._prompt = pair_prompt(self.decoder, mode, template, system, chat_template, explain_tokens)
        self._prompt.check_room(self.max_tokens)

    @property
    def tokens_decoded(self) -> int:
        """Tokens evaluated so far; a shared prefix counts once."""
        return self.decoder.tokens_decoded

    def compare(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return one verdict per request, in the same order; see `tpo_lite.judges.protocol.Judge`."""
        answers = ask(self.decoder, [self.question(request) for request in requests])
        return [Verdict(0.5, "overlong") if answer is None else self._verdict(answer) for answer in answers]

    def question(self, request: JudgeRequest) -> Question | None:
        """Return what is decoded for a request; None if it is too long and may not be cut."""
        return self._prompt.question(dataclasses.asdict(request), self.decoder.max_leaf, self.overlong == "truncate")

    def _verdict(self, answer: Answer) -> Verdict:
        p_a = float(answer.probabilities[0])
        forced = answer.decoded.ended in ("stop", "length")
        explanation = self.decoder.detokenize(answer.decoded.tokens).removesuffix(OPENING).strip()
        return Verdict(p_a, "unparsed" if forced else winner_label(p_a), explanation, forced)
