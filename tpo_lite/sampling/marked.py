"""Outputs into which the markers of a thought prompt are put, for a model that does not write them itself.

The thought marker begins the output, and the model goes on with a thought. Where that does not end within a bound, it
ends with its last whole sentence there. Then comes the response marker, and the model goes on with its response.
Whatever the model writes is sampled, and whatever is put in is tokens, so training on such an output needs no
tokenization of text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from tpo_lite.chat import Chat
from tpo_lite.insertion import Insertion
from tpo_lite.records import Instruction, PromptSamples
from tpo_lite.sampling.policy import LoadedPolicy
from tpo_lite.sampling.sampler import batches
from tpo_lite.thoughts import ThoughtStyle, thought_prompt

BRIEF = "\n\nBe brief: one or two sentences of thought, then a response of one to three sentences."
"""What is asked for on top of the thought prompt while examples are sampled; they are trained on without it. Of
SmolLM2-135M's responses, 48 % then end within 64 tokens. Without it 17 % end within 72."""
BRIEF_DIRECT = "\n\nBe brief: one to three sentences."
"""The same for direct answers."""

_SENTENCE_END = re.compile(r"[^\d\W].*[.!?][\"')*\]]*\s*$", re.DOTALL)
"""Text with a word in it that ends as a sentence does."""


def draw_marked(
    loaded: LoadedPolicy,
    instructions: Sequence[Instruction],
    style: ThoughtStyle,
    key: str,
    k: int,
    thought_tokens: int,
    response_tokens: int,
    finished: frozenset[str] = frozenset(),
) -> Iterator[PromptSamples]:
    """Sample each instruction K times, with markers; yield the prompts in batches as `LoadedPolicy.draw` does.

    While it samples, the model is also asked to be brief (`BRIEF`), since small models seldom end long responses. The
    prompts that are yielded do not ask for that.

    A response that does not end within `response_tokens` is truncated (`cut_to_sentences` can end it), and so is an
    output whose thought has no whole sentence within `thought_tokens`. The random numbers of thoughts and responses are
    seeded by (`key`, "thought" or "response", instruction, k). Without markers (the direct style) there is only the
    response.
    """
    opening, closing = marker_ids(loaded.chat, style)
    prompts = [loaded.prompt_ids(instruction, style) for instruction in instructions]
    brief = BRIEF if style.response_marker else BRIEF_DIRECT
    asked = [loaded.chat.prompt_ids(thought_prompt(style, x.text) + brief, x.context or ()) for x in instructions]
    for indices in batches(prompts, max(1, loaded.sampler.rows // k)):
        if all(instructions[index].id in finished for index in indices):
            continue
        rows = [(index, number) for index in indices for number in range(k)]
        begun: list[list[int]] = [[] for _ in rows]
        if style.response_marker is not None:
            starts = [asked[index] + opening for index, _ in rows]
            keys = [f"{key}/thought/{instructions[index].id}/{number}" for index, number in rows]
            thoughts = [whole_thought(loaded, ids) for ids in _bounded(loaded, starts, keys, thought_tokens)]
            begun = [[*opening, *thought, *closing] if thought else [] for thought in thoughts]
        going = [row for row, start in enumerate(begun) if start or style.response_marker is None]
        starts = [asked[rows[row][0]] + begun[row] for row in going]
        keys = [f"{key}/response/{instructions[rows[row][0]].id}/{rows[row][1]}" for row in going]
        for row, ids in zip(going, _bounded(loaded, starts, keys, response_tokens), strict=True):
            begun[row] = begun[row] + ids
        for place, index in enumerate(indices):
            if instructions[index].id not in finished:
                outputs = begun[place * k : (place + 1) * k]
                samples = [loaded.read(number, ids, style) for number, ids in enumerate(outputs)]
                yield PromptSamples(instructions[index], prompts[index], samples)


def marker_ids(chat: Chat, style: ThoughtStyle) -> tuple[list[int], list[int]]:
    """Return the tokens that come before a thought, and those that come between it and the response."""
    opening = chat.text_ids(style.thought_marker) if style.thought_marker else []
    closing = chat.text_ids(f"\n\n{style.response_marker}") if style.response_marker else []
    return opening, closing


def whole_thought(loaded: LoadedPolicy, ids: list[int]) -> list[int]:
    """Return a thought that ended by itself without its stop token; another up to its last whole sentence, if any."""
    return ids[:-1] if ids[-1] in loaded.stops else whole_sentences(loaded.chat, ids)


def whole_sentences(chat: Chat, ids: list[int]) -> list[int]:
    """Return the beginning of `ids` up to the end of its last whole sentence; empty if there is none."""
    ends = (end for end in range(len(ids), 0, -1) if _SENTENCE_END.search(chat.text(ids[:end])))
    end = next(ends, 0)
    while end > 1 and chat.text(ids[: end - 1]).rstrip() == chat.text(ids[:end]).rstrip():
        end -= 1  # white space after the sentence
    return ids[:end]


def cut_to_sentences(loaded: LoadedPolicy, style: ThoughtStyle, prompt: PromptSamples) -> PromptSamples:
    """Return `prompt` with its truncated outputs ended after their last whole sentence; others are left out.

    An output that is cut into its thought this way is malformed.
    """
    end = cast(int, loaded.chat.tokenizer.eos_token_id)
    cut = [
        loaded.read(sample.k, [*whole_sentences(loaded.chat, sample.token_ids), end], style)
        for sample in prompt.samples
        if sample.outcome == "truncated"
    ]
    return replace(prompt, samples=cut)


def _bounded(
    loaded: LoadedPolicy, prompts: Sequence[list[int]], keys: Sequence[str], limit: int
) -> Iterator[list[int]]:
    """Yield what follows each prompt, cut to `limit` tokens; it has ended if its last token is a stop."""
    stop = Insertion(limit, lambda row, output: loaded.stops[:1])
    for ids in loaded.sampler.sample(prompts, keys, stop):
        yield ids[:limit]
