"""Llama-3.1's tokenizer for transformers, made from the ranks that Meta publishes as `tokenizer.model`."""

from __future__ import annotations

import base64
from pathlib import Path

from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

FIRST_SPECIAL, SPECIALS = 128_000, 256


def special_tokens() -> list[str]:
    """Llama-3.1's special tokens, from id 128,000 on (Meta's llama-models, `llama3/tokenizer.py`)."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    }
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(SPECIALS))
    return [named.get(index) or next(reserved) for index in range(SPECIALS)]


class _Converter(TikTokenConverter):
    @staticmethod
    def load_tiktoken_bpe(path: Path) -> dict[bytes, int]:
        """Token bytes -> rank, from lines of base64 and rank; transformers' own needs the tiktoken package."""
        lines = path.read_bytes().splitlines()
        return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def llama3_tokenizer(ranks: Path, chat_template: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of Llama-3.1-Instruct: the ranks' tokens, 256 special ones, BOS before every text, no pad token."""
    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    bpe = _Converter(ranks, extra_special_tokens=special_tokens()).converted()
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, FIRST_SPECIAL)]
            ),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131_072,
    )
    tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
    return tokenizer
