"""A run's model answers a file of instructions."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tpo_lite.cli import main


def test_answers_are_written_as_alpaca_eval_takes_them_and_resume(tiny_run, tmp_path):
    questions = tmp_path / "q.jsonl"
    rows = [{"instruction": f"Say {word}", "answer": word} for word in ("a", "b", "c")]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    command = ["eval", "answer", str(tiny_run / "direct"), "--questions", str(questions), "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "3 outputs of direct M_2; first attempts:" in done.stdout
    outputs = json.loads((out / "model_outputs.json").read_text(encoding="utf-8"))
    assert [each["instruction"] for each in outputs] == [row["instruction"] for row in rows]
    assert {(each["generator"], type(each["output"])) for each in outputs} == {("direct M_2", str)}
    samples = (out / "samples.jsonl").read_bytes()
    (out / "samples.jsonl").write_bytes(samples[: samples.index(b"\n") + 5])
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (out / "samples.jsonl").read_bytes() == samples

    scored = CliRunner().invoke(main, ["eval", "exact", str(out / "model_outputs.json"), "--regex", ".", "--json"])
    assert json.loads(scored.stdout)["n"] == 3
    other = CliRunner().invoke(main, [*command, "--suffix", "!"])
    assert (other.exit_code, "holds outputs with another suffix: ''" in other.stderr) == (2, True)
    command[2] = str(tiny_run)
    assert "is not an arm of a run" in CliRunner().invoke(main, command).stderr
