"""AlpacaEval 2's scores: published ones, the command, and where the score may bear the leaderboard's name."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.helpers.alpaca import made_up_rows, write_csv, write_difficulty
from tests.helpers.shared import SHARED
from tpo_lite.cli import main
from tpo_lite.evaluation.alpaca import name_of, score
from tpo_lite.evaluation.alpaca_annotations import Annotation, Annotations, read_annotations
from tpo_lite.evaluation.length_controlled import length_controlled

DATA = SHARED / "data" / "alpaca_eval2"
OFFICIAL = ("gpt4_1106_preview", "weighted_alpaca_eval_gpt4_turbo")


def eval_alpaca(*arguments):
    return CliRunner().invoke(main, ["eval", "alpaca", *map(str, arguments)])


def truth():
    with (DATA / "ground_truth_dev.csv").open(encoding="utf-8") as file:
        return {line["model"]: line for line in csv.DictReader(file)}


@pytest.mark.shared
def test_win_rates_are_the_published_ones():
    for model, published in truth().items():
        found = score(read_annotations(DATA / "annotations_dev" / f"{model}.csv")).to_dict()
        for ours, theirs in (
            ("win_rate", "published_win_rate"),
            ("discrete_win_rate", "published_discrete_win_rate"),
            ("standard_error", "published_standard_error"),
        ):
            assert found[ours] == pytest.approx(float(published[theirs]), abs=1e-6), (model, ours)
        assert found["n"] == int(published["n_rows"])
        if found["n"] == 805:
            assert found["avg_length"] == float(published["published_avg_length"])


@pytest.mark.shared
@pytest.mark.parametrize("model", ["phi-2", "FuseChat-Llama-3.1-8B-Instruct", "gpt4_1106_preview"])
def test_length_controlled_win_rates_are_the_published_ones(model):
    """phi-2 lacks two instructions, so that a join on the instruction would be off."""
    found = length_controlled(
        read_annotations(DATA / "annotations_dev" / f"{model}.csv"),
        DATA / "instruction_difficulty.csv",
        DATA / "df_gamed.csv",
        rounds=20,
    )
    assert found.value == pytest.approx(float(truth()[model]["published_lc_winrate"]), abs=0.2)
    assert found.low <= found.value <= found.high
    # The published errors, where there are any, are those of fitted values, and smaller than a resample's.
    published = truth()[model]["published_lc_se"]
    assert not published or found.standard_error > float(published)


def test_the_command_on_made_up_annotations(tmp_path):
    difficulty, gamed = write_difficulty(tmp_path)
    rows = made_up_rows(left_out=(7,))
    random.Random(1).shuffle(rows)
    annotations = write_csv(tmp_path / "mine.csv", rows)
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"{annotations} lacks instructions 7, counted from 0.\n"
    found = json.loads(done.stdout)
    assert {"win_rate", "discrete_win_rate", "length_controlled_winrate", "standard_error", "avg_length"} <= set(found)
    preferences = [row[4] for row in rows]
    assert found["n"] == 804
    assert found["win_rate"] == pytest.approx(100 * (sum(preferences) / 804 - 1))
    assert found["n_wins"] == sum(value > 1.5 for value in preferences)
    assert found["avg_length"] == sum(int(row[3]) for row in rows) // 804
    # The made-up judge likes length, and wins are sigma(-0.4) where lengths are equal: 40 %, with 1.97 and 1.02 for
    # the verdicts 40 %. The regulariser draws it a little towards the middle.
    low, high = found["length_controlled_interval"]
    assert low < 40 < high
    assert high - low < 10
    text = eval_alpaca("--annotations", annotations)
    assert "No length-controlled win rate without --difficulty" in text.stdout
    assert text.stdout.startswith("AlpacaEval prompts, judge that the file does not name: mine\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda lines: lines.pop(5), "lacks instruction 4"),
        (lambda lines: lines.__setitem__(5, "4,nan"), "difficulty.csv:6: instruction_difficulty is 'nan'"),
        (lambda lines: lines.__setitem__(5, "3,0.5"), "difficulty.csv:6 has instruction 3 again"),
        (lambda lines: lines.__setitem__(5, "4,9.5"), "gamed.csv:6 has another difficulty for instruction 4 than"),
    ],
)
def test_a_wrong_difficulty_file(tmp_path, write, message):
    difficulty, gamed = write_difficulty(tmp_path)
    lines = difficulty.read_text(encoding="utf-8").splitlines()
    write(lines)
    difficulty.write_text("\n".join(lines), encoding="utf-8")
    annotations = write_csv(tmp_path / "mine.csv", made_up_rows())
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_wrong_gamed_file_and_only_one_file(tmp_path):
    difficulty, gamed = write_difficulty(tmp_path)
    annotations = write_csv(tmp_path / "mine.csv", made_up_rows())
    lines = gamed.read_text(encoding="utf-8").splitlines()
    gamed.write_text("\n".join(lines[:-1]), encoding="utf-8")
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed)
    assert (done.exit_code, "has 1609 rows, not a multiple of 805" in done.stderr) == (2, True)
    gamed.write_text("\n".join([lines[0], *reversed(lines[1:])]), encoding="utf-8")
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed)
    assert (done.exit_code, "gamed.csv:2 has instruction 804 where 0 belongs" in done.stderr) == (2, True)
    done = eval_alpaca("--annotations", annotations, "--gamed", gamed)
    assert (done.exit_code, "needed together" in done.stderr) == (2, True)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    difficulty, gamed = write_difficulty(tmp_path)
    annotations = write_csv(tmp_path / "mine.csv", made_up_rows())
    (tmp_path / "alpaca_eval.py").write_text("raise ImportError('No module named alpaca_eval')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed)
    assert done.exit_code == 2
    assert (
        "needs the extra `eval` (No module named alpaca_eval). Install it: pip install 'tpo_lite[eval]'" in done.stderr
    )


def annotated(lengths, preferences, baseline=None, judge=None):
    rows = [Annotation(row, row, *lengths[row], preference) for row, preference in enumerate(preferences)]
    return Annotations(rows, "mine", baseline, judge)


def test_equal_length_differences_cannot_be_controlled(tmp_path):
    difficulty, gamed = write_difficulty(tmp_path)
    rows = [[row, index, 20, 10, preference] for row, index, _, _, preference in made_up_rows()]
    annotations = write_csv(tmp_path / "mine.csv", rows)
    done = eval_alpaca("--annotations", annotations, "--difficulty", difficulty, "--gamed", gamed)
    assert (done.exit_code, "differs from the baseline's by 10 characters" in done.stderr) == (2, True)


def test_counts_by_hand():
    found = score(annotated([(100, 10), (100, 200), (100, 131), (100, 130)], [1.0, 1.9, 1.2, 1.5]))
    assert (found.wins, found.draws, found.losses) == (1, 1, 2)
    assert found.win_rate.value == pytest.approx(40)  # (0 + 0.9 + 0.2 + 0.5) / 4
    assert found.discrete_win_rate.value == 1.5 / 4
    # The last one is even and 30 characters longer, the third is 31 longer and loses.
    assert (found.prefers_longer.value, found.prefers_longer.n) == (2 / 3, 3)


def test_only_the_leaderboards_judge_and_baseline_make_an_alpaca_eval_2_score():
    rows = ([(1, 2), (2, 1)], [1.0, 2.0])
    assert name_of(annotated(*rows, *OFFICIAL)) == "AlpacaEval 2"
    assert name_of(annotated(*rows, OFFICIAL[0], "Llama")) == "AlpacaEval prompts, judge Llama"
    assert name_of(annotated(*rows, "M_0", OFFICIAL[1])) == f"AlpacaEval prompts, judge {OFFICIAL[1]}, against M_0"


def test_scoring_loads_no_pandas():
    code = (
        "import sys, tpo_lite.evaluation.alpaca; print([name for name in ('pandas', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
