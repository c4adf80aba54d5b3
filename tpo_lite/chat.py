"""Token ids of a prompt in a model's chat template: a user turn, and the turns before it.

The template's own markers become control tokens. Special tokens that a user typed stay text: a literal
`<|eot_id|>` is encoded as the characters it consists of. Works with any Hugging Face tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from tpo_lite.errors import InputError, first_line
from tpo_lite.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "\ue000{}\ue000"
"""Holds the place of a turn's text while the template is rendered; private-use characters around its number."""
_PLACE = re.compile("\ue000([0-9]+)\ue000")


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


def clock(day: date | None) -> dict[str, Any]:
    """Return the arguments of `apply_chat_template` that stop a template's clock, `strftime_now`, at midnight of `day`.

    Llama-3.2's template writes today's date into every prompt. None leaves the clock running.
    """
    return {} if day is None else {"strftime_now": day.strftime}


class Chat:
    """Encodes user turns and decodes outputs with one tokenizer.

    `day` is the date that the chat template gets when it asks for today's; None: the date when it is rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: date | None = None):
        self.tokenizer = tokenizer
        self._clock = clock(day)
        self._forms: dict[tuple[str, ...], list[list[int] | str]] = {}
        try:
            rendered = self._render([{"role": "user", "content": PLACE.format(0)}])
        except Exception as error:  # a template is a program, and may raise anything
            raise InputError(
                f"model: the chat template cannot be rendered ({first_line(error)}). Use another template."
            ) from error
        if not _shows_all(rendered, 1):
            raise InputError(
                "model: the chat template does not show the user's text exactly once. Use another template."
            )
        _check_generation_prompt(tokenizer, rendered, day)
        self._forms[("user",)] = self._form(rendered)

    def prompt_ids(self, text: str, context: Sequence[Turn] = ()) -> list[int]:
        """Return the ids of the whole prompt, up to where the assistant's turn begins.

        `text` is the user's turn, and `context` what comes before it. Texts are stripped first, as in Llama's
        templates. Raises `InputError` if the chat template has no place for the context.
        """
        form = self._form_of((*(turn["role"] for turn in context), "user"))
        texts = [*(turn["content"].strip() for turn in context), text.strip()]
        ids: list[int] = []
        for part in form:
            if isinstance(part, str):
                pieces = _PLACE.split(part)
                pieces[1::2] = [texts[int(number)] for number in pieces[1::2]]
                ids += self.text_ids("".join(pieces))
            else:
                ids += part
        return ids

    def _form_of(self, roles: tuple[str, ...]) -> list[list[int] | str]:
        """Return the template's form for turns of these roles: token ids, and texts with places for turns.

        A template without system prompts refuses them or leaves them out. There the system prompt goes in front of the
        first user turn, as Gemma's documentation advises. Raises `InputError` if the template refuses that too.
        """
        if roles not in self._forms:
            turns = [{"role": role, "content": PLACE.format(index)} for index, role in enumerate(roles)]
            ways = [turns]
            if roles[0] == "system":
                both = f"{turns[0]['content']}\n\n{turns[1]['content']}"
                ways.append([{"role": roles[1], "content": both}, *turns[2:]])
            reason = "not every turn is shown once"
            for way in ways:
                try:
                    rendered = self._render(way)
                except Exception as error:  # a template is a program, and may raise anything
                    reason = first_line(error)
                    continue
                if _shows_all(rendered, len(roles)):
                    self._forms[roles] = self._form(rendered)
                    return self._forms[roles]
            raise InputError(
                f"model: the chat template has no place for the turns {', '.join(roles)} ({reason}). Use another "
                "template, or instructions without a history (instructions.turn: first)."
            )
        return self._forms[roles]

    def _render(self, turns: list[Turn]) -> str:
        """Return the turns in the chat template, up to where the assistant's next turn begins."""
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **self._clock)
        return cast(str, rendered)

    def _form(self, rendered: str) -> list[list[int] | str]:
        """Return a rendered template as token ids and, where turns have places, texts.

        BPE never merges across a special token. So the text between the special tokens around a turn is tokenized in
        one piece, as the model saw it in training, and the rest can be tokenized here, once.
        """
        form: list[list[int] | str] = []
        pieces = split_at_special_tokens(rendered, special_token_ids(self.tokenizer))
        for has_place, group in groupby(pieces, key=lambda piece: bool(_PLACE.search(piece))):
            text = "".join(group)
            form.append(text if has_place else self.tokenizer.encode(text, add_special_tokens=False))
        return form

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


def _check_generation_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, day: date | None) -> None:
    """Raise `InputError` if the chat template does not begin the assistant's turn when it is asked to.

    Such a template puts more between a question and its answer than `prompt` ends with.
    """
    question = {"role": "user", "content": PLACE.format(0)}
    try:
        bare = tokenizer.apply_chat_template([question], tokenize=False, **clock(day))
        turns = [question, {"role": "assistant", "content": PLACE.format(1)}]
        dialogue = cast(str, tokenizer.apply_chat_template(turns, tokenize=False, **clock(day)))
    except Exception:  # a template is a program; this one cannot render dialogues, which nobody needs here
        return
    end = _PLACE.split(prompt)[-1]
    between = dialogue.partition(PLACE.format(0))[2].partition(PLACE.format(1))[0]
    if prompt == bare and between.startswith(end) and between.removeprefix(end).strip():
        raise InputError(
            "model: the chat template has no generation prompt: it leaves out "
            f"{between.removeprefix(end).strip()!r} before an answer. Use another template."
        )


def _shows_all(rendered: str, turns: int) -> bool:
    """Return whether a rendered template shows each turn exactly once, in order."""
    return _PLACE.findall(rendered) == [str(index) for index in range(turns)]


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
