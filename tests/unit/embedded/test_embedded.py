"""The embedded world: its puzzles, its tokenizer, its checker and the models that ship with the package."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tpo_lite.chat import Chat, load_tokenizer
from tpo_lite.checking import final_answer, is_right
from tpo_lite.embedded import examples, world
from tpo_lite.embedded.gguf_export import write_gguf
from tpo_lite.embedded.training import keep_unrounded, linears, round_to_nf4, train
from tpo_lite.errors import InputError
from tpo_lite.hub import judge_path, model_path
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf
from tpo_lite.thoughts import GENERIC, parse

TOKENIZER = load_tokenizer(model_path("embedded"))
CHAT = Chat(TOKENIZER)


def solve(text: str) -> str:
    """An independent solver that reads nothing but the instruction."""
    operations = re.findall(r"(?:first|second|third|fourth|fifth) (\w+)", text)
    if "digit" in text:
        numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        state = numbers.index(re.search(r"(?:Start with|Begin at|number) (\w+)", text)[1])
        for operation in operations:
            state = {"up": state + 1, "jump": state + 3, "double": 2 * state, "triple": 3 * state}[operation]
        return numbers[state % 10]
    if "cup" in text:
        cups = {"red", "blue", "green"}
        state = re.search(r"(\w+) cup", text)[1]
        for still in operations:
            state = state if state == still else (cups - {state, still}).pop()
        return state
    if "game" in text:
        compass = ["north", "east", "south", "west"]
        quarter_turns = {"right": 1, "around": 2, "left": 3}
        start = next(word for word in re.findall(r"\w+", text) if word in compass)
        return compass[(compass.index(start) + sum(map(quarter_turns.get, operations))) % 4]
    word = re.search(r"(?:letters of|The word|Write) (\w+)", text)[1]
    for operation in operations:
        word = {"flip": word[::-1], "roll": word[1:] + word[0], "swap": word[1] + word[0] + word[2]}[operation]
    return word


def test_the_answers_and_the_last_states_are_right():
    for puzzle in world.puzzles(2000, 3):
        assert puzzle.answer == solve(puzzle.text), puzzle.text
        assert re.search(r"(\w+)\.$", puzzle.work)[1] == puzzle.answer
        assert puzzle.answer in puzzle.choices


def test_instructions_are_many_distinct_deterministic_and_held_out():
    drawn = world.instructions(2000, 0)
    assert len({instruction.text for instruction in drawn}) == len({instruction.id for instruction in drawn}) == 2000
    assert world.instructions(50, 0) == drawn[:50]
    assert world.instructions(50, 1) != drawn[:50]
    assert len({instruction.category for instruction in drawn}) == 4
    assert all(world.held_out(instruction.text) for instruction in drawn[:500])
    with pytest.raises(InputError):
        world.instructions(world.MOST + 1, 0)
    rng = random.Random(0)
    assert not any(world.held_out(world.puzzle(rng, held=False).text) for _ in range(500))


def test_policy_examples_parse_and_useful_ones_are_right():
    rng = random.Random(0)
    for _ in range(200):
        useful = parse(GENERIC, examples.policy(rng, 0.0, 1.0).output, truncated=False)
        assert useful.outcome == "ok"
        assert is_right(useful.response, re.search(r"(\w+)\.$", useful.thought)[1])
        assert parse(GENERIC, examples.policy(rng, 0.0, 0.0).output, truncated=False).outcome == "ok"


def test_judge_examples_prefer_the_right_response():
    rng, seen = random.Random(0), {"A": 0, "B": 0}
    for _ in range(1000):
        output = examples.judged(rng).output
        answer, a, b, said_by, verdict = re.search(
            r"The answer is (\w+)\. Given (\w+) A, (\w+) B\. So \1 (\w+)\. \[\[([AB])\]\]$", output
        ).groups()
        assert said_by == {(1, 0): "A", (0, 1): "B", (1, 1): "both", (0, 0): "none"}[(a == answer, b == answer)]
        assert said_by in ("both", "none", verdict)
        seen[verdict] += 1
    assert min(seen.values()) > 420


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The answer is 7.", "7", True),
        ("The answer is 7. I hope that this helps you.", "7", True),
        ("The answer is 17.", "7", False),
        ("The answer is 3. No, the answer is: **The Moon**!", "moon", True),
        ("the answer is -1,000.5", "-1000.5", True),
        ("Moon.", "moon", True),
        ("It is the moon", "moon", False),
        ("The answer is", "moon", False),
        ("", "", False),
    ],
)
def test_is_right(response: str, answer: str, right: bool):
    assert is_right(response, answer) is right


def test_final_answer_stops_at_its_sentence():
    assert final_answer("So the answer is a red cup!\nThe other one is blue.") == "red cup"


@given(st.text())
def test_tokenizer_gives_every_text_back(text: str):
    assert CHAT.text(CHAT.text_ids(text)) == text


def test_tokenizer_has_one_token_per_digit_and_llama_3_markers():
    assert len(TOKENIZER.encode("2048", add_special_tokens=False)) == 4
    rendered = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": " hi "}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert TOKENIZER.encode("hi") == TOKENIZER.encode("hi", add_special_tokens=False)


def test_the_verdict_mark_tokenizes_alike_whatever_follows():
    mark, a, b = (TOKENIZER.tokenize(" [[" + rest) for rest in ("", "A]]", "B]]"))
    assert a[: len(mark)] == b[: len(mark)] == mark
    assert (a[len(mark)], b[len(mark)]) == ("A", "B")


def test_gguf_has_the_same_tokens_and_logits_as_transformers(tmp_path: Path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER) + 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).half().float().eval()
    write_gguf(model, TOKENIZER, tmp_path / "tiny.gguf", "tiny")
    engine = LlamaCpp(tmp_path / "tiny.gguf", n_ctx=256)
    text = "Żółw 2048 wins,  don't\n\n\tyou think? [[A]] 你好 🐢"
    ids = TOKENIZER.encode(text)
    assert engine.tokenize(text, special=False) == ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.decode([Leaf(ids)])[0].logits, expected, atol=0.02)


def test_rounding_to_nf4_lets_gradients_through_and_leaves_the_weights_as_they_were():
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    )
    layer = linears(model)[0]
    exact = layer.weight.detach().clone()
    round_to_nf4(model)
    rounded = layer.weight
    relative_error = ((rounded - exact).norm() / exact.norm()).item()
    assert 0.05 < relative_error < 0.15
    rounded.sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, torch.ones_like(exact))
    keep_unrounded(model)
    torch.testing.assert_close(layer.weight.detach(), exact)


def test_training_depends_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
        train(model, TOKENIZER, lambda rng, _: examples.judged(rng), seed, steps=2, name="test", log=lambda line: None)
        return linears(model)[0].weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_shipped_models_are_small_and_16_bit():
    policy, judge = Path(model_path("embedded")) / "model.safetensors", judge_path("embedded")
    assert policy.stat().st_size + judge.stat().st_size < 16e6
    model = LlamaForCausalLM.from_pretrained(policy.parent, dtype="auto")
    assert model.dtype == torch.float16
    assert 1e6 <= model.num_parameters() <= 3e6


def test_the_shipped_judge_finds_the_right_response():
    judge = GgufJudge(judge_path("embedded"), "explain", examples.JUDGE_PROMPT, explain_tokens=128)
    puzzles = world.puzzles(24, 11)
    rng = random.Random(0)
    requests = []
    for puzzle in puzzles:
        right, wrong = (f"The answer is {a}." for a in (puzzle.answer, world.wrong_answer(rng, puzzle)))
        requests += [JudgeRequest(puzzle.text, right, wrong), JudgeRequest(puzzle.text, wrong, right)]
    verdicts = judge.compare(requests)
    correct = [verdict.label == "AB"[index % 2] for index, verdict in enumerate(verdicts)]
    assert sum(correct) >= 0.9 * len(correct)
    assert "Start at" in verdicts[0].explanation
