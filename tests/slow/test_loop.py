"""The whole loop on a tiny random model: what it leaves, and that each merge starts the next iteration at M_{t+1}."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.helpers.second_iteration import DEAD, check_sampled, second_iteration_to_sample, with_dead_adapter
from tests.helpers.shared import DATA, SHARED
from tests.helpers.tiny_run import finished_run, tpo_lite, train_here
from tpo_lite.adapters import rank_of, read_adapter
from tpo_lite.errors import TpoError
from tpo_lite.files import read_json
from tpo_lite.loop.results import read_results
from tpo_lite.phase_order import PHASES
from tpo_lite.phases import matches
from tpo_lite.phases.figures import validation_figures
from tpo_lite.phases.matches import play
from tpo_lite.phases.process import run_phase
from tpo_lite.phases.select import best
from tpo_lite.records import PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import LoadedPolicy, policy, sampling_key
from tpo_lite.thoughts import OUTCOMES

pytestmark = pytest.mark.slow


def iterations(run):
    return read_json(run / "results.json")["arms"]["direct"]["iterations"]


def test_results_hold_what_their_schema_documents(tiny_run):
    results = read_json(tiny_run / "results.json")
    keys = {"schema_version", "tpo_lite", "recipe", "limits", "instructions", "arms", "thinking_vs_direct"}
    assert set(results) == keys
    assert results["schema_version"] == 1
    assert {"read", "kept", "bad", "duplicates"} <= set(results["instructions"])
    arm = results["arms"]["direct"]
    answers = {"prompts", "parse", "thought_tokens", "response_tokens", "checked"}
    assert set(arm["base"]) == answers | {"accuracy"}
    tested = {"prompts", "accuracy", "parse", "parse_ok", "thought_tokens", "response_tokens"}
    assert set(arm["base_test"]) == tested and arm["base_test"]["prompts"] == 2
    assert len(arm["iterations"]) == 2
    for data in arm["iterations"]:
        assert set(data) == {
            *(
                "prompts",
                "engine",
                "probe",
                "shift",
                "parse",
                "thought_tokens",
                "response_tokens",
                "judge",
                "pairs",
                "rho",
            ),
            *("rho_reached", "dpo", "merge", "validation", "accuracy", "crosscheck", "test", "seconds", "peak_bytes"),
        }
        assert set(data["parse"]) == set(OUTCOMES)
        assert sum(data["parse"].values()) == 8 * 4
        assert set(data["judge"]) == {"calls", "saved", "unparsed", "overlong", "flip_rate", "first_slot_rate"}
        assert set(data["pairs"]) == {"pairs", "counts", "chosen_tokens", "rejected_tokens"}
        assert set(data["dpo"]) == {
            *("pairs", "rank", "reference", "steps", "first_loss", "last_loss", "last_margin", "last_accuracy"),
        }  # fmt: skip
        assert set(data["merge"]) == {"merge", "rank", "update_norm", "kl"}
        assert set(data["validation"]) == answers | {"chosen", "checkpoints", "win_rate"}
        assert set(data["validation"]["win_rate"]) == {"M_t", "M_0"}
        assert (
            set(data["test"]) == tested | {"win_rate", "win_rate_base", "overlong"}
            and data["test"]["win_rate"]["n"] == 2
        )
        crosscheck = data["crosscheck"]  # the judge that chose is asked again
        rates = {name: rate["value"] for name, rate in crosscheck["checkpoints"].items()}
        assert rates | {"M_t": 0.5} == pytest.approx(data["validation"]["checkpoints"])
        assert all(
            rate == pytest.approx(data["validation"]["win_rate"][name]) for name, rate in crosscheck["win_rate"].items()
        )
        assert crosscheck["would_choose"] == data["validation"]["chosen"] and crosscheck["partings"] == []
        assert set(data["peak_bytes"]) == set(PHASES)
        assert all(peak["host"] > 2**20 for peak in data["peak_bytes"].values())


def test_results_fit_their_json_schema(tiny_run):
    written = (tiny_run / "results.json").read_text()
    results = read_results(RunFolder(tiny_run))
    assert json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n" == written


@pytest.fixture(scope="module", params=["fold", "continue"])
def exact_run(request, tiny_run, tiny_arguments, tmp_path_factory):
    """A finished run of a merge that changes nothing, with its name."""
    if request.param == "fold":
        return "fold", tiny_run
    root = tmp_path_factory.mktemp("continue") / "run"
    return "continue", finished_run(root, [*tiny_arguments, "--set", "merge=continue"])


def test_merging_changes_nothing_and_every_first_loss_is_ln_2(exact_run):
    merge, run = exact_run
    for t, data in enumerate(iterations(run)):
        assert data["merge"]["merge"] == merge
        assert abs(data["merge"]["kl"]) < 1e-6
        assert 0 < data["merge"]["update_norm"] < 0.2
        assert data["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert data["dpo"]["reference"] == f"M_{t}"
        assert data["dpo"]["steps"] == 4
    assert iterations(run)[0]["probe"] is None
    assert iterations(run)[1]["probe"] > 1e-4


def test_ranks_grow_with_fold_and_stay_with_continue(exact_run):
    merge, run = exact_run
    ranks = [rank_of(read_adapter(run / "direct" / f"iteration-{t}" / "adapter")[0]) for t in range(2)]
    assert ranks == {"fold": [16, 32], "continue": [16, 16]}[merge]
    assert [data["merge"]["rank"] for data in iterations(run)] == ranks


def test_the_adapter_is_an_ordinary_one_of_the_original_base(tiny_run, tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        bare = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, tiny_run / "direct" / "iteration-1" / "adapter").eval()
        assert (adapted(input_ids=ids).logits - bare).abs().max() > 1e-4


def test_requantize_writes_a_whole_model_and_says_what_it_cost(tiny_arguments, tmp_path):
    run = finished_run(tmp_path / "run", [*tiny_arguments, "--set", "merge=requantize"])
    for t, data in enumerate(iterations(run)):
        # The quantization noise is rolled anew, so that this KL is not 0; nor are the two models strangers.
        assert 1e-12 < data["merge"]["kl"] < 0.1
        assert 0 < data["merge"]["update_norm"] < 0.2
        assert data["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert data["merge"]["rank"] == 16
        assert data["probe"] is None  # there is no adapter to probe
        AutoModelForCausalLM.from_pretrained(run / "direct" / f"iteration-{t}" / "model")


def test_what_requantize_made_is_validated_and_not_the_checkpoint(tiny_arguments, tmp_path, monkeypatch):
    """The next iteration's checkpoints compete with what the merged model says."""
    folder = RunFolder(finished_run(tmp_path / "run", [*tiny_arguments, "--set", "merge=requantize"]))
    for t in range(2):
        on = policy(folder, folder.load_settled(), "direct", t + 1)
        assert on.model == str(folder.iteration("direct", t) / "model") and on.adapter is None
        written = list(read_jsonl(folder.validation_of("direct", t + 1), PromptSamples))
        key = sampling_key(folder.load_settled(), "direct", t + 1, "validation")
        instructions = [record.instruction for record in written]
        style, retries = folder.load_settled().style("direct"), folder.load_settled().evaluation.retries
        assert (
            list(LoadedPolicy(folder.load_settled(), on, "cpu").draw(instructions, style, key, 1, retries)) == written
        )
        validation = iterations(folder.root)[t]["validation"]
        answered = validation_figures(written).to_dict()
        assert validation | answered | {"accuracy": None} == validation | {"accuracy": None}
    checkpoint = folder.checkpoint_validation("direct", 0).read_text()
    assert folder.validation_of("direct", 1).read_text() != checkpoint
    reference = folder.done("validate", "direct", 1)["summary"]["M_t"]
    answered = list(read_jsonl(folder.validation_of("direct", 1), PromptSamples))
    assert reference == validation_figures(answered).to_dict()


def lost(judge, group, ours, theirs):
    """The matches of different responses count as lost, whatever a random judge says."""
    played = play(judge, group, ours, theirs)
    return [match if ours[match.id] == theirs[match.id] else replace(match, win=0.25) for match in played]


@patch.object(matches, "play", lost)
def test_an_iteration_whose_checkpoints_the_judge_likes_no_better_keeps_its_model(tiny_arguments, tmp_path):
    run = finished_run(tmp_path / "run", tiny_arguments, best)
    for t, data in enumerate(iterations(run)):
        rates = data["validation"]["checkpoints"]
        assert rates.pop("M_t") == 0.5
        assert len(rates) == 2 and max(rates.values()) < 0.5
        assert data["validation"]["chosen"] == "M_t"
        assert {win["value"] for win in data["validation"]["win_rate"].values()} == {0.5}
        assert data["merge"] == {"merge": "fold", "rank": 0, "update_norm": 0.0, "kl": 0.0}
        assert data["dpo"]["reference"] == f"M_{t}" and data["dpo"]["rank"] == 16
        assert data["probe"] is None  # M_1 is M_0, which has no adapter
    base = read_json(run / "results.json")["arms"]["direct"]["base"]
    assert all(data["accuracy"] == base["accuracy"] for data in iterations(run))
    assert not list(run.glob("direct/*/adapter"))
    assert train_here(*tiny_arguments, "--out", run).output.endswith(
        "direct M_2: M_0 itself; the judge preferred no checkpoint\n"
    )


TASKS = DATA / "prompts" / "tasks.jsonl"
SEED_TASKS = SHARED / "data" / "prompts" / "self_instruct_seed_tasks.jsonl"


@pytest.mark.shared
def test_real_instructions_are_trained_on(tiny_arguments, tmp_path):
    arguments = [*tiny_arguments, "--prompts", str(SEED_TASKS), "--set", "instructions.max_tokens=300"]
    run = finished_run(tmp_path / "run", [*arguments, "--iterations", "1"])
    results = read_json(run / "results.json")
    assert results["instructions"]["read"] == 175
    assert len(results["arms"]["direct"]["iterations"]) == 1
    samples = list(read_jsonl(run / "direct" / "iteration-0" / "samples.jsonl", PromptSamples))
    assert all(str(SEED_TASKS) in prompt.instruction.source for prompt in samples)


def test_instructions_of_a_file_are_trained_on(tiny_arguments, tmp_path):
    run = finished_run(tmp_path / "run", [*tiny_arguments, "--prompts", str(TASKS), "--iterations", "1"])
    results = read_json(run / "results.json")
    assert results["instructions"]["read"] == 24
    assert len(results["arms"]["direct"]["iterations"]) == 1
    samples = list(read_jsonl(run / "direct" / "iteration-0" / "samples.jsonl", PromptSamples))
    assert all(str(TASKS) in prompt.instruction.source for prompt in samples)


def test_a_model_that_never_follows_the_thought_prompt_stops_with_the_reason(tiny_arguments, tmp_path):
    arguments = [*tiny_arguments, "--prompts", str(TASKS), "--set", "instructions.max_tokens=300"]
    arguments += ["--set", "warm_start.kind=none"]
    done = tpo_lite("train", *arguments, "--set", "thought.style=generic", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "thinking, iteration 1: no prompt has a pair (8 prompts, 8 no_well_formed)" in done.stdout
    assert "The model does not follow the thought prompt" in done.stdout
    assert "Traceback" not in done.stdout


def test_outputs_whose_thought_is_cut_are_trained_on_only_if_the_recipe_says_so(tiny_arguments, tmp_path):
    arguments = [*tiny_arguments, "--iterations", "1", "--set", "thought.style=generic", "--set", "thought.budget=1"]
    arguments += ["--set", "warm_start.kind=none"]
    done = train_here(*arguments, "--out", tmp_path / "none")
    assert done.exit_code == 1
    assert "no prompt has a pair (8 prompts, 8 no_well_formed)" in done.output
    run = finished_run(tmp_path / "run", [*arguments, "--set", "pairs.budget_forced=true"])
    (data,) = read_json(run / "results.json")["arms"]["thinking"]["iterations"]
    assert data["parse"]["budget_forced"] > 4 and data["parse"]["ok"] == 0
    assert data["pairs"]["counts"]["best-worst"] > 0
    assert data["validation"]["parse"]["budget_forced"] > 0


# The engines, on the second iteration's sampling: an adapter is live there.


def test_transformers_samples_with_a_live_adapter_and_stops_with_a_dead_one(tiny_run, tmp_path):
    live = second_iteration_to_sample(tiny_run, tmp_path / "live", "transformers")
    run_phase("generate", live, "direct", 1)
    check_sampled(live, tiny_run, "transformers")
    ours, theirs = (run / "direct" / "iteration-1" / "samples.jsonl" for run in (live, tiny_run))
    assert ours.read_bytes() == theirs.read_bytes()
    dead = with_dead_adapter(second_iteration_to_sample(tiny_run, tmp_path / "dead", "transformers"))
    with pytest.raises(TpoError, match=f"{DEAD} transformers engine"):
        run_phase("generate", dead, "direct", 1)


@pytest.mark.parametrize(("merge", "ranks"), [("fold", [32, 48]), ("continue", [16, 16]), ("requantize", [16, 16])])
def test_a_loop_that_begins_with_a_warm_start(merge, ranks, tiny_arguments, tmp_path):
    """M_0 has an adapter; it is what DPO starts from and measures against."""
    keys = {
        "instructions.per_iteration": 6,
        "merge": merge,
        "warm_start.kind": "self",
        "warm_start.batch": 2,
        "warm_start.learning_rate": 1e-3,
    }
    run = finished_run(tmp_path / "run", [*tiny_arguments, *(f"--set={key}={keys[key]}" for key in keys)])
    results = read_results(RunFolder(run)).arms["direct"]
    assert results.warm_start.training.steps > 0
    assert results.warm_start.samples.before.prompts == 2
    first, second = results.iterations
    assert first.probe > 1e-4
    assert first.dpo.first_loss == pytest.approx(math.log(2), abs=1e-3)
    assert [first.dpo.rank, second.dpo.rank] == ranks
    assert rank_of(read_adapter(run / "direct/warm_start/adapter")[0]) == 16


SAMPLE_BOTH = """
import sys
from pathlib import Path
from tpo_lite.errors import TpoError
from tpo_lite.phase_order import PHASES
from tpo_lite.phases import matches
from tpo_lite.phases.matches import play
from tpo_lite.phases.process import run_phase
from tpo_lite.phases.select import best

live, dead = map(Path, sys.argv[1:])
run_phase("generate", live, "direct", 1)
try:
    run_phase("generate", dead, "direct", 1)
except TpoError as error:
    print(error)
"""


def test_unsloth_samples_with_a_live_adapter_and_stops_with_a_dead_one(tiny_run, tmp_path):
    unsloth = Path(sys.prefix) / "unsloth"
    assert unsloth.is_dir(), f"unsloth is not in {unsloth}: install it with `make test`"
    live = second_iteration_to_sample(tiny_run, tmp_path / "live", "unsloth")
    dead = with_dead_adapter(second_iteration_to_sample(tiny_run, tmp_path / "dead", "unsloth"))
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE_BOTH, live, dead],
        env=os.environ | {"PYTHONPATH": str(unsloth)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # unsloth writes a cache of compiled code where it runs
    )
    assert done.returncode == 0, done.stderr
    check_sampled(live, tiny_run, "unsloth")
    assert f"{DEAD} unsloth engine" in done.stdout
