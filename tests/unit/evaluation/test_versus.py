"""Head to head: figures by hand, against scipy and scikit-learn, and the command with a tiny judge."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.cli import main
from tpo_lite.errors import InputError
from tpo_lite.evaluation.alpaca_judging import check_instructions, official_rows
from tpo_lite.evaluation.outputs import Output, Outputs, read_outputs, same_instructions
from tpo_lite.evaluation.versus import Match, _row, compare, head_to_head, length_controlled, pairs_to_judge
from tpo_lite.intervals import Estimate
from tpo_lite.records import Comparison


def outputs(name, responses, **more):
    made = {str(n): Output(f"Ask {n}", text, where=f"{name}:{n}", **more) for n, text in enumerate(responses)}
    return Outputs(name, made)


def judged(id, in_order, swapped, verdicts=("A", "A")):
    comparisons = [Comparison(1, 2, in_order, verdicts[0]), Comparison(2, 1, swapped, verdicts[1])]
    return JudgedPair(id, "all", None, [1, 1], comparisons, soft=True)


def test_a_prompt_in_both_orders_is_one_unit():
    a = outputs("a", ["one", "same", "", "long enough", "x"])
    b = outputs("b", ["two", "same", "full", "short", "y"])
    ids = same_instructions(a, b)
    assert [pair.id for pair in pairs_to_judge(a, b, ids)] == ["0", "3", "4"]
    answers = [judged("0", 0.9, 0.3, ("A", "B")), judged("3", 0.8, 0.6), judged("4", 0.5, 0.5, ("overlong",) * 2)]
    found = head_to_head(a, b, ids, answers, "J")
    wins = [(0.9 + 0.7) / 2, 0.5, 0.0, (0.8 + 0.4) / 2]
    assert found.win_rate.value == pytest.approx(np.mean(wins))
    assert found.win_rate.standard_error == pytest.approx(scipy.stats.sem(wins))
    assert found.difference.value == pytest.approx(2 * np.mean(wins) - 1)
    assert found.difference.standard_error == pytest.approx(2 * scipy.stats.sem(wins))
    assert (found.wins, found.ties, found.losses, found.overlong) == (2, 1, 1, 1)
    assert found.sign_test == pytest.approx(scipy.stats.binomtest(2, 3).pvalue)
    assert found.flips == 0.5  # "3": the first slot twice
    assert found.lengths.value == pytest.approx((0 + 0 - 4 + 6) / 4)


def test_categories_and_what_is_noise():
    random = np.random.default_rng(0)
    matches = [Match("good", 0.8 + 0.1 * random.random(), (5, 5)) for _ in range(40)]
    matches += [Match("even", float(number % 2), (5, 5)) for number in range(40)]
    found = compare(matches, ("a", "b"), "J").to_dict()
    assert found["categories"]["good"]["noise"] is False
    assert found["categories"]["even"]["noise"] is True
    assert found["categories"]["even"]["win_rate"] == 0.5
    assert found["length_controlled_win_rate"] is None
    # 2.8 standard errors find an effect in four of five cases.
    assert found["minimum_detectable_effect"] == pytest.approx(2.8016 * found["win_rate_standard_error"], rel=1e-4)


def test_accuracy_is_paired():
    a, b = outputs("a", ["4", "5", "6"], answer="4"), outputs("b", ["4", "4", "6"], answer="4")
    found = head_to_head(a, b, list(a.by_id), [judged("1", 0.5, 0.5)], "J").to_dict()["accuracy"]
    assert (found["n"], found["a"], found["b"]) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["difference_standard_error"] == pytest.approx(scipy.stats.sem([0, -1, 0]))


def test_length_control_is_the_fit_of_scikit_learn():
    random = np.random.default_rng(3)
    differences = random.normal(200, 300, 400)
    wins = (random.random(400) < 1 / (1 + np.exp(-0.5 - 1.5 * np.tanh(differences / 300)))).astype(float)
    value, low, high = length_controlled(wins, differences)
    feature = np.tanh(differences / differences.std(ddof=1))[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(feature, wins)
    assert value == pytest.approx(1 / (1 + np.exp(-fit.intercept_[0])), abs=1e-4)
    assert low < value < high
    assert low < 1 / (1 + np.exp(-0.5)) < high  # what made the data
    assert value < wins.mean()  # A is longer, and the judge likes length


def test_always_winning_has_a_finite_fit():
    value, low, high = length_controlled(np.ones(30), np.arange(30.0))
    assert 0.99 < low <= value <= high <= 1


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_outputs_of_each_form(tmp_path):
    sample = {"instruction": {"text": "Ask", "category": "Travel", "answer": None}}
    rows = [
        {"instruction": "Ask", "output": "It", "generator": "m"},
        {"prompt": "Ask", "response": "It", "category": "Travel"},
        {"question": "Ask", "response": "It", "answer": 4},
        sample | {"samples": [{"response": "", "outcome": "truncated"}, {"response": "It", "outcome": "ok"}]},
        sample | {"samples": [{"response": "It", "outcome": "truncated"}]},
    ]
    found = [next(iter(read_outputs(write(tmp_path / "f.jsonl", [row])).by_id.values())) for row in rows]
    assert [each.response for each in found] == ["It", "It", "It", "It", ""]
    assert [each.category for each in found] == [None, "Travel", None, "Travel", "Travel"]
    assert [each.answer for each in found] == [None, None, "4", None, None]
    (tmp_path / "list.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    assert read_outputs(tmp_path / "list.json").model == "m"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"instruction": "Ask"}], "1 has no text as instruction and output"),
        ([{"instruction": "Ask", "output": "x"}, {"prompt": " ask ", "output": "y"}], "2 answers .*1 again"),
        ([{"samples": []}], "1 is a damaged line of samples"),
        ([{"prompt": str(n), "output": "", "generator": str(n)} for n in (1, 2)], "outputs of 1 and 2"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_outputs(write(tmp_path / "f.jsonl", rows))


def test_other_instructions_and_other_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="b lacks 1 instructions of a, the first of which is a:1, 'Ask 1'"):
        same_instructions(outputs("a", ["x", "y"]), outputs("b", ["x"]))
    with pytest.raises(InputError, match="a lacks 1 instructions of b"):
        same_instructions(outputs("a", ["x"]), outputs("b", ["x", "y"]))
    with pytest.raises(InputError, match="is not an arm of a run"):
        read_outputs(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(InputError, match="is not an arm of a run"):
        read_outputs(tmp_path)
    (tmp_path / "direct" / "iteration-0").mkdir(parents=True)
    with pytest.raises(InputError, match="is not a finished iteration. Go on with the run: tpo-lite train"):
        read_outputs(tmp_path / "direct" / "iteration-0")


def test_the_command_resumes(tmp_path, tiny_judge):
    a = write(tmp_path / "a.jsonl", [{"prompt": f"Ask {n}", "output": "ab" * (n + 1)} for n in range(4)])
    b = write(tmp_path / "b.jsonl", [{"prompt": f"Ask {n}", "output": "ba"} for n in range(4)])
    command = ["eval", "versus", str(a), str(b), "--judge", str(tiny_judge), "--out", str(tmp_path / "out"), "--json"]
    command += ["--set", "template='{instruction}|{response_a}|{response_b}'"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["a"], found["b"], found["n"]) == ("a", "b", 4)
    assert found["judge"].startswith("judge.gguf verdict")
    judgements = tmp_path / "out" / "judgements.jsonl"
    whole = judgements.read_bytes()
    judgements.write_bytes(whole[: len(whole) // 2])
    again = CliRunner().invoke(main, command)
    assert json.loads(again.stdout) == found
    assert judgements.read_bytes() == whole


def test_annotations_in_the_official_form():
    model, baseline = outputs("mine", ["one", "same", "", "long"]), outputs("base", ["two", "same", "full", "x"])
    ids = same_instructions(model, baseline)
    answers = [judged("0", 0.9, 0.3), judged("3", 0.5, 0.5, ("overlong",) * 2)]
    rows = official_rows(model, baseline, ids, answers, "J")
    # The baseline's response is the first, and is better with (0.9 + 0.7) / 2.
    assert [row["preference"] for row in rows] == [pytest.approx(1.2), 1.5, 1.0]
    assert rows[0] == {
        "instruction": "Ask 0",
        "output_1": "two",
        "generator_1": "base",
        "output_2": "one",
        "generator_2": "mine",
        "annotator": "J",
        "preference": pytest.approx(1.2),
    }
    with pytest.raises(InputError, match="mine:0: 'Ask 0' is not an instruction of AlpacaEval"):
        check_instructions(model, baseline)


def test_a_run_has_the_models_of_its_arm(tiny_run, tmp_path):
    arm = tiny_run / "direct"
    last = read_outputs(arm)
    assert last.model == "direct M_2"
    assert last.by_id == read_outputs(arm / "iteration-1").by_id
    first = read_outputs(arm / "iteration-0")
    assert (first.model, first.by_id.keys()) == ("direct M_1", last.by_id.keys())
    with pytest.raises(InputError, match="is not an arm of a run"):
        read_outputs(arm / "iteration-0" / "validation")
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run/direct/iteration-1/done/fold.json").unlink()
    with pytest.raises(InputError, match="is not a finished iteration"):
        read_outputs(tmp_path / "run/direct/iteration-1")


def test_no_interval_of_a_share_leaves_its_range():
    wide = Estimate(0.95, 0.1, 0.75, 1.15, 9)
    assert _row("Translation", wide) == ["Translation", "95.0", "75.0 to 100.0", "9"]
    assert _row("difference", Estimate(-0.9, 0.1, -1.1, -0.7, 9), least=-1.0)[2] == "-100.0 to -70.0"
