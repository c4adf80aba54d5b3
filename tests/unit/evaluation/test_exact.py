"""Exact answers and IFEval."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.shared import SHARED
from tpo_lite.cli import main
from tpo_lite.evaluation.exact import NUMBER, found_answer, same_answer
from tpo_lite.intervals import share

PATTERN = re.compile(NUMBER)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("She has 3 + 4 = 7 eggs.", "7"),
        ("That makes $1,080.50.", "$1,080.50"),
        ("It fell to -12", "-12"),
        ("In 2024, 5 of 6.", "6"),
        ("**18**", "18"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number(response, answer):
    assert found_answer(response, PATTERN) == answer


@given(st.integers(-(10**9), 10**9))
def test_a_number_equals_itself_in_other_clothes(number):
    given_answer = found_answer(f"So: ${number:,}.", PATTERN)
    assert given_answer is not None
    assert same_answer(given_answer, str(number))
    assert same_answer(f"{number}.00", str(number))
    assert not same_answer(given_answer, str(number + 1))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


QUESTIONS = [
    {"question": "How many eggs?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "How many hens?", "answer": "#### 1,080"},
    {"question": "How many cocks?", "answer": "#### 2"},
]


def test_the_command_counts(tmp_path):
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    answers = ["It is 7.", "1080 hens, that is", ""]
    rows = [{"prompt": row["question"], "response": text} for row, text in zip(QUESTIONS, answers, strict=True)]
    done = run("exact", write(tmp_path / "o.jsonl", rows), "--questions", questions, "--json")
    assert done.exit_code == 0, done.output
    found, expected = json.loads(done.stdout), share(2, 3)
    assert (found["accuracy"], found["n"], found["without_answer"]) == (2 / 3, 3, 1)
    assert found["interval"] == [expected.low, expected.high]
    done = run("exact", tmp_path / "o.jsonl", "--questions", questions, "--regex", r"is (\w+)")
    assert done.stdout.startswith("o: 33.33 % right")


@pytest.mark.parametrize(
    ("outputs", "questions", "more", "message"),
    [
        (
            [{"prompt": "How many pigs?", "output": "1"}],
            QUESTIONS[:1],
            (),
            "1: 'How many pigs?' is not an instruction of",
        ),
        ([{"prompt": "How many eggs?", "output": "1"}], QUESTIONS, (), "lacks an output to 2 instructions of q.jsonl"),
        ([{"prompt": "Eggs?", "output": "1"}], [{"question": "Eggs?"}], (), "1: no right answer is known to 'Eggs?'"),
        ([{"prompt": "How many eggs?", "output": "1"}], QUESTIONS[:1], ("--regex", "("), "is no regular expression"),
    ],
)
def test_bad_input_is_named(tmp_path, outputs, questions, more, message):
    questions = write(tmp_path / "q.jsonl", questions)
    done = run("exact", write(tmp_path / "o.jsonl", outputs), "--questions", questions, *more)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.shared
def test_gsm8ks_own_solutions_are_right(tmp_path):
    path = SHARED / "data" / "gsm8k" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    outputs = write(tmp_path / "o.jsonl", [{"prompt": row["question"], "output": row["answer"]} for row in rows])
    found = json.loads(run("exact", outputs, "--questions", path, "--json").stdout)
    assert (found["n"], found["accuracy"]) == (1319, 1.0)


PROMPTS = [
    {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Two bullets, no commas, lower case.",
        "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
        "kwargs": [{"num_bullets": 2}, {}],
    },
]


@pytest.fixture
def punkt(tmp_path, monkeypatch):
    """NLTK's sentence data, empty: sentences end at full stops."""
    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / name).touch()
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])


def test_ifeval_by_hand(tmp_path, punkt):
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    # The first has a comma in its first line only, so that it passes loosely. The second has a bullet too many.
    rows = [
        {"prompt": "No commas.", "response": "Sure, here:\nTea and milk"},
        {"prompt": "Two bullets, no commas, lower case.", "response": "* tea\n* milk\n* rum"},
    ]
    done = run("ifeval", write(tmp_path / "o.jsonl", rows), "--prompts", prompts, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n"], found["instructions"]) == (2, 3)
    assert found["prompt_level_strict_acc"]["value"] == 0
    assert found["inst_level_strict_acc"]["value"] == pytest.approx(1 / 3)
    # Without its first line, or its last one, the second has two bullets.
    assert found["prompt_level_loose_acc"]["value"] == 1
    assert found["inst_level_loose_acc"]["value"] == 1
    assert found["prompt_level_strict_acc"]["interval"] == [0, pytest.approx(share(0, 2).high)]


def test_ifeval_says_what_is_missing(tmp_path, monkeypatch):
    import nltk

    prompts = write(tmp_path / "p.jsonl", PROMPTS[:1])
    outputs = write(tmp_path / "o.jsonl", [{"prompt": "No commas.", "response": "x"}])
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    done = run("ifeval", outputs, "--prompts", prompts)
    assert (done.exit_code, "python -m nltk.downloader punkt_tab" in done.stderr) == (2, True)
    bad = write(tmp_path / "bad.jsonl", [PROMPTS[0] | {"kwargs": []}])
    done = run("ifeval", outputs, "--prompts", bad)
    assert (done.exit_code, "1: 1 instructions and 0 kwargs" in done.stderr) == (2, True)
    done = run("ifeval", outputs, "--prompts", outputs)
    assert (done.exit_code, "1 is no prompt of IFEval" in done.stderr) == (2, True)
