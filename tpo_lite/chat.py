"""Token ids of one user turn in a model's chat template.

Special tokens in a user's text are text. A template's own markers become control tokens; a literal
`<|eot_id|>` that somebody typed stays the characters it is. Works on any Hugging Face tokenizer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tpo_lite.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "\ue000user\ue000"
"""Stands for the user's text while the template is rendered; private-use characters."""


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises `InputError` where it or its chat template is missing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # a damaged tokenizer.json gives a dozen unrelated types
        raise InputError(
            f"model: {model} has no tokenizer that can be loaded ({first_line(error)}). Check that the folder has a whole "
            "tokenizer.json, or of a hub id the name, the network and, for a gated model, `hf auth login`."
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


class Chat:
    """Encodes user turns and decodes outputs of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        try:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": SENTINEL}], tokenize=False, add_generation_prompt=True
            )
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
        specials = re.compile(
            "|".join(re.escape(token) for token in sorted(self._specials(), key=len, reverse=True)) or r"(?!)"
        )
        cut = max((match.end() for match in specials.finditer(before)), default=0)
        head, self._lead = before[:cut], before[cut:]
        match = specials.search(after)
        cut = match.start() if match else len(after)
        self._trail, tail = after[:cut], after[cut:]
        self._head = tokenizer.encode(head, add_special_tokens=False)
        self._tail = tokenizer.encode(tail, add_special_tokens=False)

    def _specials(self) -> set[str]:
        return {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of the whole prompt up to where the assistant's turn begins.

        `text` is stripped first, as Llama's templates do.
        """
        return self._head + self.text_ids(self._lead + text.strip() + self._trail) + self._tail

    def text_ids(self, text: str) -> list[int]:
        """The ids of plain text; no special token, whatever the text says."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def count(self, text: str) -> int:
        """Tokens in plain text."""
        return len(self.text_ids(text))

    def text(self, ids: list[int]) -> str:
        """The text of sampled ids; special tokens in it are shown as they are written."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def stop_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an assistant's turn: the tokenizer's and those of generation_config.json."""
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
