"""Arena-Hard's scores: published ones, fits against scikit-learn, what the files may hold and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from tests.helpers.shared import SHARED
from tpo_lite.cli import main
from tpo_lite.errors import InputError
from tpo_lite.evaluation.arena import scores
from tpo_lite.evaluation.arena_files import Answers, Battle, Battles, Style, count_markdown, read_answers, read_battles
from tpo_lite.evaluation.arena_style import style_controlled
from tpo_lite.evaluation.logistic import logistic

DATA = SHARED / "data" / "arena_hard"


def eval_arena(*arguments):
    return CliRunner().invoke(main, ["eval", "arena", *map(str, arguments)])


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def v01(question, first, second, model="mine"):
    """A judgement of version 0.1."""
    games = [{"score": first, "judgment": ""}, {"score": second, "judgment": ""}]
    return {"question_id": question, "model": model, "judge": "J", "games": games}


def v2(question, first, second, model="mine", category="hard_prompt"):
    """A judgement of version 2.0, whose games may be null."""
    games = [label and {"score": label, "judgment": {"answer": ""}} for label in (first, second)]
    about = {"uid": question, "category": category, "judge": "J", "model": model}
    return about | {"baseline": "o3-mini-2025-01-31", "games": games}


@pytest.mark.shared
def test_scores_are_the_published_ones():
    done = eval_arena("--battles", DATA / "battles_official_2models.jsonl", "--answers", DATA / "answers", "--json")
    assert done.exit_code == 0, done.output
    found = {model["model"]: model for model in json.loads(done.stdout)["models"]}
    assert round(found["gpt-4-0613"]["score"], 2) == 37.90
    assert round(found["gpt-3.5-turbo-0125"]["score"], 2) == 23.34
    assert [found[name]["avg_tokens"] for name in ("gpt-4-0314", "gpt-4-0613", "gpt-3.5-turbo-0125")] == [423, 354, 329]
    for name, low, high in (("gpt-4-0613", 35.6, 40.36), ("gpt-3.5-turbo-0125", 21.67, 25.27)):
        # The published ends come from 100 resamples: they are off by chance by about 0.5.
        assert found[name]["official_interval"] == [pytest.approx(low, abs=1), pytest.approx(high, abs=1)]
        # Questions have several votes each, so an interval over questions is wider.
        assert found[name]["interval"][0] < low < high < found[name]["interval"][1]


@pytest.mark.shared
def test_judgements_of_another_model():
    found = read_battles([DATA / "judgments_gpt4turbo_llama31_8b_82q.jsonl"])
    assert (found.unparsed, found.judges) == (2, ["gpt-4-1106-preview"])
    model = next(score for score in scores(found) if score.model == "Meta-Llama-3.1-8B-Instruct")
    assert model.score == pytest.approx(100 * (model.wins + model.ties / 2) / (model.wins + model.ties + model.losses))
    # 60 + 48 + 17 votes once, 19 + 18 three times, of which two games have none.
    assert model.wins + model.ties + model.losses == 60 + 48 + 17 + 3 * (19 + 18)


def test_labels_by_hand(tmp_path):
    """The first game shows the baseline as A, the second the model."""
    path = write_lines(tmp_path / "mine.jsonl", [v01("q1", "A>>B", "A>B"), v01("q2", "A=B", None)])
    found = read_battles([path])
    assert [(b.question, b.score, b.votes) for b in found.battles] == [("q1", 1.0, 3), ("q1", 0.0, 1), ("q2", 0.5, 1)]
    assert (found.unparsed, found.left_out, found.judges) == (1, 0, ["J"])
    mine = next(score for score in scores(found) if score.model == "mine")
    assert (mine.wins, mine.ties, mine.losses, mine.baseline) == (1, 1, 3, "gpt-4-0314")
    assert mine.score == pytest.approx(100 * 1.5 / 5)


def test_version_2_leaves_out_a_question_with_an_unreadable_game(tmp_path):
    rows = [v2("q1", "B<A", "A<<B"), v2("q2", "A>B", None), v2("q3", "A>B", "A>B", category="creative_writing")]
    found = read_battles([write_lines(tmp_path / "mine.jsonl", rows)])
    assert (found.unparsed, found.left_out) == (1, 1)
    by_category = {score.category: score for score in scores(found) if score.model == "mine"}
    assert by_category["hard_prompt"].losses == 4
    assert by_category["hard_prompt"].official_level == 0.9
    assert by_category["creative_writing"].score == 50


def battles(results):
    """Battles from (question, a, b, score of a)."""
    return Battles([Battle(*each[:1], "arena-hard-v0.1", *each[1:], 1) for each in results], [], 0, 0)


def test_models_that_met_each_other_are_fitted_by_bradley_terry():
    random = np.random.default_rng(2)
    strength = {"base": 0.0, "x": 1.0, "y": -0.5, "z": 0.3}
    results = []
    for number in range(900):
        a, b = random.choice(list(strength), 2, replace=False)
        won = random.random() < 1 / (1 + math.exp(strength[b] - strength[a]))
        results.append((f"q{number % 100}", str(a), str(b), 0.5 if number % 10 == 0 else float(won)))
    found = {score.model: score for score in scores(battles(results), "base")}

    names = sorted(strength)
    design = np.zeros((2 * len(results), len(names)))
    wins = np.zeros(2 * len(results))
    for row, (_, a, b, score) in enumerate(results):
        design[2 * row : 2 * row + 2, names.index(a)] = 1
        design[2 * row : 2 * row + 2, names.index(b)] = -1
        wins[2 * row : 2 * row + 2] = (score > 0, score == 1)  # a tie is a win and a loss
    fitted = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000).fit(design, wins).coef_[0]
    for name in ("x", "y", "z"):
        expected = 100 / (1 + math.exp(fitted[names.index("base")] - fitted[names.index(name)]))
        assert found[name].score == pytest.approx(expected, abs=1e-3)
        assert found[name].low < found[name].score < found[name].high


def test_the_interval_is_over_questions():
    """Ten votes on a question that say the same are one observation."""
    results = [(f"q{number}", "base", "mine", float(number % 2)) for number in range(40) for _ in range(10)]
    mine = next(score for score in scores(battles(results), "base") if score.model == "mine")
    assert mine.score == 50
    # Standard error of a share of 40: 7.9; of 400 votes: 2.5.
    assert mine.high - mine.low == pytest.approx(2 * 1.96 * 7.9, rel=0.12)
    assert mine.official_high - mine.official_low == pytest.approx(2 * 1.96 * 2.5, rel=0.25)


def test_a_model_that_never_wins_has_a_score():
    found = scores(battles([("q1", "base", "mine", 1.0), ("q2", "base", "mine", 1.0)]))
    assert {score.model: score.score for score in found} == {"base": 50, "mine": 0}


def test_what_is_no_baseline_is_named():
    circle = battles([("q", "x", "y", 1.0), ("q", "y", "z", 1.0), ("q", "z", "x", 1.0)])
    with pytest.raises(InputError, match="No single model is in all battles as the baseline. Name it: --baseline"):
        scores(circle)
    with pytest.raises(InputError, match="'w' is in no battle. The models are x, y, z"):
        scores(circle, "w")
    with pytest.raises(InputError, match="No chain of battles leads from x to the baseline z"):
        scores(battles([("q", "x", "y", 1.0), ("q", "z", "u", 1.0)]), "z")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"question_id": "q"}], "1 is neither a battle .* nor a judgement"),
        ([{"question_id": "q", "model_a": "x", "model_b": "x", "winner": "tie"}], "1 lets x play against itself"),
        (
            [{"question_id": "q", "model_a": "x", "model_b": "y", "winner": "x"}],
            "1: winner is 'x'. Give one of model_a",
        ),
        ([v01("q", "A>B", "C")], "1: score is 'C'. Give one of A>>B"),
        ([v01("q", "A>B", "A>B"), v01("q", "A>B", "A>B")], "2 judges mine on q again, after .*1"),
        ([v01("q", "A>B", "A>B") | {"games": []}], "1: games must be two"),
        ([v01("q", "A>B", "A>B", model="gpt-4-0314")], "1 lets gpt-4-0314 play against itself"),
        ([v01("q", "A>B", "A>B", model=None)], "1: uid .or question_id. and model are needed"),
        ([v01("q", "A>B", "A>B") | {"category": "chat"}], "1 does not name its baseline, and chat has none"),
        ([v01("q", None, None)], "no game has a verdict"),
    ],
)
def test_bad_lines_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_battles([write_lines(tmp_path / "mine.jsonl", rows)])


def test_the_command_exits_with_2(tmp_path):
    done = eval_arena("--battles", write_lines(tmp_path / "empty.jsonl", []))
    assert (
        done.exit_code,
        "is empty. Give a JSON or JSONL file with one battle or judgement per line" in done.stderr,
    ) == (
        2,
        True,
    )
    (tmp_path / "judge").mkdir()
    done = eval_arena("--battles", tmp_path / "judge")
    assert (done.exit_code, "holds no .jsonl file" in done.stderr) == (2, True)


TEXT = "# Tea\n- **hot**\n2. cold\n```\n# no heading\n```\n__x__"
FORMS = [
    {"question_id": "q", "answer": TEXT, "token_len": 9},
    {"question_id": "q", "model_id": "m", "choices": [{"index": 0, "turns": [{"content": TEXT, "token_len": 9}]}]},
    {
        "uid": "q",
        "model": "m",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": TEXT}}],
        "metadata": {"token_len": 9, "header_count": {"h1": 1}, "list_count": {"ordered": 1, "unordered": 1}},
    },
]


@pytest.mark.parametrize("row", FORMS)
def test_answers_of_each_form(tmp_path, row):
    found = read_answers(write_lines(tmp_path / "m.jsonl", [row]))
    assert (found.model, found.styles, found.average_tokens) == ("m", {"q": Style(9, 1, 2, 2)}, 9)
    assert count_markdown(TEXT) == {"header_count": 1, "list_count": 2, "bold_count": 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "q", "answer": "x"}], "1: token_len is None"),
        ([{"question_id": "q", "token_len": 3}], "1 is not an answer"),
        ([{"uid": "q", "messages": [], "metadata": {}}], "1 is not an answer"),
        ([FORMS[0], FORMS[0]], "2 answers q again"),
        ([FORMS[1], FORMS[1] | {"question_id": "r", "model_id": "n"}], "answers of m and n"),
    ],
)
def test_bad_answers_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_answers(write_lines(tmp_path / "m.jsonl", rows))


def style_case():
    """Battles whose judge prefers long answers, and the answers: mine are longer."""
    random = np.random.default_rng(4)
    questions = [f"q{number}" for number in range(300)]
    answers = {
        name: Answers(
            name, {q: Style(int(random.integers(50, 500)) + more, *random.integers(0, 6, 3)) for q in questions}
        )
        for name, more in (("base", 0), ("mine", 150))
    }
    found = []
    for q in questions:
        a, b = (answers[name].styles[q].tokens for name in ("base", "mine"))
        won = random.random() < 1 / (1 + math.exp(-4 * (a - b) / (a + b)))
        found.append(Battle(q, "arena-hard-v0.1", "base", "mine", float(won), int(random.integers(1, 4))))
    return found, answers


@pytest.mark.parametrize("version_01", [True, False])
def test_style_control_finds_equal_models_equal(version_01):
    found, answers = style_case()
    plain = np.average([1 - battle.score for battle in found], weights=[battle.votes for battle in found])
    controlled = style_controlled(found, ["base", "mine"], "base", answers, version_01)["mine"]
    assert plain > 0.65
    # Standardized features are 0 at the mean of these battles, so that a part of the preference for length stays.
    assert controlled.low < 100 * plain
    assert style_controlled(found, ["base", "mine"], "base", {"base": answers["base"]}, version_01) == {}


@pytest.mark.parametrize(("penalty", "c"), [(1.0, 1.0), (1e-9, np.inf)])
def test_the_logistic_fit_is_scikit_learns(penalty, c):
    random = np.random.default_rng(1)
    design = random.normal(size=(200, 5))
    wins = (random.random(200) < 1 / (1 + np.exp(-design @ [1.0, -0.5, 0.0, 2.0, 0.3]))).astype(float)
    weights = random.integers(1, 4, 200).astype(float)
    expected = (
        LogisticRegression(fit_intercept=False, C=c, tol=1e-12, max_iter=5000).fit(design, wins, weights).coef_[0]
    )
    assert logistic(design, wins, weights, penalty) == pytest.approx(expected, abs=1e-5)
