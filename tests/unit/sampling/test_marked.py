"""Outputs into which markers are put: where thoughts and responses end."""

import pytest

from tpo_lite.chat import Chat, load_tokenizer
from tpo_lite.sampling.marked import whole_sentences


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("The answer is 7. Here is", "The answer is 7."),
        ("Is it? It is!\n\n", "Is it? It is!"),
        ('He said "yes." And', 'He said "yes."'),
        ("no end at all", ""),
        ("... 3. ", ""),
    ],
)
def test_a_text_is_cut_after_its_last_whole_sentence(text, whole, tiny_model):
    chat = Chat(load_tokenizer(str(tiny_model)))
    assert chat.text(whole_sentences(chat, chat.text_ids(text))) == whole
