"""The command line: rows of (arguments, exit code, text), and what importing it costs."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.fake_nvidia import fake_nvidia_smi
from tests.helpers.tiny_run import invoke, start
from tpo_lite.cli import main
from tpo_lite.machine import threads
from tpo_lite.machine.device import Place
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.process import QUIET
from tpo_lite.run import RunFolder
from tpo_lite.version import __version__

COMMANDS = [
    "init",
    "train",
    "status",
    "watch",
    "report",
    "recipes",
    "doctor",
    "merge-report",
    "plan",
    "eval",
    "compare",
]
COMMANDS += ["classify", "export", "push", "chat", "serve", "prepare", "warm-sample", "warm-start", *PHASES]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("--version", 0, f"tpo-lite, version {__version__}"),
        ("--help", 0, "Thought Preference Optimization on one consumer GPU."),
        ("-h", 0, "Single phases:"),
        ("recipes list", 0, "llama-3.1-8b-24gb-paper"),
        ("recipes show embedded", 0, "# Watch the whole loop work"),
        ("recipes show none", 2, "error: no recipe 'none'. Give a YAML file or one of: embedded, llama-3.1-8b-24gb"),
        ("train --recipe none --cpu", 2, "error: no recipe 'none'. Give a YAML file or one of: embedded"),
        ("train --cpu --gpu 0", 2, "error: --gpu and --cpu exclude each other; give one."),
        ("train --gpu first", 2, "'first' is not a valid integer"),
        ("train --iterations 0", 2, "0 is not in the range x>=1"),
        (
            "train --cpu --set iterations",
            2,
            "error: --set 'iterations' is not key.path=value, such as --set thought.style=direct.",
        ),
        (
            "train --cpu --set thought.styl=direct",
            2,
            "thought.styl: unknown key (value 'direct'); did you mean thought.style?",
        ),
        ("train --cpu --set train.beta=-1", 2, "train.beta: -1 does not fit: input should be greater than 0."),
        ("train --loud", 2, "No such option"),
        ("status nowhere", 2, "Directory 'nowhere' does not exist."),
        ("status .", 2, "error: . is not a run folder: it has no recipe.yaml."),
        ("generate .", 2, "error: . is not a run folder: it has no recipe.yaml."),
        ("grade .", 2, "No such command 'grade'"),
    ],
)  # fmt: skip
def test_rows(arguments, code, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments.split())
    assert done.exit_code == code, done.output
    assert text in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = invoke(name, "--help")
    assert done.exit_code == 0
    summary = done.output.split("\n\n")[1].strip()
    assert summary.endswith(".") or summary.endswith(".)"), summary


def test_the_commands_are_those():
    assert sorted(main.commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (None, "error: --gpu: this machine has no nvidia-smi, so no NVIDIA driver. Install the driver, or use --cpu."),
        ("echo 0; echo 1", "error: --gpu 99: there is no such GPU; nvidia-smi lists 0, 1."),
        ("exit 0", "error: --gpu 99: there is no such GPU; nvidia-smi lists none."),
        ("echo No devices.; exit 6", "error: --gpu 99: nvidia-smi fails (No devices.). Fix the driver, or use --cpu."),
    ],
)
def test_a_gpu_that_is_not_there(script, text, tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    done = invoke("train", "--gpu", 99, "--out", tmp_path / "run")
    assert (done.exit_code, done.output.strip()) == (2, text)
    assert not (tmp_path / "run").exists()


def test_changed_settings_are_refused_and_new_moves_the_folder_aside(tiny_run, tiny_arguments, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    done = invoke("train", *tiny_arguments, "--seed", 1, "--out", run)
    assert done.exit_code == 2
    assert f"{run} was started with other settings:\n  seed: 4 -> 1\n" in done.output
    assert "--new to move this one aside" in done.output
    done = invoke("train", *tiny_arguments, "--seed", 1, "--prompts", "none.txt", "--out", run, "--new")
    assert done.exit_code == 2  # no such file: it got as far as the first phase
    assert (tmp_path / "run.old-1" / "results.json").read_bytes() == (tiny_run / "results.json").read_bytes()
    assert "seed: 1" in (run / "recipe.yaml").read_text()


def test_a_finished_run_is_shown_again(tiny_run, tiny_arguments):
    done = invoke("train", *tiny_arguments, "--out", tiny_run)
    assert done.exit_code == 0, done.output
    assert f"run folder: {tiny_run}" in done.output
    assert "On the test slice: 2 instructions" in done.output
    assert f"direct M_2: {tiny_run}/direct/iteration-1/adapter" in done.output.replace("\n", "")


# What an iteration's table must tell.
FIGURES = [
    *("prompts x samples", "8 x 4", "parse ok", "thought / response tokens", "judge calls (saved)"),
    *("flip / first-slot / unparsed", "pairs", "chosen / rejected tokens", "rho", "loss first / last", "0.6931"),
    *("margin last", "update norm, KL of merge", "win rate vs M_t / M_0", "accuracy (validation)"),
    *("win rate vs M_0 (test)", "accuracy (test)"),
    *(f"{phase}: s, peak GB" for phase in PHASES),
]


def test_status_of_a_finished_run(tiny_run):
    done = invoke("status", tiny_run)
    assert done.exit_code == 0, done.output
    assert [figure for figure in FIGURES if figure not in done.output] == []
    assert "Iteration 1: M_0 to M_1" in done.output
    assert "Iteration 2: M_1 to M_2" in done.output
    assert done.output.rstrip().endswith("finished")
    data = json.loads(invoke("status", tiny_run, "--json").output)
    assert data.pop("next") is None
    assert data == json.loads((tiny_run / "results.json").read_text())


def test_status_of_an_unfinished_run(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "direct" / "iteration-1" / "done" / "judge.json").unlink()
    (run / "direct" / "iteration-1" / "done" / "fold.json").unlink()
    done = invoke("status", run)
    assert done.exit_code == 0
    assert "M_1 to M_2" not in done.output
    assert done.output.rstrip().endswith("next: direct, iteration 2, judge")
    data = json.loads(invoke("status", run, "--json").output)
    assert data["next"] == {"phase": "judge", "arm": "direct", "iteration": 1}
    assert len(data["arms"]["direct"]["iterations"]) == 1


def test_status_of_a_run_that_has_nothing_yet(tiny_run, tmp_path):
    shutil.copy(tiny_run / "recipe.yaml", tmp_path)
    done = invoke("status", tmp_path)
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith("next: prepare")
    data = json.loads(invoke("status", tmp_path, "--json").output)
    assert data["next"] == {"phase": "prepare", "arm": None, "iteration": 0}
    nothing = {"warm_start": None, "base": None, "base_test": None, "iterations": []}
    assert data["arms"] == {"direct": nothing}


def test_a_phase_by_hand(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "busy_cores", lambda: 0.0)  # whatever else this machine does
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    folder = run / "direct" / "iteration-1"
    (folder / "done" / "pair.json").unlink()
    (folder / "pairs.jsonl").unlink()
    done = invoke("pair", run, "--iteration", 1)
    assert (done.exit_code, done.output) == (0, "")
    assert (folder / "pairs.jsonl").read_bytes() == (tiny_run / "direct" / "iteration-1" / "pairs.jsonl").read_bytes()
    (folder / "pairs.jsonl").unlink()
    module = [sys.executable, "-m", "tpo_lite.phases.pair", str(run), "--iteration", "1"]
    assert subprocess.run(module, check=False).returncode == 0
    assert (folder / "pairs.jsonl").exists()
    done = invoke("pair", run, "--arm", "thinking")
    assert (done.exit_code, done.output) == (2, "error: this run has no arm 'thinking'; it has direct.\n")


HEAVY = ["torch", "transformers", "peft", "trl", "datasets", "llama_cpp", "bitsandbytes", "unsloth"]


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        (
            [
                "cli",
                "machine.doctor",
                "loop.orchestrator",
                "loop.results",
                "loop.tables",
                "phases.summaries",
                "phases.process",
                "run",
                "recipe",
                "progress",
            ],
            [*HEAVY, "numpy"],
        ),
        (
            [
                "instructions.load",
                "instructions.slices",
                "thoughts",
                "preferences.ratings",
                "preferences.length_control",
                "preferences.pairs",
                "intervals",
                "preferences.tournament",
            ],
            HEAVY,
        ),
        (
            [
                "phases.prepare",
                "phases.pair",
                "phases.judge",
                "phases.select",
                "preferences.play",
                "phases.figures",
            ],
            ["torch", "trl"],
        ),
        (
            ["judges.gguf", "judges.protocol", "judges.open", "preferences.tournament", "recipe", "settled"],
            ["torch", "tpo_lite.plan"],
        ),
    ],
)
def test_imports_stay_light(modules, never):
    code = f"import sys, {', '.join(f'tpo_lite.{module}' for module in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(never) & set(done.stdout.split()) == set()


def test_only_entry_points_change_the_environment_and_loggers():
    """Importing a module does not; `main` does, before it runs a command."""
    code = """
import logging, os
before = dict(os.environ), logging.getLogger("bitsandbytes").level
import tpo_lite.cli, tpo_lite.machine.doctor, tpo_lite.loop.results, tpo_lite.loop.orchestrator, tpo_lite.phases.process
import tpo_lite.phases.prepare, tpo_lite.phases.pair, tpo_lite.judges.open
assert before == (dict(os.environ), logging.getLogger("bitsandbytes").level)
tpo_lite.cli.main(["recipes", "list"], standalone_mode=False)
assert os.environ["TQDM_DISABLE"] == "1" and logging.getLogger("bitsandbytes").level == logging.ERROR
"""
    environment = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("gpu", "device", "visible"), [(None, "cpu", ""), (1, "cuda", "1")])
@pytest.mark.parametrize("by_hand", ["tpo-lite pair", "python -m tpo_lite.phases.pair"])
def test_a_phase_by_hand_works_where_the_run_does(by_hand, gpu, device, visible, tiny_run, tmp_path):
    """Its process sees the run's one GPU, or none, before it loads anything; the phase is given the device."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_run, run.root)
    (run.iteration("direct", 1) / "done" / "pair.json").unlink()
    start(run, run.load_started(), place=Place(gpu))
    code = f"""
import importlib, os, runpy, sys

class Phase:
    def run(folder, recipe, arm, iteration, device):
        print(device, repr(os.environ["CUDA_VISIBLE_DEVICES"]), os.environ["CUDA_DEVICE_ORDER"], "torch" in sys.modules)
        sys.exit(0)

found = importlib.import_module
importlib.import_module = lambda name, *more, **named: (
    Phase if name == "tpo_lite.phases.pair" else found(name, *more, **named)
)
sys.argv = ["pair", {str(run.root)!r}, "--iteration", "1"]
if {by_hand.startswith("python")}:
    runpy.run_module("tpo_lite.phases.pair", run_name="__main__")
else:
    from tpo_lite.cli import main
    main(["pair", *sys.argv[1:]])
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{device} {visible!r} PCI_BUS_ID False\n", done.stderr
