"""The GPU benchmark's steps, deadline and table, on the tiny shape without a GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Place, chosen, describe, run_step, run_steps, watch
from benchmarks.gpu_hours import recipe_as_measured, seconds_measured
from benchmarks.gpu_report import report, results_path
from benchmarks.gpu_results import benchmark, best_sampling
from benchmarks.gpu_steps import MAKES, SHAPES, Step, steps
from benchmarks.shapes import SHAPES as CONFIGS
from tests.helpers.warm_gpu import measure_warm
from tpo_lite.errors import InputError, TpoError
from tpo_lite.machine.cards import GIB
from tpo_lite.recipe import with_keys

ROOT = Path(__file__).parents[3]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
NAMES = [step.name for step in steps("tiny", "cpu") if step.kind not in MAKES]


def options(out: Path) -> list[str]:
    return ["--shape", "tiny", "--cpu", "--out", str(out), "--results", str(out / "table.md")]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *options(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def cells(text: str, title: str) -> list[list[str]]:
    """The rows of the table under a title, without their head."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A finished run of the tiny shape that was killed after its first steps; what these had written; the output.

    The first steps are processes as a user starts them; the others are forked from one that has imported torch.
    """
    out = tmp_path_factory.mktemp("gpu") / "out"
    killed = start(out)
    while not (out / f"{MAKES[0]}.json").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.json")}
    said = ""
    for _ in range(3):  # on a slow machine it may say that it is to be called again
        finished = measure_warm(options(out))
        last = finished.communicate()[0]
        said += last
        assert finished.returncode == 0, said
        if "open: " not in last:
            return out, before, said
    raise AssertionError(said)


def test_a_killed_run_goes_on_with_what_is_missing(measured):
    out, before, said = measured
    assert {f"{NAMES[0]}.json", f"{MAKES[0]}.json"} <= before.keys() and len(before) < len(NAMES)
    for name, (content, written) in before.items():
        assert (out / name).read_bytes() == content
        assert (out / name).stat().st_mtime_ns == written
        assert f"{name.removesuffix('.json')} (" not in said


def test_every_step_is_measured_and_in_the_table(measured):
    out, _, said = measured
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert {name for name in NAMES if "measured" in results[name]} == set(NAMES), said
    text = (out / "table.md").read_text()
    assert text.splitlines()[0] == "# No GPU was used: the steps of the GPU benchmark on a CPU, tiny"
    assert f"{len(NAMES)} of {len(NAMES)} steps measured" in text
    peaks = {row[1]: row[2] for row in cells(text, "Peak RAM")}
    planned = steps("tiny", "cpu")
    kinds = {kind: [step for step in planned if step.kind == kind] for kind in ("sampling", "judging", "training")}
    assert list(peaks) == [s.name for s in planned if s.kind in ("sampling", "judging", "training", "fold")]
    assert all(re.fullmatch(r"\d+\.\d\d", peak) for peak in peaks.values())
    assert [row[0] for row in cells(text, "Sampling")] == ["generate", "transformers", "gguf"]
    assert [row[0] for row in cells(text, "Judging")] == ["verdict", "explain"]
    assert [row[0] for row in cells(text, "DPO")] == [s.setting["path"] for s in kinds["training"]]
    assert [row[0] for row in cells(text, "Merging")] == ["fold", "requantize-w16"]
    for title in ("Sampling", "Judging", "Merging"):
        assert "not measured" not in str(cells(text, title))


def test_no_bar_of_a_card_is_met_and_no_hours_of_one_are_told_without_one(measured):
    text = (measured[0] / "table.md").read_text()
    assert all(row[2].startswith("not measured") for row in cells(text, "Bars"))
    for row in cells(text, "Hours"):
        assert (set(row[2:]) == {"not measured"}) == ("estimated" in row[1])


def test_without_time_nothing_is_started(measured):
    out = measured[0]
    (out / f"{NAMES[-1]}.json").rename(out / "kept")
    process = start(out, "--minutes", "0.01")
    said = process.communicate()[0]
    (out / "kept").rename(out / f"{NAMES[-1]}.json")
    assert process.returncode == 0
    assert f"open: {NAMES[-1]} (" in said and "--minutes 0.01" in said.splitlines()[-2]
    assert "1 of" not in said
    row = [row for row in cells((out / "table.md").read_text(), "Peak RAM") if row[1] == NAMES[-1]]
    assert not row or row[0][2] == "not measured"


def test_a_process_that_is_cut_off_leaves_none_behind(tmp_path):
    child = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    said = tmp_path / "step.log"

    class Told:
        """A card that is only looked at until the child has said what it started."""

        def used(self):
            return 0 if not said.with_suffix(".out").read_text() else 25 * GIB

    ended, most = watch([sys.executable, "-c", child, *SLEEP], dict(os.environ), said, Told(), time.monotonic() + 60)
    assert (ended, most) == ("full", 25 * GIB)
    grandchild = int(said.with_suffix(".out").read_text())
    for _ in range(100):
        if not is_running(grandchild):
            break
        time.sleep(0.05)
    assert not is_running(grandchild)
    assert watch(SLEEP, dict(os.environ), said, None, time.monotonic() - 1)[0] == "cut"


def a_step(name, kind="judging", seconds=1.0):
    return Step(name, kind, seconds, {"mode": "verdict"})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A place whose model is made and whose steps print the text of the file named as they are."""
    place = Place(tmp_path, tmp_path / "model", "cpu", describe(None), None)
    figures = tmp_path / "figures"
    figures.mkdir()
    monkeypatch.setattr(gpu, "is_made", lambda step, place: True)
    monkeypatch.setattr(gpu, "command", lambda step, *where: ["json.tool", "--compact", str(figures / step.name)])
    return place


def test_what_failed_is_kept_and_not_run_again_unless_asked_for(place):
    late = time.monotonic() + 60
    assert run_steps([a_step("bad")], place, None, late) == []
    failed = json.loads((place.out / "bad.json").read_text())
    assert "bad" in failed["failed"] and "measured" not in failed
    (place.out / "figures/bad").write_text('{"calls": 3}')
    assert run_steps([a_step("bad")], place, None, late) == []
    assert json.loads((place.out / "bad.json").read_text()) == failed
    assert run_steps([a_step("bad")], place, "bad", late) == []
    assert json.loads((place.out / "bad.json").read_text())["measured"] == {"calls": 3}


def test_a_step_that_others_need_stops_the_run_where_it_fails(place):
    with pytest.raises(TpoError, match="floor: "):
        run_steps([a_step("floor", "floor"), a_step("next")], place, None, time.monotonic() + 60)
    assert not list(place.out.glob("*.json"))


def test_a_step_that_does_not_fit_is_left_and_a_shorter_one_is_not(place):
    for name in ("long", "short"):
        (place.out / "figures" / name).write_text("{}")
    planned = [a_step("long", seconds=100), a_step("short", seconds=1)]
    assert run_steps(planned, place, None, time.monotonic() + 60) == planned[:1]
    assert [path.name for path in place.out.glob("*.json")] == ["short.json"]


def test_a_step_that_was_cut_off_is_taken_to_last_longer(place, monkeypatch):
    monkeypatch.setattr(gpu, "watch", lambda *given: ("cut", 0))
    step = a_step("slow", seconds=0.0)
    assert not run_step(step, place, time.monotonic())
    (place.out / "log/slow.cut").write_text("40")
    assert gpu.estimate(step, place) == 60
    assert not list(place.out.glob("*.json"))


def test_other_sizes_are_measured_anew_and_another_machine_is_refused(place):
    (place.out / "figures/step").write_text("{}")
    step = a_step("step")
    run_steps([step], place, None, time.monotonic() + 60)
    assert gpu.is_finished(step, place)
    assert not gpu.is_finished(Step("step", "judging", 1.0, {"mode": "explain"}), place)
    gpu.check_machine(place)
    with pytest.raises(InputError, match="Give another --out"):
        gpu.check_machine(Place(place.out, place.model, "cuda", {"name": "NVIDIA L4"}, None))


def test_a_step_fails_when_the_card_holds_more_than_it_may(place, monkeypatch):
    monkeypatch.setattr(gpu, "watch", lambda *given: ("full", 25 * GIB))
    assert run_step(a_step("large"), place, time.monotonic())
    assert "25.0 GiB, more than 24" in json.loads((place.out / "large.json").read_text())["failed"]


def test_a_model_is_not_made_again_for_nobody(place, monkeypatch):
    (place.out / "figures/step").write_text("{}")
    planned = [a_step("weights", "weights"), a_step("step")]
    late = time.monotonic() + 60
    assert run_steps(planned, place, None, late) == []
    monkeypatch.setattr(gpu, "is_made", lambda step, place: False)
    assert run_steps(planned, place, None, late) == []
    for steps_open, again in ([*planned, a_step("another")], None), (planned, "weights"):
        with pytest.raises(TpoError, match="weights: "):
            run_steps(steps_open, place, again, late)


def test_only_is_one_step_with_what_it_needs():
    planned = steps("tiny", "cpu")
    assert [step.name for step in chosen(planned, "fold")] == [*MAKES, "fold"]
    with pytest.raises(InputError, match="no step 'folds'. Steps are floor, "):
        chosen(planned, "folds")


def test_without_a_card_nothing_is_measured(tmp_path):
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), "--out", str(tmp_path / "out")]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "bash benchmarks/gpu.sh" in done.stderr
    assert not (tmp_path / "out").exists()


def test_shapes_are_those_that_models_are_made_of():
    assert list(CONFIGS) == list(SHAPES)


def test_names_of_results_tell_a_card_from_a_cpu():
    names = [results_path(shape, device).name for shape in SHAPES[:3:2] for device in ("cuda", "cpu")]
    assert names == ["gpu.md", "gpu-cpu-llama-3.1-8b.md", "gpu-llama-3.2-1b.md", "gpu-cpu-llama-3.2-1b.md"]


def test_the_table_before_anything_is_measured():
    text = report(SHAPES[0], "cuda", {})
    assert "No GPU has been measured yet" in text and "bash benchmarks/gpu.sh --shape llama-3.1-8b" in text
    for title, names in {"Bars": 1, "Sampling": 2, "Judging": 1, "DPO": 3, "Merging": 1, "Hours": 2}.items():
        assert all(set(row[names:]) <= {"not measured", "-"} for row in cells(text, title))
    assert all(row[2] == "not measured" for row in cells(text, "Peak GPU memory"))


def test_the_table_in_results_is_the_one_that_is_written():
    text = results_path(SHAPES[0], "cuda").read_text()
    assert "No GPU has been measured yet" not in text or text == report(SHAPES[0], "cuda", {})


def test_a_card_is_held_against_the_plan_in_every_phase():
    planned = {step.phase for step in steps(SHAPES[0], "cuda") if step.recipe is not None}
    assert planned == {"generate", "judge", "dpo", "fold"}


CARD = {"name": "NVIDIA GeForce RTX 4090", "memory": 24 * GIB, "driver": "1.2"}


def made_up(**speeds):
    """Results of a card as if every step had been measured; `speeds` are tokens a second by engine and path."""
    results = {}
    for step in steps(SHAPES[0], "cuda"):
        figures = {"seconds": 10.0, "peak": {"host": 3 * GIB, "gpu": 20 * GIB}, "disk": 10**9}
        speed = speeds.get(step.setting.get("engine") or step.setting.get("path"), 100.0)
        tokens = 10 * speed * (30 if step.kind == "judging" else 1)
        figures |= {"tokens": tokens, "prompt_tokens": 1000, "prompt": 400.0, "calls": 50, "sequences": 64}
        figures |= {"prefill": 5000.0}
        figures |= {"file_bytes": 5 * 10**9, "gpu_bytes": 46 * 10**8, "bytes": 16 * 10**9, "shard": 5 * 10**9}
        figures |= {"tokens_per_second": speed, "pairs_per_second": speed / 4096}
        if step.kind == "floor":
            figures = {"copy": 8e11, "matmul": 1.6e14, "host_matmul": 1e12, "disk": 2e9, "versions": "torch 2"}
        results[step.name] = {"setting": step.setting, "machine": CARD, "date": "2026-01-01", "measured": figures}
    return results


def test_bars():
    text = report(SHAPES[0], "cuda", made_up(generate=100.0, gguf=400.0, ours=300.0, trl=100.0, unsloth=310.0))
    bars = {row[0]: row[1:] for row in cells(text, "Bars")}
    assert bars["every phase <= 22 GiB"] == ["20.0 GiB at most (sampling-transformers-48)", "met"]
    assert bars["sampling >= 2x generate at the same memory"] == ["4.00x (sampling-gguf-48)", "met"]
    assert bars["DPO >= 1.0x unsloth's tokens/s"] == ["0.97x", "not met"]
    assert bars["DPO >= 1.5x trl's tokens/s"] == ["3.00x", "met"]
    assert bars["plan at most 10 % over and 3 % under"][1] == "not met"


def test_more_memory_than_generate_takes_is_no_gain():
    results = made_up(generate=100.0, gguf=250.0, unsloth=150.0)
    for name in ("sampling-gguf-48", "sampling-gguf-96"):
        results[name]["measured"]["peak"]["gpu"] = 21 * GIB
    step, times = best_sampling(benchmark(SHAPES[0], "cuda", results))
    assert step.setting["engine"] == "unsloth" and times == 1.5


def test_a_phase_over_its_bar_and_one_that_failed():
    results = made_up()
    results["fold"]["measured"]["peak"]["gpu"] = 23 * GIB
    assert cells(report(SHAPES[0], "cuda", results), "Bars")[0][1:] == ["23.0 GiB at most (fold)", "not met"]
    del results["fold"]["measured"]
    results["fold"]["failed"] = "CUDA out of memory"
    text = report(SHAPES[0], "cuda", results)
    assert cells(text, "Bars")[0][2] == "not measured" and "Failed: fold (CUDA out of memory)." in text
    assert [row[1] for row in cells(text, "Merging")] == ["failed", "10.0"]


def test_hours_of_the_default_recipe_by_hand():
    recipe = recipe_as_measured("llama-3.1-8b-24gb", "gguf", 48, {})
    recipe = with_keys(recipe, {"tournament.kind": "round-robin"})
    found = seconds_measured(recipe, 1000.0, 5000.0, None, 2000.0, 60.0)
    # 500 prompts, 8 samples of 600 tokens; M_0 answers 100 instructions of each other slice once in 3 iterations.
    assert found["generate"] == pytest.approx((4000 + 200 / 3) * 600 / 1000)
    # The judge's prompt and the instruction, 8 responses of 420 tokens, and the second one of each comparison.
    assert found["judge"] == pytest.approx(500 * (280 + 150 + 8 * 420 + 56 * 420) / 5000)
    assert found["validate"] == 2 * 100 * 600 / 1000
    assert found["select"] == pytest.approx(300 * (280 + 150 + 2 * 420 + 2 * 420) / 5000)
    prompt = 150 + 40 + 64  # instruction, chat template, thought prompt
    assert found["dpo"] == pytest.approx((2 + 1 / 3) * 500 * 2 * (prompt + 600) / 2000)
    assert found["fold"] == 60
    assert seconds_measured(recipe, None, None, None, None, None) == dict.fromkeys(found)
    recipe = with_keys(recipe, {"judge.mode": "explain", "judge.prompt": "seed"})
    assert seconds_measured(recipe, 1000.0, 5000.0, None, 2000.0, 60.0)["judge"] is None
    written = 500 * 56 * 0.6 * 512
    explained = seconds_measured(recipe, 1000.0, 5000.0, 800.0, 2000.0, 60.0)
    assert explained["judge"] == pytest.approx(found["judge"] + written / 800)


def test_another_card_is_estimated_from_the_one_measured():
    hours = {tuple(row[:2]): row[2:] for row in cells(report(SHAPES[0], "cuda", made_up()), "Hours")}
    cards = ("here, measured", "RTX 4090, estimated", "RTX 3090, estimated")
    here, same, slower = (hours["default", card] for card in cards)
    assert here == same  # the card of these results is one
    assert all(float(a) <= float(b) for a, b in zip(here, slower, strict=True))
    assert float(here[-1]) < float(slower[-1])
