"""`tpo-lite serve` and `tpo-lite chat` as a user meets them."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
from unittest.mock import patch

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.helpers.tiny_gguf import byte_symbols, write_tiny_gguf
from tests.helpers.tiny_run import command, invoke
from tpo_lite.cli import chat, main
from tpo_lite.serving import server
from tpo_lite.serving.loaded import LoadedModel
from tpo_lite.serving.source import find_source
from tpo_lite.serving.talk import Talk


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model that says "Ok 5" to everything."""
    script = ("ĊĊ", "O", "k", "Ġ", "5", "<|eot_id|>")
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "ok.gguf", script=script)


def test_a_chat_through_a_pipe(file, tmp_path):
    history = tmp_path / "history.jsonl"
    with patch.dict(os.environ):
        arguments = ["chat", str(file), "--history", str(history)]
        done = CliRunner().invoke(main, arguments, input="Hi\n\n/nope\n/quit\nHi\n")
    assert done.exit_code == 0
    assert done.stdout == "Ok 5\n"
    assert done.stderr == "loading ok on the CPU\nerror: there is no command /nope. /help lists them.\n"
    assert len(history.read_text().splitlines()) == 1


def shown(*lines, file, width=100):
    """What a terminal is sent while a conversation about these lines goes on."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    source = find_source(str(file), "specific")  # what it says by itself is a thought
    talk = Talk(source, lambda source: LoadedModel(source, context=512))
    try:
        for line in lines:
            assert chat._obey(talk, line, console)
        return console.file.getvalue(), talk
    finally:
        talk.close()


def test_a_thought_hides_behind_a_spinner(file, capsys):
    sent, talk = shown("Hi", file=file)
    assert "thinking, 0.0 s" in sent
    assert "Ok 5" not in sent.partition(talk.answers[0].response)[0]
    assert talk.answers[0].thought == "Ok 5"
    sent, talk = shown("/thoughts", "Hi", file=file)
    assert "thinking, " not in sent
    assert "Ok 5" in sent.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert capsys.readouterr().out == "Thoughts are shown.\n"


def test_the_base_is_shown_beside_a_runs_model(tiny_run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    talk = Talk(find_source(str(tiny_run)), lambda source: LoadedModel(source, context=512))
    talk.command("/iter 1")
    assert chat._obey(talk, "old music", console)
    talk.close()
    sent = console.file.getvalue()
    assert "run-direct-M_1" in sent and "base" in sent
    assert talk.answers[1].end is not None


def test_a_terminal_does_not_obey_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    escape = byte_symbols()[27]
    file = write_tiny_gguf(tmp_path / "red.gguf", script=("ĊĊ", escape, "[", "3", "1", "m", "<|eot_id|>"))
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    talk = Talk(find_source(str(file)), lambda source: LoadedModel(source, context=512))
    assert chat._obey(talk, "Hi", console)
    talk.close()
    assert talk.answers[0].response == "\x1b[31m"
    assert "\x1b[31m" not in console.file.getvalue()


def test_a_server_starts_answers_and_ends(file):
    process = subprocess.Popen(
        command("serve", file, "--port", "0"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout.readline() == "loading ok on the CPU\n"
        line = process.stdout.readline()
        assert line.startswith("ok is served at http://127.0.0.1:")
        body = {"model": "ok", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        reply = httpx.post(f"{line.split()[4]}/chat/completions", json=body, timeout=30)
        assert reply.json()["choices"][0]["message"]["content"] == "Ok 5"
    finally:
        process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=30)[0]
    assert rest == "stopped\n"
    assert process.returncode == 0


def test_a_port_in_use_is_told_before_the_model_is_loaded(file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke("serve", file, "--port", port)
    assert done.exit_code == 2
    assert done.output == (f"error: port {port} of 127.0.0.1 is in use. Give another with --port, or end its server.\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("chat /nowhere", "error: model: no folder '/nowhere'."),
        ("chat embedded --cpu --gpu 0", "error: --gpu and --cpu exclude each other; give one."),
        ("chat embedded --thought loud", "'loud' is not one of"),
        ("serve /nowhere --port 0", "error: model: no folder '/nowhere'."),
        ("serve embedded --host 192.0.2.1 --port 0", "error: 192.0.2.1:0 cannot be used"),
        ("serve embedded --port 99999", "is not in the range"),
    ],
)
def test_bad_input(arguments, text):
    done = invoke(*arguments.split())
    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output


def test_serving_without_its_extra(file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = invoke("serve", file)
    assert done.exit_code == 2
    assert "Run `pip install 'tpo_lite[serve]'`." in done.output


def test_a_model_open_to_all_is_told_of(file, monkeypatch):
    class Server:
        async def serve(self, sockets):
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "server_of", lambda app: Server())
    open_to_all = "Everybody who reaches this machine can use the model: no --api-key is given."
    for more, told in [(["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "k"], False), ([], False)]:
        done = invoke("serve", file, "--port", "0", *more)
        assert (open_to_all in done.output) == told
        assert done.output.endswith("stopped\n")
        assert done.exit_code == 0


def test_a_damaged_model_is_one_message(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    done = invoke("chat", tmp_path / "m.gguf")
    assert done.exit_code == 2
    assert done.output.count("error: ") == 1 and "Traceback" not in done.output
