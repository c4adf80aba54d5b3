"""How a report writes figures, and that it has words for everything that is recorded."""

import pytest

from tests.helpers.hostile import HALVES, HOSTILE
from tpo_lite.people.words import DROP_WORDS, OUTCOME_WORDS, gib, interval, model_name, short_name, signed, visible
from tpo_lite.records import DROP_REASONS
from tpo_lite.thoughts import OUTCOMES


def test_every_outcome_and_every_reason_has_words():
    assert set(OUTCOME_WORDS) == set(OUTCOMES)
    assert set(DROP_WORDS) == set(DROP_REASONS)


@pytest.mark.parametrize("text", [*HOSTILE, HALVES])
def test_a_terminal_gets_no_code_and_no_change_of_direction(text):
    shown = visible(text)
    assert not {character for character in shown if character < " "} - {"\n", "\t"}
    assert not {"\u202e", "\u2066", "\x7f", "\x9b"} & set(shown)
    shown.encode()


def test_figures():
    assert (signed(-0.04, ".1f"), signed(-2.5, "+.1f"), signed(2.5, "+.1f")) == ("0.0", "\N{MINUS SIGN}2.5", "+2.5")
    assert interval(0.336, 0.772) == "34\N{EN DASH}77"
    assert (gib(0), gib(64 << 20), gib(3 << 30)) == ("\N{EN DASH}", "64 MiB", "3.00 GiB")
    assert model_name(12) == "M₁₂"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("/home/me/models/SmolLM2.gguf", "SmolLM2.gguf"),
        ("~/SmolLM2.gguf", "SmolLM2.gguf"),
        ("./models/", "models"),
        ("unsloth/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-3B-Instruct"),
        ("embedded", "embedded"),
    ],
)
def test_a_name_has_no_folders(name, short):
    assert short_name(name) == short
