"""Bad input: one message with the remedy, the right exit code, nothing lost, and a traceback only with --debug."""

import resource
import shutil
import subprocess

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_run import command, invoke, start, tpo_lite, train_here
from tpo_lite.files import read_json
from tpo_lite.machine.device import Place
from tpo_lite.phase_order import PHASES
from tpo_lite.recipe import with_keys
from tpo_lite.run import RunFolder


def check_refused(arguments, text, code=2):
    """`tpo-lite train` says `text` in one message, with the traceback only where --debug asks for it."""
    done = train_here(*arguments)
    assert text in done.output
    assert done.exit_code == code
    assert done.output.count("error: ") == 1
    assert "Traceback" not in done.output
    debugged = train_here(*arguments, "--debug")
    assert "Traceback" in debugged.output
    assert text in debugged.output
    assert debugged.exit_code == code


# Instructions


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "none.jsonl",
            None,
            "none.jsonl cannot be read (No such file or directory). Check the path and its permissions.",
        ),
        (
            "list.xml",
            "<x/>",
            "list.xml: unknown suffix '.xml'. Instruction files end in .jsonl, .json, .csv, .parquet, .txt.",
        ),
        ("two.jsonl", '{"prompt": "Hi"}\n{"prompt": \n', "two.jsonl:2: not JSON"),
        ("latin.txt", b"Caf\xe9", "latin.txt:1 is not UTF-8. Convert the file"),
        ("empty.txt", "", "empty.txt holds no instructions"),
        (
            "few.txt",
            "One.\nTwo.\n",
            "there are 2 usable instructions, but 24 are needed (6 for validation + 2 for test + 2 iterations x 8)",
        ),
    ],
)
def test_instruction_files(name, content, text, tiny_arguments, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_refused([*tiny_arguments, "--prompts", path, "--out", tmp_path / "run"], text)
    assert not (tmp_path / "run" / "direct").exists()


def test_malformed_lines_can_be_counted_instead(tiny_run, tiny_prompts, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(tiny_prompts.read_text() + "{\n[]\n")
    recipe = with_keys(RunFolder(tiny_run).load_started(), {"instructions.source": str(path)})
    run = tmp_path / "run"
    start(RunFolder(run), recipe)
    assert "prompts.jsonl:25: not JSON" in invoke("prepare", run).output
    start(RunFolder(run), with_keys(recipe, {"instructions.skip_bad": True}))
    done = invoke("prepare", run)
    assert done.stdout == "instructions: 24 kept of 24 (2 bad)\n"
    assert read_json(run / "instructions" / "done" / "prepare.json")["summary"]["bad"] == 2


# Judge


def cut_short(path, source):
    path.write_bytes(source.read_bytes()[:-100_000])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path, whole: None, "judge.model: no file"),
        (lambda path, whole: path.write_text("GGML"), "judge.gguf is not a GGUF file. Convert the model"),
        (cut_short, "The file is cut short: download it again."),
        (lambda path, whole: write_tiny_gguf(path, chat_template=None), "judge.gguf has no chat template. Give one"),
        (lambda path, whole: write_tiny_gguf(path, left_out="AB"), "no token of its vocabulary tells [[A]] from [[B]]"),
    ],
)
def test_judges_are_refused_before_anything_is_sampled(make, text, tiny_arguments, tiny_judge, tmp_path):
    path = tmp_path / "judge.gguf"
    make(path, tiny_judge)
    check_refused([*tiny_arguments, "--set", f"judge.model={path}", "--out", tmp_path / "run"], text)
    assert not (tmp_path / "run" / "direct").exists()


def test_a_judge_prompt_without_its_places(tiny_arguments, tmp_path):
    arguments = [*tiny_arguments, "--set", "judge.template='{instruction}'", "--out", tmp_path / "run"]
    check_refused(arguments, "The judge template lacks {response_a}, {response_b}. Add each where its text belongs.")


# Model


def without(name):
    return lambda folder: (folder / name).unlink()


def half_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_kind(folder):
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (shutil.rmtree, "model: no folder '"),
        (without("config.json"), "policy has no config.json. Give a complete Hugging Face model folder."),
        (without("tokenizer.json"), "policy has no tokenizer that can be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "policy has no tokenizer that can be loaded"),
        (without("tokenizer_config.json"), "policy has no tokenizer_config.json."),
        (without("chat_template.jinja"), "policy has no chat template. Use an instruct model, or add one to it."),
        (without("model.safetensors"), "policy cannot be loaded"),
        (half_weights, "policy cannot be loaded"),
        (other_kind, "policy cannot be loaded"),
    ],
)
def test_model_folders(spoil, text, tiny_arguments, tiny_model, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(tiny_model, folder)
    spoil(folder)
    check_refused([*tiny_arguments, "--set", f"model={folder}", "--out", tmp_path / "run"], text)
    assert not list(tmp_path.glob("run/direct/iteration-0/*"))


# As processes


def test_a_message_of_a_phase_is_printed_once_and_its_exit_code_is_the_runs(tiny_arguments, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": \n')
    arguments = ["train", *tiny_arguments, "--prompts", path, "--out", tmp_path / "run"]
    done = tpo_lite(*arguments)
    assert done.returncode == 2
    assert done.stdout.count("bad.jsonl:2: not JSON") == done.stdout.count("error: ") == 1
    assert "Traceback" not in done.stdout
    debugged = tpo_lite(*arguments, "--debug")
    assert debugged.returncode == 2
    assert "Traceback" in debugged.stdout


def test_a_gpu_that_torch_does_not_see(tiny_run, tmp_path):
    run = unfinished(tiny_run, tmp_path / "run", "generate")
    RunFolder(run)._write_settled(RunFolder(run).load_settled(), Place(99))
    done = tpo_lite("generate", run)
    assert done.returncode == 2
    assert "error: --gpu was given, but torch" in done.stdout
    assert "Check `nvidia-smi`, install a CUDA build of torch, or use --cpu." in done.stdout
    assert "Traceback" not in done.stdout


def unfinished(tiny_run, root, phase):
    """A copy of the finished run as it was before `phase` of the first iteration."""
    shutil.copytree(tiny_run, root)
    folder = root / "direct" / "iteration-0"
    (folder / "done" / f"{phase}.json").unlink()
    made = folder / {"generate": "samples.jsonl", "dpo": "train", "fold": "adapter"}[phase]
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    return root


# The disk


@pytest.mark.parametrize("phase", ["generate", "dpo", "fold"])
def test_a_full_disk_loses_nothing(phase, tiny_run, tmp_path):
    """A limit on the size of a file stands for a full disk: the same system calls fail, halfway through a file."""
    run = unfinished(tiny_run, tmp_path / "run", phase)
    done = subprocess.run(
        command(phase, run),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: the disk is full. Free some space and run the same command again; nothing is lost." in done.stderr
    assert "Traceback" not in done.stderr
    assert not RunFolder(run).is_done(phase, "direct", 0)
    done = invoke(phase, run)
    assert done.exit_code == 0, done.output
    for name in ("samples.jsonl", "train/checkpoint-4/adapter_model.safetensors", "adapter/adapter_model.safetensors"):
        path = f"direct/iteration-0/{name}"
        assert (run / path).read_bytes() == (tiny_run / path).read_bytes()


# The run folder


def test_a_folder_that_another_run_works_in(tiny_run, tiny_arguments):
    with RunFolder(tiny_run).lock("run"):
        done = invoke("train", *tiny_arguments, "--out", tiny_run)
    assert done.exit_code == 1
    assert "is in use by process" in done.output
    assert "Wait until it ends, or give another --out." in done.output
    with RunFolder(tiny_run).lock("phase"):
        done = invoke("generate", tiny_run)
    assert done.exit_code == 1
    assert "is in use by process" in done.output


@pytest.mark.parametrize(
    ("phase", "iteration", "unfinished", "text"),
    [
        (
            "judge",
            0,
            "direct/iteration-0/done/generate.json",
            "comes after generate of iteration 0, which is not finished",
        ),
        ("select", 1, "direct/iteration-1/done/validate.json", "comes after validate of iteration 1"),
        ("generate", 1, "direct/iteration-0/done/fold.json", "comes after fold of iteration 0"),
        ("generate", 0, "instructions/done/prepare.json", "comes after prepare, which is not finished"),
    ],
)
def test_a_phase_out_of_order(phase, iteration, unfinished, text, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / unfinished).unlink()
    (run / "direct" / f"iteration-{iteration}" / "done" / f"{phase}.json").unlink()
    failed = invoke(phase, run, "--iteration", iteration)
    assert failed.exit_code == 2
    assert f"{phase} of direct, iteration {iteration}, {text}" in failed.output
    assert not RunFolder(run).is_done(phase, "direct", iteration)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--iteration", "2"], "this run has no iteration 2; it has 0 to 1"),
        (["--arm", "thinking"], "this run has no arm 'thinking'; it has direct"),
    ],
)
def test_a_phase_of_what_a_run_does_not_have(arguments, text, tiny_run):
    failed = invoke("generate", tiny_run, *arguments)
    assert failed.exit_code == 2 and text in failed.output


def test_a_checkpoint_that_was_deleted_is_trained_again(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    weights = run / "direct" / "iteration-1" / "train" / "checkpoint-2" / "adapter_model.safetensors"
    weights.unlink()
    for phase in PHASES[PHASES.index("validate") :]:
        (run / "direct" / "iteration-1" / "done" / f"{phase}.json").unlink()
    assert invoke("dpo", run, "--iteration", 1).exit_code == 0
    assert weights.read_bytes() == (tiny_run / weights.relative_to(run)).read_bytes()


def test_an_error_leaves_nothing_in_a_folder_that_is_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("tpo_lite.recipe.load_recipe", lambda *_: 1 / 0)
    failed = invoke("train", "--out", tmp_path / "run")
    assert failed.exit_code == 1 and "ZeroDivisionError" in failed.output and "--debug" in failed.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("recipe.yaml", "seed: [", "recipe.yaml is damaged (while parsing"),
        ("recipe.yaml", "sead: 1\n", "sead: unknown key (value 1); did you mean seed?"),
        ("settled.yaml", "version: [", "settled.yaml is damaged (while parsing"),
        ("settled.yaml", "version: 2\n", "settled.yaml has version 2, and this tpo_lite reads version 1. Go on with"),
        (
            "settled.yaml",
            "version: 1\ndevice: cuda\n",
            "device 'cuda' and gpu None do not fit together. Write `device: c",
        ),
        ("direct/iteration-0/done/judge.json", "{", "judge.json cannot be read (Expecting property name"),
        ("direct/iteration-0/done/seconds.json", "{", "seconds.json cannot be read (Expecting property name"),
    ],
)
def test_a_damaged_run_folder(file, content, text, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / file).write_text(content)
    done = invoke("status", run)
    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output
    assert "Traceback" in invoke("status", run, "--debug").output


@pytest.mark.parametrize(
    ("file", "reader"),
    [("samples.jsonl", "judge"), ("judgements.jsonl", "pair"), ("pairs.jsonl", "dpo"), ("validation.json", "fold")],
)
def test_a_damaged_file_is_named_and_mended_by_deleting_it(file, reader, tiny_run, tiny_arguments, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    damaged = run / "direct" / "iteration-0" / file
    damaged.write_text("{\n" + damaged.read_text())
    (run / "direct" / "iteration-0" / "done" / f"{reader}.json").unlink()
    done = train_here(*tiny_arguments, "--out", run)
    assert done.exit_code == 2
    assert str(damaged) in done.output
    assert "Delete" in done.output
    damaged.unlink()
    done = train_here(*tiny_arguments, "--out", run)
    assert done.exit_code == 0, done.output
    assert damaged.read_bytes() == (tiny_run / "direct" / "iteration-0" / file).read_bytes()
