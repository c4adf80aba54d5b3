"""Categories: what a model may answer, the cache, agreement by hand, and win rates for each category."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_run import invoke
from tests.helpers.written_run import written_run
from tpo_lite.errors import InputError
from tpo_lite.evaluation import classify as module
from tpo_lite.evaluation.classify import (
    CATEGORIES,
    TEMPLATE,
    Classified,
    Classifier,
    categorized,
    instructions_in,
    tally,
)
from tpo_lite.evaluation.outputs import Output, Outputs
from tpo_lite.hub import ASSETS
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.judges.gguf_prompt import GgufPrompt, ask
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Leaf
from tpo_lite.records import Instruction, read_jsonl

JUDGE = ASSETS / "judge.gguf"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_categories_are_those_of_the_set_that_comes_with_the_package():
    assert len(set(CATEGORIES)) == 21
    assert {each.category for each in load("everyday").instructions} == set(CATEGORIES) - {"Miscellaneous"}
    assert all(f"\n{name}\n" in TEMPLATE for name in CATEGORIES)


def test_the_likeliest_name_is_taken_among_the_names_alone():
    """Against the logits of one sequence at a time, multiplied along each name."""
    decoder = LlamaCpp(JUDGE, n_ctx=2048)
    prompt = GgufPrompt(decoder, TEMPLATE, ("instruction",), CATEGORIES, around=("", ""))
    (answer,) = ask(decoder, [prompt.question({"instruction": "Add 1 and 2."}, 2048, False)])
    names = [decoder.tokenize(name, special=False) for name in CATEGORIES]
    begun = list(prompt.question({"instruction": "Add 1 and 2."}, 2048, False).leaves[0].tokens)
    expected = []
    for name in names:
        chance = 1.0
        for place, token in enumerate(name):
            among = sorted({other[place] for other in names if other[:place] == name[:place] and len(other) > place})
            if len(among) > 1:
                (decoded,) = decoder.decode([Leaf([*begun, *name[:place]], logits_of=tuple(among))])
                weights = np.exp(np.float64(decoded.logits) - decoded.logits.max())
                chance *= weights[among.index(token)] / weights.sum()
        expected.append(chance)
    assert answer.probabilities == pytest.approx(expected, abs=1e-3)
    assert answer.probabilities.sum() == pytest.approx(1)


def test_the_command_asks_once_and_shows_the_agreement(tmp_path, monkeypatch):
    rows = [{"instruction": f"Add 1 and {n}.", "category": "Math and Calculations"} for n in range(3)]
    source = write(tmp_path / "in.jsonl", [*rows, rows[0], {"instruction": "long " * 9000}])
    command = ["classify", source, "--model", "embedded", "--out", tmp_path / "out.jsonl", "--json"]
    done = invoke(*command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["agreement"]["n"], found["overlong"]) == (3, 1)
    records = list(read_jsonl(tmp_path / "out.jsonl", Classified))
    assert [each.category is None for each in records] == [False, False, False, True]
    assert all(each.category in CATEGORIES and 0 < each.probability <= 1 for each in records[:3])

    def refuse(*arguments):
        raise AssertionError("nothing is left to ask")

    monkeypatch.setattr(module, "Classifier", refuse)
    assert json.loads(invoke(*command).stdout) == found
    (tmp_path / "out.jsonl").write_text((tmp_path / "out.jsonl").read_text().replace("judge.gguf ", "other.gguf "))
    refused = invoke(*command)
    assert (refused.exit_code, "was written by 'other.gguf" in refused.stderr) == (2, True)
    write(tmp_path / "out.jsonl", [{"mine": 1}])
    assert "holds something other than categories" in invoke(*command).stderr


def test_agreement_and_counts_by_hand():
    texts = {"a": "Travel and Leisure", "b": "Travel and Leisure", "c": "Rivers", "d": None}
    given = {id: Instruction(id, id, "here", category=name) for id, name in texts.items()}
    said = {"a": "Travel and Leisure", "b": "Miscellaneous", "c": "Miscellaneous", "d": None}
    found = tally(given, [Classified(id, id, name, name and 0.5, "m") for id, name in said.items()])
    assert (found.agreement.value, found.agreement.n, found.overlong) == (0.5, 2, 1)
    assert found.by_category.keys() == {"Travel and Leisure"}  # "Rivers" is none of the categories
    assert found.counts["Miscellaneous"].value == pytest.approx(2 / 3)


def test_a_run_stands_for_all_its_slices(tmp_path):
    run = written_run(tmp_path / "run", iterations=1)
    ids = [fingerprint(each.text) for each in read_jsonl(run.instructions("validation"), Instruction)]
    assert list(instructions_in(str(run.root))) == ids


def test_win_rates_by_the_categories_of_a_file(tmp_path, tiny_judge):
    questions = [f"Ask {n}" for n in range(4)]
    a = write(tmp_path / "a.jsonl", [{"prompt": each, "output": "ab"} for each in questions])
    b = write(tmp_path / "b.jsonl", [{"prompt": each, "output": "" if each < "Ask 2" else "ab"} for each in questions])
    names = ["Travel and Leisure"] * 2 + ["Game Development"] * 2
    known = write(
        tmp_path / "c.jsonl",
        [{"instruction": x, "category": y} for x, y in zip(reversed(questions), names, strict=True)],
    )
    arguments = ["--judge", tiny_judge, "--out", tmp_path / "out", "--categories", known]
    found = invoke("eval", "versus", a, b, *arguments, "--json")
    assert found.exit_code == 0, found.output
    rates = json.loads(found.stdout)["categories"]
    assert {name: (rate["win_rate"], rate["n"]) for name, rate in rates.items()} == {
        "Game Development": (1.0, 2),
        "Travel and Leisure": (0.5, 2),
    }
    assert rates["Travel and Leisure"]["noise"] is True


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"category": "Travel and Leisure"}], ":1 has no text as instruction"),
        ([{"instruction": "Ask", "category": "Rivers"}], ":1: 'Rivers' is no category"),
        ([{"instruction": "Ask", "probability": float("nan")}], ":1: probability nan is not between 0 and 1"),
        ([{"instruction": "Ask", "probability": 2}], ":1: probability 2 is not"),
        ([{"instruction": "Ask"}, {"instruction": " ask"}], ":2 has the instruction of an earlier line again"),
        ([{"instruction": "Other"}], "lacks the instruction of f:1, 'Ask'"),
    ],
)
def test_bad_categories_are_named(tmp_path, rows, message):
    outputs = Outputs("m", {"1": Output("Ask", "It", where="f:1")})
    with pytest.raises(InputError, match=message):
        categorized(outputs, write(tmp_path / "c.jsonl", rows))


def test_a_model_that_cannot_hold_the_question_is_refused(tmp_path):
    small = write_tiny_gguf(tmp_path / "small.gguf", n_ctx=64)
    with pytest.raises(InputError, match="it reads 64 tokens at most, and the question alone takes more"):
        Classifier(small, 0)
