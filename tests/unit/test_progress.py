"""Progress: a bar with rate and time left on a terminal, plain lines elsewhere."""

import io
import re
import time

import pytest

from tpo_lite import progress as module
from tpo_lite.progress import progress


class Terminal(io.StringIO):
    """What a terminal is to a program that writes on it."""

    def isatty(self):
        return True


def shown(monkeypatch, stream):
    """What `stream` holds after 2 of 6 units were there and 4 more came, in two steps."""
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress("direct 1 judge", 6, "prompts", 2) as advance:
        advance(1, "8 calls")
        advance(3, "9 calls")
    return stream.getvalue()


def test_plain_lines(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"direct 1 judge: 3/6 prompts, [\d.]+ prompts/s, \d+ s left 8 calls", lines[0])
    assert re.fullmatch(r"direct 1 judge: 6/6 prompts, [\d.]+ prompts/s, 0 s left 9 calls", lines[1])


def test_lines_come_seldom_but_the_last_always(monkeypatch):
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("direct 1 judge: 6/6 prompts")


def test_a_slow_unit_does_not_leave_a_reader_in_the_dark(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.02)
    with progress("direct 1 judge", 6, "prompts", 2) as advance:
        deadline = time.monotonic() + 30
        while "working" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        advance(4)
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"direct 1 judge: 2/6 prompts, working for \d+ s", lines[0])
    assert lines[-1].startswith("direct 1 judge: 6/6 prompts")
    assert all("working" in line for line in lines[:-1])


def test_a_bar_on_a_terminal(monkeypatch):
    text = shown(monkeypatch, Terminal())
    assert "direct 1 judge" in text
    assert "6/6" in text
    assert re.search(r"[\d.]+ prompts/s", text)
    assert "9 calls" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_an_error_inside_comes_out(stream, monkeypatch):
    monkeypatch.setattr("sys.stdout", stream())
    with pytest.raises(ZeroDivisionError), progress("direct 1 judge", 6, "prompts"):
        raise ZeroDivisionError
