"""The card's snippets run: those in Python, on a tiny base and an adapter of it."""

import re

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tpo_lite.share.card import Facts
from tpo_lite.share.contents import read_folder
from tpo_lite.share.snippets import snippets
from tpo_lite.thoughts import DIRECT, GENERIC, THINK

BASE, REPO = "owner/base", "me/thinker"


def facts(kind, style=GENERIC, baked=False, tokenizer=False):
    return Facts(REPO, kind, BASE, {"license": "mit"}, baked, tokenizer, style)


def code_of(found, **folders):
    """The Python of three snippets, with folders here instead of repositories on the hub."""
    code = "\n".join(code for _, language, code in found if language == "python")
    for name, folder in folders.items():
        code = code.replace(f'"{ {"base": BASE, "repo": REPO}[name] }"', repr(str(folder)))
    return code


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter that names its base by a path here, as it does wherever its base is loaded from."""
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("style", [GENERIC, THINK, DIRECT])
def test_those_of_an_adapter_run(style, adapter, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = snippets(facts("adapter", style))
    assert len(found) == 3
    scope = {}
    exec(code_of(found, base=tiny_model, repo=adapter), scope)
    message = scope["messages"][0]["content"]
    assert message == style.prompt.replace("{instruction}", "Why is the sky blue?")
    assert scope["text"] in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.glob("merged/*")}
    assert read_folder(tmp_path / "merged", BASE, gguf=False).kind == "merged"


def test_those_of_a_merged_model_run(tiny_model, capsys):
    found = snippets(facts("merged", baked=True, tokenizer=True))
    assert len(found) == 3
    scope = {}
    exec(code_of(found, repo=tiny_model), scope)
    assert scope["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
    assert capsys.readouterr().out


def test_those_of_a_gguf_name_the_file_that_goes_up():
    found = snippets(facts("gguf", baked=True))
    assert [code for _, language, code in found if language == "sh"] == [
        f"ollama run hf.co/{REPO}:Q4_K_M",
        f"llama-server -hf {REPO}:Q4_K_M",
    ]
    python = code_of(found)
    compile(python, "snippet", "exec")
    assert re.search(r'filename="\*Q4_K_M\.gguf"', python)
