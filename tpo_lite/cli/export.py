"""`tpo-lite export`: an adapter, a merged model or GGUF files to give away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tpo_lite.cli.errors import reporting

if TYPE_CHECKING:
    from tpo_lite.machine.device import Device
    from tpo_lite.share.chosen import Chosen


@click.group("export")
def export() -> None:
    """Write a run's model for others: it thinks without a prompt of its own, and equals what was trained.

    Each export has a chat template with the thought prompt in it, and files for vLLM, llama.cpp, Ollama and LM Studio
    (docs/export.md). The command loads what it wrote and compares its log-probs with the run's model.
    """


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--gpu", type=int, help="Index of the GPU, as nvidia-smi counts. [default: the run's device]"),
        click.option("--base-model", metavar="NAME", help="The base's name in the files: a hub id (owner/name)."),
        click.option("--iteration", type=click.IntRange(min=0), help="t: export M_{t+1}. [default: the last finished]"),
        click.option("--arm", help="thinking or direct. [default: the run's first]"),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="Folder to make; it must not hold anything."
        ),
        click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False)),
    ):
        command = option(command)
    return command


@export.command()
@_options
@reporting
def adapter(run_dir: Path, debug: bool, **options: Any) -> None:
    """Write one LoRA adapter, of all iterations against the original base, for plain PeftModel.from_pretrained."""

    def write(chosen: Chosen, out: Path, device: Device) -> None:
        from tpo_lite.share.export import export_adapter

        export_adapter(chosen, out, device, click.echo)

    _export(run_dir, write, **options)


@export.command()
@_options
@reporting
def merged(run_dir: Path, debug: bool, **options: Any) -> None:
    """Write the whole model in 16 bits, merged a tensor at a time."""

    def write(chosen: Chosen, out: Path, device: Device) -> None:
        from tpo_lite.share.export import export_merged

        export_merged(chosen, out, device, click.echo)

    _export(run_dir, write, **options)


@export.command()
@_options
@click.option(
    "--type",
    "kind",
    type=click.Choice(["lora", "Q8_0", "Q4_K_M"]),
    default="lora",
    show_default=True,
    help="A LoRA for a GGUF of the base, or the merged model, quantized.",
)
@reporting
def gguf(run_dir: Path, kind: Literal["lora", "Q8_0", "Q4_K_M"], debug: bool, **options: Any) -> None:
    """Write a GGUF file for llama.cpp, Ollama and LM Studio."""

    def write(chosen: Chosen, out: Path, device: Device) -> None:
        from tpo_lite.share.export import export_gguf

        export_gguf(chosen, kind, out, device, click.echo)

    _export(run_dir, write, **options)


def _export(
    run_dir: Path,
    write: Callable[[Chosen, Path, Device], None],
    out: Path,
    arm: str | None,
    iteration: int | None,
    base_model: str | None,
    gpu: int | None,
) -> None:
    """Choose the model, show what is worth knowing, and write it with `write`."""
    from tpo_lite.machine.device import place_of
    from tpo_lite.run import RunFolder

    folder = RunFolder(run_dir)
    place = folder.load_place() if gpu is None else place_of(gpu)
    place.pin(os.environ)
    click.echo(f"reading {run_dir}")
    from tpo_lite.share.chosen import choose

    chosen = choose(folder, arm, iteration, base_model)
    click.echo(f"exporting {chosen.name}")
    for note in chosen.notes:
        click.echo(f"note: {note}")
    write(chosen, out, place.device)
    click.echo(f"{out}: {chosen.name}; SERVING.md says how to run it")
