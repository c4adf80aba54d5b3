"""The merging benchmark: runs share what comes before the first merge, and its table says what was measured."""

from __future__ import annotations

import pytest

from benchmarks.merging import MERGES, copy_up_to_merge, rank_row, report
from tests.helpers.tiny_run import finished_run, start, train_here
from tpo_lite.adapters import CONFIG
from tpo_lite.files import read_json, write_json
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.settled import SettledRecipe


@pytest.fixture(scope="module")
def alone(tiny_arguments, tmp_path_factory):
    """A run with `merge: requantize`, made in one go."""
    return finished_run(tmp_path_factory.mktemp("alone") / "run", [*tiny_arguments, "--set", "merge=requantize"])


def test_a_run_that_starts_with_a_copy_ends_like_one_made_alone(tiny_run, tiny_arguments, alone, tmp_path):
    copy = tmp_path / "copy"
    copy_up_to_merge(tiny_run, copy, MERGES["requantize w16"])
    assert not list(copy.rglob("adapter")) and "fold" not in RunFolder(copy).seconds("direct", 0)
    assert RunFolder(copy).is_done("select", "direct", 0) and not RunFolder(copy).is_done("fold", "direct", 0)
    sampled = (copy / "direct/iteration-0/samples.jsonl").stat().st_mtime_ns
    done = train_here(*tiny_arguments, "--set", "merge=requantize", "--out", copy, "--debug")
    assert done.exit_code == 0, done.output
    assert (copy / "direct/iteration-0/samples.jsonl").stat().st_mtime_ns == sampled
    for pattern in ("*.jsonl", "*.safetensors"):
        files = sorted(path.relative_to(alone) for path in alone.rglob(pattern))
        assert files == sorted(path.relative_to(copy) for path in copy.rglob(pattern))
        assert all((alone / file).read_bytes() == (copy / file).read_bytes() for file in files)


def test_another_merge_than_the_copy_was_made_for_is_refused(tiny_run, tiny_arguments, tmp_path):
    copy_up_to_merge(tiny_run, tmp_path / "copy", MERGES["continue"])
    done = train_here(*tiny_arguments, "--set", "merge=requantize", "--out", tmp_path / "copy")
    assert done.exit_code == 2
    assert "merge: 'continue' -> 'requantize'" in done.output


def test_the_second_iteration_trains_on_the_merged_model(alone):
    configs = [read_json(path) for path in alone.glob(f"direct/iteration-1/train/checkpoint-*/{CONFIG}")]
    assert configs
    assert all(config["base_model_name_or_path"] == str(alone / "direct/iteration-0/model") for config in configs)


def write_run(root, merge, accuracies, update_kl):
    """A finished run of two iterations, the second of which kept its model, as far as the report reads it."""
    run = RunFolder(root)
    start(run, SettledRecipe(iterations=2, **merge))
    for iteration, chosen in enumerate(("checkpoint-4", KEPT)):
        folder = run.iteration("thinking", iteration)
        write_json(folder / "validation.json", {"chosen": chosen})
        merges = {
            name: {"kl": 0.0 if name == "fold" else update_kl, "seconds": 1.0, "bytes": 1} for name in ("none", *MERGES)
        }
        summary = {"update_norm": 0.05, "rank": 16, "strategies": {} if chosen == KEPT else merges}
        for phase in ("fold", "merge_report"):
            write_json(folder / "done" / f"{phase}.json", {"summary": summary, "outputs": []})
    made = run.iteration("thinking", 0) / ("model" if merge["merge"] == "requantize" else "adapter")
    made.mkdir()
    (made / "weights").write_bytes(bytes(1_500_000))
    write_json(root / "results.json", {"arms": {"thinking": {"iterations": [{"seconds": {"dpo": 60.0}}] * 2}}})
    write_json(root / "held-out-10.json", {"thinking": [{"accuracy": value} for value in accuracies]})
    return root


def test_the_table_compares_with_fold_seed_by_seed(tmp_path):
    final = {
        "fold": (0.90, 0.70, 0.80),
        "continue": (0.91, 0.69, 0.80),
        "requantize w16": (0.95, 0.74, 0.85),
        "requantize nf4": (0.70, 0.50, 0.61),
    }
    runs = {
        merge: [
            write_run(tmp_path / f"{merge}-{seed}", keys, (0.2, 0.5, final[merge][seed]), 1e-3 * (seed + 1))
            for seed in range(3)
        ]
        for merge, keys in MERGES.items()
    }
    lines = report(runs, 10, "the command").splitlines()
    fold = "| fold | 20.0 ± 0.0 | 50.0 ± 0.0 | 80.0 ± 24.8 | 90.0, 70.0, 80.0 | 3 of 6 | 2.0 | 1.5 |"
    assert fold in lines
    assert "| continue | 0.0 ± 0.0 | 0.0 ± 2.5 | 1.0, -1.0, 0.0 |" in lines
    assert "| requantize w16 | 0.0 ± 0.0 | 4.7 ± 1.4 | 5.0, 4.0, 5.0 |" in lines
    assert "M_2 with an interval that excludes 0: better than fold: requantize w16; worse: requantize nf4." in lines
    assert "| fold | M_1 | 5.0 | 2.0e-03 | 0.0e+00 | 2.0e-03 | 2.0e-03 | 2.0e-03 |" in lines
    assert not any(line.startswith("| fold | M_2 | 5.0") for line in lines)  # no update, nothing to merge


def test_a_rank_is_shown_against_the_first_and_a_failed_one_with_its_last_words():
    peak = {"host": 2_000_000_000, "gpu": 7_000_000_000}
    first = [
        {"tokens_per_second": speed, "pairs_per_second": speed / 1000, "peak": peak, "adapter": 1e6}
        for speed in (90.0, 110.0)
    ]
    second = [run | {"tokens_per_second": 80.0, "adapter": 2e6} for run in first]
    assert rank_row(32, second, first) == ["32", "2.0", "80.0, 80.0", "80.0", "0.80", "0.100", "2.00", "7.00"]
    failed = [second[0], {"error": "out of memory", "adapter": 2e6}]
    assert rank_row(32, failed, first) == ["32", "2.0", "out of memory", "-", "-", "-", "-", "-"]
    assert "-" in rank_row(32, second, failed)
