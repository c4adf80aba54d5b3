"""Runs side by side: figures of runs written by hand, over seeds, and files that are damaged."""

from __future__ import annotations

import json

import pytest

from tests.helpers.tiny_run import invoke
from tests.helpers.written_run import written_run
from tpo_lite.intervals import share
from tpo_lite.people.compare import as_text, compare
from tpo_lite.records import MatchResult, PromptSamples, read_jsonl, write_jsonl


def made(root, seed=0, wins=(1.0, 0.5, 0.0)):
    """A run with both arms and a test slice; `wins` are those of thinking M_1 against M_0."""
    run = written_run(root, iterations=1, baseline=True, test=True)
    answers = list(read_jsonl(run.test_of("thinking", 1), PromptSamples))
    write_jsonl(run.instructions("test"), [answer.instruction for answer in answers])
    ids = [answer.instruction.id for answer in answers]
    matches = [MatchResult(id, win) for id, win in zip(ids, wins, strict=True)]
    write_jsonl(run.match_with("thinking", 1, "M_0"), reversed(matches))  # other row orders are the same
    write_jsonl(run.match_of_arms(1), [MatchResult(id, 1.0) for id in ids])
    for name in ("recipe.yaml", "settled.yaml"):
        path = root / name
        path.write_text(path.read_text().replace("seed: 0\n", f"seed: {seed}\n"))
    return run


def row(found, arm, model, run=None):
    return next(each for each in found.rows if (each.arm, each.model) == (arm, model) and run in (None, each.run))


def test_every_model_has_its_figures_with_interval_and_n(tmp_path):
    run = made(tmp_path / "run")
    found = compare([run.root])
    assert [(each.arm, each.model) for each in found.rows] == [
        ("thinking", 0),
        ("thinking", 1),
        ("direct", 0),
        ("direct", 1),
    ]
    first, last = row(found, "thinking", 0), row(found, "thinking", 1)
    assert (first.win_rate, first.versus_direct, first.hours) == (None, None, 0)
    assert last.win_rate.value == 0.5 and last.win_rate.n == 3
    assert last.win_rate.low == pytest.approx(share(1.5, 3).low)
    assert (last.versus_direct.value, last.answered.accuracy.n) == (1.0, 2)
    assert last.tokens.value == 3 and last.tokens.n == 3  # each written sample k = 0 has three tokens
    assert last.hours == pytest.approx(9 * 30 / 3600)  # nine phases of 30 s
    assert row(found, "direct", 1).win_rate.value == 1.0
    assert found.seeds == []
    text = as_text(found)
    assert f"{run.root} thinking M_1" in text and "100 (" in text


def test_without_a_test_slice_the_validation_slice_is_named(tmp_path):
    run = written_run(tmp_path / "run", iterations=2)
    found = compare([run.root])
    assert [each.held_out for each in found.rows] == ["validation"] * 3
    assert row(found, "thinking", 2).win_rate.value == 0.75
    assert "M_2 (validation)" in as_text(found)


def test_means_over_seeds_are_those_of_runs_that_differ_in_the_seed_only(tmp_path):
    runs = [made(tmp_path / str(seed), seed, wins).root for seed, wins in enumerate([(1, 1, 1), (1, 0.5, 0)])]
    other = written_run(tmp_path / "other", iterations=1)
    found = compare([*runs, other.root])
    last = next(each for each in found.seeds if (each.arm, each.model) == ("thinking", 1))
    assert last.runs == [str(run) for run in runs]
    assert (last.win_rate.value, last.win_rate.n) == (0.75, 2)
    assert last.win_rate.half_width == pytest.approx(12.7062 * 0.25)  # t of one degree of freedom
    assert last.hours.half_width == 0
    assert {str(other.root)}.isdisjoint(name for each in found.seeds for name in each.runs)
    assert "means over runs that differ in the seed only" in as_text(found)


def test_a_repetition_is_appended(tmp_path):
    run, out = made(tmp_path / "run").root, tmp_path / "all.jsonl"
    for _ in range(2):
        done = invoke("compare", run, "--out", out, "--json")
        assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["rows"] == lines[1]["rows"] == json.loads(done.stdout)["rows"]
    assert all(line["at"] and line["tpo_lite"] for line in lines)
    out.write_text('{"prompt": "mine"}\n')
    refused = invoke("compare", run, "--out", out)
    assert (refused.exit_code, "1 is not an evaluation" in refused.stderr) == (2, True)
    assert out.read_text() == '{"prompt": "mine"}\n'


def test_bad_verdicts_are_named(tmp_path):
    run = made(tmp_path / "run")
    path = run.match_with("thinking", 1, "M_0")
    for wins, message in [
        ([("test-0", float("nan"))], ":1: win nan is not between 0 and 1"),
        ([("test-0", 1.0), ("test-1", 1.5)], ":2: win 1.5 is not between 0 and 1"),
        ([("test-0", 1.0), ("test-0", 1.0)], ":2 judges 'test-0' again"),
        ([("other", 1.0)], ":1: 'other' is not an instruction of the slice"),
    ]:
        write_jsonl(path, [MatchResult(*each) for each in wins])
        refused = invoke("compare", run.root)
        assert (refused.exit_code, f"{path}{message}" in refused.stderr) == (2, True), refused.stderr
    # Verdicts that are not whole yet give no rate.
    write_jsonl(path, [MatchResult("test-0", 1.0)])
    assert row(compare([run.root]), "thinking", 1).win_rate is None


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    run = made(tmp_path / "run").root
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([run, run / ".." / "run"], "again. Give each run once."),
        ([tmp_path / "empty"], "is not a run folder"),
    ]:
        refused = invoke("compare", *arguments)
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    for arm in ("thinking", "direct"):
        (run / arm / "iteration-0" / "done" / "test.json").unlink()
    assert "has no finished iteration yet" in invoke("compare", run).stderr
