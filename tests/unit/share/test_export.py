"""`tpo-lite export` on a finished run: what is written, what is checked, and what is refused."""

import fcntl
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.tiny_run import invoke
from tpo_lite import base_weights
from tpo_lite.adapters import read_adapter
from tpo_lite.chat import clock
from tpo_lite.files import read_json, write_json
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.records import Instruction, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.share import export
from tpo_lite.share.chosen import choose, made_in
from tpo_lite.share.tokenizer_files import template_ids
from tpo_lite.thoughts import GENERIC, thought_prompt
from tpo_lite.training.requantize import merge_to_disk

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
BESIDE = (
    "Modelfile",
    "SERVING.md",
    "chat_template.jinja",
    "export.json",
    "generation_config.json",
    "model.yaml",
    "params",
    "template",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that counts as one of a thinking arm: its answers are random anyway."""
    root = shutil.copytree(tiny_run, tmp_path / "run")
    (root / "direct").rename(root / "thinking")
    for name in ("recipe.yaml", "settled.yaml"):
        text = (root / name).read_text()
        assert "style: direct\n" in text
        (root / name).write_text(text.replace("style: direct\n", "style: generic\n"))
    return root


def requantized(root):
    """The run with its first iteration merged, as `merge: requantize` leaves it; the second is not finished."""
    for name in ("recipe.yaml", "settled.yaml"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace("merge: fold\n", "merge: requantize\n"))
    here = root / "thinking" / "iteration-0"
    folder = RunFolder(root)
    chosen = folder.chosen("thinking", 0)
    merge_to_disk(folder.load_recipe().model, *read_adapter(here / "train" / chosen), here / "model")
    shutil.copy(here / "validation" / f"{chosen}.jsonl", here / "validation" / "merged.jsonl")
    (root / "thinking" / "iteration-1" / "done" / "fold.json").unlink()
    return root


def exported(kind, run, out, *options):
    result = invoke("export", kind, run, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert not out.with_name(out.name + ".tmp").exists()
    return result.output


def test_an_adapter_thinks_by_itself_and_equals_the_model_that_was_trained(run, tiny_model, tmp_path):
    out = tmp_path / "adapter"
    said = exported("adapter", run, out, "--base-model", "owner/name")
    assert "exporting thinking M_2" in said
    assert sorted(path.name for path in out.iterdir()) == sorted((*ADAPTER, *BESIDE))
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == "owner/name"
    for path in out.iterdir():  # no path of this machine
        assert str(tiny_model).encode() not in path.read_bytes(), path
        assert str(run).encode() not in path.read_bytes(), path
    as_trained, in_16_bits = read_json(out / "export.json")["checks"]
    assert as_trained["largest"] <= 1e-3
    assert in_16_bits["tokens"] == as_trained["tokens"] > 0
    assert read_json(out / "generation_config.json")["eos_token_id"] == [3]
    assert "FROM owner/name\nADAPTER .\nTEMPLATE" in (out / "Modelfile").read_text()
    assert "--reasoning-parser granite" in (out / "SERVING.md").read_text()

    folder = RunFolder(run)
    trained_policy = policy(folder, folder.load_settled(), "thinking", 2)
    trained = base_weights.load(trained_policy.model, trained_policy.adapter, "cpu", "float32")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), out).eval()
    tokenizer, chat = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(tiny_model)
    for record in read_jsonl(folder.instructions("iteration-0"), Instruction):
        question = {"role": "user", "content": record.text}
        ids = template_ids(tokenizer, [question], clock(folder.load_day()))
        asked = {"role": "user", "content": thought_prompt(GENERIC, record.text)}
        assert ids == template_ids(chat, [asked], clock(folder.load_day()))
        assert greedy(plain, ids) == greedy(trained, ids)


def greedy(model, ids):
    with torch.inference_mode():
        return model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8)[0].tolist()


def test_a_merged_model(run, tmp_path):
    exported("merged", run, tmp_path / "merged")
    out = tmp_path / "merged"
    assert {"config.json", "model.safetensors", *BESIDE} <= {path.name for path in out.iterdir()}
    assert "User query: " in (out / "chat_template.jinja").read_text()  # the base's own was not copied over it
    assert "User query: " in read_json(out / "tokenizer_config.json")["chat_template"]
    assert read_json(out / "export.json")["checks"][0]["kl"] < 1e-4


@pytest.mark.parametrize("kind", ["lora", "Q8_0", "Q4_K_M"])
def test_a_gguf(kind, run, tmp_path):
    exported("gguf", run, tmp_path / "gguf", "--type", kind)
    out = tmp_path / "gguf"
    file = "adapter-lora.gguf" if kind == "lora" else f"model-{kind}.gguf"
    assert sorted(path.name for path in out.iterdir()) == sorted((file, *BESIDE))
    header = GgufHeader((out / file).read_bytes(), arrays=True)
    if kind != "lora":
        assert header.values["tokenizer.chat_template"] == (out / "chat_template.jinja").read_text()
    checks = read_json(out / "export.json")["checks"]
    assert all(check["kl"] < 1e-4 for check in checks[: 1 if kind == "lora" else 2])
    assert f"./{file}" in (out / "Modelfile").read_text()


def test_of_a_requantized_run_the_updates_of_all_iterations_are_one_adapter(run, tmp_path):
    requantized(run)
    said = exported("adapter", run, tmp_path / "adapter")
    assert "only 1 of 2 iterations are finished" in said
    assert "adapter in float32" in said
    exported("merged", run, tmp_path / "merged")
    assert read_json(tmp_path / "merged" / "export.json")["checks"][0]["kl"] < 1e-3


def test_the_updates_of_a_requantized_run_are_those_of_every_checkpoint(run):
    requantized(run)
    folder = RunFolder(run)
    chosen = choose(folder, None, None, None)
    train = folder.iteration("thinking", 0) / "train"
    assert made_in(chosen) == [train / folder.chosen("thinking", 0)]


def test_an_iteration_and_an_arm_can_be_named(run, tmp_path):
    assert "exporting thinking M_1" in exported("adapter", run, tmp_path / "a", "--iteration", 0, "--arm", "thinking")
    assert read_json(tmp_path / "a" / "adapter_config.json")["r"] == 16


def refused(run, out, *options, code=2):
    """The message of an export that leaves nothing behind."""
    result = invoke("export", "adapter", run, "--out", out, *options)
    assert result.exit_code == code, result.output
    assert result.output.count("error: ") == 1
    assert "Traceback" not in result.output
    assert not out.with_name(out.name + ".tmp").exists()
    return result.output


def test_what_is_refused(run, tmp_path):
    out = tmp_path / "out"
    assert "has no arm 'direct'" in refused(run, out, "--arm", "direct")
    assert "iteration 7 of thinking is not finished; 0 to 1 are" in refused(run, out, "--iteration", 7)
    with (run / ".run.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is still going (process 4711). Wait until it ends, or export" in refused(run, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists already" in refused(run, tmp_path / "full")
    for iteration in (0, 1):
        write_json(run / "thinking" / f"iteration-{iteration}" / "validation.json", {"chosen": "M_t"})
    assert "thinking M_2 is the base itself" in refused(run, out)
    (run / "thinking" / "iteration-0" / "done" / "fold.json").unlink()
    assert "has no finished iteration of thinking" in refused(run, out)
    assert "is not a run folder" in refused(tmp_path / "full", out)
    assert not out.exists()


def test_a_template_that_cannot_be_extended(run, tiny_model, tmp_path):
    """It has a variable that the thought prompt needs for itself."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if tpo is defined %}!{% endif %}")
    for name in ("recipe.yaml", "settled.yaml"):
        (run / name).write_text((run / name).read_text().replace(str(tiny_model), str(model)))
    said = refused(run, tmp_path / "out")
    assert "cannot be extended with the thought prompt (it gives other tokens for 'Why is the sky blue?')" in said
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_another_model_is_not_written(run, tmp_path, monkeypatch):
    write = export.write_adapter
    other = lambda folder, blocks, scale, *more: write(folder, blocks, -scale, *more)  # noqa: E731
    monkeypatch.setattr(export, "write_adapter", other)
    assert "the export is not the model that was trained" in refused(run, tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_adapter", full)
    assert "the disk is full" in refused(run, tmp_path / "out", code=1)
