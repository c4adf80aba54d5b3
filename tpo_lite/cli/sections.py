"""The help of `tpo-lite`: commands in sections, and an example in the help of each."""

from __future__ import annotations

from collections.abc import Iterator

import click

SECTIONS = {
    "Start": ("init", "doctor", "plan", "train", "recipes"),
    "Look": ("status", "watch", "report", "merge-report"),
    "Judge": ("judge",),
    "Evaluate": ("eval", "compare", "classify"),
    "Share": ("export", "push", "chat", "serve"),
    "Single phases": (
        *("prepare", "warm-sample", "warm-start", "generate", "pair", "dpo", "validate", "select", "crosscheck"),
        *("fold", "test", "match"),
    ),
}
"""The commands of `tpo-lite` by section, in the order in which help shows them."""

REST = "More"
"""The section of a command that is in none."""

EXAMPLES = {
    "init": "init --card-gb 24 --hours 8 --data my_prompts.jsonl",
    "doctor": "doctor",
    "plan": "plan --card-gb 24",
    "train": "train --recipe recipe.yaml --gpu 0 --out runs/mine",
    "recipes list": "recipes list",
    "recipes show": "recipes show llama-3.1-8b-24gb",
    "status": "status runs/mine",
    "watch": "watch runs/mine",
    "report": "report runs/mine",
    "merge-report": "merge-report runs/mine",
    "judge phase": "judge runs/mine --iteration 1",
    "judge run": "judge run pairs.jsonl --judge judge.gguf --out judged.jsonl",
    "judge stats": "judge stats outputs.jsonl --gold labels.jsonl",
    "judge calibrate": "judge calibrate pairs.jsonl --judge judge.gguf",
    "eval alpaca": "eval alpaca --annotations annotations.json",
    "eval annotate": "eval annotate model_outputs.json reference.json --judge judge.gguf --out judged",
    "eval arena": "eval arena --battles model_judgment/gpt-4.1",
    "eval answer": "eval answer runs/mine/thinking --questions questions.jsonl --out answers",
    "eval exact": "eval exact model_outputs.json --questions gsm8k.jsonl",
    "eval ifeval": "eval ifeval model_outputs.json --prompts input_data.jsonl",
    "eval versus": "eval versus runs/mine/thinking runs/mine/direct --judge judge.gguf --out versus",
    "eval best-of": "eval best-of runs/mine",
    "eval majority": "eval majority runs/mine",
    "eval swap-thoughts": "eval swap-thoughts runs/mine",
    "compare": "compare runs/mine runs/other",
    "classify": "classify everyday --model judge.gguf --out categories.jsonl",
    "export adapter": "export adapter runs/mine --out exported",
    "export merged": "export merged runs/mine --out exported",
    "export gguf": "export gguf runs/mine --type Q4_K_M --out exported",
    "push": "push runs/mine --repo-id me/my-thinker",
    "chat": "chat runs/mine",
    "serve": "serve runs/mine",
    **{name: f"{name} runs/mine" for name in SECTIONS["Single phases"]},
}
"""An example of each command, without the program's name."""


class Sectioned(click.Group):
    """A group whose help shows its commands in `SECTIONS`, and an example with each of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the sections, the ones that are in none last."""
        return [name for _, names in self.sections() for name in names]

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each section that has commands with their names."""
        for title, names in SECTIONS.items():
            if there := [name for name in names if name in self.commands]:
                yield title, there
        placed = {name for names in SECTIONS.values() for name in names}
        if rest := sorted(self.commands.keys() - placed):
            yield REST, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of commands for each section."""
        width = max(map(len, self.commands), default=0)
        limit = formatter.width - width - 6
        for title, names in self.sections():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)


def add_examples(group: click.Group, path: str = "") -> None:
    """Put the example of every command below `group` at the end of its help, if it has none."""
    for name, command in group.commands.items():
        here = f"{path} {name}".strip()
        if isinstance(command, click.Group):
            add_examples(command, here)
        if (example := EXAMPLES.get(here)) and command.epilog is None:
            command.epilog = f"\b\nExample:\n  tpo-lite {example}"
