"""What a reward model reads: its configuration, checked, and conversations as token ids. Loads no weights."""

from __future__ import annotations

import re
from datetime import date
from typing import cast

from transformers import AutoConfig, PretrainedConfig

from tpo_lite.chat import Chat, clock, load_tokenizer, special_token_ids, split_at_special_tokens
from tpo_lite.errors import InputError, first_line
from tpo_lite.judges.prompts import cut_middle

_USER, _ASSISTANT = "\ue000user\ue000", "\ue000assistant\ue000"
"""Hold the places of the texts while the chat template is rendered; private-use characters."""
_CUSTOM = "AutoModelForSequenceClassification"


class RewardInputs:
    """Turns (instruction, response) into the token ids of a conversation in the model's own chat template.

    `model` is a folder or hub id; `trust_remote_code` lets code that came with the model run. `day` is the date for
    templates that ask for today's, as in `Chat`. Both texts are stripped, as in Llama's templates, and special tokens
    spelled in them stay text.

    Raises `InputError` for a model that cannot be read, that needs its own code but may not run it, that is not a
    sequence classifier or gives several scores, and for a chat template that is missing, fails or does not show both
    texts exactly once.
    """

    def __init__(self, model: str, trust_remote_code: bool, day: date | None = None):
        self.config = _config(model, trust_remote_code)
        try:
            self._chat = Chat(load_tokenizer(model), day)
        except InputError as error:
            raise InputError(f"judge.{error}") from error
        tokenizer = self._chat.tokenizer
        turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
        try:
            rendered = cast(str, tokenizer.apply_chat_template(turns, tokenize=False, **clock(day)))
        except Exception as error:  # a template is a program, and may raise anything
            raise InputError(
                f"judge.model: the chat template of {model} cannot be rendered ({first_line(error)}). Use another "
                "template."
            ) from error
        if rendered.count(_USER) != 1 or rendered.count(_ASSISTANT) != 1:
            raise InputError(
                f"judge.model: the chat template of {model} does not show the user's and the assistant's text exactly "
                "once. Use another template."
            )
        # BPE never merges across a special token, so each stretch of text between two of them is tokenized as a whole.
        ids = special_token_ids(tokenizer)
        self._pieces = [ids.get(text, text) for text in split_at_special_tokens(rendered, ids) if text]

    def ids(self, instruction: str, response: str) -> list[int]:
        """Return the ids of the whole conversation, with the assistant's turn closed as the template closes it."""
        texts = {_USER: instruction.strip(), _ASSISTANT: response.strip()}
        found = []
        for piece in self._pieces:
            if isinstance(piece, int):
                found.append(piece)
            else:
                filled = re.sub(f"{_USER}|{_ASSISTANT}", lambda match: texts[match[0]], piece)
                found += self._chat.text_ids(filled)
        return found

    def fitted_ids(self, instruction: str, response: str, room: int, truncate: bool) -> list[int] | None:
        """Return at most `room` ids, or None if the conversation is too long.

        With `truncate`, the middle of a response that is too long is cut out.
        """
        cut, shown = 0, response
        while True:
            ids = self.ids(instruction, shown)
            if len(ids) <= room:
                return ids
            # Each time more is cut from the whole response; `GgufPrompt.question` says why.
            cut += len(ids) - room
            shorter = cut_middle(response, cut, self._chat.text_ids, self._chat.text) if truncate else None
            if shorter is None:
                return None
            shown = shorter


def _config(model: str, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # code that came with a model may raise anything
        raise InputError(
            f"judge.model: the configuration of {model} cannot be read ({first_line(error)}). Check the name and the "
            "network; a model with its own code needs judge.trust_remote_code: true, after you have read the code."
        ) from error
    if _CUSTOM in (getattr(config, "auto_map", None) or {}):
        # transformers would silently use its own class, whose head these weights are not for.
        if not trust_remote_code:
            raise InputError(
                f"judge.model: {model} scores with Python code of its own. Read that code, and set "
                "judge.trust_remote_code: true, or use another reward model."
            )
        return config
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"judge.model: {model} is {', '.join(architectures) or 'of no named architecture'}, not a "
            "sequence-classification model. Use a reward model, or a GGUF with another mode."
        )
    if config.num_labels != 1:
        raise InputError(
            f"judge.model: {model} gives {config.num_labels} scores per response (num_labels), and a reward model "
            "gives one. Use another."
        )
    return config
