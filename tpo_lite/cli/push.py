"""`tpo-lite push`."""

from __future__ import annotations

from pathlib import Path

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("run_dir", type=FOLDER)
@click.option("--repo-id", required=True, metavar="USER/NAME", help="Repository on the hub; it is made if need be.")
@click.option("--folder", type=FOLDER, help="An export of the run to push. [default: the run's last adapter or model]")
@click.option(
    "--gguf", is_flag=True, help="Push a GGUF that `ollama run hf.co/USER/NAME:Q4_K_M` takes. Needs --folder."
)
@click.option("--dataset", is_flag=True, help="Push the run's samples and pairs instead of a model.")
@click.option("--public", is_flag=True, help="For everyone to see. [default: private]")
@click.option("--base-model", metavar="OWNER/NAME", help="The base on the hub, if the run's model is a local one.")
@click.option(
    "--license", "licence", metavar="ID", help="The licence of the base, or with --dataset of the instructions."
)
@reporting
def push(
    run_dir: Path,
    repo_id: str,
    folder: Path | None,
    gguf: bool,
    dataset: bool,
    public: bool,
    base_model: str | None,
    licence: str | None,
    debug: bool,
) -> None:
    """Put a finished run's model, or its samples and pairs, on the Hugging Face Hub.

    First the login and what goes up are checked and listed; nothing else goes. A card is written with the run's
    figures, its recipe and its limits. After a stop, run the same command again. Log in with `hf auth login`.
    """
    from tpo_lite.run import RunFolder
    from tpo_lite.share.push import Wish, push_dataset, push_model

    if dataset and (gguf or folder is not None):
        raise InputError("--dataset takes the run's samples and pairs; leave out --gguf and --folder.")
    if gguf and folder is None:
        raise InputError("--gguf needs --folder with a GGUF export: a *Q4_K_M.gguf file, template and params.")
    wish = Wish(RunFolder(run_dir), repo_id, public, base_model, licence)
    address = push_dataset(wish, click.echo) if dataset else push_model(wish, folder, gguf, click.echo)
    click.echo(address)
