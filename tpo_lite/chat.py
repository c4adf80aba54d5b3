"""Token ids of one user turn in a model's chat template.

The template's own markers become control tokens. Special tokens that a user typed stay text: a literal
`<|eot_id|>` is encoded as the characters it consists of. Works with any Hugging Face tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from tpo_lite.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "\ue000user\ue000"
"""Holds the place of the user's text while the template is rendered; private-use characters."""


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model`.

    Raises `InputError` if it cannot be loaded, or has no chat template or end-of-turn token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(model))
    except Exception as error:  # a damaged tokenizer.json raises a dozen unrelated types
        raise InputError(
            f"model: {model} has no tokenizer that can be loaded ({first_line(error)}). Check that the folder has a "
            "complete tokenizer.json; for a hub id, check the name, the network and, if the model is gated, your "
            "`hf auth login`."
        ) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"model: the tokenizer of {model} has no chat template. Use an instruct model, or add one to it."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"model: the tokenizer of {model} has no end-of-turn token. Set eos_token in tokenizer_config.json."
        )
    return tokenizer


def split_at_special_tokens(text: str, specials: Iterable[str]) -> list[str]:
    """Split a rendered chat template into text and special tokens, which alternate; text comes first and last.

    Where several special tokens begin at the same place, the longest is taken.

    >>> split_at_special_tokens("<s>Hi<eot>", {"<s>", "<eot>"})
    ['', '<s>', 'Hi', '<eot>', '']
    """
    longest_first = sorted(filter(None, specials), key=len, reverse=True)
    if not longest_first:
        return [text]
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the id of each special token by its written form."""
    return {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}


class Chat:
    """Encodes user turns and decodes outputs with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        turns = [{"role": "user", "content": SENTINEL}]
        try:
            rendered = cast(str, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program, and may raise anything
            raise InputError(
                f"model: the chat template cannot be rendered ({first_line(error)}). Use another template."
            ) from error
        if rendered.count(SENTINEL) != 1:
            raise InputError(
                "model: the chat template does not show the user's text exactly once. Use another template."
            )
        before, after = rendered.split(SENTINEL)
        # BPE never merges across a special token. So the text between the special tokens around the user's text
        # is tokenised in one piece, as the model saw it in training, and the rest can be tokenised here, once.
        specials = special_token_ids(tokenizer)
        *head, self._lead = split_at_special_tokens(before, specials)
        self._trail, *tail = split_at_special_tokens(after, specials)
        self._head: list[int] = tokenizer.encode("".join(head), add_special_tokens=False)
        self._tail: list[int] = tokenizer.encode("".join(tail), add_special_tokens=False)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of the whole prompt, up to where the assistant's turn begins.

        `text` is stripped first, as in Llama's templates.
        """
        return self._head + self.text_ids(self._lead + text.strip() + self._trail) + self._tail

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text, without any special token, even if the text spells one."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def count(self, text: str) -> int:
        """Return the number of tokens in plain text."""
        return len(self.text_ids(text))

    def text(self, ids: list[int]) -> str:
        """Return the text of sampled ids, with special tokens in their written form."""
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def stop_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an assistant's turn: the tokenizer's and those of generation_config.json."""
    from transformers import GenerationConfig

    stops = {tokenizer.eos_token_id}
    try:
        configured = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        configured = None  # a model without a generation config ends its turn with the tokenizer's token
    if isinstance(configured, int):
        stops.add(configured)
    elif configured:
        stops.update(configured)
    return sorted(stops)
