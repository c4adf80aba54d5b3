"""Which model a name means, what is refused, and that nothing of it touches a run."""

from __future__ import annotations

import fcntl
import json
import queue
import shutil
import struct
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Leaf
from tpo_lite.run import RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.serving.loaded import LoadedModel, Wishes, _adapter_gguf, baked_style, converted
from tpo_lite.serving.source import base_of, find_source, model_of_run
from tpo_lite.serving.streamed import Parts
from tpo_lite.thoughts import DIRECT, GENERIC, SPECIFIC, THINK

SEEDS = range(4)


def replies(source):
    """What it says to one question with each of a few seeds."""
    model, events = LoadedModel(source, context=512), queue.SimpleQueue()
    found = []
    for seed in SEEDS:
        wishes = Wishes(temperature=1.0, top_p=1.0, max_tokens=24, seed=seed)
        model.generator.submit(model.request("old music", [], wishes), events.put)
        response = ""
        while isinstance(event := events.get(timeout=30), Parts):
            response += event.response
        found.append(response)
    model.close()
    assert any(found)
    return found


@pytest.fixture(scope="module")
def loud_run(tiny_run, tmp_path_factory):
    """A copy of the finished run whose last adapter changes every output."""
    root = shutil.copytree(tiny_run, tmp_path_factory.mktemp("loud") / "run")
    folder = RunFolder(root)
    weights = folder.iteration("direct", folder.trained("direct", 2) - 1) / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: 20 * value if "lora_B" in name else value for name, value in tensors.items()}, weights)
    return root


def files(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_a_run_is_its_last_model_and_stays_as_it_is(loud_run):
    before = files(loud_run)
    last = RunFolder(loud_run).trained("direct", 2)
    found = find_source(str(loud_run))
    assert (found.name, found.style, found.budget) == ("run-direct-M_2", DIRECT, None)
    assert found.policy == policy(RunFolder(loud_run), RunFolder(loud_run).load_settled(), "direct", 2)
    assert found.sampling.max_new_tokens == 24
    adapter = loud_run / "direct" / f"iteration-{last - 1}" / "adapter"
    for name in (loud_run / "direct", loud_run / "direct" / "iteration-1"):
        assert find_source(str(name)) == found
    assert find_source(str(adapter)).policy.adapter == adapter
    assert find_source(str(loud_run / "direct" / "iteration-0")).name == "run-direct-M_1"
    assert replies(found) != replies(base_of(found))
    assert files(loud_run) == before


def test_a_runs_model_replies_as_the_decoder_with_its_adapter_does(loud_run, tmp_path):
    """The same prompt, base and adapter, decoded by `LlamaCpp`."""
    found = find_source(str(loud_run))
    model = LoadedModel(found, context=512)
    prompt = model.request("old music", [], Wishes()).prompt
    chat, stops = model.generator.chat, model.generator.stops
    model.close()
    adapter = _adapter_gguf(found.policy.model, found.policy.adapter, tmp_path)
    base = converted(found.policy.model, found.weights)
    decoder = LlamaCpp(base, n_ctx=512, n_seq_max=1, n_threads=1, kv_unified=True, adapter=adapter)
    plans = [Continuation(24, 1.0, seed=seed, stop_tokens=stops) for seed in SEEDS]
    decoded = [decoder.decode([Leaf(prompt, plan)])[0].tokens for plan in plans]
    texts = [chat.text([token for token in tokens if token not in stops]).strip() for tokens in decoded]
    assert replies(found) == texts


def test_models_of_a_run_by_number(loud_run):
    of_run = find_source(str(loud_run)).of_run
    assert model_of_run(replace(of_run, number=0)).policy.adapter is None
    for number in (-1, 3):
        with pytest.raises(InputError, match="has M_0 to M_2 of direct. Give one of these numbers."):
            model_of_run(replace(of_run, number=number))


def test_a_base_is_converted_once(loud_run, cache):
    found = find_source(str(loud_run))
    first = converted(found.policy.model, "F16")
    stamp = first.stat().st_mtime_ns
    assert converted(found.policy.model, "F16") == first
    assert (first.parent, first.stat().st_mtime_ns) == (cache, stamp)
    assert converted(found.policy.model, "Q4_K_M") != first


def test_an_adapter_alone_brings_its_base(loud_run, tmp_path, tiny_model):
    inside = find_source(str(loud_run))
    adapter = shutil.copytree(inside.policy.adapter, tmp_path / "mine")
    found = find_source(str(adapter), "direct")
    assert (found.name, found.policy.model, found.style) == ("mine", str(tiny_model), DIRECT)
    assert replies(found) == replies(inside)
    assert find_source(str(adapter)).style == GENERIC
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, message in [(None, "names no base_model_name_or_path"), ("./gone", "no folder './gone'")]:
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(InputError, match=message):
            find_source(str(adapter))


def test_models_and_ggufs(tiny_model, tmp_path):
    assert find_source(str(tiny_model)).style == DIRECT
    assert find_source("embedded", "generic").style == GENERIC
    file = write_tiny_gguf(tmp_path / "some.gguf")
    found = find_source(str(file), "think")
    assert (found.name, found.style, found.policy.gguf) == ("some", THINK, file)
    with pytest.raises(InputError, match="no folder '/nowhere'"):
        find_source("/nowhere")
    with pytest.raises(InputError, match="no file '/nowhere.gguf'"):
        find_source("/nowhere.gguf")


def test_a_run_that_goes_on_is_left_alone(tiny_run, tmp_path):
    root = shutil.copytree(tiny_run, tmp_path / "run")
    with open(root / ".phase.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="run is still going.*Wait until it ends"):
            find_source(str(root))
    assert find_source(str(root)).name == "run-direct-M_2"


def test_half_a_run_and_a_run_of_an_older_version(tiny_run, tmp_path):
    root = shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(InputError, match="--thought generic is given, but .* is a run, which has its own"):
        find_source(str(root), "generic")
    shutil.rmtree(root / "direct" / "iteration-1")
    assert find_source(str(root)).name == "run-direct-M_1"
    (root / "settled.yaml").unlink()
    assert find_source(str(root)).name == "run-direct-M_1"
    assert not (root / "settled.yaml").exists()
    (root / "settled.yaml").write_text("version: 0\n")
    with pytest.raises(InputError, match="has version 0, and this tpo_lite reads version 1"):
        find_source(str(root))
    (root / "settled.yaml").unlink()
    shutil.rmtree(root / "direct" / "iteration-0")
    with pytest.raises(InputError, match="direct is not a finished iteration. Go on with the run"):
        find_source(str(root))
    with pytest.raises(InputError, match="is not an arm of a run"):
        find_source(str(root / "instructions"))


def template(content):
    """A chat template that writes this for a turn's content."""
    turn = f"<|start_header_id|>{{{{ message['role'] }}}}<|end_header_id|>{content}<|eot_id|>"
    return f"{{% for message in messages %}}{turn}{{% endfor %}}"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template"),
        (template("{{ message['content'][:1] }}"), "does not show the user's text exactly once"),
        ("{{ raise_exception('no') }}", "the chat template cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(chat_template, message, tmp_path):
    file = write_tiny_gguf(tmp_path / "m.gguf", chat_template=chat_template)
    with pytest.raises(InputError, match=message):
        LoadedModel(find_source(str(file)))


def test_a_damaged_gguf_is_refused(tmp_path):
    file = write_tiny_gguf(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as a GGUF"):
        LoadedModel(find_source(str(file)))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0))
    with pytest.raises(InputError, match="cannot be read as a GGUF|tokenizer of type None"):
        LoadedModel(find_source(str(file)))


def test_a_template_that_asks_for_thoughts_itself_is_not_extended(tmp_path):
    before, _, after = SPECIFIC.prompt.partition("{instruction}")
    baked = template(before + "{{ message['content'] | trim }}" + after)
    baked += "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
    assert baked_style(baked) == SPECIFIC
    model = LoadedModel(find_source(str(write_tiny_gguf(tmp_path / "m.gguf", chat_template=baked))))
    text = model.generator.chat.text(model.request("Hi", [], Wishes()).prompt)
    assert model.style == SPECIFIC
    assert text.count("Respond to the following") == 1
    model.close()
    assert baked_style(template("<think></think>")) is None
