"""The `plan` command: its table, its JSON, its messages, and the plan that `train` makes first."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.helpers.fake_nvidia import fake_nvidia_smi
from tests.helpers.plans import run_plan
from tpo_lite.cli.plan import plan_first
from tpo_lite.errors import InputError
from tpo_lite.machine.cards import cpu
from tpo_lite.plan.report import make_plan, print_plan
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.run import RunFolder
from tpo_lite.settled import as_settled

# The command


def test_the_plan_of_the_default_recipe_in_24_gb():
    done = run_plan("--card-gb", 24)
    assert done.exit_code == 0, done.output
    for text in ("generate", "KV cache", "allocator slack", "estimate", "Estimates were not measured on this card"):
        assert text in done.output
    assert "measured 20" not in done.output


@pytest.mark.parametrize(
    ("recipe", "gib"),
    [("llama-3.1-8b-24gb-paper", 24), ("llama-3.1-8b-24gb-specific-rm", 24), ("llama-3.2-3b-12gb", 12)],
)
def test_every_recipe_fits_the_card_in_its_name(recipe, gib):
    done = run_plan("--recipe", recipe, "--card-gb", gib)
    assert (done.exit_code, "error" in done.output) == (0, False), done.output


def test_the_plan_as_json():
    data = json.loads(run_plan("--card-gb", 24, "--json", "--set", "sampling.batch=auto").output)
    assert set(data["phases"]) == {"generate", "judge", "dpo", "validate", "select", "fold", "test", "match"}
    for phase in data["phases"].values():
        assert phase["peak_bytes"] == pytest.approx(sum(phase["terms"].values()), abs=20)
    assert data["picks"] == {"sampling.batch": 56}
    assert data["engine"] == {"name": "transformers", "why": "no engine measured on this card yet"}
    assert data["refusal"] is None


def test_a_plan_that_does_not_fit_names_the_change_that_does():
    done = run_plan("--card-gb", 10)
    assert done.exit_code == 2
    message = done.output[done.output.index("error: ") :]
    assert message.count("error: ") == 1 and "The smallest change that fits: --set sampling.batch=" in message
    assert message.count("--set") > 1
    assert run_plan("--card-gb", 10, *message.split("fits: ")[1].rstrip(".\n").split()).exit_code == 0


def test_what_a_reader_is_told_besides(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    notes = json.loads(run_plan("--card-gb", 24, "--json").output)["notes"]
    assert notes == [
        "the shape is llama-3.1-8b's, by the name meta-llama/Llama-3.1-8B-Instruct: its config.json is not in the "
        "hub's cache.",
        "warm_start.kind=auto: if fewer than half of 32 first outputs are well-formed, there is a warm start besides; "
        "see the plan with --set warm_start.kind=self.",
    ]
    arguments = ["--cpu", "--set", "judge.context=600"]
    assert (
        "note: judge.context=600 does not hold the longest comparisons, of 728 tokens; those are left out."
        in run_plan(*arguments).output
    )
    # A score is of one response.
    assert "note:" not in run_plan(*arguments, "--set", "judge.mode=score").output


def test_a_disk_too_small_is_told(monkeypatch):
    assert "warning:" not in run_plan("--cpu").output
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    assert "warning: the run may take 0.1 GB of disk, and 0.0 GB are free there.\n" in run_plan("--cpu").output


def test_a_plan_without_a_gpu(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, None)
    done = run_plan()
    assert (done.exit_code, done.output.strip()) == (
        2,
        "error: plan: this machine has no nvidia-smi, so no NVIDIA GPU. Name the card to plan for by its memory, "
        "such as --card-gb 24, or use --cpu.",
    )
    assert "Plan for CPU" in run_plan("--cpu").output


def test_a_plan_loads_no_library_of_the_phases():
    code = (
        "import sys; from tpo_lite.cli.plan import plan\n"
        "try: plan(['--card-gb', '24'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    for changed in ("'--cpu', '--set', 'engine=auto'", "'--card-gb', '24'"):
        with_it = code.replace("'--card-gb', '24'", changed)
        done = subprocess.run([sys.executable, "-c", with_it], capture_output=True, text=True, check=True)
        modules = set(done.stdout.splitlines()[-1].split())
        assert "tpo_lite.plan.rates" in modules
        assert not {"torch", "transformers", "peft", "trl", "llama_cpp", "bitsandbytes"} & modules


def test_train_plans_first(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    settled = plan_first(load_recipe("embedded", ["sampling.batch=auto"]), None, run)
    assert settled.sampling.batch == 256
    assert "auto: sampling.batch=256" in capsys.readouterr().out
    unknown = load_recipe("embedded", ["judge.model=none.gguf"])
    assert plan_first(unknown, None, run) == as_settled(unknown)  # the judge phase will say what is wrong
    assert "no plan: judge.model: no file 'none.gguf'" in capsys.readouterr().out
    with pytest.raises(InputError, match="no file 'none.gguf'"):
        plan_first(with_keys(unknown, {"sampling.batch": "auto"}), None, run)


def test_a_table_on_a_terminal(capsys):
    plan = make_plan(load_recipe("embedded"), cpu())
    print_plan(plan, Console(force_terminal=True, width=120))
    assert "Peak by term, GiB" in capsys.readouterr().out
