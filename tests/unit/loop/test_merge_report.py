"""`tpo-lite merge-report` on a finished run: every merge measured, exact ones at 0, lossy ones between."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel

from tests.helpers.tiny_run import as_left, process_here
from tpo_lite.base_weights import load_base
from tpo_lite.cli.merge import merge_report
from tpo_lite.files import read_json, write_json
from tpo_lite.loop import orchestrator
from tpo_lite.phases import merge_report as phase
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.training.divergence import divergence, log_probabilities, validation_sequences


def invoke(*arguments):
    """The command with its phases in this process."""
    with patch.object(orchestrator, "process", process_here):
        return CliRunner().invoke(merge_report, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory):
    """A copy of the finished run and its report."""
    root = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(tiny_run, root)
    done = invoke(root, "--json")
    assert done.exit_code == 0, done.output
    return root, json.loads(done.stdout[done.stdout.index("[\n") :])


def test_every_merge_of_every_iteration(measured, tiny_run):
    root, report = measured
    results = read_json(tiny_run / "results.json")["arms"]["direct"]["iterations"]
    assert [(entry["arm"], entry["iteration"]) for entry in report] == [("direct", 0), ("direct", 1)]
    for entry, data in zip(report, results, strict=True):
        merges = entry["strategies"]
        assert list(merges) == ["none", "fold", "continue", "requantize w16", "requantize nf4"]
        assert entry["update_norm"] == pytest.approx(data["merge"]["update_norm"])
        assert entry["rank"] == data["merge"]["rank"]
        assert abs(merges["fold"]["kl"]) < 1e-10 and abs(merges["continue"]["kl"]) < 1e-10
        assert all(merges[name]["kl"] > 1e-8 for name in ("none", "requantize w16", "requantize nf4"))
        folder = root / "direct" / f"iteration-{entry['iteration']}"
        adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
        assert adapter < merges["fold"]["bytes"] < adapter + 10_000
        assert merges["none"]["bytes"] == 0
        assert merges["requantize w16"]["bytes"] == merges["requantize nf4"]["bytes"] > adapter
        assert all(figures["seconds"] > 0 for name, figures in merges.items() if name != "none")


def rows(tokens, vocabulary, seed):
    """Log-probabilities of a sequence of random output."""
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_the_divergence_is_the_mean_over_all_tokens():
    before, after = ([rows(tokens, 50, seed + tokens) for tokens in (1, 3, 7)] for seed in (0, 100))
    whole = torch.nn.functional.kl_div(
        torch.cat(after).double(), torch.cat(before).double(), log_target=True, reduction="sum"
    )
    assert divergence(before, iter(after)) == pytest.approx(whole.item() / 11, rel=1e-9)


def held(field):
    """Bytes that this process holds ("VmRSS") or has held ("VmHWM")."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def test_one_sequence_at_a_time_is_compared():
    """Twenty sequences of 4 MB: together they would take 640 MB and more in float64."""
    before = [rows(16, 65536, seed) for seed in range(20)]
    start = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    divergence(before, (rows(16, 65536, seed) for seed in range(20, 40)))
    assert held("VmHWM") - start < 2**27


def test_one_model_at_a_time_is_in_memory(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "run")
    made = []

    def load(model, device, precision):
        assert [weight() for weight in made] == [None] * len(made)
        loaded = load_base(model, device, precision)
        made.append(weakref.ref(loaded.model.layers[0].mlp.up_proj.weight))
        return loaded

    monkeypatch.setattr(phase, "load_base", load)
    run = RunFolder(tmp_path / "run")
    phase.run(run, run.load_settled(), "direct", 1, "cpu")
    assert len(made) == 3


def test_none_is_the_model_before_the_update(measured, tiny_model):
    root, report = measured
    folder = root / "direct" / "iteration-1"
    adapters = root / "direct" / "iteration-0" / "adapter", folder / "train" / RunFolder(root).chosen("direct", 1)
    sequences = validation_sequences(RunFolder(root), "direct", 2)
    old, new = (
        log_probabilities(
            PeftModel.from_pretrained(load_base(str(tiny_model), "cpu", "nf4"), adapter).eval(), sequences
        )
        for adapter in adapters
    )
    assert report[1]["strategies"]["none"]["kl"] == pytest.approx(divergence(new, old))


def test_nothing_is_left_behind_but_the_figures(measured, tiny_run):
    root, _ = measured
    files = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    before = {path.relative_to(tiny_run) for path in tiny_run.rglob("*") if path.is_file()}
    assert {path.name for path in files - before} <= {"merge_report.json"}
    assert RunFolder(root).seconds("direct", 0) == RunFolder(tiny_run).seconds("direct", 0)


def test_what_was_measured_is_shown_without_measuring_again(measured):
    root, report = measured
    with patch.object(orchestrator, "process") as process:
        done = CliRunner().invoke(merge_report, [str(root)])
    assert not process.called
    assert done.exit_code == 0, done.output
    kl = report[1]["strategies"]["none"]["kl"]
    for text in ("direct M_1", "direct M_2", "none (update lost)", "requantize nf4", f"{kl:.1e}"):
        assert text in done.output


def test_an_iteration_that_kept_its_model(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    path = tmp_path / "run" / "direct" / "iteration-1" / "validation.json"
    write_json(path, read_json(path) | {"chosen": KEPT})
    as_left(RunFolder(tmp_path / "run"), "select", 1)
    write_json(tmp_path / "run" / "direct" / "iteration-0" / "done" / "merge_report.json", {
        "summary": {"update_norm": 0.01, "rank": 16, "strategies": {}}, "outputs": [],
    })  # fmt: skip
    done = invoke(tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "M_t kept" in done.output.splitlines()[-2]


def test_a_run_without_a_finished_merge(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "direct" / "iteration-0" / "done" / "fold.json").unlink()
    done = invoke(tmp_path / "run")
    assert done.exit_code == 2
    assert "has no finished merge. Run `tpo-lite train" in done.output


def test_a_measurement_that_fails_ends_the_command_with_its_code(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    for weights in (tmp_path / "run" / "direct" / "iteration-0" / "train").glob(
        "checkpoint-*/adapter_model.safetensors"
    ):
        weights.write_bytes(b"no weights")
    as_left(RunFolder(tmp_path / "run"), "dpo", 0)
    done = invoke(tmp_path / "run")
    assert done.exit_code == 1
    assert "cannot be read" in done.output


def test_too_little_memory_is_a_failure_with_a_remedy(tiny_run):
    """Exit code 3 is between the orchestrator and its phases."""
    run = RunFolder(tiny_run)
    assert not run.is_done("merge_report", "direct", 0)
    with patch.object(orchestrator, "process", return_value=3):
        done = CliRunner().invoke(merge_report, [str(tiny_run)])
    assert done.exit_code == 1
    assert "memory ran out. End other programs" in done.output
