"""The command line. Thin: every command reads its options and calls one function."""

from __future__ import annotations

import click

from tpo_lite.cli import chat, doctor, eval, judge, merge, phases, plan, recipes, report, serve, status, train, watch
from tpo_lite.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tpo-lite")
def main() -> None:
    """Thought Preference Optimization on one consumer GPU.

    `tpo-lite train` runs the whole loop: sample thoughts and responses, judge the responses, pair best and
    worst, train with DPO, fold the adapter, and again.
    """
    from tpo_lite.phases.process import keep_libraries_quiet

    keep_libraries_quiet()


for _command in (
    train.train,
    status.status,
    watch.watch,
    report.report,
    recipes.recipes,
    judge.judge,
    eval.evaluation,
    serve.serve,
    chat.chat,
    doctor.doctor,
    merge.merge_report,
    plan.plan,
    *phases.commands(),
):
    main.add_command(_command)
judge.judge.add_command(phases.judge_phase(judge.judge.phase))
