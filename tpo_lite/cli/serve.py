"""`tpo-lite serve`, and what it shares with `tpo-lite chat`: which model, and where it runs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import click

from tpo_lite.cli.errors import reporting
from tpo_lite.errors import InputError
from tpo_lite.kinds import ThoughtPrompt

if TYPE_CHECKING:
    from tpo_lite.serving.source import Source


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument that names a model, and the options that say how it is asked and where it runs."""
    for option in (
        click.option(
            "--context", type=click.IntRange(min=256), default=8192, show_default=True, help="Tokens in memory."
        ),
        click.option("--cpu", is_flag=True, help="Use no GPU."),
        click.option("--gpu", type=int, help="Index of the GPU to use, as nvidia-smi counts. [default: the run's]"),
        click.option(
            "--thought",
            type=click.Choice(get_args(ThoughtPrompt)),
            help="How to ask a model that is not a run's. [default: generic for an adapter, else direct]",
        ),
        click.argument("model"),
    ):
        command = option(command)
    return command


def find(model: str, thought: ThoughtPrompt | None, gpu: int | None, cpu: bool) -> tuple[Source, bool]:
    """Return the model, and whether it goes on a GPU; only after that may llama.cpp be imported.

    A run's model goes where the run worked if llama.cpp can, and another on the CPU.
    """
    from tpo_lite.machine.device import place_of
    from tpo_lite.sampling.engines import hindrance
    from tpo_lite.serving.source import find_source

    if cpu and gpu is not None:
        raise InputError("--gpu and --cpu exclude each other; give one.")
    source = find_source(model, thought)
    chosen = None if cpu else source.gpu if gpu is None else gpu
    if chosen is not None and (why := hindrance("gguf", "cuda")):
        if gpu is not None:
            raise InputError(f"--gpu {gpu}: the model {why}. Leave out --gpu, or install it.")
        click.echo(f"The run used GPU {chosen}; serving it {why}. It goes on the CPU.", err=True)
        chosen = None
    place = place_of(chosen)
    place.pin(os.environ)
    click.echo(f"loading {source.name} on {'the CPU' if chosen is None else f'GPU {chosen}'}", err=True)
    return source, place.gpu is not None


@click.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0: any free one.")
@click.option("--api-key", envvar="TPO_LITE_API_KEY", show_envvar=True, help="Key that clients must send.")
@click.option("--rows", type=click.IntRange(1, 256), default=16, show_default=True, help="Replies decoded together.")
@click.option("--queue", type=click.IntRange(min=0), default=64, show_default=True, help="More requests that may wait.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Longest reply.")
@click.option("--max-body", type=click.IntRange(min=1), default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option("--drop-thoughts", is_flag=True, help="Leave thoughts out of replies that do not ask for them.")
@reporting
def serve(
    model: str,
    thought: ThoughtPrompt | None,
    gpu: int | None,
    cpu: bool,
    context: int,
    host: str,
    port: int,
    api_key: str | None,
    rows: int,
    queue: int,
    max_tokens: int,
    max_body: int,
    drop_thoughts: bool,
    debug: bool,
) -> None:
    """Serve a model to OpenAI's clients: /v1/chat/completions, /v1/completions and /v1/models.

    MODEL is a run (RUN, RUN/thinking or RUN/thinking/iteration-0 for M_1), an adapter's folder, a GGUF, or a model's
    folder or hub id. Replies have the response as content and the thought as reasoning_content. Needs the extra serve.
    """
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        raise InputError("serving needs starlette and uvicorn. Run `pip install 'tpo_lite[serve]'`.")
    import asyncio

    from tpo_lite.serving.server import bind, is_loopback, server_of

    with bind(host, port) as listening:
        source, on_gpu = find(model, thought, gpu, cpu)
        from tpo_lite.serving.app import Limits, make_app
        from tpo_lite.serving.loaded import LoadedModel

        loaded = LoadedModel(source, gpu=on_gpu, context=context, rows=rows, queue=queue, longest=max_tokens)
        server = server_of(make_app(loaded, Limits(api_key, max_body, not drop_thoughts)))
        url = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        if api_key is None and not is_loopback(listening):
            click.echo("Everybody who reaches this machine can use the model: no --api-key is given.", err=True)
        listening.listen()  # so that nobody who reads the next line is refused
        click.echo(f"{source.name} is served at {url} (Ctrl-C ends it)")
        try:
            with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again, once it has stopped
                asyncio.run(server.serve(sockets=[listening]))
            click.echo("stopped")
        finally:
            loaded.close()
