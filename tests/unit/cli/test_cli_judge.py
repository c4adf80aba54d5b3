"""`tpo-lite judge`: its commands on recorded files and tiny judges, and the phase behind it."""

from __future__ import annotations

import json
import re
import subprocess
from xml.etree import ElementTree

import pytest

from tests.helpers.shared import DATA, SHARED
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_run import command, invoke
from tpo_lite.calibration import ask
from tpo_lite.calibration.ask import PAIRS_AT_ONCE
from tpo_lite.calibration.result_files import read_outputs

LLMBAR = SHARED / "data/llmbar"
OURS = DATA / "llmbar"
PLAIN = OURS / "judge_outputs/plain.jsonl"
GPT4 = LLMBAR / "judge_outputs/GPT-4_CoT.jsonl"


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Judges by what they say: "random", always "A" after some words, and "nothing" that is a verdict."""
    folder = tmp_path_factory.mktemp("judges")
    scripts = {"random": (), "A": ("ĊĊ", "O", "k", ".", "[[", "A"), "nothing": ("ĊĊ", "O", "k", "<|eot_id|>")}
    return {name: write_tiny_gguf(folder / f"{name}.gguf", script=script) for name, script in scripts.items()}


@pytest.fixture
def pairs(tmp_path):
    """Labelled pairs, enough for one unit of work and a part of another."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": f"Say {i}.", "response_1": str(i) * (1 + i % 3), "response_2": "no", "label": 1 + i % 2}
        for i in range(PAIRS_AT_ONCE + 8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.shared
def test_stats_of_published_outputs():
    done = invoke("judge", "stats", GPT4)
    assert done.exit_code == 0
    assert done.output.startswith(
        "GPT-4_CoT.jsonl: 419 pairs, both orders\n"
        "838 verdicts parsed from text, and compared with the recorded ones: 0 pairs differ\n"
    )
    (natural,) = [line for line in done.output.splitlines() if line.startswith("Natural")]
    assert natural.split() == [
        "Natural",
        "100",
        "94.5",
        "%",
        "94.0",
        "%",
        "95.0",
        "%",
        "90.0",
        "%",
        "90.0",
        "%",
        "91.0",
        "%",
        "9.0",
        "%",
        "51.5",
        "%",
        "0.0",
        "%",
    ]
    assert "longer wins" not in done.output


def test_stats_of_recorded_outputs():
    done = invoke("judge", "stats", PLAIN)
    assert done.exit_code == 0
    assert done.output.startswith(
        "plain.jsonl: 6 pairs, both orders\n"
        "12 verdicts parsed from text, and compared with the recorded ones: 0 pairs differ\n"
    )
    (natural,) = [line for line in done.output.splitlines() if line.startswith("Natural")]
    assert natural.split()[:12] == ["Natural", "4", "62.5", "%", "75.0", "%", "50.0", "%", "50.0", "%", "50.0", "%"]
    assert "longer wins" not in done.output


def test_a_reader_that_goes_is_no_error():
    process = subprocess.Popen(command("judge", "stats", PLAIN), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.shared
def test_stats_of_a_published_judge_as_json():
    done = invoke("judge", "stats", GPT4, "--gold", LLMBAR / "Natural.json", "--json")
    found = json.loads(done.output)
    assert (found["recorded"], found["differing"], list(found["groups"])) == (838, [], ["Natural"])
    assert found["report"] == found["groups"]["Natural"]
    assert (found["report"]["pairs"], found["report"]["accuracy"]["value"]) == (100, 0.945)
    # One of the pairs has responses of equal length.
    assert found["report"]["length_bias"]["longer_wins"]["n"] == 198
    assert found["report"]["reliability"] is None


def test_stats_with_gold_as_json():
    done = invoke("judge", "stats", PLAIN, "--gold", OURS / "Natural.json", "--json")
    found = json.loads(done.output)
    assert (found["recorded"], found["differing"], list(found["groups"])) == (12, [], ["Natural"])
    assert found["report"] == found["groups"]["Natural"]
    assert (found["report"]["pairs"], found["report"]["accuracy"]["value"]) == (4, 0.625)
    assert found["report"]["length_bias"]["longer_wins"]["n"] == 8
    assert found["report"]["reliability"] is None


def test_calibrate_in_the_terminal(judges, pairs, tmp_path):
    plot = tmp_path / "plot.svg"
    done = invoke("judge", "calibrate", "--judge", judges["random"], pairs, "--plot", plot)
    assert done.exit_code == 0, done.output
    assert f"random.gguf verdict on pairs.jsonl: {PAIRS_AT_ONCE + 8} pairs, both orders" in done.output
    assert f"{2 * PAIRS_AT_ONCE + 16} calls in " in done.output
    assert " calls/s, " in done.output
    assert "ECE of P(A)" in done.output
    assert "A was better (bar), as said (|)" in done.output
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_the_embedded_judge_explains_unless_told_otherwise(pairs):
    calibrated = json.loads(invoke("judge", "calibrate", "--judge", "embedded", pairs, "--json").output)
    assert calibrated["judge"] == "embedded explain"
    asked = json.loads(invoke("judge", "calibrate", "--judge", "embedded", "--mode", "verdict", pairs, "--json").output)
    assert asked["judge"] == "embedded verdict"


def test_calibrate_in_explain_mode(judges, pairs):
    found = json.loads(
        invoke("judge", "calibrate", "--judge", judges["A"], pairs, "--mode", "explain", "--json").output
    )
    assert found["judge"] == "A.gguf explain"
    assert found["report"]["first_slot_rate"]["value"] == 1.0
    assert found["report"]["flip_rate"]["value"] == 1.0
    assert found["report"]["accuracy"]["value"] == 0.5
    assert found["report"]["unparsed"]["value"] == 0.0
    assert found["calls_per_second"] == pytest.approx(found["calls"] / found["seconds"])
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    said = json.loads(
        invoke("judge", "calibrate", "--judge", judges["nothing"], pairs, "--mode", "explain", "--json").output
    )
    assert said["report"]["unparsed"]["value"] == 1.0
    assert said["report"]["accuracy"]["value"] == 0.0
    # The verdict was forced, and its probability still counts.
    assert sum(found["a_better"]["n"] for found in said["report"]["reliability"]["bins"]) == said["calls"]


def test_run_writes_both_orders_and_stats_reads_them(judges, pairs, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"out.jsonl: {PAIRS_AT_ONCE + 8} pairs, both orders, by random.gguf verdict\n")
    judged = read_outputs(out).pairs
    assert [pair.id for pair in judged] == [f"pairs:{i}" for i in range(PAIRS_AT_ONCE + 8)]
    assert {(c.first, c.second) for pair in judged for c in pair.comparisons} == {(1, 2), (2, 1)}
    assert all(c.verdict == ("A" if c.p_first > 0.5 else "B") for pair in judged for c in pair.comparisons)
    calibrated = json.loads(invoke("judge", "calibrate", "--judge", judges["random"], pairs, "--json").output)
    stats = json.loads(invoke("judge", "stats", out, "--json").output)
    assert stats["report"] == calibrated["report"]


def test_run_goes_on_after_a_stop(judges, pairs, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    arguments = ("judge", "run", pairs, "--judge", judges["random"], "--out")
    invoke(*arguments, whole)

    asked = []
    original = ask.judge_both_orders

    def interrupted(judge, group, name):
        asked.append([pair.id for pair in group])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(judge, group, name)

    monkeypatch.setattr(ask, "judge_both_orders", interrupted)
    done = invoke(*arguments, stopped)
    assert done.exit_code == 130
    assert "Run the same command to go on." in done.output
    assert len(stopped.read_text().splitlines()) == PAIRS_AT_ONCE
    # A kill may leave half a line.
    stopped.write_bytes(b"".join(stopped.read_bytes().splitlines(keepends=True)[:-1]) + b'{"id": "pai')
    assert invoke(*arguments, stopped).exit_code == 0
    assert stopped.read_bytes() == whole.read_bytes()
    # The first group is judged again for its missing pair, and a finished file asks nothing.
    assert [len(ids) for ids in asked[2:]] == [PAIRS_AT_ONCE, 8]
    done = invoke(*arguments, stopped)
    assert (done.exit_code, len(asked)) == (0, 4)
    assert stopped.read_bytes() == whole.read_bytes()


def test_run_refuses_a_file_that_is_not_its_own(judges, pairs, tmp_path):
    out = tmp_path / "out.jsonl"
    invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    before = out.read_bytes()
    done = invoke("judge", "run", pairs, "--judge", judges["A"], "--out", out)
    assert done.exit_code == 2
    assert "was written by 'random.gguf verdict', not 'A.gguf verdict'" in done.output
    done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out, "--context", 4096)
    assert "was written by 'random.gguf verdict' with another context. Give" in done.output
    changed = tmp_path / "random.gguf"
    data = bytearray(judges["random"].read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    done = invoke("judge", "run", pairs, "--judge", changed, "--out", out)
    assert "was written by 'random.gguf verdict' with another model file. Give" in done.output
    inputs = out.with_name("out.jsonl.inputs")
    there = inputs.read_text()
    inputs.write_text(re.sub('"prompt": "[0-9a-f]{16}"', '"prompt": "0"', there))
    done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    assert "was written by 'random.gguf verdict' with another prompt. Give" in done.output
    inputs.write_text(there)
    # The same length as before.
    pairs.write_text(pairs.read_text().replace('"no"', '"on"'))
    done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    assert "has a pair 'pairs:0' that is not among those given" in done.output
    inputs.write_text("{}")
    done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    assert "out.jsonl.inputs, which says what was judged, is missing or damaged." in done.output
    assert out.read_bytes() == before
    for text in ("notes\n", "notes", pairs.read_text()):
        out.write_text(text)
        done = invoke("judge", "run", pairs, "--judge", judges["random"], "--out", out)
        assert (done.exit_code, out.read_text()) == (2, text)
        assert "error: --out" in done.output and "elete that file" not in done.output


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("notes.txt/out.jsonl", "cannot be written (File exists). Give another file."),
        ("dangling.jsonl", "cannot be written (No such file or directory). Give another file."),
        ("x" * 300, "cannot be written (File name too long). Give another file."),
        ("/dev/full", "error: --out /dev/full is not an ordinary file. Give another."),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_judging(place, text, pairs, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere" / "out.jsonl")
    monkeypatch.setattr("tpo_lite.cli.judge._open_judge", lambda *_: pytest.fail("the judge is loaded"))
    done = invoke("judge", "run", pairs, "--judge", "embedded", "--out", tmp_path / place)
    assert done.exit_code == 2, done.output
    assert text in done.output


def test_two_processes_do_not_write_one_output(judges, pairs, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    arguments = ("judge", "run", pairs, "--judge", judges["random"], "--out", out)
    second = []
    original = ask.judge_both_orders

    def meanwhile(judge, group, name):
        second.append(invoke(*arguments))
        return original(judge, group, name)

    monkeypatch.setattr(ask, "judge_both_orders", meanwhile)
    assert invoke(*arguments).exit_code == 0
    assert [done.exit_code for done in second] == [1, 1]
    assert "out.jsonl is in use by another process. Wait, or give another file." in second[0].output
    assert len(out.read_text().splitlines()) == PAIRS_AT_ONCE + 8


def test_an_interrupted_calibration_does_not_say_that_it_goes_on(judges, pairs, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "judge_both_orders", interrupted)
    done = invoke("judge", "calibrate", pairs, "--judge", judges["random"])
    assert done.exit_code == 130
    assert "interrupted; `judge calibrate` keeps nothing. Use `judge run` if you need to stop." in done.output


def test_pairs_too_long_for_the_context_are_named(judges, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [
        {"instruction": "x", "response_1": "a", "response_2": "b" * length, "label": 1, "id": str(length)}
        for length in (1, 3000)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    done = invoke("judge", "calibrate", "--judge", judges["random"], path, "--context", 2048)
    assert done.exit_code == 0, done.output
    assert "too long for 2048 tokens: 1 of 2 pairs (3000). Raise --context" in done.output
    assert "too long, left out            1 of 2 pairs" in done.output
    assert "2 calls in " in done.output
    trained = write_tiny_gguf(tmp_path / "short.gguf", n_ctx=1024)
    done = invoke("judge", "run", path, "--judge", trained, "--context", 2048, "--out", tmp_path / "out.jsonl")
    assert "too long for the 1024 tokens that the judge was trained on: 1 of 2 pairs (3000). Use a" in done.output
    # Nothing is left to judge, so nobody asks the judge for its limit.
    done = invoke("judge", "run", path, "--judge", trained, "--context", 2048, "--out", tmp_path / "out.jsonl")
    assert "too long for the judge: 1 of 2 pairs (3000). Use a judge with a longer context, or" in done.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("stats none.jsonl", "File 'none.jsonl' does not exist."),
        ("stats odd.jsonl", "error: odd.jsonl:1 is not a judge's output."),
        ("stats unlabelled.jsonl", "error: unlabelled.jsonl:1 is not a judge's output."),
        (
            "calibrate --judge none.gguf unlabelled.jsonl",
            "error: unlabelled.jsonl has no labels to compare a judge with.",
        ),
        ("calibrate --judge none.gguf labelled.jsonl", "error: judge.model: no file 'none.gguf'."),
        ("calibrate --judge odd.jsonl labelled.jsonl", "odd.jsonl is not a GGUF file"),
        ("calibrate labelled.jsonl", "Missing option '--judge'"),
        ("calibrate --judge x.gguf odd.jsonl", "error: odd.jsonl:1 is not a pair of responses."),
        (
            "run labelled.jsonl --judge x --out o --set context=auto",
            "error: --set context=auto: only a run works out what fits",
        ),
        (
            "calibrate labelled.jsonl --judge x --set kv_type=auto",
            "error: --set kv_type=auto: only a run works out what fits",
        ),
        ("run labelled.jsonl --judge x.gguf", "Missing option '--out'"),
        ("run labelled.jsonl --judge none.gguf --out o.jsonl", "error: judge.model: no file 'none.gguf'."),
        (".", "error: . is not a run folder"),
        ("--arm thinking .", "error: . is not a run folder"),
        ("phase .", "error: . is not a run folder"),
        ("nowhere", "Directory 'nowhere' does not exist."),
    ],
)
def test_bad_input(arguments, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n')
    row = {"instruction": "x", "response_1": "a", "response_2": "b"}
    (tmp_path / "unlabelled.jsonl").write_text(json.dumps(row))
    (tmp_path / "labelled.jsonl").write_text(json.dumps(row | {"label": 1}))
    done = invoke("judge", *arguments.split())
    assert done.exit_code == 2, done.output
    assert text in done.output
    assert "Traceback" not in done.output
    assert {path.name for path in tmp_path.iterdir()} == {"odd.jsonl", "unlabelled.jsonl", "labelled.jsonl"}


def test_plots_need_probabilities_and_a_place(judges, pairs, tmp_path):
    done = invoke("judge", "stats", PLAIN, "--plot", tmp_path / "plot.svg")
    assert done.exit_code == 2
    assert "error: --plot needs probabilities and labels." in done.output
    done = invoke("judge", "calibrate", "--judge", judges["random"], pairs, "--plot", tmp_path / "no" / "plot.svg")
    assert done.exit_code == 2
    assert "ECE of P(A)" in done.output
    assert "plot.svg cannot be written: No such file or directory" in done.output


def test_a_gpu_that_is_not_there(judges, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for arguments in (("calibrate",), ("run", "--out", tmp_path / "out.jsonl")):
        done = invoke("judge", *arguments, "--judge", judges["random"], pairs, "--gpu", 0)
        assert done.exit_code == 2
        assert "error: --gpu: this machine has no nvidia-smi" in done.output


@pytest.mark.parametrize("name", ["stats", "calibrate", "run", "phase"])
def test_every_command_has_help(name):
    done = invoke("judge", name, "--help")
    assert done.exit_code == 0
    assert done.output.split("\n\n")[1].strip().endswith(".")


def test_the_first_argument_is_the_phases_unless_it_is_a_command(monkeypatch, tmp_path):
    from tpo_lite.phases import process as phases

    calls = []
    monkeypatch.setattr(phases, "start_phase", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("tpo_lite.run.RunFolder", lambda root: pytest.fail("the arm is given"))
    for arguments in (
        (tmp_path, "--arm", "thinking", "--iteration", 2),
        ("--iteration", 2, tmp_path, "--arm", "thinking"),
        ("phase", tmp_path, "--iteration", 2, "--arm", "thinking"),
    ):
        done = invoke("judge", *arguments)
        assert done.exit_code == 0, done.output
    assert calls == [("judge", tmp_path, "thinking", 2)] * 3
