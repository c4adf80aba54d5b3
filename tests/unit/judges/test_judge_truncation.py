"""Pairs too long for the GGUF judge's context: dropped, or cut in the middle of the longer response."""

from __future__ import annotations

import json

import pytest

from tests.helpers.tiny_judge import REQUESTS, SHORT, leaf_of, prompt_of
from tests.helpers.tiny_run import invoke
from tpo_lite.judges import gguf_prompt
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.prompts import CUT_MARK, cut_middle
from tpo_lite.judges.protocol import JudgeRequest


def test_overlong_pairs_are_dropped_one_by_one(tiny_judge):
    judge = GgufJudge(tiny_judge, "verdict", template=SHORT, n_ctx=256, n_threads=1)
    long = JudgeRequest("Which?", "ab " * 150, "short")
    verdicts = judge.compare([REQUESTS[0], long, REQUESTS[1]])

    assert [v.label == "overlong" for v in verdicts] == [False, True, False]
    assert verdicts[1].p_a == 0.5
    assert verdicts[::2] == judge.compare([REQUESTS[0], REQUESTS[1]])


@pytest.mark.parametrize("mode", ["verdict", "explain"])
def test_overlong_pairs_lose_the_middle_of_the_longer_response(tiny_judge, mode):
    judge = GgufJudge(tiny_judge, mode, template=SHORT, explain_tokens=20, overlong="truncate", n_ctx=256, n_threads=1)
    long, short = "begin " + "x" * 300 + " end", "short"
    for request in (JudgeRequest("Which?", long, short), JudgeRequest("Which?", short, long)):
        leaf = leaf_of(judge, request)
        assert 230 < leaf.room <= 256
        text = prompt_of(judge, request)
        assert "begin x" in text and "x end" in text and short in text and text.count(CUT_MARK) == 1
        assert judge.compare([request])[0].label != "overlong"
    (hopeless,) = judge.compare([JudgeRequest("x" * 300, "a", "b")])
    assert hopeless.label == "overlong"


@pytest.mark.parametrize("text", ["汉字漢字測試文本" * 40, "é" * 300, "🫠🧿" * 80])
def test_cutting_ends_where_characters_have_several_tokens(tiny_judge, text, monkeypatch):
    """A cut leaves halves of characters, and U+FFFD in their place costs more tokens than it saved."""
    cuts = []

    def counted(*arguments: object) -> str | None:
        cuts.append(arguments)
        assert len(cuts) < 30
        return cut_middle(*arguments)

    monkeypatch.setattr(gguf_prompt, "cut_middle", counted)
    judge = GgufJudge(tiny_judge, template=SHORT, overlong="truncate", n_ctx=256, n_threads=1)
    for tail in range(6):
        cuts.clear()
        leaf = leaf_of(judge, JudgeRequest("Which?", text + "x" * tail, "short"))
        assert 200 < leaf.room <= 256


def test_cutting_takes_from_both_once_they_are_alike(tiny_judge):
    judge = GgufJudge(tiny_judge, template=SHORT, overlong="truncate", n_ctx=256, n_threads=1)
    a, b = "a" * 300, "b" * 200
    shown = [prompt_of(judge, JudgeRequest("Which?", *order)) for order in ((a, b), (b, a))]
    for text in shown:
        assert abs(text.count("a") - text.count("b")) < 20
        assert min(text.count("a"), text.count("b")) > 60
    assert sorted(shown[0]) == sorted(shown[1])  # the same cuts
    # With one much longer than the other, the other stays whole.
    text = prompt_of(judge, JudgeRequest("Which?", a, "b" * 30))
    assert "b" * 30 in text


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_calibrate_counts_overlong_pairs_or_cuts_them(tiny_judge, overlong, tmp_path):
    rows = [{"instruction": "Say it.", "response_1": "x" * n, "response_2": "no", "label": 1} for n in (5, 400, 7)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (f"--set=template='{SHORT}'", f"--set=overlong={overlong}", "--context", 256)
    done = invoke("judge", "calibrate", pairs, "--judge", tiny_judge, *options)
    assert done.exit_code == 0, done.output
    dropped = "too long for 256 tokens: 1 of 3 pairs (pairs:1). Raise --context"
    assert (dropped in done.output) == (overlong == "drop")
