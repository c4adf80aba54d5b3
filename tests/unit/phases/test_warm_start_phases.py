"""The phases of a warm start on a tiny model: what is sampled and trained on, when there is none, and its bar."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.tiny_run import start
from tpo_lite.adapters import read_adapter
from tpo_lite.chat import load_tokenizer
from tpo_lite.errors import InputError, TpoError
from tpo_lite.phases import generate
from tpo_lite.phases.process import run_phase
from tpo_lite.phases.summaries import read_summary
from tpo_lite.phases.warm_summaries import WarmSampleSummary, WarmStartSummary
from tpo_lite.recipe import load_recipe, with_keys
from tpo_lite.records import Example, Instruction, PromptSamples, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.settled import as_settled
from tpo_lite.thoughts import GENERIC

KEYS = {
    "baseline": True,
    "thought.style": "generic",
    "iterations": 1,
    "lora.rank": 2,
    "sampling.max_new_tokens": 64,
    "warm_start.kind": "self",
    "warm_start.prompts": 6,
    "warm_start.samples": 2,
    "warm_start.thought_tokens": 12,
    "warm_start.response_tokens": 12,
    "warm_start.batch": 2,
    "warm_start.epochs": 1,
}


@pytest.fixture(scope="module")
def make(tiny_arguments):
    """Starts a run in a folder, both arms, with other keys."""
    recipe = as_settled(with_keys(load_recipe(tiny_arguments[1]), KEYS))

    def make(root: Path, **keys: object) -> RunFolder:
        run = RunFolder(root)
        start(run, with_keys(recipe, {key.replace("__", "."): value for key, value in keys.items()}))
        run_phase("prepare", root, None, 0)
        return run

    return make


@pytest.fixture(scope="module")
def warm(make, tmp_path_factory):
    """A run whose warm start is finished in both arms."""
    run = make(tmp_path_factory.mktemp("warm") / "run")
    for arm in ("thinking", "direct"):
        for phase in ("warm_sample", "warm_start"):
            run_phase(phase, run.root, arm, 0)
    return run


def test_examples_hold_the_markers_and_end(warm, tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    opening = tokenizer.encode(GENERIC.thought_marker, add_special_tokens=False)
    closing = tokenizer.encode(f"\n\n{GENERIC.response_marker}", add_special_tokens=False)
    prompts = {x.id for x in read_jsonl(warm.instructions("warm_start"), Instruction)}
    assert len(prompts) == 6
    examples = list(read_jsonl(warm.warm_start("thinking") / "examples.jsonl", Example))
    assert {x.id for x in examples} <= prompts
    for example in examples:
        assert "Be brief" not in tokenizer.decode(example.prompt_ids)
        ids = example.output_ids
        assert ids[: len(opening)] == opening
        assert ids[-1] == tokenizer.eos_token_id
        at = next(n for n in range(len(ids)) if ids[n : n + len(closing)] == closing)
        assert at - len(opening) <= 12
        assert len(ids) - at - len(closing) <= 12
    direct = list(read_jsonl(warm.warm_start("direct") / "examples.jsonl", Example))
    assert all(len(x.output_ids) <= 12 and x.output_ids[-1] == tokenizer.eos_token_id for x in direct)


def test_no_other_slice_has_the_instructions(warm):
    others = [x.id for name in ("validation", "iteration-0") for x in read_jsonl(warm.instructions(name), Instruction)]
    assert not {x.id for x in read_jsonl(warm.instructions("warm_start"), Instruction)} & set(others)


def test_both_arms_train_for_as_many_steps_and_become_m_0(warm):
    steps = {arm: read_summary(WarmStartSummary, warm, arm, 0).steps for arm in ("thinking", "direct")}
    assert steps["thinking"] == steps["direct"] > 0
    recipe = warm.load_settled()
    assert policy(warm, recipe, "thinking", 0).adapter == warm.warm_start("thinking") / "adapter"
    blocks = {arm: read_adapter(warm.warm_start(arm) / "adapter")[0] for arm in steps}
    assert all((block.b != blocks["direct"][name].b).any() for name, block in blocks["thinking"].items())


def test_a_stopped_phase_ends_with_the_same_examples(warm, tmp_path):
    shutil.copytree(warm.root, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    here = run.warm_start("thinking")
    run.done_path("warm_sample", "thinking", 0).unlink()
    (here / "examples.jsonl").unlink()
    lines = (here / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (here / "samples.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:10])
    run_phase("warm_sample", run.root, "thinking", 0)
    for name in ("samples.jsonl", "examples.jsonl"):
        assert (here / name).read_bytes() == (warm.warm_start("thinking") / name).read_bytes()


def test_below_its_bar_the_run_stops_with_figures_and_three_ways_on(warm, tmp_path, monkeypatch):
    shutil.copytree(warm.root, tmp_path / "run")
    for _ in range(2):  # nothing is lost, and nothing changes by itself
        with pytest.raises(TpoError, match=r"0 of 6 well-formed \(.*\).* three ways on, each with --new"):
            run_phase("generate", tmp_path / "run", "thinking", 0)
    run = RunFolder(tmp_path / "run")
    assert len(list(read_jsonl(run.validation_of("thinking", 0), PromptSamples))) == 6
    monkeypatch.setattr(generate, "ENOUGH", 0.0)
    run_phase("generate", run.root, "thinking", 0)
    assert run.done("generate", "thinking", 0)["summary"]["probe"] > 0  # M_0's adapter is live


def test_auto_looks_at_a_few_outputs_first(make, tmp_path, capsys):
    run = make(tmp_path / "run", warm_start__kind="auto")
    run_phase("warm_sample", run.root, "thinking", 0)
    assert "thinking warm start: the probe: 0 of 6 well-formed" in capsys.readouterr().out
    summary = read_summary(WarmSampleSummary, run, "thinking", 0)
    assert summary.needed and sum(summary.probe.values()) == 6 and summary.before.prompts == 2


def test_auto_leaves_a_model_that_follows_the_prompt_as_it_is(tmp_path, capsys):
    keys = {"warm_start.kind": "auto", "instructions.validation": 8, "instructions.per_iteration": 8}
    run = RunFolder(tmp_path / "run")
    start(run, as_settled(with_keys(load_recipe("embedded"), keys)))
    run_phase("prepare", run.root, None, 0)
    for arm in ("thinking", "direct"):
        for phase in ("warm_sample", "warm_start"):
            run_phase(phase, run.root, arm, 0)
    assert "thinking warm start: the probe: 8 of 8 well-formed, no warm start needed" in capsys.readouterr().out
    assert policy(run, run.load_settled(), "thinking", 0).adapter is None
    assert read_summary(WarmStartSummary, run, "direct", 0).steps == 0


def test_examples_of_ones_own(make, tiny_model, tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"instruction": f"Add {n} and {n}.", "thought": f"{n} + {n}", "response": str(2 * n)} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make(tmp_path / "run", warm_start__kind="file", warm_start__file=str(file))
    run_phase("warm_sample", run.root, "thinking", 0)
    tokenizer = load_tokenizer(str(tiny_model))
    first, *_ = read_jsonl(run.warm_start("thinking") / "examples.jsonl", Example)
    output = f"{GENERIC.thought_marker}\n0 + 0\n\n{GENERIC.response_marker}\n0"
    assert tokenizer.decode(first.output_ids) == output + tokenizer.eos_token
    assert read_summary(WarmSampleSummary, run, "thinking", 0).examples == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"instruction": "Add.", "response": "2"}', r'mine.jsonl:1 has no "thought"'),
        ("[1, 2]", r'mine.jsonl:1 has no "instruction"'),
        ("{", r"mine.jsonl:1 cannot be read: not JSON"),
        (
            '{"instruction": "Add.", "thought": "1", "response": "Here is my response: 2"}',
            "holds a marker of the thought prompt",
        ),
    ],
)
def test_a_file_that_does_not_fit(line, said, make, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(line + "\n")
    run = make(tmp_path / "run", warm_start__kind="file", warm_start__file=str(file))
    with pytest.raises(InputError, match=said):
        run_phase("warm_sample", run.root, "thinking", 0)


def test_phases_come_in_order(make, tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(InputError, match="warm_start of thinking.* comes after warm_sample, which is not finished"):
        run_phase("warm_start", run.root, "thinking", 0)
    with pytest.raises(
        InputError, match="warm_sample of direct.* comes after warm_sample of thinking, which is not finished"
    ):
        run_phase("warm_sample", run.root, "direct", 0)
    with pytest.raises(InputError, match="generate of thinking.* comes after warm_sample, which is not finished"):
        run_phase("generate", run.root, "thinking", 0)


@pytest.mark.parametrize("phase", ["warm_sample", "warm_start"])
def test_a_run_without_a_warm_start_has_no_such_phase(phase, make, tmp_path):
    run = make(tmp_path / "run", warm_start__kind="none")
    with pytest.raises(InputError, match=rf"no warm start \(warm_start.kind\), so it has no {phase} phase"):
        run_phase(phase, run.root, "thinking", 0)
