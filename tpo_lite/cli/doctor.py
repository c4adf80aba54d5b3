"""`tpo-lite doctor`: is this machine ready for a run?"""

from __future__ import annotations

import dataclasses
import json
import sys

import click

from tpo_lite.cli.errors import reporting

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@reporting
def doctor(as_json: bool, debug: bool) -> None:
    """Check this machine and say how to fix what is wrong.

    Each line is ok, warn (some runs will fail or be slow) or fail. The exit code is 1 if a line fails.
    A missing GPU is no failure, since the embedded recipe runs without one.
    """
    from tpo_lite.machine.doctor import examine
    from tpo_lite.machine.probes import Machine

    checks = examine(Machine())
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    else:
        for check in checks:
            click.echo(f"{click.style(f'{check.status:<4}', fg=COLOURS[check.status])}  {check.name:<16} {check.found}")
            if check.remedy:
                click.echo(f"      {'':<16} {check.remedy}")
    sys.exit(1 if failed else 0)
