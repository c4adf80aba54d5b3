"""The command line. Thin: every command reads its options and calls one function."""

from __future__ import annotations

import click

from tpo_lite.cli import (
    chat,
    classify,
    compare,
    controls,
    doctor,
    eval,
    export,
    init,
    judge,
    merge,
    phases,
    plan,
    push,
    recipes,
    report,
    serve,
    status,
    train,
    watch,
)
from tpo_lite.cli.sections import Sectioned, add_examples
from tpo_lite.version import __version__


@click.group(cls=Sectioned, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tpo-lite")
def main() -> None:
    """Thought Preference Optimization on one consumer GPU.

    `tpo-lite train` runs the whole loop: sample thoughts and responses, judge the responses, pair best and
    worst, train with DPO, fold the adapter, and again.
    """
    from tpo_lite.phases.process import keep_libraries_quiet

    keep_libraries_quiet()


for _command in (
    init.init,
    train.train,
    status.status,
    watch.watch,
    report.report,
    recipes.recipes,
    judge.judge,
    eval.evaluation,
    compare.compare,
    classify.classify,
    export.export,
    push.push,
    chat.chat,
    serve.serve,
    doctor.doctor,
    merge.merge_report,
    plan.plan,
    *phases.commands(),
):
    main.add_command(_command)
for _control in (controls.best_of, controls.majority, controls.swap_thoughts):
    eval.evaluation.add_command(_control)
judge.judge.add_command(phases.judge_phase(judge.judge.phase))
add_examples(main)
