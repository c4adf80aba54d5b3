"""Controls beside a head to head: tables by hand, and the three commands on both arms of the embedded policy."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.stats

from tests.helpers.tiny_run import invoke
from tests.helpers.two_arms import two_untrained_arms
from tests.helpers.written_run import written_run
from tpo_lite.calibration.judged_pair import JudgedPair
from tpo_lite.errors import InputError
from tpo_lite.evaluation.arms import answers_in, beside, meeting, open_arms
from tpo_lite.evaluation.controls import Entrant, as_text, equal_tokens, pairs_of, tabulate
from tpo_lite.evaluation.majority import most_common
from tpo_lite.evaluation.outputs import Output, Outputs
from tpo_lite.evaluation.swap_thoughts import followed, partners
from tpo_lite.records import Comparison, Instruction, PromptSamples, Sample, read_jsonl, write_jsonl
from tpo_lite.run import RunFolder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Copy it before changing anything."""
    return two_untrained_arms(tmp_path_factory.mktemp("arms") / "run").root


@pytest.fixture
def run(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "run")
    return tmp_path / "run"


def entrant(key, responses, tokens, calls=None, answer="4"):
    outputs = {str(n): Output(f"Ask {n}", text, answer=answer) for n, text in enumerate(responses)}
    tokens = {str(n): count for n, count in enumerate(tokens)}
    return Entrant(key, Outputs(key, outputs), tokens, calls)


def test_a_prompt_is_the_unit_and_equal_responses_are_judged_once():
    first = entrant("one", ["4", "4", "5", "long"], [10, 20, 30, 40])
    best = entrant("best", ["4", "5", "4", ""], [50, 50, 50, 50], {str(n): 6 for n in range(4)})
    vote = entrant("vote", ["5", "5", "5", "x"], [1, 1, 1, 1])
    pairs = pairs_of([first, best, vote])
    assert [pair.id for pair in pairs] == ["best:1", "best:2", "vote:0", "vote:3"]  # vote:1 is best:1
    answers = [
        JudgedPair(pair.id, "all", None, None, [Comparison(1, 2, p, "A"), Comparison(2, 1, q, "B")], soft=True)
        for pair, (p, q) in zip(pairs, [(0.9, 0.3), (0.2, 0.6), (0.8, 0.4), (0.5, 0.5)], strict=True)
    ]
    found = tabulate("T", [first, best, vote], answers, "J", 8)
    wins = [0.5, 0.8, 0.3, 1.0]
    _, against_best, against_vote = found.rows
    assert against_best.win_rate.value == pytest.approx(np.mean(wins))
    assert against_best.win_rate.standard_error == pytest.approx(scipy.stats.sem(wins))
    assert against_vote.win_rate.value == pytest.approx(np.mean([0.7, 0.8, 0.5, 0.5]))
    assert (against_best.calls.value, against_best.tokens.value, against_best.accuracy.value) == (6, 50, 0.5)
    assert against_best.difference.value == pytest.approx(np.mean([0, 1, -1, 0]))
    assert against_best.difference.standard_error == pytest.approx(scipy.stats.sem([0, 1, -1, 0]))
    data = found.to_dict()
    assert all(row[f"{name}_n"] == 4 for row in data["rows"] for name in ("tokens", "judge_calls", "accuracy"))
    assert data["rows"][0]["win_rate_n"] == 0
    assert "judge of these: J, 8 calls" in as_text(found)


def test_without_a_judge_there_are_no_win_rates():
    found = tabulate("T", [entrant("a", ["4"], [1]), entrant("b", ["5"], [2])], None, None, 0)
    assert found.rows[1].win_rate is None
    assert found.to_dict()["rows"][1]["tokens_interval"] is None  # one prompt alone
    assert "judge of these" not in as_text(found)


def test_equal_tokens_never_gives_the_direct_model_less():
    assert equal_tokens({"p": 31}, {"p": 10}) == 4
    assert equal_tokens({"p": 30}, {"p": 10}) == 3
    assert equal_tokens({"p": 3}, {"p": 10}) == 1


def test_the_majority_does_not_know_the_right_answer():
    assert most_common(["5", "The answer is 4.", "4", "It is 7"]) == "The answer is 4."
    assert most_common(["5", "4"]) == "5"
    assert most_common([]) == ""


def prompt(id, response, answer="4"):
    sample = Sample(0, [1], response, "ok", "", response, 0, 1)
    return PromptSamples(Instruction(id, f"Ask {id}", "here", answer=answer), [1], [sample])


def test_whose_thought_is_followed():
    partner = partners({"a": prompt("a", "1"), "b": prompt("b", "2"), "c": prompt("c", "1")})
    assert partner == {"a": "b", "b": "c", "c": "a"}
    own = {"a": prompt("a", "1"), "b": prompt("b", "2"), "c": prompt("c", "1")}
    # a follows b; b does not follow c; nothing shows for c, whose answer is a's.
    other = {"a": prompt("a", "The answer is 2."), "b": prompt("b", "2"), "c": prompt("c", "1")}
    found = followed(own, other, partner)
    assert (found.value, found.n) == (0.5, 2)
    with pytest.raises(InputError, match="no thoughts can be swapped"):
        partners({"a": prompt("a", "1")})


def test_bad_rows_of_answers_are_named(tmp_path):
    asked = [prompt(id, "1").instruction for id in "ab"]
    path = tmp_path / "answers.jsonl"
    for rows, message in [
        ("aba", ":3 answers 'Ask a' again"),
        ("abc", ":3: 'Ask c' is not an instruction of the slice"),
        ("b", "lacks answers to 1 of 2 instructions, the first of which is 'Ask a'"),
    ]:
        write_jsonl(path, [prompt(id, "1") for id in rows])
        with pytest.raises(InputError, match=message):
            answers_in(path, asked)
    write_jsonl(path, [prompt(id, "1") for id in "ba"])
    assert list(answers_in(path, asked)) == ["a", "b"]  # the slice's order


def table(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_best_of_n_resumes_and_stands_beside_the_head_to_head(run):
    command = ["eval", "best-of", run, "--at", "0", "--n", "3"]
    found = table(invoke(*command, "--json"))
    assert [row["name"] for row in found["rows"]] == [
        "thinking M_0, one answer",
        "direct M_0, one answer",
        "direct M_0, best of 3",
    ]
    single, best = found["rows"][1:]
    assert best["tokens"] > single["tokens"] and best["judge_calls"] > 0 == single["judge_calls"]
    assert best["win_rate_n"] == best["accuracy_n"] == 6
    assert "the judge that picks also scores" in found["notes"][0].lower()
    here = run / "evaluation" / "M_0"
    samples = {x.instruction.id: x for x in read_jsonl(here / "direct-3.jsonl", PromptSamples)}
    assert {len(x.samples) for x in samples.values()} == {3}
    files = [
        here / "direct-3.jsonl",
        here / "direct-3-judgements.jsonl",
        here / "best-of" / "judgements-best-of-3.jsonl",
    ]
    whole = [path.read_bytes() for path in files]
    for path, content in zip(files, whole, strict=True):
        path.write_bytes(content[: len(content) // 2])
    assert table(invoke(*command, "--json")) == found
    assert [path.read_bytes() for path in files] == whole
    lines = (here / "best-of" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(json.loads(line)["rows"] == found["rows"] for line in lines)

    met = invoke("eval", "versus", run, "--at", "0")
    assert met.exit_code == 0, met.output
    assert "thinking M_0 against direct M_0" in met.stdout and "direct M_0, best of 3" in met.stdout
    assert f"tpo-lite eval majority {run} --at 0" in met.stdout
    assert "eval best-of" not in met.stdout
    figures = table(invoke("eval", "versus", run, "--at", "0", "--json"))
    assert {name: each["rows"] for name, each in figures["controls"].items()} == {"best-of": found["rows"]}


def test_majority_counts_no_judge_calls(run):
    found = table(invoke("eval", "majority", run, "--at", "0", "--n", "2", "--json"))
    assert [row["name"] for row in found["rows"][2:]] == ["direct M_0, majority of 2", "thinking M_0, majority of 2"]
    assert found["judge"] is None and found["rows"][2]["judge_calls"] == 0
    assert found["rows"][3]["tokens"] > found["rows"][2]["tokens"]
    for path in (run / "instructions" / "test.jsonl",):
        rows = [{**json.loads(line), "answer": None} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = invoke("eval", "majority", run, "--at", "0")
    assert (refused.exit_code, "has a known answer" in refused.stderr) == (2, True)


def test_swapped_thoughts_are_moved_exactly_as_sampled(run):
    found = table(invoke("eval", "swap-thoughts", run, "--at", "0", "--json"))
    arms = open_arms(run, 0)
    answers = {x.instruction.id: x for x in arms.answers("thinking").values() if x.samples[-1].thought}
    kinds = {
        kind: {
            x.instruction.id: x.samples[0]
            for x in read_jsonl(arms.out / "swap-thoughts" / f"{kind}.jsonl", PromptSamples)
        }
        for kind in ("own", "other", "talk")
    }
    assert len(answers) >= 2
    partner = partners(answers)
    for id, answer in answers.items():
        thought, theirs = answer.samples[-1], answers[partner[id]].samples[-1]
        assert kinds["own"][id].thought == thought.thought
        assert kinds["other"][id].thought == theirs.thought
        beginning = next(
            n
            for n, (x, y) in enumerate(zip(kinds["own"][id].token_ids + [-1], thought.token_ids + [-2], strict=False))
            if x != y
        )
        assert beginning > thought.thought_tokens  # the same tokens, not the same text
        assert kinds["talk"][id].thought.startswith("Let me think about")
        assert abs(kinds["talk"][id].thought_tokens - thought.thought_tokens) <= 2
    assert [row["name"].partition(", ")[2] for row in found["rows"]] == [
        "own thought",
        "another prompt's thought",
        "empty talk",
        "one answer",
    ]
    assert {row["tokens_n"] for row in found["rows"]} == {len(answers)}


def test_which_folders_have_controls(run, tmp_path):
    arms = open_arms(run, 0)
    assert "Not asked yet" in beside(arms)
    assert meeting(tmp_path, run / "recipe.yaml") is None
    both = written_run(tmp_path / "written", iterations=1, baseline=True, test=True).root
    assert meeting(both / "thinking", both / "direct").model == 1
    assert meeting(both / "thinking", both / "thinking") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "versus", "RUN"], "has no finished iteration of both arms"),
        (["eval", "best-of", "RUN", "--at", "3"], "--at 3: both arms have M_0 to M_0"),
        (["eval", "best-of", "ONE"], "has only the thinking arm"),
        (["eval", "best-of", "RUN", "--at", "0", "--set", "max_calls=3"], "--set belongs to a judge"),
        (["eval", "versus", "RUN", "RUN"], "Two models need --judge and --out"),
        (["eval", "versus", "NONE"], "is not a run folder"),
    ],
)
def test_what_does_not_go_together_is_said(untrained, tmp_path, arguments, message):
    one = written_run(tmp_path / "one", iterations=1)
    (tmp_path / "none").mkdir()
    named = {"RUN": untrained, "ONE": one.root, "NONE": tmp_path / "none"}
    refused = invoke(*(named.get(each, each) for each in arguments))
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output


def test_a_run_that_is_being_evaluated_is_in_use(untrained):
    with RunFolder(untrained).lock("evaluation"):
        refused = invoke("eval", "majority", untrained, "--at", "0")
    assert "is in use by process" in refused.stderr
