"""The spending stop of a judge behind a server, and answers that are paid once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.stub_server import REQUEST, REQUESTS, Reply, no_waiting, replies, says, stub
from tests.helpers.tiny_run import invoke
from tpo_lite.errors import InputError, TpoError
from tpo_lite.judges.open import open_judge
from tpo_lite.judges.openai_server import CallBudget, OpenAiJudge
from tpo_lite.recipe_keys import JudgeSettings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    no_waiting(monkeypatch)


def test_no_request_is_sent_beyond_max_calls(tmp_path):
    counter = tmp_path / "calls"
    with stub(replies(says("[[A]]"))) as (url, received):
        settings = JudgeSettings(mode="openai", base_url=url, max_calls=5)
        open_judge(settings, calls=counter).compare(REQUESTS[:3])
        # The next process of the run.
        judge = open_judge(settings, calls=counter)
        with pytest.raises(TpoError, match="3 of 5 allowed requests were sent; 3 more are needed. Delete .*calls, "):
            judge.compare(REQUESTS)
        assert len(received) == 3
        assert len(judge.compare(REQUESTS[:5])) == 5
        assert len(received) == 5
        counter.unlink()
        assert len(open_judge(settings, calls=counter).compare(REQUESTS)) == 6
    assert len(received) == 6


def test_an_answer_is_paid_once_and_outlives_a_stop(tmp_path):
    """What was answered before a failure in the same group is neither lost nor asked again."""
    counter, kept = tmp_path / "judge-calls", tmp_path / "judge-replies.jsonl"
    broken = ["Add 3"]

    def answer(path: str, body: dict) -> Reply:
        text = body["messages"][0]["content"]
        if any(each in text for each in broken):
            return Reply(404)
        return says("Two. [[B]]" if "Add 1" in text else "Three." if "Add 2" in text else "[[A]]")

    with stub(answer) as (url, received):
        template = "{instruction}|{response_a}|{response_b}"
        settings = JudgeSettings(mode="openai", base_url=url, template=template, sequences=1, max_calls=7)
        with pytest.raises(InputError, match="judge.model"):
            open_judge(settings, calls=counter).compare(REQUESTS)
        broken.clear()
        # A kill may leave half a line.
        kept.write_bytes(kept.read_bytes() + b'{"request": "')
        verdicts = open_judge(settings, calls=counter).compare(REQUESTS)
    assert [verdict.label for verdict in verdicts] == ["A", "B", "unparsed", "A", "A", "A"]
    assert [verdict.explanation for verdict in verdicts[1:3]] == ["Two. [[B]]", "Three."]
    sent = sorted(body["messages"][0]["content"][4] for _, _, body in received)
    assert sent == ["0", "1", "2", "3", "3", "4", "5"]
    assert counter.read_text() == "7\n"


def test_another_prompt_or_model_is_another_request(tmp_path):
    with stub(replies(says("[[A]]"))) as (url, received):
        template = "{instruction}{response_a}{response_b}"
        for changes in ({}, {"model": "n"}, {"template": template}, {"explain_tokens": 9}):
            settings = JudgeSettings(mode="openai", base_url=url, **changes)
            open_judge(settings, calls=tmp_path / "calls").compare([REQUEST])
    assert len(received) == 4


def test_equal_requests_are_sent_once():
    with stub(replies(says("[[A]]"))) as (url, received):
        judge = OpenAiJudge("m", url)
        assert [verdict.label for verdict in judge.compare([REQUEST] * 3) + judge.compare([REQUEST])] == ["A"] * 4
    assert len(received) == 1


def test_repeated_requests_count(tmp_path):
    counter = tmp_path / "calls"
    with stub(replies(Reply(500))) as (url, received):
        settings = JudgeSettings(mode="openai", base_url=url, max_calls=4)
        with pytest.raises(TpoError, match="judge.max_calls: 4 of 4 allowed requests were sent; 1 more is needed"):
            open_judge(settings, calls=counter).compare([REQUEST])
    assert len(received) == 4
    assert counter.read_text() == "4\n"


def test_a_damaged_counter_is_named(tmp_path):
    (tmp_path / "calls").write_text("many")
    with pytest.raises(InputError, match="calls is damaged. Write the number of requests"):
        CallBudget(3, tmp_path / "calls")


def test_run_stops_at_max_calls_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("tpo_lite.calibration.ask.PAIRS_AT_ONCE", 2)
    rows = [{"instruction": f"Say {i}.", "response_1": str(i), "response_2": "no", "label": 1} for i in range(5)]
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stub(replies(says("[[A]]"))) as (url, received):
        arguments = ("judge", "run", pairs, "--judge", "m", "--mode", "openai", "--out", out, f"--set=base_url={url}")
        done = invoke(*arguments, "--set", "max_calls=9")
        assert done.exit_code == 1
        assert "judge.max_calls: 8 of 9 allowed requests were sent; 2 more are needed. Delete" in done.output
        assert len(out.read_text().splitlines()) == 4
        done = invoke(*arguments, "--set", "max_calls=10")
        assert done.exit_code == 0, done.output
    assert len(received) == 10
    assert len(out.read_text().splitlines()) == 5
    assert Path(f"{out}.calls").read_text() == "10\n"
