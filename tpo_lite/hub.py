"""Turns what a recipe calls a model or a judge into something on disk."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from tpo_lite.errors import InputError

ASSETS = Path(__file__).parent / "embedded" / "assets"
EMBEDDED_JUDGE_PROMPT = Path(__file__).parent / "embedded" / "judge_prompt.txt"


def model_path(name: str) -> str:
    """A folder or hub id that transformers loads. Raises `InputError` for a folder that is no model."""
    if name == "embedded":
        return str(ASSETS / "policy")
    path = Path(name).expanduser()
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "~")):
            return name  # a hub id; transformers reports it if the hub has none
        raise InputError(f"model: no folder {name!r}. Give a folder with config.json or a hub id (owner/name).")
    for file in ("config.json", "tokenizer_config.json"):
        if not (path / file).is_file():
            raise InputError(f"model: {path} has no {file}. Give a complete Hugging Face model folder.")
    return str(path)


def judge_path(name: str) -> Path:
    """The GGUF file of the judge; one on the hub is downloaded into the hub's cache.

    `hub:owner/repo/*Q4_K_M.gguf` takes the one file that fits.
    """
    if name == "embedded":
        return ASSETS / "judge.gguf"
    if name.startswith("hub:"):
        parts = name.removeprefix("hub:").split("/")
        if len(parts) < 3:
            raise InputError(f"judge.model: {name!r} is not hub:owner/repo/file.gguf.")
        return _from_hub("/".join(parts[:2]), "/".join(parts[2:]))
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"judge.model: no file {name!r}. Give a GGUF file or hub:owner/repo/file.gguf.")
    return path


def reward_model_path(name: str) -> str:
    """A folder or hub id that transformers loads; a hub id may be written with `hub:` before it."""
    if name == "embedded" or name.endswith(".gguf"):
        raise InputError(
            f"judge.model: {name} is a GGUF, which mode reward-model cannot read. Give a folder or hub id "
            "(owner/name) of a sequence-classification model, or take mode score."
        )
    try:
        return model_path(name.removeprefix("hub:"))
    except InputError as error:
        raise InputError(f"judge.{error}") from error


def _from_hub(repository: str, pattern: str) -> Path:
    """The one file of a hub repository whose name fits `pattern`, downloaded into the hub's cache."""
    import httpx
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if "*" not in pattern:
            return Path(hf_hub_download(repository, pattern))
        fits = [file for file in list_repo_files(repository) if fnmatch(file, pattern)]
        if len(fits) != 1:
            raise InputError(
                f"judge.model: {pattern!r} fits {len(fits)} files of {repository}, not one: {', '.join(fits)}."
            )
        return Path(hf_hub_download(repository, fits[0]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        raise InputError(
            f"judge.model: cannot download {pattern!r} of {repository} ({error}). Check the name and the network."
        ) from error


OTHER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What belongs to a model besides its weights: configuration, tokenizer, chat template."""


def local_folder(model: str) -> Path:
    """The folder of a model's files; a hub id is downloaded into the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", *OTHER_FILES]))
