"""Help: every command in a section, with an example that its own parser takes; and completion in bash."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from tests.helpers.tiny_run import invoke
from tpo_lite.cli import main
from tpo_lite.cli.sections import EXAMPLES, REST, SECTIONS, Sectioned


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        here = f"{path} {name}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, here)
        else:
            yield here, command


def test_every_command_is_in_one_section():
    placed = [name for names in SECTIONS.values() for name in names]
    assert len(placed) == len(set(placed))
    assert main.commands.keys() - set(placed) == set()
    assert list(SECTIONS) == ["Start", "Look", "Judge", "Evaluate", "Share", "Single phases"]


def test_help_shows_the_sections_in_order():
    output = invoke("--help").output
    titles = [line[:-1] for line in output.splitlines() if line.endswith(":") and line[:-1] in SECTIONS]
    assert titles == [title for title, names in SECTIONS.items() if set(names) & main.commands.keys()]
    assert REST not in output
    shown = output.partition("\nStart:")[2]
    for name in main.commands:
        assert f"\n  {name} " in shown


def test_a_command_in_no_section_is_shown_last():
    group = Sectioned("main", commands=[click.Command("novel", help="Do it."), click.Command("train", help="Train.")])
    assert group.list_commands(click.Context(group)) == ["train", "novel"]
    assert group.get_help(click.Context(group)).endswith(f"{REST}:\n  novel  Do it.")


@pytest.mark.parametrize(("path", "command"), commands(main))
def test_every_command_has_an_example_that_it_parses(path, command):
    example = EXAMPLES[path]
    assert invoke(*path.split(), "--help").output.endswith(f"\n  Example:\n    tpo-lite {example}\n")
    words = shlex.split(example)
    context, arguments = click.Context(main), words
    found: click.Command = main
    while isinstance(found, click.Group):
        if arguments[0] not in found.commands:  # `judge RUN_DIR`
            arguments = [found.phase, *arguments]
        found, arguments = found.commands[arguments[0]], arguments[1:]
        context = click.Context(found, parent=context)
    assert found is command
    given, left, _ = command.make_parser(context).parse_args(list(arguments))
    assert left == []
    assert {p.name for p in command.params if p.required} <= {name for name, value in given.items() if value}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [("tpo-lite pla", ["plan"]), ("tpo-lite plan --card", ["--card-gb"]), ("tpo-lite eval ex", ["exact"])],
)
def test_bash_completes(line, expected, tmp_path):
    """The script that click writes is loaded into a real bash, which is asked as a press of Tab asks."""
    program = tmp_path / "tpo-lite"
    program.write_text(f"#!{sys.executable}\nfrom tpo_lite.cli import main\nmain(prog_name='tpo-lite')\n")
    program.chmod(0o755)
    words = line.split(" ")
    script = (
        f'export PATH="{tmp_path}:$PATH"\n'
        'eval "$(_TPO_LITE_COMPLETE=bash_source tpo-lite)"\n'
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        f"_tpo_lite_completion tpo-lite {words[-1]} {words[-2]}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected, done.stderr
