"""`tpo-lite serve` and `tpo-lite chat` as a user meets them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from unittest.mock import patch

import httpx
import pytest
from click.testing import CliRunner

from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.tiny_run import command, invoke
from tpo_lite.cli import main
from tpo_lite.serving import server


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
