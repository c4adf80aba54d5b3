"""The judge prompts by name: their texts, where they stand in the conversation, and how many tokens they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from tests.helpers.shared import SHARED
from tests.helpers.tiny_gguf import write_gguf_on_vocabulary
from tests.helpers.tiny_judge import REQUESTS, leaf_of, prompt_of
from tpo_lite.errors import InputError
from tpo_lite.hub import EMBEDDED_JUDGE_PROMPT
from tpo_lite.judges import prompts
from tpo_lite.judges.gguf import GgufJudge, pair_prompt
from tpo_lite.judges.open import open_judge
from tpo_lite.judges.prompts import EXPLAIN_TEMPLATE, FIELDS, SCORE_TEMPLATE, JudgePrompt, fill, named_prompt
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.judges.room import PROMPT_TOKENS
from tpo_lite.kinds import PromptSet
from tpo_lite.llamacpp.model import GgufModel
from tpo_lite.recipe import parse_recipe
from tpo_lite.recipe_keys import JudgeSettings
from tpo_lite.settled import SettledJudge

NAMES = get_args(PromptSet)
IN_SYSTEM = {"self-taught-evaluator", "fastchat-pair"}
"""The prompts whose ask is a system prompt."""


def whole(prompt: JudgePrompt) -> str:
    return (prompt.system or "") + prompt.template


@pytest.mark.parametrize("explains", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_has_its_parts_once(name, explains):
    prompt = named_prompt(name, explains)
    assert (prompt.system is not None) == (name in IN_SYSTEM)
    assert [prompt.template.count(f"{{{field}}}") for field in FIELDS] == [1, 1, 1]
    assert whole(prompt).count("{") == 3
    for letter in "AB":
        assert whole(prompt).count(f"[[{letter}]]") == 1
    assert "[[C]]" not in whole(prompt) and "tie" not in whole(prompt)
    # What is asked for comes before the texts, as it was in training; the ask of a system prompt is one paragraph.
    assert prompt.template.rstrip().endswith("[The End of Assistant B's Answer]")
    assert prompt.system is None or ("\n" not in prompt.system and prompt.template.startswith("[User Question]"))


@pytest.mark.parametrize("name", NAMES)
def test_only_a_judge_that_explains_is_asked_to(name):
    explained = whole(named_prompt(name, explains=True))
    assert ("After providing your explanation, output your final verdict" in explained) == (name != "skywork-critic")
    if name != "seed":  # the write-up's prompt asks for both
        assert "explanation" not in whole(named_prompt(name, explains=False))


def test_the_self_taught_evaluators_verdict_is_its_prompt_without_the_two_requests():
    explained, verdict = (named_prompt("self-taught-evaluator", explains) for explains in (True, False))
    shorter = explained.system.replace(
        "Begin your evaluation by comparing the two responses and provide a short explanation. ", ""
    ).replace("After providing your explanation, output", "Output")
    assert verdict == JudgePrompt(explained.template, shorter)
    assert explained.system.endswith(
        r"strictly following this format: \"[[A]]\" if assistant A is better, \"[[B]]\" if assistant B is better."
    )


def test_the_critics_prompt_has_three_lines():
    lines = named_prompt("skywork-critic", explains=False).template.split("\n")
    assert [line.partition(" ")[0] for line in lines[:4]] == ["Please", "Your", "Please", ""]
    assert lines[2].startswith("Please directly output your final verdict by strictly following this format")
    assert [line.endswith(" ") for line in lines[:3]] == [True, True, False]


@pytest.mark.shared
def test_fastchats_prompt_is_the_published_one_without_the_tie():
    published = (SHARED / "data/prompts/fastchat_judge_prompts.jsonl").read_text().splitlines()
    pair = next(line for line in map(json.loads, published) if line["name"] == "pair-v2")
    prompt = named_prompt("fastchat-pair", explains=True)
    tie = ', and "[[C]]" for a tie.'
    assert pair["system_prompt"].endswith(tie)
    assert prompt.system == pair["system_prompt"].removesuffix(tie) + "."
    fields = {"question": "{instruction}", "answer_a": "{response_a}", "answer_b": "{response_b}"}
    assert prompt.template == fill(pair["prompt_template"], fields)


@pytest.mark.parametrize("mode", ["verdict", "explain"])
@pytest.mark.parametrize("name", NAMES)
def test_the_ask_stands_in_the_turn_where_the_judge_learned_it(tiny_judge, name, mode):
    if (name, mode) == ("skywork-critic", "explain"):
        return
    judge = open_judge(SettledJudge(model=str(tiny_judge), mode=mode, prompt=name))
    turns = prompt_of(judge, REQUESTS[0]).split("<|start_header_id|>")
    ask = next(turn for turn in turns if "impartial judge" in turn)
    assert ask.startswith("system" if name in IN_SYSTEM else "user")
    assert [turn.partition("<")[0] for turn in turns[1:]] == ["system"] * (name in IN_SYSTEM) + ["user", "assistant"]
    assert turns[-1] == "assistant<|end_header_id|>\n\n" + ("[[" if mode == "verdict" else "")
    assert judge.compare(REQUESTS[:1])[0].label in ("A", "B", "unparsed")


@pytest.mark.shared
def test_the_room_for_a_prompt_is_that_of_the_longest(tmp_path: Path):
    """On Llama-3.1's vocabulary and template, and on Llama-2's with Gemma's, which has no system turns."""
    data = SHARED / "data/tokenizer"
    longest = {}
    for vocabulary, template in (
        ("llama-bpe", "meta-llama-Llama-3.1-8B-Instruct"),
        ("llama-spm", "google-gemma-2-2b-it"),
    ):
        chat_template = (data / f"templates/{template}.jinja").read_text()
        of = data / f"llama_cpp/ggml-vocab-{vocabulary}.gguf"
        model = GgufModel(write_gguf_on_vocabulary(tmp_path / f"{vocabulary}.gguf", of, chat_template), vocab_only=True)
        for name in NAMES:
            for explains in (False, True):
                prompt = named_prompt(name, explains)
                asked = pair_prompt(model, "verdict", prompt.template, prompt.system)
                question = asked.question(dict.fromkeys(FIELDS, ""), 10_000, truncate=False)
                longest[vocabulary, name, explains] = question.room
    assert longest["llama-bpe", "seed", False] == 252
    assert PROMPT_TOKENS - 10 < max(longest.values()) <= PROMPT_TOKENS


@pytest.mark.shared
def test_a_named_prompt_on_the_real_llama_3_vocabulary(tmp_path):
    """Llama-3.1's template puts its two lines of dates into the system turn, before the ask."""
    data = SHARED / "data/tokenizer"
    chat_template = (data / "templates/meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    vocabulary = data / "llama_cpp/ggml-vocab-llama-bpe.gguf"
    prompt = named_prompt("self-taught-evaluator", explains=True)
    path = write_gguf_on_vocabulary(tmp_path / "judge.gguf", vocabulary, chat_template)
    judge = GgufJudge(path, "explain", prompt.template, prompt.system, n_threads=1)
    user = fill(prompt.template, dict(zip(FIELDS, ("Why?", "Because.", "Ask [[B]]."), strict=True))).rstrip()
    rendered = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        f"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{prompt.system}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    request = JudgeRequest("Why?", "Because.", "Ask [[B]].")
    assert leaf_of(judge, request).tokens == judge.decoder.tokenize(rendered, special=True)


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({"model": "a.gguf"}, JudgePrompt(EXPLAIN_TEMPLATE)),
        ({"model": "a.gguf", "system": "Be fair."}, JudgePrompt(EXPLAIN_TEMPLATE, "Be fair.")),
        ({"model": "a.gguf", "template": "T", "system": "Be fair."}, JudgePrompt("T", "Be fair.")),
        ({}, JudgePrompt(EMBEDDED_JUDGE_PROMPT.read_text().rstrip("\n"))),
        ({"template": "T"}, JudgePrompt("T")),
        ({"mode": "openai"}, JudgePrompt(EXPLAIN_TEMPLATE)),
        ({"mode": "openai", "prompt": "skywork-critic"}, named_prompt("skywork-critic", explains=False)),
        ({"mode": "openai", "prompt": "fastchat-pair"}, named_prompt("fastchat-pair", explains=True)),
        ({"mode": "score", "system": "Be fair."}, JudgePrompt(SCORE_TEMPLATE, "Be fair.")),
    ],
)
def test_what_a_recipes_judge_is_asked(settings, prompt):
    judge = parse_recipe({"judge": settings}, "test").judge
    assert prompts.prompt_of(judge) == prompt


def test_a_judge_that_rates_gets_a_system_prompt_too(tiny_judge):
    judge = open_judge(SettledJudge(model=str(tiny_judge), mode="score", system="Be fair."))
    question = judge._prompt.question({"instruction": "x", "response": "y"}, 4000, truncate=False)
    text = judge.decoder.detokenize(question.leaves[0].tokens, special=True)
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe fair.<|eot_id|>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "skywork"}, "judge.prompt: 'skywork' does not fit"),
        ({"prompt": "fastchat-pair", "template": "T"}, "judge.template is given, but judge.prompt: fastchat-pair has"),
        ({"prompt": "fastchat-pair", "system": "S"}, "judge.system is given, but judge.prompt: fastchat-pair has"),
        ({"prompt": "fastchat-pair", "mode": "score"}, "compares two responses, but judge.mode is score. Set it to v"),
        ({"prompt": "fastchat-pair", "mode": "reward-model"}, "a reward model is not asked anything. Leave it out."),
        ({"system": "S", "mode": "reward-model"}, "judge.system is given, but a reward model is not asked anything."),
        ({"prompt": "skywork-critic", "mode": "explain"}, "asks for no explanation, but judge.mode is explain. Set it"),
        (
            {"prompt": "skywork-critic", "model": "embedded", "mode": "verdict"},
            "does not fit the embedded judge, which",
        ),
    ],
)
def test_a_prompt_that_does_not_fit_the_judge_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        parse_recipe({"judge": {"model": "a.gguf"} | settings}, "test")


def test_the_default_is_the_seeds_prompt():
    assert JudgeSettings().prompt == "seed"
