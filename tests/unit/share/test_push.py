"""`tpo-lite push`, against a stand-in for the hub that checks every request."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.helpers.stub_hub import TOKEN, metadata, stub_hub
from tests.helpers.tiny_run import invoke, tpo_lite
from tests.helpers.written_run import PLAIN, written_run
from tpo_lite.recipe import load_recipe
from tpo_lite.records import PromptSamples, read_jsonl, write_jsonl
from tpo_lite.run import RunFolder

BASE = "owner/base-model"
HOME = "/home/somebody/secret-project"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished run without adapters."""
    return written_run(tmp_path_factory.mktemp("written") / "run", PLAIN, test=True)


@pytest.fixture
def run(written, tmp_path):
    """A finished run with an adapter that says it was loaded from a local path, beside files that must not go up."""
    folder = RunFolder(Path(shutil.copytree(written.root, tmp_path / "run")))
    adapter = folder.iteration("thinking", 1) / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": HOME}))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (adapter / "README.md").write_text(f"base_model: {HOME}")
    (adapter / "optimizer.pt").write_bytes(b"state")
    (adapter / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (adapter / "tokenizer.json").symlink_to("/etc/hostname")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub at which the user is logged in."""
    with stub_hub() as found:
        found.repos[f"models/{BASE}"] = {"private": False, "cardData": {"license": "llama3.1"}}
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield found
        close_session()
        assert found.wrong == []


def push(run, *options, base=BASE):
    arguments = ["--base-model", base] if base else []
    return invoke("push", run.root, "--repo-id", "me/thinker", *arguments, *options)


def test_what_goes_up_is_the_card_the_recipe_and_the_adapter(run, hub):
    done = push(run)
    assert done.exit_code == 0, done.output
    files = hub.files["models/me/thinker"]
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml"]
    assert files["adapter_model.safetensors"] == b"weights" * 1000
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert hub.repos["models/me/thinker"] == {"private": True}
    assert "a model repository of me, private. What goes up" in done.output
    listed = [line.split()[0] for line in done.output.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(files)
    assert "Not sent: .env, README.md, optimizer.pt, tokenizer.json." in done.output
    assert done.output.splitlines()[-1] == f"{hub.url}/me/thinker"


def test_nothing_private_goes_up(run, hub):
    recipe = run.root / "settled.yaml"
    recipe.write_text(recipe.read_text().replace("model: embedded", f"model: {HOME}/weights", 1))
    asked = run.root / "recipe.yaml"
    asked.write_text(asked.read_text().replace("model: embedded", f"model: {HOME}/weights", 1))
    done = push(run)
    assert done.exit_code == 0, done.output
    for name, content in hub.files["models/me/thinker"].items():
        for secret in (TOKEN, "somebody", str(run.root)):
            assert secret.encode() not in content, name
    assert yaml.safe_load(hub.files["models/me/thinker"]["recipe.yaml"])["model"] == "weights"


def test_the_card(run, hub):
    assert push(run).exit_code == 0
    card = hub.files["models/me/thinker"]["README.md"].decode()
    assert metadata(card) == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "llama3.1",
        "pipeline_tag": "text-generation",
        "tags": ["tpo", "thought-preference-optimization", "dpo"],
    }
    assert "| M₂ | 100.0 % (44–100) |" in card
    assert card.count("\n```python\n") == 3
    for heading in ("## Use", "## Scores", "## Limits", "## Recipe"):
        assert heading in card
    assert "`Here is my response:`" in card
    assert "The chat template does not hold the thought prompt" in card
    shown = yaml.safe_load(card.partition("````yaml\n")[2].partition("\n````")[0])
    assert shown == yaml.safe_load(hub.files["models/me/thinker"]["recipe.yaml"])


def test_the_recipe_can_be_trained_again(run, hub, tmp_path):
    assert push(run).exit_code == 0
    (tmp_path / "again.yaml").write_bytes(hub.files["models/me/thinker"]["recipe.yaml"])
    assert load_recipe(str(tmp_path / "again.yaml")).model_dump() == run.load_recipe().model_dump()


def test_a_licence_of_its_own_has_a_name_and_a_link(run, hub):
    own = {"license": "other", "license_name": "nice", "license_link": "https://example.org/nice"}
    hub.repos[f"models/{BASE}"]["cardData"] = own
    assert push(run).exit_code == 0
    assert own.items() <= metadata(hub.files["models/me/thinker"]["README.md"].decode()).items()


def test_a_dataset_on_the_hub_is_named(run, hub):
    for path in (run.root / "settled.yaml", run.root / "recipe.yaml"):
        path.write_text(path.read_text().replace("source: embedded", "source: hub:owner/prompts:train", 1))
    assert push(run).exit_code == 0
    assert metadata(hub.files["models/me/thinker"]["README.md"].decode())["datasets"] == ["owner/prompts"]


def test_public_only_if_asked(run, hub):
    assert push(run, "--public").exit_code == 0
    assert hub.repos["models/me/thinker"] == {"private": False}
    refused = push(run)
    assert refused.exit_code == 2
    assert "error: push: me/thinker exists and is public. Give --public" in refused.output
    assert sum(line.endswith("/commit/main") for line in hub.log) == 1


def test_a_push_that_was_stopped_sends_only_what_is_missing(run, hub):
    hub.fail = {"/commit/": (403, "stop")}
    assert push(run).exit_code == 2
    assert len(hub.puts) == 1
    assert hub.files == {}
    hub.fail = {}
    again = push(run)
    assert again.exit_code == 0, again.output
    assert len(hub.puts) == 1
    assert "adapter_model.safetensors" in hub.files["models/me/thinker"]


def gguf_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thinker-Q4_K_M.gguf").write_bytes(b"GGUF" * 100)
    (folder / "template").write_text("{{ .Prompt }}")
    (folder / "params").write_text('{"stop": ["<|eot_id|>"]}')
    (folder / "Modelfile").write_text(f"FROM {HOME}")
    return folder


def test_a_gguf_is_laid_out_for_ollama(run, hub, tmp_path):
    done = push(run, "--gguf", "--folder", gguf_folder(tmp_path / "export"))
    assert done.exit_code == 0, done.output
    files = hub.files["models/me/thinker"]
    assert sorted(files) == ["README.md", "params", "recipe.yaml", "template", "thinker-Q4_K_M.gguf"]
    card = files["README.md"].decode()
    assert "\nollama run hf.co/me/thinker:Q4_K_M\n" in card
    assert {"base_model_relation": "quantized", "base_model": BASE}.items() <= metadata(card).items()


@pytest.mark.parametrize(("model", "code"), [("thinking M_2", 0), ("thinking M_1", 2), ("direct M_2", 2)])
def test_the_card_is_of_the_model_that_the_export_holds(model, code, run, hub, tmp_path):
    (gguf_folder(tmp_path / "export") / "export.json").write_text(json.dumps({"model": model}))
    done = push(run, "--gguf", "--folder", tmp_path / "export")
    assert done.exit_code == code, done.output
    assert (f"holds {model}, and the card would describe thinking M_2." in done.output) == (code == 2)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / "params").write_text("stop"), "params cannot be read"),
        (lambda folder: (folder / "params").write_text("[]"), "params is not a JSON object"),
        (lambda folder: (folder / "template").unlink(), "lacks template"),
        (lambda folder: (folder / "thinker-Q4_K_M.gguf").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "two-q4_k_m.gguf").write_bytes(b"x"), "has 2 files with Q4_K_M in their name"),
        (lambda folder: (folder / "thinker-Q4_K_M.gguf").rename(folder / "a-Q8_0.gguf"), "has 0 files with Q4_K_M"),
    ],
)
def test_a_gguf_that_ollama_would_not_take_is_refused(damage, text, run, hub, tmp_path):
    damage(gguf_folder(tmp_path / "export"))
    done = push(run, "--gguf", "--folder", tmp_path / "export")
    assert done.exit_code == 2
    assert text in done.output
    assert hub.log == []


def test_samples_and_pairs(run, hub):
    prompts = list(read_jsonl(run.iteration("thinking", 0) / "samples.jsonl", PromptSamples))
    object.__setattr__(prompts[0].instruction, "source", f"{HOME}/prompts.jsonl:7")
    write_jsonl(run.iteration("thinking", 0) / "samples.jsonl", prompts)
    done = push(run, "--dataset")
    assert done.exit_code == 0, done.output
    files = hub.files["datasets/me/thinker"]
    data = [f"thinking/iteration-{t}/{kind}.jsonl" for t in (0, 1) for kind in ("pairs", "samples")]
    assert sorted(files) == ["README.md", *data]
    assert files[data[0]] == (run.root / data[0]).read_bytes()
    rows = [json.loads(line) for line in files[data[1]].splitlines()]
    assert rows[0]["instruction"]["source"] == "prompts.jsonl:7"
    assert rows[1]["instruction"]["source"] == prompts[1].instruction.source
    card = files["README.md"].decode()
    assert metadata(card)["license"] == "apache-2.0"
    assert [each["config_name"] for each in metadata(card)["configs"]] == ["samples", "pairs"]
    assert "from `embedded`, under the licence `apache-2.0`" in card
    assert f"written by `{BASE}`" in card
    assert "Its licence, `llama3.1`," in card


def test_the_licence_of_instructions_from_a_file_has_to_be_given(run, hub):
    for path in (run.root / "settled.yaml", run.root / "recipe.yaml"):
        path.write_text(path.read_text().replace("source: embedded", f"source: {HOME}/mine.jsonl", 1))
    refused = push(run, "--dataset")
    assert refused.exit_code == 2
    assert "the hub does not say the licence of the instructions" in refused.output
    assert push(run, "--dataset", "--license", "cc-by-4.0").exit_code == 0
    card = hub.files["datasets/me/thinker"]["README.md"].decode()
    assert metadata(card)["license"] == "cc-by-4.0"
    assert "somebody" not in card


@pytest.mark.parametrize("options", [[], ["--dataset"]])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "you", "orgs": []}, "me/thinker is not yours. You may write to you; take one of these."),
        ({"name": "you", "orgs": [{"name": "me", "roleInOrg": "read"}]}, "me/thinker is not yours."),
        ({"auth": {"accessToken": {"role": "read"}}}, "the token of me may only read. Run `hf auth login`"),
        (
            {"auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": []}}}},
            "the token of me may not write to me/thinker.",
        ),
    ],
)
def test_who_may_not_write_is_told_before_anything_is_sent(change, text, options, run, hub):
    hub.user |= change
    done = push(run, *options)
    assert done.exit_code == 2
    assert text in done.output
    assert hub.log == ["GET /api/whoami-v2"]


def test_a_token_for_this_repository_is_enough(run, hub):
    scope = {"entity": {"type": "model", "name": "me/thinker"}, "permissions": ["repo.content.read", "repo.write"]}
    hub.user["auth"]["accessToken"] = {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}
    assert push(run).exit_code == 0


@pytest.mark.parametrize(
    ("part", "status", "code", "text"),
    [
        ("whoami", 401, 2, "the hub does not accept the login"),
        ("repos/create", 403, 2, "the hub does not let you write to me/thinker"),
        ("preupload", 403, 2, "the hub does not let you write to me/thinker"),
        ("PUT /storage", 403, 2, "the hub does not let you write to me/thinker"),
        ("commit", 413, 2, "the hub refuses me/thinker"),
        ("repos/create", 500, 1, "the hub failed with status 500"),
        ("validate-yaml", 400, 2, "Invalid metadata"),
    ],
)
def test_what_the_hub_refuses_is_one_message_without_the_token(part, status, code, text, run, hub):
    """The hub, or a proxy before it, repeats the token in its answer."""
    hub.fail = {part: (status, f"no: Bearer {TOKEN}")}
    done = push(run, "--debug")
    assert done.exit_code == code, done.output
    assert text in done.output
    assert done.output.count("error:") == 1
    assert TOKEN not in done.output
    assert not any(TOKEN in path.read_text() for path in (run.root / "log").glob("*"))
    assert hub.files == {}


def test_without_a_login(run, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    done = push(run)
    assert done.exit_code == 2
    assert "error: push: nobody is logged in. Run `hf auth login`" in done.output
    assert hub.log == []


def test_without_a_network(run, monkeypatch):
    with stub_hub() as gone:
        url = gone.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    done = push(run)
    assert done.exit_code == 1
    assert f"error: push: the hub at {url} does not answer" in done.output


def test_half_a_run(run, hub):
    run.done_path("fold", "thinking", 1).unlink()
    done = push(run)
    assert done.exit_code == 2
    assert "is not finished: 1 of 2 iterations are complete." in done.output
    assert hub.log == []


@pytest.mark.parametrize(
    ("options", "base", "text"),
    [
        ([], None, "the run's model 'embedded' is no id on the hub. Give the base as --base-model OWNER/NAME."),
        ([], "/models/base", "--base-model '/models/base' is no id on the hub"),
        (["--gguf"], BASE, "--gguf needs --folder"),
        (["--dataset", "--gguf"], BASE, "leave out --gguf and --folder"),
        (["--repo-id", "thinker"], BASE, "--repo-id 'thinker' is not USER/NAME"),
        (["--folder", "."], BASE, "holds neither an adapter nor a model"),
    ],
)
def test_bad_options(options, base, text, run, hub, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = push(run, *options, base=base)
    assert done.exit_code == 2, done.output
    assert text in done.output
    assert hub.log == []


def test_a_base_without_a_licence(run, hub):
    hub.repos[f"models/{BASE}"]["cardData"] = {}
    done = push(run)
    assert done.exit_code == 2
    assert f"the hub does not say the licence of {BASE}." in done.output
    assert push(run, "--license", "mit").exit_code == 0


def test_as_a_process_by_hf_endpoint(run, hub):
    """The hub is found by HF_ENDPOINT, and the token is in no argument, output or file."""
    done = tpo_lite(
        *("push", run.root, "--repo-id", "me/thinker", "--base-model", BASE),
        HF_ENDPOINT=hub.url,
        HF_TOKEN=TOKEN,
        HF_HUB_DISABLE_XET="1",
        NO_PROXY="127.0.0.1",
    )
    assert done.returncode == 0, done.stdout
    assert TOKEN not in done.stdout
    assert "README.md" in hub.files["models/me/thinker"]
    assert not any(TOKEN.encode() in path.read_bytes() for path in _files(run.root) if path.name != ".env")


def _files(folder):
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names if not (Path(root) / name).is_symlink())
