"""The run folder: what is kept, refused, locked and moved aside."""

import json
from datetime import date, datetime
from pathlib import Path

import pytest
import yaml

from tests.helpers.fake_nvidia import fake_nvidia_smi
from tests.helpers.tiny_run import start, train_here
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json, write_json
from tpo_lite.machine.device import CPU, Place
from tpo_lite.phase_order import phases_of
from tpo_lite.recipe import Recipe, load_recipe, with_keys
from tpo_lite.records import Instruction, JsonlAppender, read_jsonl
from tpo_lite.run import RunFolder
from tpo_lite.settled import SettledRecipe, as_settled, filled_from


def test_a_folder_remembers_its_recipe(tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(seed=5), new=False)
    assert run.load_settled() == SettledRecipe(seed=5)
    start(run, SettledRecipe(seed=5), new=False)  # the same again goes on


def test_changed_settings_are_refused_with_what_changed(tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(seed=5), new=False)
    run.mark_done("prepare", None, 0, {}, {})
    with pytest.raises(InputError, match=r"seed: 5 -> 6(.|\n)*--new"):
        start(run, SettledRecipe(seed=6), new=False)


def test_until_something_is_computed_settings_may_change(tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(seed=5), new=False)
    run.limit({"judge.batch": 32})
    start(run, SettledRecipe(seed=6), new=False)
    assert run.load_settled() == SettledRecipe(seed=6)
    assert run.limits == {}
    run.iteration("thinking", 0).mkdir(parents=True)
    with pytest.raises(InputError, match="seed: 6 -> 7"):
        start(run, SettledRecipe(seed=7), new=False)


def test_a_wrong_path_is_fixed_by_giving_another(tiny_arguments, tmp_path):
    (tmp_path / "few.txt").write_text("One.\nTwo.\n")
    for name, said in (("none.txt", "none.txt cannot be read"), ("few.txt", "there are 2 usable instructions")):
        done = train_here(*tiny_arguments, "--prompts", tmp_path / name, "--out", tmp_path / "run")
        assert done.exit_code == 2
        assert said in done.output


def test_the_folder_holds_what_was_asked_for_and_what_it_was_settled_to(tmp_path):
    run, settled = RunFolder(tmp_path / "run"), SettledRecipe(engine="gguf", seed=5)
    run.start(Recipe(engine="auto", seed=5), settled, Place(1), new=False)
    assert run.load_recipe() == Recipe(engine="auto", seed=5)
    assert run.load_started() == settled
    assert run.load_place() == Place(1)
    written = yaml.safe_load((run.root / "settled.yaml").read_text())
    assert written.pop("recipe") == settled.model_dump()
    assert written == {"version": 1, "device": "cuda", "gpu": 1, "date": run.load_day()}


def test_a_run_goes_on_with_its_values_on_another_device(tmp_path, capsys):
    run, settled = RunFolder(tmp_path / "run"), SettledRecipe(engine="gguf")
    run.start(Recipe(engine="auto"), settled, Place(1), new=False)
    run.mark_done("prepare", None, 0, {}, {})
    run.limit({"sampling.batch": 8})
    run.start(Recipe(engine="gguf"), settled, CPU, new=False)
    assert (run.load_place(), run.load_started(), run.load_recipe().engine) == (CPU, settled, "auto")
    assert run.load_settled().sampling.batch == 8
    with RunFolder(run.root).lock("run"), pytest.raises(TpoError, match="in use by process"):
        run.start(Recipe(engine="gguf"), settled, Place(0), new=False)
    assert run.load_place() == CPU
    assert capsys.readouterr().out == ""


OLD = SettledRecipe(seed=5, engine="gguf")


@pytest.fixture
def old_run(tmp_path):
    """A run folder as it was made before there was settled.yaml: recipe.yaml alone, with plain values."""
    run = RunFolder(tmp_path / "run")
    start(run, OLD)
    (run.root / "settled.yaml").unlink()
    run.mark_done("prepare", None, 0, {}, {})
    return run


@pytest.mark.parametrize("asked", [OLD, Recipe(seed=5)], ids=["the same", "auto"])
def test_an_old_folder_goes_on_with_its_own_values_and_says_so_once(asked, old_run, capsys):
    old_run.start(asked, filled_from(old_run.load_started(), asked), Place(2), new=False)
    line = (
        "was made by an earlier version of tpo_lite: its settings stay as they are, and settled.yaml now records them"
    )
    assert capsys.readouterr().out == f"{old_run.root} {line} and GPU 2.\n"
    assert (old_run.load_started(), old_run.load_place()) == (OLD, Place(2))
    old_run.start(asked, OLD, Place(2), new=False)
    assert capsys.readouterr().out == ""


def test_an_old_folder_refuses_other_settings_too(old_run):
    with pytest.raises(InputError, match=r"engine: 'gguf' -> 'transformers'(.|\n)*--new"):
        start(old_run, SettledRecipe(seed=5))
    assert not (old_run.root / "settled.yaml").exists()


def test_a_phase_by_hand_settles_an_old_folder_where_this_machine_suggests(old_run, tmp_path, monkeypatch, capsys):
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 3; echo 4")
    assert old_run.load_place() == Place(3)
    fake_nvidia_smi(tmp_path, monkeypatch, None)
    (tmp_path / "nvidia-smi").unlink()
    old_run.settle_old()
    assert capsys.readouterr().out.endswith("records them and the CPU.\n")
    assert old_run.load_place() == CPU


def test_a_folder_whose_open_values_are_lost_says_so(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start(Recipe(), SettledRecipe(), CPU, new=False)
    (run.root / "settled.yaml").unlink()
    with pytest.raises(
        InputError, match=r"settled.yaml is missing, and recipe.yaml leaves engine, quantize auto. Use --new"
    ):
        run.load_settled()


def without_quantize(path):
    """Make a file of a run as it was before `quantize` was a key."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.strip().startswith(("quantize: nf4", "dtype: "))))
    assert "quantize: nf4" not in path.read_text()


@pytest.mark.parametrize("settled", [True, False])
def test_a_base_from_before_quantize_was_a_key_is_in_nf4(tmp_path, settled):
    run = RunFolder(tmp_path / "run")
    run.start(Recipe(engine="gguf", quantize="nf4"), SettledRecipe(engine="gguf"), CPU, new=False)
    without_quantize(run.root / "recipe.yaml")
    without_quantize(run.root / "settled.yaml")
    if not settled:
        (run.root / "settled.yaml").unlink()
    assert run.load_settled().precision("cpu") == "nf4"
    filled = filled_from(run.load_started(), Recipe(engine="gguf"))  # the recipe says auto now
    run.start(Recipe(engine="gguf"), filled, CPU, new=False)
    assert run.load_settled() == SettledRecipe(engine="gguf")


def test_the_type_of_an_unquantized_base_is_recorded(tmp_path):
    run = RunFolder(tmp_path / "run")
    settled = SettledRecipe(engine="gguf", quantize="none", dtype="bfloat16")
    run.start(settled, settled, CPU, new=False)
    assert run.load_settled().precision("cpu") == run.load_settled().precision("cuda") == "bfloat16"
    assert filled_from(run.load_settled(), run.load_recipe()) == settled


def test_settings_do_not_change_under_another_run(tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(seed=5), new=False)
    with RunFolder(tmp_path / "run").lock("run"), pytest.raises(TpoError, match="in use by process"):
        start(run, SettledRecipe(seed=6), new=False)
    assert run.load_settled() == SettledRecipe(seed=5)


def test_limits_hold_for_what_runs_and_not_for_what_was_started(tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(), new=False)
    run.limit({"sampling.batch": 16})
    run.limit({"sampling.batch": 8, "judge.context": 4096})
    again = RunFolder(tmp_path / "run")
    assert again.limits == {"sampling.batch": 8, "judge.context": 4096}
    assert (again.load_settled().sampling.batch, again.load_settled().judge.context) == (8, 4096)
    assert again.load_started() == SettledRecipe()
    start(again, SettledRecipe(), new=False)


OUTPUTS = [
    ("prepare", "validation.jsonl"),
    ("generate", "samples.jsonl"),
    ("generate", "../base-validation.jsonl"),
    ("judge", "judgements.jsonl"),
    ("pair", "scores.jsonl"),
    ("pair", "pairs.jsonl"),
    ("dpo", "train/log.json"),
    ("dpo", "train/checkpoint-4/adapter_model.safetensors"),
    ("validate", "validation/checkpoint-4.jsonl"),
    ("select", "validation/checkpoint-4-vs-M_0.jsonl"),
    ("select", "validation.json"),
    ("generate", "../base-test.jsonl"),
    ("test", "test/answers.jsonl"),
    ("match", "test/M_2-vs-M_0.jsonl"),
    ("match", "../base-thinking-vs-direct.jsonl"),
    ("fold", "adapter/adapter_model.safetensors"),
    ("fold", "model/model-00002-of-00004.safetensors"),
]


@pytest.mark.parametrize(("phase", "name"), OUTPUTS)
def test_a_phase_whose_output_is_gone_is_not_finished(phase, name, tmp_path):
    run = RunFolder(tmp_path)
    arm = None if phase == "prepare" else "direct"
    output = run.done_path(phase, arm, 1).parent.parent / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    run.mark_done(phase, arm, 1, {}, {})
    assert run.is_done(phase, arm, 1)
    output.unlink()
    assert not run.is_done(phase, arm, 1)


def test_new_moves_the_old_folder_aside(tmp_path):
    run = RunFolder(tmp_path / "run")
    for seed in (1, 2, 3):
        start(run, SettledRecipe(seed=seed), new=True)
    kept = [RunFolder(tmp_path / name).load_settled().seed for name in ("run.old-1", "run.old-2", "run")]
    assert kept == [1, 2, 3]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for new in (False, True):
        with pytest.raises(InputError, match="neither empty nor a run folder"):
            start(RunFolder(tmp_path), SettledRecipe(), new)


@pytest.mark.parametrize("lock", ["run", "phase"])
def test_new_does_not_take_a_folder_from_under_a_run(lock, tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe(), new=False)
    with run.lock(lock), pytest.raises(TpoError, match="in use by process"):
        start(RunFolder(tmp_path / "run"), SettledRecipe(seed=1), new=True)
    assert run.load_settled().seed == 0 and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_new_in_the_folder_itself(tmp_path, monkeypatch):
    start(RunFolder(tmp_path / "run"), SettledRecipe(), new=False)
    monkeypatch.chdir(tmp_path / "run")
    start(RunFolder(Path(".")), SettledRecipe(seed=1), new=True)
    assert (tmp_path / "run.old-1" / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used .*Give another folder"):
        start(RunFolder(tmp_path / name), SettledRecipe(), new=False)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder(tmp_path).load_settled()


def test_the_lock_keeps_a_second_run_out_and_names_the_first(tmp_path):
    run = RunFolder(tmp_path)
    with run.lock("run"), pytest.raises(TpoError, match=r"in use by process \d+"), RunFolder(tmp_path).lock("run"):
        pass
    with run.lock("run"):
        pass  # given back


def test_seconds_of_a_phase_add_up_over_its_processes(tmp_path):
    run = RunFolder(tmp_path)
    for seconds in (2.0, 3.0):
        run.record_seconds("judge", "thinking", 1, seconds)
    run.record_seconds("judge", "direct", 1, 7.0)
    assert run.seconds("thinking", 1) == {"judge": 5.0}


def test_a_line_cut_off_by_a_kill_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "instructions.jsonl"
    first, second = (Instruction(str(n), f"Say {n}.", "test") for n in (1, 2))
    with JsonlAppender(path) as out:
        out.append(first, second)
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    assert list(read_jsonl(path, Instruction)) == [first]
    with JsonlAppender(path) as out:
        out.append(second)
    assert path.read_bytes() == data


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "instructions.jsonl"
    path.write_text('{"id": 1\n' + json.dumps(Instruction("2", "Say 2.", "test").to_dict()) + "\n")
    with pytest.raises(InputError, match=r"instructions.jsonl:1 is damaged"):
        list(read_jsonl(path, Instruction))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"a": [1, 2]})
    assert read_json(path) == {"a": [1, 2]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, 2]}
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]


class Later(datetime):
    """A clock on another day."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 4, tzinfo=tz)


def test_a_run_keeps_the_date_on_which_it_started(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    run.start(Recipe(), SettledRecipe(), CPU, new=False)
    assert run.load_day() == date.today()
    run._write_settled(SettledRecipe(), CPU, date(2026, 1, 3))
    monkeypatch.setattr("tpo_lite.run.datetime", Later)
    run.start(Recipe(), SettledRecipe(), CPU, new=False)
    assert run.load_day() == date(2026, 1, 3)
    run.mark_done("prepare", None, 0, {}, {})
    run.start(Recipe(), SettledRecipe(), Place(1), new=False)
    assert (run.load_day(), run.load_place()) == (date(2026, 1, 3), Place(1))


@pytest.mark.parametrize("computed", [False, True])
def test_a_folder_without_a_date_gets_one_when_it_goes_on(tmp_path, computed, monkeypatch):
    run = RunFolder(tmp_path / "run")
    run.start(Recipe(seed=5), SettledRecipe(seed=5), CPU, new=False)
    path = run.root / "settled.yaml"
    keys = yaml.safe_load(path.read_text())
    del keys["date"]
    path.write_text(yaml.safe_dump(keys))
    assert (run.load_day(), run.load_settled()) == (None, SettledRecipe(seed=5))
    run.limit({"judge.batch": 32})
    if computed:
        run.mark_done("prepare", None, 0, {}, {})
    monkeypatch.setattr("tpo_lite.run.datetime", Later)
    run.start(Recipe(seed=5), SettledRecipe(seed=5), CPU, new=False)
    assert run.load_day() == date(2026, 1, 4)
    assert (run.load_started(), run.limits) == (SettledRecipe(seed=5), {"judge.batch": 32})


def test_an_old_folder_has_no_date_until_it_is_settled(old_run):
    assert old_run.load_day() is None
    old_run.settle_old(CPU)
    assert old_run.load_day() == date.today()


@pytest.mark.parametrize("written", ["yesterday", "2026", "2026-01-31 12:00:00"])
def test_a_date_that_is_none_is_refused(written, tmp_path):
    run = RunFolder(tmp_path / "run")
    start(run, SettledRecipe())
    path = run.root / "settled.yaml"
    path.write_text(path.read_text().replace(f"date: {date.today()}", f"date: {written}"))
    with pytest.raises(InputError, match=r"settled.yaml: date .* is not a date. Write the day on which"):
        run.load_day()


def older(run: RunFolder) -> None:
    """Make a folder look as if a version without a test slice had begun it."""
    for path in (run.root / "recipe.yaml", run.root / "settled.yaml"):
        data = yaml.safe_load(path.read_text())
        del data.get("recipe", data)["instructions"]["test"]
        path.write_text(yaml.safe_dump(data))


def test_a_run_that_a_version_without_a_test_slice_began_goes_on_without_one(tmp_path):
    run, recipe = RunFolder(tmp_path / "run"), as_settled(load_recipe("embedded"))
    start(run, recipe)
    run.mark_done("prepare", None, 0, {}, {})
    older(run)
    assert recipe.instructions.test == 128
    begun = run.as_begun(recipe)
    assert run.load_started() == begun == with_keys(recipe, {"instructions.test": 0})
    assert run.load_recipe().instructions.test == 0
    start(run, begun, place=Place(1))  # which writes settled.yaml, and keeps recipe.yaml as it was
    assert run.as_begun(recipe) == begun == run.load_started()
    assert phases_of(begun)[-1] == "fold" and phases_of(recipe)[-1] == "match"


def test_a_folder_in_which_nothing_was_computed_takes_the_recipe_as_it_is(tmp_path):
    run, recipe = RunFolder(tmp_path / "run"), as_settled(load_recipe("embedded"))
    assert run.as_begun(recipe) == recipe
    start(run, recipe)
    older(run)
    start(run, run.as_begun(recipe))
    assert run.load_started().instructions.test == 128
