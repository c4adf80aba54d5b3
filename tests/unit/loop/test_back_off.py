"""Out of memory: what is halved, and that the run goes on with it to the same end."""

from __future__ import annotations

import shutil
from unittest.mock import patch

import pytest
import torch

from tests.helpers.tiny_run import before_phase, invoke, process_here
from tpo_lite.adapters import read_adapter
from tpo_lite.errors import InputError, OutOfMemory, TpoError
from tpo_lite.files import read_json
from tpo_lite.llamacpp import model as gguf_model
from tpo_lite.loop import orchestrator
from tpo_lite.loop.back_off import smaller
from tpo_lite.recipe import Recipe, parse_as, value_of, with_keys
from tpo_lite.records import PromptJudgements, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe, limited


def recipe(**sections):
    return parse_as(SettledRecipe, sections, "test")


# What is halved


@pytest.mark.parametrize(
    ("phase", "sections", "limits"),
    [
        ("dpo", {"train": {"batch": 32, "micro_batch": 8}}, {"train.micro_batch": 4}),
        ("dpo", {"train": {"batch": 12, "micro_batch": 12}}, {"train.micro_batch": 6}),
        ("dpo", {"train": {"batch": 9, "micro_batch": 9}}, {"train.micro_batch": 3}),  # 4 would not divide the batch
        ("dpo", {"train": {"batch": 8, "micro_batch": 64}}, {"train.micro_batch": 4}),  # which took 8 at a time
        ("dpo", {"train": {"batch": 32, "micro_batch": 1}}, {}),
        ("generate", {"sampling": {"batch": 64, "k": 8}}, {"sampling.batch": 32}),
        ("validate", {"sampling": {"batch": 3, "k": 8}}, {"sampling.batch": 1}),
        ("validate", {"sampling": {"batch": 1, "k": 8}}, {}),
        ("test", {"sampling": {"batch": 64, "k": 8}}, {"sampling.batch": 32}),
        ("fold", {}, {}),
        ("fold", {"merge": "requantize", "sampling": {"batch": 64}}, {"sampling.batch": 32}),
        ("pair", {}, {}),
    ],
)
def test_what_is_halved(phase, sections, limits):
    assert smaller(phase, recipe(**sections)) == limits


@pytest.mark.parametrize("phase", ["prepare", "judge", "select", "match"])
def test_the_judge_keeps_room_for_the_longest_comparison(phase):
    judged = recipe(
        instructions={"max_tokens": 100},
        sampling={"max_new_tokens": 200},
        judge={"mode": "explain", "explain_tokens": 300, "context": 8192, "batch": 128, "sequences": 32},
    )
    needed = 1620 + 256  # 1.5 * (prompt 280 + 100 + 2 * 200 + explanation 300), and room for a longer prompt
    tried = []
    while limits := smaller(phase, judged):
        tried.append((limits.get("judge.batch"), limits.get("judge.context")))
        judged = limited(judged, limits)
    assert tried == [(64, 4096), (32, 2048), (None, needed)]


@pytest.mark.parametrize(("phase", "key"), [("select", "select.judge"), ("match", "select.judge"), ("judge", "judge")])
def test_the_judge_that_a_phase_asks_gets_less(phase, key):
    judged = recipe(judge={"context": 32768}, select={"judge": {"mode": "verdict", "context": 65536}})
    limits = smaller(phase, judged)
    assert limits == {f"{key}.batch": 256, f"{key}.context": value_of(judged, key).context // 2}
    other = {"judge": "select.judge", "select.judge": "judge"}[key]
    assert value_of(limited(judged, limits), other) == value_of(judged, other)


@pytest.mark.parametrize(
    ("mode", "limits", "needed"),
    [
        ("score", [64, 4096], 870),  # 1.5 * (prompt 280 + 100 + 200)
        ("reward-model", [None, 4096], 525),  # 1.5 * (chat template 50 + 100 + 200)
    ],
)
def test_a_judge_of_single_responses_keeps_room_for_one(mode, limits, needed):
    judged = recipe(
        instructions={"max_tokens": 100},
        sampling={"max_new_tokens": 200},
        judge={"mode": mode, "context": 8192, "batch": 128, "sequences": 32},
    )
    first = smaller("judge", judged)
    assert [first.get("judge.batch"), first["judge.context"]] == limits
    while limits := smaller("judge", judged):
        judged = limited(judged, limits)
    assert judged.judge.context == needed + 256  # and room for a longer prompt


def test_a_limit_never_raises_a_setting():
    limits = {"train.micro_batch": 4, "sampling.batch": 16}
    within = limited(recipe(train={"micro_batch": 2}, sampling={"batch": 64}), limits)
    assert (within.train.micro_batch, within.sampling.batch) == (2, 16)
    assert within.train.batch == Recipe().train.batch


def test_other_values_for_a_recipe():
    recipe = Recipe()
    other = with_keys(recipe, {"sampling.batch": 8, "engine": "gguf"})
    assert (other.sampling.batch, other.engine) == (8, "gguf")
    assert (value_of(other, "sampling.batch"), value_of(other, "engine")) == (8, "gguf")
    assert with_keys(other, {"sampling.batch": recipe.sampling.batch, "engine": recipe.engine}) == recipe


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sampling.batsh": 8}, "sampling.batsh: unknown key .value 8.; did you mean sampling.batch"),
        ({"sample.batch": 8}, "sample: unknown key"),
        ({"sampling.batch": 0}, "sampling.batch: 0 does not fit"),
        ({"train.micro_batch": 5}, "train.micro_batch: 5 must divide train.batch"),
    ],
)
@pytest.mark.parametrize("change", [with_keys, limited], ids=lambda change: change.__name__)
def test_values_that_do_not_fit_are_an_input_error_everywhere(change, keys, said):
    with pytest.raises(InputError, match=said):
        change(Recipe(), keys)


# The run goes on


OUT_OF_MEMORY_HERE = """
import tpo_lite.phases.process


def run_phase(*arguments):
    from tpo_lite.sampling.policy import LoadedPolicy

    draw = LoadedPolicy.draw

    def draw_two_prompts(self, *arguments):
        for number, prompt in enumerate(draw(self, *arguments)):
            if number == 2:
                raise MemoryError
            yield prompt

    def draw_in_small_batches(self, *arguments):
        return (draw if self.recipe.sampling.batch <= 4 else draw_two_prompts)(self, *arguments)

    LoadedPolicy.draw = draw_in_small_batches
    whole(*arguments)


whole, tpo_lite.phases.process.run_phase = tpo_lite.phases.process.run_phase, run_phase
"""


def test_a_fresh_process_goes_on_with_half_the_batch(tiny_run, tmp_path, monkeypatch, capfd):
    """Batches of eight find no memory after the first two prompts, which are on disk by then."""
    run = before_phase(tiny_run, tmp_path / "run", "generate", 0, ["samples.jsonl"])
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY_HERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    orchestrator._phase(run, "generate", "direct", 0, debug=False)
    said = capfd.readouterr()
    assert said.err.count("error: out of memory (MemoryError).") == 1
    assert said.out.count("generate: out of memory; trying again with sampling.batch 4") == 1
    assert run.limits == read_json(run.root / "limits.json") == {"sampling.batch": 4}
    assert run.load_settled().sampling.batch == 4 and run.load_started().sampling.batch == 8
    samples = "direct/iteration-0/samples.jsonl"
    assert (run.root / samples).read_bytes() == (tiny_run / samples).read_bytes()


ABORT_HERE = """
import tpo_lite.phases.process


def run_phase(*arguments):
    import llama_cpp

    decode, ggml = llama_cpp.llama_decode, llama_cpp.llama_cpp._lib

    def decode_small_batches(context, batch):
        if llama_cpp.llama_n_batch(context) > LARGEST:  # as ggml-cuda does where an allocation fails in a decode
            ggml.ggml_log_internal(4, b"%s error: %s\\n", b"CUDA", b"REASON")
            ggml.ggml_log_internal(4, b"  current device: %d, in function %s\\n", 0, b"alloc")
            ggml.ggml_log_internal(4, b"  %s\\n", b"cuMemCreate(&handle, reserve_size, &prop, 0)")
            ggml.ggml_abort(b"ggml-cuda.cu", 106, b"%s error", b"CUDA")
        return decode(context, batch)

    llama_cpp.llama_decode = decode_small_batches
    whole(*arguments)


whole, tpo_lite.phases.process.run_phase = tpo_lite.phases.process.run_phase, run_phase
"""


def abort_in_judge(tiny_run, tmp_path, monkeypatch, largest, reason):
    """A run before its first judge phase, which will abort in llama.cpp with batches over `largest` tokens."""
    run = before_phase(tiny_run, tmp_path / "run", "judge", 0, ["judgements.jsonl"])
    (tmp_path / "sitecustomize.py").write_text(ABORT_HERE.replace("LARGEST", str(largest)).replace("REASON", reason))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return run


def test_a_judge_that_llama_cpp_aborts_for_want_of_memory_gets_smaller_batches(tiny_run, tmp_path, monkeypatch, capfd):
    run = abort_in_judge(tiny_run, tmp_path, monkeypatch, 256, "out of memory")
    orchestrator._phase(run, "judge", "direct", 0, debug=False)
    said = capfd.readouterr()
    log = run.root / "log" / "judge.log"
    aborted = f"the judge phase ran out of memory and was aborted. Its last words are in {log}."
    assert said.err.count(aborted) == 1 and "Traceback" not in said.err
    assert "judge: out of memory; trying again with judge.batch 256, judge.context" in said.out
    assert run.limits["judge.batch"] == 256 and run.is_done("judge", "direct", 0)
    words = log.read_text().splitlines()
    assert words[-4] == "CUDA error: out of memory" and words[-1] == "ggml-cuda.cu:106: CUDA error"


def test_a_judge_that_aborts_for_another_reason_is_reported_with_its_log(tiny_run, tmp_path, monkeypatch):
    run = abort_in_judge(tiny_run, tmp_path, monkeypatch, 0, "an illegal memory access was encountered")
    log = run.root / "log" / "judge.log"
    with pytest.raises(TpoError, match=rf"was ended by SIGABRT; .* report it with its log.* in {log}\."):
        orchestrator._phase(run, "judge", "direct", 0, debug=False)
    assert "CUDA error: an illegal memory access was encountered" in log.read_text()
    assert run.limits == {}


def test_an_abort_by_cpp_for_want_of_memory(tmp_path, monkeypatch, capfd):
    """What C++ writes where nothing catches its bad_alloc."""
    words = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.write(2, {words.encode()!r})\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = RunFolder(tmp_path / "run")
    assert orchestrator.process(run, "generate", "direct", 0, debug=False) == OutOfMemory.exit_code
    assert (run.root / "log" / "generate.log").read_text() == words
    assert capfd.readouterr().err.startswith(words)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Error out of memory at line 90 in file /src/csrc/ops.cu", OutOfMemory.exit_code),
        ("Error an illegal memory access was encountered at line 90 in file /src/csrc/ops.cu", 1),
        ("out of memory, a while ago" + "\nand then something else" * 8, 1),
    ],
)
def test_gpu_audit_3_an_exit_by_bitsandbytes_for_want_of_memory(said, code, tmp_path, monkeypatch):
    """What the CUDA library of bitsandbytes does where a call fails: one line on stderr, and `exit(1)`."""
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.write(2, {(said + chr(10)).encode()!r})\nos._exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = RunFolder(tmp_path / "run")
    assert orchestrator.process(run, "dpo", "direct", 0, debug=False) == code
    log = run.root / "log" / "dpo.log"
    assert (log.read_text() if log.exists() else None) == (said + "\n" if code == OutOfMemory.exit_code else None)


def test_training_that_runs_out_of_memory_in_its_second_epoch_ends_with_the_same_adapters(tiny_run, tmp_path):
    from trl import DPOTrainer

    run = before_phase(tiny_run, tmp_path / "run", "dpo", 0, ["train"])
    step, sizes = DPOTrainer.training_step, []

    def training_step(self, model, inputs, *arguments):
        pairs = len(inputs["input_ids"]) // 2
        if pairs > 2 and (run.iteration("direct", 0) / "train" / "checkpoint-2").exists():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(pairs)
        return step(self, model, inputs, *arguments)

    with patch.object(DPOTrainer, "training_step", training_step), patch.object(orchestrator, "process", process_here):
        orchestrator._phase(run, "dpo", "direct", 0, debug=False)
    assert sizes == [4, 3, 2, 2, 2, 1]  # seven pairs: the last micro-batch's count as much as the others
    assert run.limits == {"train.micro_batch": 2}
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        ours, theirs = (
            read_adapter(root / "direct" / "iteration-0" / "train" / checkpoint)[0] for root in (run.root, tiny_run)
        )
        for name, block in theirs.items():
            update = ours[name].b @ ours[name].a
            assert (update - block.b @ block.a).norm() < 1e-4 * update.norm()
    ours, theirs = (folder.done("dpo", "direct", 0)["summary"] for folder in (run, RunFolder(tiny_run)))
    for key in ("first_loss", "last_loss"):
        assert ours[key] == pytest.approx(theirs[key])


def test_a_judge_whose_context_finds_no_memory_gets_a_smaller_one(tiny_run, tmp_path, monkeypatch, capsys):
    run = before_phase(tiny_run, tmp_path / "run", "judge", 0, ["judgements.jsonl"])
    monkeypatch.setattr(gguf_model, "_available_memory", lambda: 1 << 20)
    with patch.object(orchestrator, "process", process_here):
        orchestrator._phase(run, "judge", "direct", 0, debug=False)
    assert "no context of 8192 tokens" in capsys.readouterr().err
    assert run.limits["judge.context"] < run.load_started().judge.context == 8192
    games, expected = (
        {
            (record.id, game.first, game.second): game.p_first
            for record in read_jsonl(root / "direct" / "iteration-0" / "judgements.jsonl", PromptJudgements)
            for game in record.comparisons
        }
        for root in (run.root, tiny_run)
    )
    assert games == pytest.approx(expected, abs=1e-3)


def test_a_phase_without_anything_left_to_halve_says_what_to_do(tiny_run, tmp_path):
    run = before_phase(tiny_run, tmp_path / "run", "dpo", 0, ["train"])
    run.limit({"sampling.batch": 4})
    tried = []

    def process(run, *arguments):
        tried.append(run.load_settled().train.micro_batch)
        return OutOfMemory.exit_code

    with (
        patch.object(orchestrator, "process", process),
        pytest.raises(TpoError, match=r"dpo phase ran out of memory with the smallest batches\. End other programs"),
    ):
        orchestrator._phase(run, "dpo", "direct", 0, debug=False)
    assert tried == [4, 2, 1]
    assert RunFolder(run.root).limits == {"sampling.batch": 4}  # what worked before; of those tried, none did


def test_status_names_the_limits(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    RunFolder(tmp_path / "run").limit({"train.micro_batch": 2})
    assert "train.micro_batch was reduced to 2 because memory ran out" in invoke("status", tmp_path / "run").output
